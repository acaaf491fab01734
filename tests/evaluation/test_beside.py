"""Methods beside each other: the figures are those of the metrics, and known on scenes."""

from __future__ import annotations

import functools
import json

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from infodisent.cli.app import app
from infodisent.evaluation.beside import BESIDE, chosen_methods, explain_beside
from infodisent.evaluation.faithfulness import pixel_curves
from infodisent.evaluation.known_truth import CELL, known_truth, scene_classifier
from infodisent.explanations.posthoc import EXPLAINERS
from infodisent.report.beside import write_beside
from infodisent.testing.scenes import Scenes

CLOSED = ("evidence", "shapley", "gradcam", "random")


@pytest.fixture(scope="module")
def scene():
    scenes = Scenes(8, cell=CELL, seed=1)
    return scene_classifier(scenes), scenes[5], scenes.classes


def test_figures_of_a_scene_are_known(scene):
    model, drawn, classes = scene
    mask = torch.nn.functional.max_pool2d(drawn.masks.any(0)[None].float(), CELL)[0] > 0
    mask = mask.repeat_interleave(CELL, 0).repeat_interleave(CELL, 1)
    beside = explain_beside(
        model, drawn.image, methods="closed", classes=classes, mask=mask, steps=16
    )
    assert beside.class_name == classes[drawn.label]
    assert tuple(method.name for method in beside.methods) == CLOSED
    figures = {method.name: method for method in beside.methods}
    for name in CLOSED[:3]:
        assert figures[name].localisation["pointing"] == 1
        assert figures[name].localisation["mass"] > 0.4  # the map is smooth, the cells are not
        assert figures[name].deletion < figures["random"].deletion
        assert figures[name].insertion > figures["random"].insertion
    image = drawn.image[None].float() / 255
    label = torch.tensor([drawn.label])
    truth = pixel_curves(model, image, figures["shapley"].saliency[None], label, steps=16)
    assert figures["shapley"].deletion == pytest.approx(float(truth.deletion), abs=1e-5)
    assert figures["shapley"].insertion == pytest.approx(float(truth.insertion), abs=1e-5)
    json.dumps(beside.to_dict(), allow_nan=False)
    page = beside._repr_html_()
    assert page.count("<tr>") == 1 + len(CLOSED)
    assert "http" not in page


def test_what_a_head_has_no_form_for_is_noted(scene, monkeypatch):
    model, drawn, classes = scene
    monkeypatch.setattr("infodisent.explanations.posthoc.is_linear", lambda *a: False)
    named = explain_beside(
        model, drawn.image, methods=["shapley", "evidence"], class_name="A-A-A",
        classes=classes, steps=2,
    )  # fmt: skip
    assert named.class_index == 0
    assert [method.name for method in named.methods] == ["evidence"]
    assert "no weighted sum" in named.notes[0]
    with pytest.raises(ValueError, match="did you mean 'A-A-A'"):
        explain_beside(model, drawn.image, methods="closed", classes=classes, class_name="A-A-a")


def test_methods_are_checked_before_anything_is_read(monkeypatch):
    assert chosen_methods("evidence, random") == ("evidence", "random")
    assert chosen_methods(["closed", "evidence"]) == CLOSED
    for wrong in ("guess", "", []):
        with pytest.raises(ValueError, match="allowed are all, closed and evidence"):
            chosen_methods(wrong)
    monkeypatch.setitem(__import__("sys").modules, "captum", None)
    monkeypatch.setitem(__import__("sys").modules, "captum.attr", None)
    with pytest.raises(ModuleNotFoundError, match=r"captum.* pip install 'infodisent\[posthoc\]'"):
        chosen_methods("lime")


def test_every_method_of_the_extra(scene):
    for module in ("captum", "pytorch_grad_cam", "sklearn"):
        pytest.importorskip(module, reason="needs the extra posthoc")
    model, drawn, classes = scene
    beside = explain_beside(model, drawn.image, classes=classes, samples=30, steps=2)
    found = {method.name for method in beside.methods}
    assert found == set(BESIDE) - {"original_gradcam"}  # a detector has no classifier of its own
    assert any("no classifier of its own" in note for note in beside.notes)
    sampled = next(method for method in beside.methods if method.name == "kernel_shap")
    assert sampled.saliency.shape == (64, 64)


@pytest.mark.slow
def test_command_writes_a_picture_an_image(tmp_path, run_folder, image_folder):
    masks = tmp_path / "masks" / "red"
    masks.mkdir(parents=True)
    drawn = Image.new("L", (48, 40))
    drawn.paste(255, (10, 10, 30, 20))
    drawn.save(masks / "03.png")
    out = tmp_path / "out"
    arguments = ["explain", str(image_folder / "red" / "03.png"), str(image_folder / "red/07.png")]
    arguments += ["--run", str(run_folder), "-o", str(out), "--beside", "evidence,random"]
    done = CliRunner().invoke(app, [*arguments, "--parts", f"masks:{tmp_path / 'masks'}"])
    assert done.exit_code == 0, done.output
    assert "means of 1 image" in done.output
    assert "07.png" in done.output  # which cannot be read
    assert "mass ↑" in done.output
    assert not (out / "report.html").exists()
    assert Image.open(out / "beside" / "001-03.png").width > 900
    known = json.loads((out / "beside" / "beside.json").read_text())
    (image,) = known["images"]
    means = known["means"]["evidence, as shown here"]
    assert means["deletion"] == image["methods"][0]["deletion"]
    assert image["methods"][0]["localisation"]["pointing"] in (0, 1)
    held = write_beside(run_folder, None, out=out, methods="evidence", limit=2, progress=False)
    assert len(held.results) == 2
    with pytest.raises(ValueError, match=r"--samples and --parts are of --beside"):
        CliRunner().invoke(
            app, ["explain", "x.png", "--samples", "3", "--run", str(run_folder)],
            catch_exceptions=False,
        )  # fmt: skip


def test_everything_that_is_known_of_scenes_is_found():
    known = known_truth(count=8)
    assert known.right
    assert not any(row.right for row in (known.rows[0].__class__("x", "y", 0.5, 0.6, 1.0),))
    assert set(EXPLAINERS) <= {*known.contest.figures}
    with pytest.raises(ValueError, match="count is 7"):
        known_truth(count=7)


@pytest.mark.slow
def test_demo_of_known_truth(tmp_path, monkeypatch):
    from infodisent.evaluation import known_truth as module

    few = functools.partial(known_truth, count=8)
    monkeypatch.setattr(module, "known_truth", few)
    arguments = ["demo", "--synthetic", "-o", str(tmp_path)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "must be" in done.output
    assert Image.open(tmp_path / "synthetic.png").width > 900
    assert json.loads((tmp_path / "synthetic.json").read_text())["explainers"]["random"]
    monkeypatch.setitem(module.WRONG, "shifted", EXPLAINERS["shapley"])  # one that is right
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1
    assert "NOT ranked last" in done.output
