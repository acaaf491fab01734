"""A backbone that trains with the head: it gets gradients, resumes bit for bit, and is saved."""

from __future__ import annotations

import pytest
import torch

import infodisent
from infodisent.data.augmentation import Augmentation
from infodisent.data.extraction import extract
from infodisent.data.images import scan_folder
from infodisent.data.store import FeatureStore
from infodisent.explanations.local import explain
from infodisent.training import epochs
from infodisent.training import fit as fitting
from infodisent.training.config import FitConfig
from infodisent.training.fit import fit_head, new_head
from infodisent.training.live_cost import step_cost
from infodisent.training.maps import LiveMaps, StoredMaps
from infodisent.training.run import evaluate_run, fit, open_run

CPU = torch.device("cpu")
CONFIG = FitConfig(epochs=2, batch_size=8, backbone_lr=1e-3)
METHODS = {
    "infodisent": {},
    "protopnet": {"per_class": 2, "dimension": 6},
    "pipnet": {"num_prototypes": 0, "pretraining": 1},
}


def build(method="infodisent", **options):
    torch.manual_seed(1)  # always the same weights
    return infodisent.attach("test_resnet", 2, method=method, input_size=64, **options).eval()


@pytest.fixture
def model():
    return build


@pytest.fixture
def store(tmp_path, image_folder):
    return extract(build(), scan_folder(image_folder), tmp_path / "features", progress=False)


def start(model, store):
    return LiveMaps(store, model.backbone, Augmentation())


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("method", ["protopnet", "pipnet"])
def test_a_run_of_every_kind_of_method(tmp_path, image_folder, model, method):
    built = model(method, **METHODS[method])
    before = state(built.backbone)
    run = fit(built, image_folder, tmp_path / "run", CONFIG, train_backbone=True, progress=False)
    after = state(built.backbone)
    assert not same(before, after)
    statistics = [name for name in before if "running" in name]
    assert statistics
    assert all(torch.equal(before[name], after[name]) for name in statistics)
    loaded, prototypes, again = open_run(tmp_path / "run")
    assert same(loaded.model.state_dict(), built.state_dict())
    assert loaded.model.backbone.num_classes == 0  # the original classifier fits it no more
    assert again.trained_store().path.name == "features-trained"
    assert evaluate_run(tmp_path / "run")["rows"][0] == run.metrics["rows"][-1]
    assert prototypes.channels == built.head.num_features
    file = next((image_folder / "red").glob("*.png"))
    evidence = explain(loaded, file)
    assert abs(evidence.total - evidence.logit) < 1e-3
    stored = FeatureStore(tmp_path / "run" / "features-trained")
    at = stored.files.index(str(file))
    with torch.no_grad():
        logits = loaded.model.head(stored.gather(torch.tensor([at])), input_fmt="NLC")[0]
    torch.testing.assert_close(evidence.logits, logits, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize(("method", "stop"), [("infodisent", 1), ("pipnet", 5)])
def test_interrupted_training_ends_the_same(tmp_path, store, model, monkeypatch, method, stop):
    def train(**options):
        built = model(method, **METHODS[method])
        head = new_head(store.channels, 2, 0, built.head, **{**METHODS[method], "drop_rate": 0.1})
        history = fit_head(head, store, CONFIG, live=start(built, store), progress=False, **options)
        return history, state(head), state(built.backbone)

    expected = train()
    plain, file = fitting.save_state, tmp_path / "state.safetensors"

    def dies(path, run, head, optimizer, history, **extra):
        plain(path, run, head, optimizer, history, **extra)
        if len(history) == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "save_state", dies)
    with pytest.raises(KeyboardInterrupt):
        train(state=file)
    monkeypatch.setattr(fitting, "save_state", plain)
    resumed = train(state=file)
    assert resumed[0] == expected[0]
    assert same(expected[1], resumed[1])
    assert same(expected[2], resumed[2])


def test_a_state_of_other_copies_is_refused(tmp_path, store, model):
    file, config = tmp_path / "state.safetensors", FitConfig(epochs=1, batch_size=16)
    for augmentation in (Augmentation(), Augmentation(colour=0)):
        built = model()
        live = LiveMaps(store, built.backbone, augmentation)
        if not augmentation.colour:
            with pytest.raises(ValueError, match="augmentation was"):
                fit_head(built.head, store, config, live=live, state=file, progress=False)
            return
        fit_head(built.head, store, config, live=live, state=file, progress=False)


