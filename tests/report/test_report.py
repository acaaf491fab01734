"""Figures show the sum, whatever the names."""

from __future__ import annotations

import itertools
import re
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from PIL import Image

from infodisent import report
from infodisent.explanations.local import explain_many
from infodisent.report import Pictures, marks, prototype_box, segments, sheet, signed, terms
from infodisent.report.figure import explanation_figure, prototypes_figure, save_figure
from infodisent.report.page import write_page
from infodisent.training.run import open_run


def test_figure(tmp_path, made):
    explanations, prototypes = made
    e = explanations[0]
    figure = explanation_figure(e, prototypes)
    written = " ".join(
        t.get_text() for t in [*figure.texts, *(t for a in figure.axes for t in a.texts)]
    )
    numbers = [re.sub(r"^([+−])", r"\1 ", signed(t.value)) for t in terms(e)[: len(e.shown)]]
    assert "  ".join(numbers).removeprefix("+ ") in written
    assert f"{abs(e.rest):.3f} (rest of {e.rest_count:,} channels)" in written
    assert f"=  {e.logit:.3f} (logit)" in written
    for c in e.shown:
        assert f"channel {c.channel}" in written
        assert signed(c.contribution) in written
    path = tmp_path / "deep" / "figure.png"
    save_figure(figure, path, dpi=60)
    image = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert min(image.shape[:2]) > 300
    for color in ((0, 114, 178), (213, 94, 0)):  # both kinds of evidence are drawn
        assert (np.abs(image - color).max(axis=2) < 12).sum() > 20
    assert pyplot.get_fignums() == []
    assert [p.name for p in path.parent.iterdir()] == ["figure.png"]


@pytest.mark.parametrize("top", [(0, 0), (1, 0), (0, 1)])
def test_figure_without_evidence_and_with_formulas_for_names(tmp_path, made, tiny, store, top):
    prototypes = made[1]
    prototypes.classes = ("$\\frac{", "a\nb$x^2$")
    e = explain_many(
        tiny,
        store.files[:1],
        classes=prototypes.classes,
        true_names=["$\\nope$"],
        top=top[0],
        top_opposing=top[1],
        progress=False,
    )[0]
    for figure in (explanation_figure(e, prototypes), prototypes_figure(prototypes, [0, 1], k=2)):
        save_figure(figure, tmp_path / "f.png", dpi=40)
        assert np.asarray(Image.open(tmp_path / "f.png")).std() > 5
    write_page(tmp_path / "page.html", [e], prototypes)


def test_segments_end_at_the_logit(made):
    for e in made[0]:
        pieces = segments(e)
        assert pieces[0].start == 0
        assert pieces[-1].end == pytest.approx(e.logit, abs=1e-3)
        for before, after in itertools.pairwise(pieces):
            assert before.end == after.start
        assert all((p.end > p.start) == (p.lane == 0) for p in pieces)


def test_every_mark_can_be_seen(made):
    for e in made[0]:
        boxes = marks(e, 6.0)
        assert [m.number for m in boxes] == list(range(1, len(e.shown) + 1))
        for i, m in enumerate(boxes):
            assert 6 <= m.center[0] <= e.picture.width - 6
            assert 6 <= m.center[1] <= e.picture.height - 6
            assert 0 <= m.box[0] < m.box[2] <= e.picture.width
            for other in boxes[:i]:
                apart = [abs(a - b) for a, b in zip(m.center, other.center, strict=True)]
                assert max(apart) >= 11
                assert m.kind == other.kind or m.box != other.box


def test_numbers_stay_at_their_boxes():
    """At the right edge, too, where there is no room beside the first."""
    box = (196.0, 64.0, 224.0, 96.0)
    shown = [types.SimpleNamespace(box=box, sign=sign) for sign in (1, 1, -1, 1, -1)]
    picture = types.SimpleNamespace(size=(224, 224))
    found = marks(types.SimpleNamespace(shown=shown, picture=picture), 7.0)
    assert len({m.center for m in found}) == 5
    for m in found:
        assert max(abs(m.center[0] - 196), abs(m.center[1] - 64)) <= 14
    assert [m.box == box for m in found] == [
        True,
        True,
        False,
        True,
        False,
    ]  # those inside are seen, too


def test_figures_have_the_logits_of_the_other_classes(made):
    explanations, prototypes = made[:2]
    e = explanations[0]
    written = {text.get_text() for text in explanation_figure(e, prototypes).texts}
    assert {signed(float(logit), 2) for logit in e.logits.topk(min(3, len(e.classes))).values} <= (
        written
    )


