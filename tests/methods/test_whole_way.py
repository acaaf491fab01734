"""Methods through the package: interrupted trainings, several labels, the folder of a run."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import infodisent
from infodisent.data.images import scan_folder
from infodisent.explanations.local import explain
from infodisent.report.publish import report_run
from infodisent.training import fit as fitting
from infodisent.training.fit import FitConfig, fit_head, new_head
from infodisent.training.run import evaluate_run, fit, open_run

SMALL = {
    "tesnet": {"per_class": 2, "dimension": 16},
    "st_protopnet": {"per_class": 1, "dimension": 8, "variant": "cropped"},
    "protoquant": {"codes": 12},
}
CONFIG = FitConfig(epochs=3, batch_size=16, rotation_lr=0.02)


@pytest.mark.parametrize("method", SMALL)
def test_interrupted_training_ends_alike(tmp_path, store, monkeypatch, method):
    def build():
        return new_head(store.channels, 2, 0, method=method, drop_rate=0.2, **SMALL[method])

    # one stage takes all epochs that are given, two have 20 more of the last
    config = dataclasses.replace(CONFIG, epochs=8) if method == "protoquant" else CONFIG
    whole = build()
    expected = fit_head(whole, store, config, progress=False)
    plain = fitting.save_state
    for stop in (2, 5):  # within the first stage, and within the last
        state = tmp_path / f"{stop}.safetensors"

        def dies(path, run, head, optimizer, history, stop=stop):
            plain(path, run, head, optimizer, history)
            if len(history) == stop:
                raise KeyboardInterrupt

        monkeypatch.setattr(fitting, "save_state", dies)
        with pytest.raises(KeyboardInterrupt):
            fit_head(build(), store, config, state=state, progress=False)
        monkeypatch.setattr(fitting, "save_state", plain)
        resumed = build()
        assert fit_head(resumed, store, config, state=state, progress=False) == expected
        for name, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize("method", SMALL)
def test_several_labels(store, method):
    more = {"protoquant": {"bias": True}, "tesnet": {"activation": "none"}}.get(method, {})
    head = new_head(store.channels, 2, 0, method=method, **SMALL[method], **more)
    labels = with_a_second(store.labels)
    store.task, store.labels = "multilabel", labels
    history = fit_head(
        head, store, FitConfig(epochs=40, batch_size=64, rotation_lr=0.02), progress=False
    )
    assert history[-1]["accuracy"] > 0.9


def with_a_second(labels):
    """The class, and a label that half of one class has besides."""
    several = torch.nn.functional.one_hot(labels, 2).float()
    several[(labels == 0).nonzero()[::8, 0], 1] = 1
    return several


@pytest.mark.parametrize(
    "method",
    ["st_protopnet", *(pytest.param(m, marks=pytest.mark.slow) for m in ("tesnet", "protoquant"))],
)
def test_a_run(tmp_path, image_folder, method):
    torch.manual_seed(0)
    model = infodisent.attach("test_resnet", 2, method=method, **SMALL[method]).eval()
    run = fit(model, scan_folder(image_folder), tmp_path / "run", CONFIG, keep=2, progress=False)
    assert run.metrics["rows"][1]["head"] == model.head.title
    loaded, prototypes, _ = open_run(tmp_path / "run")
    assert prototypes.channels == loaded.model.head.num_features
    assert loaded.model.head.options() == model.head.options()
    for name, value in model.head.state_dict().items():
        assert torch.equal(value, loaded.model.head.state_dict()[name]), name
    assert evaluate_run(tmp_path / "run")["rows"][0] == run.metrics["rows"][1]
    evidence = explain(loaded, next((image_folder / "red").glob("*.png")))
    assert evidence.unit == model.head.unit
    assert abs(evidence.total - evidence.logit) <= 1e-3
    assert evidence.shown
    page = report_run(run, count=2, progress=False)
    assert page.stat().st_size > 10_000
