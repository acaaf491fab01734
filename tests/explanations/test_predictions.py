"""Predictions of many files are what the model says of each, and what cannot be read is named."""

from __future__ import annotations

import csv
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from infodisent.backbones.preprocess import transform_config, transform_from
from infodisent.data.images import load_image
from infodisent.explanations.local import explain
from infodisent.explanations.predictions import Prediction, accuracy_of, predict_images
from infodisent.report.table import check_table_path, csv_text, write_predictions


@pytest.fixture
def files(image_folder):
    return [str(path) for path in sorted(image_folder.rglob("*.png"))]


@pytest.fixture
def made(tiny, files):
    with torch.no_grad():
        tiny.head.fc.weight.copy_(torch.rand(tiny.head.fc.weight.shape))
    names = [path.split("/")[-2] for path in files]
    return predict_images(
        tiny, files, classes=("green", "red"), true_names=names, batch_size=5, progress=False
    )


def test_they_are_the_models(tiny, made, files):
    transform = transform_from(transform_config(tiny))
    assert [p.path for p in made] == files
    for p in made:
        if p.error:
            assert p.path.endswith("red/07.png")
            assert "cannot be read as an image" in p.error
            continue
        with torch.no_grad():
            logits = tiny(transform(load_image(p.path))[None])[0]
        assert p.probabilities == pytest.approx(logits.softmax(0).tolist(), abs=1e-4)
        assert p.logit == pytest.approx(float(logits.max()), abs=1e-4)
        e = explain(tiny, p.path, classes=("green", "red"))
        assert (p.predicted, p.explanation_size) == (e.predicted_name, e.size95)
    assert sum(bool(p.error) for p in made) == 1


def test_images_in_memory_and_what_load_returns(tiny, made, files):
    loaded = SimpleNamespace(
        model=tiny, classes=("green", "red"), transform=transform_config(tiny), task="multiclass"
    )
    pictures = [load_image(path) for path in files[:3]]
    tensors = torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) for p in pictures])
    for images in (pictures, tensors, [np.array(p) for p in pictures]):
        found = predict_images(loaded, images, progress=False)
        assert [p.path for p in found] == [""] * 3
        for ours, of_file in zip(found, made[:3], strict=True):
            assert ours.top[0][0] == of_file.top[0][0]
            assert ours.probabilities == pytest.approx(of_file.probabilities, abs=1e-5)


def test_accuracy_counts_what_is_known():
    def row(predicted, true):
        return Prediction("x", true, (1.0,), 1.0, ((predicted, 1.0),))

    rows = [*[row("a", "a")] * 8, row("a", "b"), row("b", "b"), row("a", None)]
    rows.append(Prediction("y", "a", error="broken"))
    found = accuracy_of(rows)
    assert found is not None
    assert (found.images, found.accuracy, found.balanced) == (10, 0.9, 0.75)
    assert accuracy_of([row("a", None)]) is None


def test_tables(tmp_path, made):
    write_predictions(tmp_path / "t.csv", made, ("green", "red"))
    rows = list(csv.DictReader((tmp_path / "t.csv").open(encoding="utf-8", newline="")))
    assert len(rows) == 24
    for row, p in zip(rows, made, strict=True):
        assert row["path"] == p.path
        assert row["predicted"] == (p.predicted or "")
        assert row["error"] == p.error
        if not p.error:
            assert float(row["probability"]) == pytest.approx(p.top[0][1], rel=1e-5)
            assert row["correct"] == ("yes" if p.correct else "no")
            assert row["second"] == p.top[1][0]
            assert row["third"] == ""  # two classes have no third
    write_predictions(tmp_path / "t.json", made, ("green", "red"))
    table = json.loads((tmp_path / "t.json").read_text())
    assert (table["images"], table["unreadable"], table["images_of_known_class"]) == (24, 1, 23)
    assert table["accuracy"] == accuracy_of(made).accuracy
    assert [row["predicted"] for row in table["predictions"]] == [p.predicted for p in made]
    assert sorted(path.name for path in tmp_path.glob("t*")) == ["t.csv", "t.json"]


def test_names_survive_a_table(tmp_path):
    strange = ('a "quoted", name;\n', "猫", "=1+1", "caf\udce9")
    rows = [Prediction(f"/x/{n}", None, (1.0,), 1.0, ((n, 1.0),)) for n in strange]
    write_predictions(tmp_path / "t.csv", rows, strange)
    text = (tmp_path / "t.csv").read_text("utf-8", errors="surrogateescape")
    assert [r["predicted"] for r in csv.DictReader(io.StringIO(text, newline=""))] == list(strange)
    write_predictions(tmp_path / "t.json", rows, strange)
    table = json.loads((tmp_path / "t.json").read_text())
    assert [r["path"] for r in table["predictions"]] == [f"/x/{n}" for n in strange]


@pytest.mark.parametrize("classes", [("a", "b; c"), ("only",)])
def test_labels_by_themselves(files, classes):
    from infodisent import attach

    model = attach("test_resnet", len(classes), bias=True).eval()
    with torch.no_grad():
        model.head.fc.bias.copy_(torch.tensor([30.0, -30.0])[: len(classes)])
    made = predict_images(model, files[:2], classes=classes, task="multilabel", progress=False)
    assert all(p.labels == classes[:1] for p in made)
    if len(classes) == 2:
        assert all(p.probabilities[0] > 0.99 > 0.01 > p.probabilities[1] for p in made)
    rows = list(csv.DictReader(io.StringIO(csv_text(made, classes, "multilabel"))))
    assert list(rows[0]) == ["path", "labels", *(f"p:{c}" for c in classes), "error"]
    assert rows[0]["labels"] == classes[0]


def test_one_output_is_a_label_that_may_be_absent(files):
    from infodisent import attach

    model = attach("test_resnet", 1, bias=True).eval()
    with torch.no_grad():
        model.head.fc.bias.fill_(-30.0)
    made = predict_images(model, files[:1], classes=("defect",), progress=False)
    assert made[0].labels == ()
    assert made[0].probabilities[0] < 0.01


def test_refusals(tmp_path, tiny, files):
    with pytest.raises(ValueError, match="batch_size is 0"):
        predict_images(tiny, files, batch_size=0)
    with pytest.raises(ValueError, match="predict: 3 class names were given, 2 are needed"):
        predict_images(tiny, files, classes=("a", "b", "c"))
    with pytest.raises(ValueError, match=r"must end in \.csv or \.json"):
        check_table_path(tmp_path / "t.xlsx")
    (tmp_path / "d.csv").mkdir()
    with pytest.raises(IsADirectoryError, match="which is a folder"):
        check_table_path(tmp_path / "d.csv")
    with pytest.raises(NotADirectoryError, match="is a file, expected a folder"):
        check_table_path(files[0] + "/t.csv")
    with torch.no_grad():
        tiny.head.fc.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="logits are not finite"):
        predict_images(tiny, files[:1], progress=False)