def test_heat_is_painted_where_it_is_hot():
    picture = Image.new("RGB", (140, 70), (120, 120, 120))
    heat = torch.zeros(2, 4)
    heat[0, 3] = 1
    for sign in (1, -1):
        pixels = np.asarray(report.heat_overlay(picture, heat, sign)).astype(int)
        assert pixels.shape == (70, 140, 3)
        colorful = pixels.max(axis=2) - pixels.min(axis=2)
        assert colorful[:35, 105:].mean() > 40
        assert colorful[:, :50].max() == 0
        red, _, blue = pixels[12, 128]
        assert (blue > red) == (sign == 1)


def test_numbers_have_a_true_minus_and_no_negative_zero():
    assert signed(-0.5) == "\N{MINUS SIGN}0.500"
    assert signed(2, 1) == "+2.0"
    assert signed(-1e-9) == signed(0.0) == "0.000"


def test_prototype_patch_is_on_its_cell(made):
    prototypes = made[1]
    channel = int(prototypes.pos_value[0].argmax())
    p = prototypes.of(channel, 1)[0]
    rows, columns = prototypes.grid
    x0, y0, x1, y1 = prototype_box(p, prototypes.grid, (columns * 10, rows * 20))
    assert (x0, y0, x1, y1) == (
        p.pixel[1] * 10, p.pixel[0] * 20, p.pixel[1] * 10 + 10, p.pixel[0] * 20 + 20,
    )  # fmt: skip


def test_units_are_called_what_the_head_calls_them(made):
    explanations, prototypes = made
    e = replace(explanations[0], unit="prototype")
    figures = (
        explanation_figure(e, prototypes),
        prototypes_figure(prototypes, [0], unit="prototype"),
    )
    for figure in figures:
        written = [
            t.get_text() for t in [*figure.texts, *(t for a in figure.axes for t in a.texts)]
        ]
        assert any("prototype" in t for t in written)
        assert not any("channel" in t for t in written)


def test_what_was_done_to_an_image_stands_below_it(made):
    explanations, prototypes = made
    notes = ("the network saw the middle 77 % of the photograph, " + "and so on " * 9, "<b>grey")
    e = replace(explanations[0], notes=notes)
    written = " ".join(t.get_text() for t in explanation_figure(e, prototypes).figure.texts)
    for note in notes:
        assert note.split() == [w for w in note.split() if w in written.split()]


def test_lost_prototypes_become_placeholders(made, image_folder):
    explanations, prototypes = made
    kept = prototypes.of(explanations[0].shown[0].channel, 1)
    lost = kept[0].file
    image_folder.joinpath(lost).unlink()
    pictures = Pictures(prototypes.transform, 120)
    image, missing = pictures.get(lost)
    assert missing == "file is missing"
    assert max(image.size) == 120
    pixels = np.asarray(image)
    assert tuple(pixels[0, 0]) == (206, 208, 212)
    assert (pixels < 120).all(axis=2).sum() > 50  # the name is written on it
    assert pictures.get("/nowhere/花.png").missing
    good = pictures.get(kept[2].file)
    assert good.missing == ""
    assert pictures.get(kept[2].file) is good
    explanation_figure(explanations[0], prototypes)


def test_figures_of_other_heads_and_bad_arguments(made):
    explanations, prototypes = made
    channels = prototypes.channels
    with pytest.raises(ValueError, match="channels is empty"):
        prototypes_figure(prototypes, [])
    with pytest.raises(ValueError, match="k is 0"):
        prototypes_figure(prototypes, [0], k=0)
    other = replace(explanations[0], rest_count=explanations[0].rest_count + 1)
    match = f"a head with {channels} channels, the explanation of one with {channels + 1}"
    with pytest.raises(ValueError, match=match):
        explanation_figure(other, prototypes)


def test_an_opened_backbone_is_laid_out_as_an_extraction_leaves_it(run_folder):
    backbone = open_run(run_folder)[0].model.backbone
    wide = [w for w in backbone.parameters() if w.ndim == 4 and min(w.shape[1], w.shape[2]) > 1]
    assert wide
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in wide)


def test_a_sheet_names_the_class_and_weight_of_every_channel(tmp_path, run_folder, monkeypatch):
    drawn = []
    monkeypatch.setattr(sheet, "save_figure", lambda figure, path: drawn.append(figure))
    sheet.draw_prototypes(run_folder, "2,5", out=tmp_path / "p.png", progress=False)
    texts = [t.get_text() for t in drawn[0].texts]
    loaded, prototypes, _ = open_run(run_folder)
    weight = loaded.model.head.class_weights().detach()
    for channel in (2, 5):
        heaviest = max(range(2), key=lambda k: abs(float(weight[k, channel])))
        at = texts.index(str(channel))
        words = [loaded.classes[heaviest], f"weight {float(weight[heaviest, channel]):.3f}"]
        assert texts[at + 1 : at + 4] == ["channel", *words]
    with pytest.raises(ValueError, match="1 captions were given for 2 channels"):
        prototypes_figure(prototypes, [0, 1], captions=["a"])