@pytest.mark.parametrize("method", ["infodisent", "protopnet"])
def test_parts_of_a_batch_are_the_batch(store, model, method):
    """Of a mean the parts are added up, of any other loss each is passed again."""
    ends, passed = [], []
    for parts in (1, 3):
        built = model(method, **METHODS[method])
        live, config = start(built, store), FitConfig(epochs=1, batch_size=8, accumulate=parts)
        made = live.made
        live.made = lambda images, made=made: passed.append(len(images)) or made(images)
        head = new_head(store.channels, 2, 0, built.head, **METHODS[method])
        fit_head(head, store, config, live=live, progress=False)
        ends.append({**state(built.backbone), **state(head)})
    assert max(passed[: len(passed) // 3]) == 8
    assert max(passed[-4:]) <= 3
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-3, atol=2e-4, equal_nan=True)


def test_the_best_epoch_has_its_backbone(store, model, monkeypatch):
    losses = iter([0.5, 0.4, 0.6, 0.7])
    monkeypatch.setattr(epochs, "validate", lambda *a: {"validation_loss": next(losses)})
    built, kept = model(), []
    config = FitConfig(epochs=4, batch_size=8, validation=0.3, patience=4, backbone_lr=0.01)
    options = {"callbacks": [lambda *_: kept.append(state(built.backbone))], "progress": False}
    fit_head(new_head(store.channels, 2, 0), store, config, live=start(built, store), **options)
    assert not same(kept[1], kept[3])
    assert same(kept[1], state(built.backbone))


def test_steps_see_augmented_images_and_stages_of_fixed_pools_plain_ones(store, model):
    built = model()
    live, order = start(built, store), store.indices("train")
    plain = dict(zip(order.tolist(), StoredMaps(store).store.gather(order), strict=True))
    torch.testing.assert_close(
        live.store.gather(order), torch.stack([*plain.values()]), rtol=2e-3, atol=2e-3
    )
    first, second = ([live.made(x) for _, x in live.epoch(order, 8, 1, n, CPU)] for n in (0, 1))
    assert first[0].requires_grad
    assert not torch.equal(first[0], second[0])
    again = [live.made(images) for _, images in live.epoch(order, 8, 1, 0, CPU)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    (_, images), *_ = live.epoch(order, 8, 2, 0, CPU)
    pair = live.made(images)
    assert len(pair) == 16
    near = [(pair[i] - pair[8 + i]).norm() for i in range(8)]
    far = [(pair[i] - pair[8 + (i + 3) % 8]).norm() for i in range(8)]
    assert sum(near) < sum(far)


def test_the_backbone_has_its_own_rate(store, model, monkeypatch):
    seen = {}
    plain = epochs.Training._groups

    def groups(self, stage):
        made = plain(self, stage)
        seen[stage.name] = [(len(group["params"]), group["lr"]) for group in made]
        return made

    monkeypatch.setattr(epochs.Training, "_groups", groups)
    built = model("pipnet", **METHODS["pipnet"])
    fit_head(built.head, store, CONFIG, live=start(built, store), progress=False)
    count = sum(p.requires_grad for p in built.backbone.parameters())
    assert count > 3
    assert seen["pretraining"] == [(count, 1e-3)]
    assert [number for number, _ in seen["classifier"]] == [1]  # a fixed pool: not the backbone
    assert seen["main"][1:] == [(count, 1e-3)]


def test_other_weights_are_refused(store, model):
    built = model()
    with torch.no_grad():
        next(built.backbone.parameters()).add_(1)
    with pytest.raises(ValueError, match="of other weights"):
        start(built, store)


def test_cost_is_said(store, model):
    built = model()
    built.backbone.unfreeze()
    said = step_cost(built.backbone, store, 64, 2, 10)
    assert "GB a step of 64 images in 2 views, and on this CPU" in said


def test_command(tmp_path, image_folder):
    from typer.testing import CliRunner

    from infodisent.cli.app import app

    arguments = [
        *("fit", str(image_folder), "-b", "test_resnet", "--no-pretrained", "--epochs", "1"),
        *("--train-backbone", "--backbone-lr", "1e-3", "--augment", "colour=0.1"),
        *("--batch-size", "8", "--out", str(tmp_path / "run"), "--log", "csv"),
        *("--amp", "bf16", "--accumulate", "3", "--ema", "0.5", "--warmup", "0.1"),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "training the backbone: about" in result.output
    metrics = open_run(tmp_path / "run")[2].metrics
    assert metrics["train_backbone"] is True
    kept = ("amp", "accumulate", "ema", "schedule", "warmup")
    assert [metrics["config"][name] for name in kept] == ["bf16", 3, 0.5, "method", 0.1]
    first, row = (tmp_path / "run" / "training.csv").read_text().splitlines()
    assert first == "epoch,loss,accuracy"
    assert [float(x) for x in row.split(",")] == [1, *metrics["history"][0].values()]
    refused = CliRunner().invoke(app, [*arguments, "--augment", "size=3"])
    assert "no option size" in str(refused.exception)
