"""The report of the methods: options as given, rows of their own, the purity before and after."""

from __future__ import annotations

import pytest
import torch

from benchmarks import methods_report
from benchmarks.methods_report import CITED, one, parsed, summary, table, worded


def test_options_are_read_as_they_are_written():
    text = "tesnet.dimension=64,subspaces=0.5,epochs=2"
    method, options = parsed(text)
    assert (method, options) == ("tesnet", {"dimension": 64, "subspaces": 0.5, "epochs": 2})
    assert f"{method}.{worded(options)}" == text
    assert parsed("protopnet.similarity=l2") == ("protopnet", {"similarity": "l2"})
    for cited in CITED:
        method, options = parsed(cited)
        assert f"{method}.{worded(options)}" == cited


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tesnt.dimension=64", "'tesnt.dimension=64' is not METHOD.KEY=VALUE, where METHOD is one"),
        ("tesnet", "'tesnet' is not METHOD.KEY=VALUE"),
        ("tesnet.dimensions=64", "'dimensions=64' is not KEY=VALUE, where KEY is one of"),
        ("tesnet.dimension", "'dimension' is not KEY=VALUE"),
        ("tesnet.seed=1", "'seed=1' is not KEY=VALUE"),
    ],
)
def test_errors_name_the_option(text, message):
    with pytest.raises(ValueError, match=f"--option: {message}"):
        parsed(text)


def test_options_reach_the_head_and_the_training(store, monkeypatch):
    monkeypatch.setattr(methods_report, "THREADS", torch.get_num_threads())
    options = {"per_class": 3, "epochs": 1, "batch_size": 8}
    figures = one(store.path, "tesnet", 0, options)
    assert figures["units"] == 3 * len(store.classes)
    assert "purity" not in figures
    figures = one(store.path, "epic", 0, {"epochs": 1, "batch_size": 8, "keep": 1, "images": 1})
    assert len(figures["purity"]) == 2


def run(images, method, accuracy, **more):
    return {
        "images": images,
        "method": method,
        "seed": 0,
        "accuracy": accuracy,
        "seconds": 1.0,
        "others": 0.0,
        "memory": 1.0,
        "units": 4,
        "units_used": 4,
        **more,
    }


def test_other_options_are_rows_of_their_own():
    runs = {
        "a": run("x", "tesnet", 0.5),
        "b": run("x", "tesnet", 0.75, options={"dimension": 64}),
        "c": run("x", "epic", 0.25, purity=[0.125, 0.25]),
        "d": run("y", "tesnet", 0.125),
    }
    known = {"original head": None, "linear probe": 0.5}
    report = {"runs": runs, "baselines": {"x": known, "y": known}}
    lines = table(report, "x").splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| linear probe",
        "| TesNet",
        "| EPIC",
        "| TesNet, `dimension=64`",
        "",
        "EPIC: mean purity of the positive channels 0.125 → 0.250",
    ]
    assert "75.0%" not in summary(report)
    assert "50.0%" in summary(report)
