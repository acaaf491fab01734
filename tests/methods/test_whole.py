"""EPIC, B-cos, SIDE-like and another pool through a run: train, evaluate, explain, report."""

from __future__ import annotations

import pytest
import torch

import infodisent
from infodisent.data.images import scan_folder
from infodisent.explanations.local import explain
from infodisent.report.publish import report_run
from infodisent.training.fit import FitConfig
from infodisent.training.run import evaluate_run, fit, open_run

METHODS = {
    "epic": {"images": 8},
    "bcos": {"hidden": 16},
    "side-like": {"per_class": 4},
    "infodisent": {"pooling": "lse"},
}


@pytest.mark.parametrize("method", METHODS)
def test_run_evaluate_explain_report(tmp_path, image_folder, method):
    model = infodisent.attach("test_resnet", 2, method=method, **METHODS[method])
    config = FitConfig(epochs=3, batch_size=8)
    options = {"keep": 2, "probe": False, "compare_identity": False, "progress": False}
    run = fit(model, scan_folder(image_folder), tmp_path / "run", config, **options)
    loaded, prototypes, _ = open_run(tmp_path / "run")
    head = loaded.model.head
    assert head.options() == model.head.options()
    assert evaluate_run(tmp_path / "run")["rows"] == run.metrics["rows"]
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(x), model.eval()(x))
    for name, value in model.head.state_dict().items():
        assert torch.equal(value.nan_to_num(), head.state_dict()[name].nan_to_num()), name
    file = next((image_folder / "red").glob("*.png"))
    for k in range(2):
        evidence = explain(loaded, file, class_index=k, top=3, top_opposing=3)
        assert abs(evidence.total - evidence.logit) <= 1e-3
        assert evidence.unit == head.unit
        for unit in evidence.shown:
            assert unit.box is not None
            assert unit.heat.max() == 1
    assert prototypes.channels == head.num_features
    pages = report_run(run, count=2, progress=False)
    assert pages.stat().st_size > 10_000
