"""`infodisent report`, as a person types it."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from infodisent.explanations.predictions import predict_images
from infodisent.files import read_tensors, write_tensors
from infodisent.report.pictures import Pictures
from infodisent.training.run import METRICS, MODEL, PROTOTYPES, open_run
from tests.cli.test_cli import run


@pytest.fixture
def go(monkeypatch, capsys):
    return lambda *arguments: run(monkeypatch, capsys, *arguments)


def data_of(path):
    text = path.read_text(encoding="utf-8")
    start = text.index('id="data">') + len('id="data">')
    return text[:start], json.loads(text[start : text.index("</script>", start)])


def test_held_out_images_beside_another_run(tmp_path, run_folder, go):
    code, text = go("report", "--run", run_folder, "--held-out", 3, "--seed", 4)
    assert code == 0, text
    head, data = data_of(run_folder / "report.html")
    assert "Of 6 held-out images 3 were drawn evenly from the classes with seed 4" in head
    assert "<dt>held-out accuracy</dt>" in head
    assert "(standard error) of 6 held-out images" in head
    assert not (run_folder / "figures").exists()
    (first,) = data["runs"]
    assert (first["name"], first["linear"], len(first["images"])) == ("a run", True, 3)
    other = tmp_path / "twin"
    shutil.copytree(run_folder, other)
    out = tmp_path / "two.html"
    code, text = go(
        "report", "--run", run_folder, "--held-out", 2, "--compare", other, "-o", out,
        "--attribution", "cells by <me>",
    )  # fmt: skip
    assert code == 0, text
    head, data = data_of(out)
    assert [r["name"] for r in data["runs"]] == ["a run", "twin"]
    assert data["runs"][0]["images"][1]["scores"] == data["runs"][1]["images"][1]["scores"]
    assert all(image["uri"] is None for image in data["runs"][1]["images"])  # the same picture
    assert "cells by &lt;me&gt;" in out.read_text("utf-8")


def test_other_pictures_under_the_same_names(tmp_path, run_folder, image_folder, go):
    """Named on the way and on the page; a file that is only touched is the same."""
    command = ("report", "--run", run_folder, "--held-out", 2, "-o", tmp_path / "page.html")
    files = sorted(image_folder.rglob("*.png"))
    os.utime(files[0])
    code, text = go(*command)
    assert code == 0, text
    assert "are not those" not in text
    for file in files:
        if file.name != "07.png":  # one of that name is damaged
            Image.open(file).rotate(180).save(file)
    code, text = go(*command)
    assert code == 0, text
    said = "pictures are not those that the network was trained on"
    assert said in " ".join(text.split())
    assert said in (tmp_path / "page.html").read_text("utf-8")


def test_compared_runs_are_asked_the_same(tmp_path, run_folder, go):
    other = tmp_path / "twin"
    shutil.copytree(run_folder, other)
    out = tmp_path / "two.html"
    Image.fromarray(np.full((40, 40), 900, dtype=np.uint16)).save(tmp_path / "deep.png")
    code, text = go(
        "report", "--run", run_folder, "--images", tmp_path / "deep.png", "--compare", other,
        "--intensity-range", 0, 4000, "--class", "red", "-o", out,
    )  # fmt: skip
    assert code == 0, text
    one, two = (run["images"][0] for run in data_of(out)[1]["runs"])
    assert one["explained"] == two["explained"] == 1
    assert one["scores"] == two["scores"]  # read in the same range
    code, text = go("report", "--run", run_folder, "--held-out", 2, "--compare", tmp_path / "no")
    assert code == 2, text
    assert "is not a run" in text
    assert "explain" not in text  # refused before the work


def test_given_images_and_refusals(tmp_path, run_folder, image_folder, go):
    out = tmp_path / "why.html"
    code, text = go(
        "report", "--run", run_folder, "--images", image_folder / "green" / "0[0-1].png",
        "--images", image_folder / "red", "-o", out, "--class", "red",
    )  # fmt: skip
    assert code == 1, text  # one of them cannot be read
    assert "1 image(s) could not be read" in text
    _, data = data_of(out)
    images = data["runs"][0]["images"]
    assert [image["true"] for image in images] == ["green"] * 2 + ["red"] * 11
    assert {image["explained"] for image in images} == {1}
    code, text = go("report", "--run", run_folder, "-o", tmp_path / "why.txt")
    assert code == 2
    assert "must end in .html, or be a folder that is there" in text


def test_a_run_without_its_features_says_less(tmp_path, run_folder, image_folder, go):
    shutil.rmtree(run_folder / "features")
    out = tmp_path / "why.html"
    image = image_folder / "green" / "00.png"
    code, text = go("report", "--run", run_folder, "--images", image, "-o", out)
    assert code == 0, text
    head, data = data_of(out)
    assert "held-out accuracy" not in head
    assert data["runs"][0]["images"][0]["far"] is None


def test_labels(tmp_path, labels_run, go):
    code, text = go("report", "--run", labels_run, "--held-out", 4, "-o", tmp_path / "l.html")
    assert code == 0, text
    _, data = data_of(tmp_path / "l.html")
    assert data["runs"][0]["multilabel"]
    assert data["runs"][0]["independent"]


def renamed(folder, names):
    """The run with classes of other names."""
    tensors, known = read_tensors(folder / MODEL)
    write_tensors(folder / MODEL, tensors, known | {"classes": list(names)})
    return folder


def test_runs_of_other_classes(tmp_path, run_folder, go):
    other = tmp_path / "twin"
    shutil.copytree(run_folder, other)
    asked = ("report", "--run", run_folder, "--held-out", 2, "-o", tmp_path / "p.html")
    code, text = go(*asked, "--compare", renamed(other, ("cat", "dog")))
    assert code == 2, text
    assert "compare is twin, whose classes are cat, dog; must be a run that shares classes" in text
    assert "this one: green, red" in text
    assert not (tmp_path / "p.html").exists()
    code, text = go(*asked, "--compare", renamed(other, ("dog", "red")))
    assert code == 0, text
    note = "twin, beside it, has other classes: it does not know green, so is wrong on their images"
    assert f"{note}; it also knows dog" in text
    assert f"{note}; it also knows dog" in data_of(tmp_path / "p.html")[0]
    code, text = go(*asked, "--compare", renamed(other, ("red", "green")))  # another order
    assert code == 0, text
    assert "other classes" not in text


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"rows": None}, "rows: NoneType"),
        ({"rows": [[1]]}, "rows: list"),
        ({"images": []}, "images: list"),
        ({"images": {"root": 3}}, "root: int"),
        ({"config": None}, "config: NoneType"),
        ({"features": "x"}, "features: str"),
        ({"backbone": 3}, "backbone: int"),
    ],
)
def test_damaged_metrics_are_named(run_folder, go, change, what):
    path = run_folder / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    code, text = go("report", "--run", run_folder, "--held-out", 2)
    assert code == 2
    assert f"metrics.json does not hold what it should (TypeError: {what})" in text


def test_metrics_nested_without_end_and_numbers_that_are_none(run_folder, go):
    path = run_folder / "metrics.json"
    known = json.loads(path.read_text())
    path.write_text("[" * 100_000)
    code, text = go("report", "--run", run_folder, "--held-out", 2)
    assert (code, "metrics.json is not a JSON file" in text) == (2, True), text
    rows = [{"head": "x", "accuracy": float("nan"), "loss": float("inf"), "zoo": [1]}]
    path.write_text(json.dumps(known | {"rows": rows, "more": {"a": 1}}))
    code, text = go("report", "--run", run_folder, "--held-out", 2)
    assert code == 0, text
    head, _ = data_of(run_folder / "report.html")
    assert '<td class="num">nan</td><td class="num">inf</td><td>[1]</td>' in head


@pytest.mark.parametrize("name", [MODEL, PROTOTYPES, METRICS])
def test_a_file_of_the_run_that_was_cut_off(run_folder, go, name):
    content = (run_folder / name).read_bytes()
    (run_folder / name).write_bytes(content[: len(content) // 2])
    code, text = go("report", "--run", run_folder, "--held-out", 2)
    assert code == 2
    assert name in text
    assert "the same `infodisent fit` writes it again" in text


@pytest.mark.parametrize("name", [MODEL, PROTOTYPES])
def test_a_preprocessing_known_in_part(run_folder, image_folder, go, name):
    """What a file of the run does not say of it is the model's own; what it says must be right."""
    path, image = run_folder / name, image_folder / "red" / "00.png"
    tensors, metadata = read_tensors(path)
    loaded, prototypes, _ = open_run(run_folder)
    whole, part = loaded.transform, {"crop_pct": 0.95}
    assert {**whole, **part} == whole == prototypes.transform
    write_tensors(path, tensors, {**metadata, "transform": part})
    again, prototypes, _ = open_run(run_folder)
    assert again.transform == prototypes.transform == whole
    expected, found = (
        predict_images(loaded.model, [image], transform=config, progress=False)
        for config in (None, part)
    )
    assert found == expected
    with pytest.raises(ValueError, match="transform lacks input_size, mean, std"):
        Pictures(part)
    write_tensors(path, tensors, {**metadata, "transform": {"std": 3}})
    code, text = go("prototypes", "--run", run_folder)
    assert code == 2
    assert name in text
    assert "std is 3, must be numbers > 0" in text
