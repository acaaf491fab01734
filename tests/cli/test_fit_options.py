"""Options of `infodisent fit` for rare classes, the course of the training and what it leaves."""

from __future__ import annotations

import json
import sys

import pytest

from infodisent.cli import tables

from .test_cli import FIT, go  # noqa: F401


def test_options_reach_the_training(tmp_path, image_folder, go):  # noqa: F811
    out = tmp_path / "run"
    arguments = (
        "--class-weights", "1,2", "--sampler", "balanced", "--logit-adjustment", 0.5,
        "--validation", 0.25, "--patience", 5, "--no-probe", "--explain", 1,
    )  # fmt: skip
    code, text = go("fit", image_folder, *FIT, *arguments, "--out", out)
    assert code == 0, text
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["config"]["class_weights"] == [1.0, 2.0]
    assert metrics["config"]["sampler"] == "balanced"
    assert metrics["config"]["logit_adjustment"] == 0.5
    assert metrics["kept_epoch"] in (1, 2)
    assert "validation_balanced_accuracy" in metrics["history"][0]
    assert [row["head"] for row in metrics["rows"]] == ["InfoDisent", "no rotation"]
    assert metrics["images"]["train_per_class"] == [9, 8]
    worst = metrics["worst_classes"]["InfoDisent"]
    assert worst[0]["recall"] <= worst[1]["recall"]
    assert {w["class"] for w in worst} == {"red", "green"}
    assert (out / "curve.png").stat().st_size > 5_000
    assert (out / "report.html").is_file()
    assert len(list((out / "figures").glob("*.png"))) == 1
    assert "curve.png" in text


def test_more_epochs_and_another_penalty(tmp_path, image_folder, go):  # noqa: F811
    out = tmp_path / "run"
    assert go("fit", image_folder, *FIT, "--out", out)[0] == 0
    code, text = go("fit", image_folder, *FIT, "--epochs", 4, "--out", out)
    assert code == 0, text
    assert len(json.loads((out / "metrics.json").read_text())["history"]) == 4
    code, text = go("fit", image_folder, *FIT, "--epochs", 4, "--l1", 0.3, "--out", out)
    assert code == 2
    for expected in ("l1 was 0.1, is 0.3", "--features", "--overwrite"):
        assert expected in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--class-weights", "some"), "class_weights is 'some', allowed are none, balanced"),
        (("--class-weights", "1,2,3"), "class_weights has 3 numbers, the images have 2 classes"),
        (("--sampler", "odd"), "sampler is 'odd', allowed are shuffle, balanced"),
        (("--validation", "1"), "validation is 1.0, must be in [0, 1)"),
        (("--patience", "3"), "patience is 3, which needs validation > 0"),
        (("--amp", "fp8"), "amp is 'fp8', allowed are none, bf16, fp16"),
        (("--log", "xml"), "log is 'xml', allowed are csv, tensorboard"),
        (("--val-fraction", "0"), "val_fraction is 0.0, must be between 0 and 1"),
        (("--val-fraction", "1"), "val_fraction is 1.0, must be between 0 and 1"),
    ],
)
def test_refused(tmp_path, image_folder, go, arguments, message):  # noqa: F811
    code, text = go("fit", image_folder, *FIT, *arguments, "--out", tmp_path / "run")
    assert code == 2
    assert message in text
    assert "Traceback" not in text


def test_tensorboard_that_is_not_installed(tmp_path, image_folder, go, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    out = tmp_path / "run"
    code, text = go("fit", image_folder, *FIT, "--tensorboard", tmp_path / "logs", "--out", out)
    assert code == 2
    assert "needs the package tensorboard: pip install tensorboard" in text
    assert not out.exists()  # said before any work


def test_tensorboard(tmp_path, monkeypatch):
    import types

    from infodisent.training.tracking import tensorboard

    written = []

    class Writer:
        def __init__(self, folder):
            written.append(folder)

        def add_scalar(self, *entry):
            written.append(entry)

        def flush(self):
            written.append("flush")

    module = types.SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    tensorboard(tmp_path)(3, {"loss": 0.5, "accuracy": 0.9})
    assert written == [str(tmp_path), ("loss", 0.5, 3), ("accuracy", 0.9, 3), "flush"]


def test_choices_are_in_the_help(go):  # noqa: F811
    text = "".join(c for c in go("fit", "--help")[1] if c not in "│\n ")
    for expected in (
        "one of projection, relu, softplus, abs",
        "One of shuffle, balanced",
        "one of none, balanced",
    ):
        assert expected.replace(" ", "") in text


def metrics(**changes):
    row = {
        "head": "InfoDisent", "accuracy": 0.9, "balanced_accuracy": 0.6, "f1": 0.5, "loss": 0.3,
        "explanation_size": 4.0,
    }  # fmt: skip
    images = {"classes": ["a", "b"], "train": 126, "val": 42, "train_per_class": [120, 6]}
    return {
        "backbone": "a" * 60,
        "images": {**images, **changes},
        "rows": [row],
        "worst_classes": {"InfoDisent": [{"class": "b", "recall": 0.2, "images": 10}]},
    }


def table_text(monkeypatch, given, width=80):
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), width=width)
    monkeypatch.setattr(tables, "console", console)
    tables.print_metrics(given)
    return console.file.getvalue()


def test_table_says_that_classes_are_imbalanced(monkeypatch):
    text = table_text(monkeypatch, metrics())
    title = text.splitlines()[0]
    assert title == f"{'a' * 60}: 42 held-out images, 2 classes, trained on 126"  # one line
    assert text.index("accuracy") < text.index("macro F1")
    assert "Classes are imbalanced (6 to 120 training images)" in text
    assert "InfoDisent finds least of: b 20% of 10" in text
    balanced = table_text(monkeypatch, metrics(train_per_class=[60, 66]))
    assert "imbalanced" not in balanced
    old = metrics()
    del old["images"]["train_per_class"], old["worst_classes"]
    assert "imbalanced" not in table_text(monkeypatch, old)
    other = table_text(monkeypatch, metrics(train=0))
    assert "trained on" not in other


def test_only_the_leading_process_opens_a_file_of_events(tmp_path, image_folder, go, monkeypatch):  # noqa: F811
    from infodisent import ranks
    from infodisent.training import run, tracking

    opened = []
    monkeypatch.setattr(tracking, "tensorboard", opened.append)
    monkeypatch.setattr(run, "fit", lambda *_, **__: 1 / 0)  # what follows is not looked at
    for leads in (True, False):
        monkeypatch.setattr(ranks, "leads", lambda leads=leads: leads)
        code, _ = go("fit", image_folder, *FIT, "--tensorboard", tmp_path, "--out", tmp_path / "r")
        assert code == 2
    assert opened == [tmp_path]
