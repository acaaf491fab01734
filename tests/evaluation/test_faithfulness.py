"""Deletion, insertion, localisation: loops from the definition, known scenes, wrong explainers."""

from __future__ import annotations

import pytest
import torch

from infodisent.evaluation import localisation
from infodisent.evaluation.faithfulness import cell_curves, pixel_curves
from infodisent.evaluation.images import maps_of
from infodisent.evaluation.intervals import bootstrap, bootstrap_of, bootstrap_runs
from infodisent.explanations import unit_maps
from infodisent.explanations.posthoc import EXPLAINERS
from infodisent.methods import build_head
from infodisent.testing.scenes import Scenes

from .scene_models import WRONG, scene_model

RIGHT = {name: EXPLAINERS[name] for name in ("evidence", "shapley")}


@pytest.fixture(scope="module")
def known():
    """A perfect model of twelve scenes: model, batch, maps, classes."""
    torch.manual_seed(0)
    scenes = Scenes(12, cell=8)
    model, batch = scene_model(scenes), scenes.batch()
    with torch.no_grad():
        logits = model(batch.images)
        assert torch.equal(logits.argmax(1), batch.labels)
        return model, batch, maps_of(model, batch.images), batch.labels


@pytest.mark.parametrize("method", ["infodisent", "protopnet"])
@pytest.mark.parametrize("independent", [False, True])
def test_cell_curves_are_those_of_the_definition(method, independent, monkeypatch):
    torch.manual_seed(3)
    head = build_head(method, 5, 3).eval().requires_grad_(False)
    for parameter in head.parameters():
        parameter.normal_(0, 0.5)
    maps, saliency = torch.randn(3, 6, 5), torch.randn(3, 6).round()  # with ties
    classes = torch.tensor([2, 0, 1])
    monkeypatch.setattr(unit_maps, "BYTES", 1)
    curves = cell_curves(head, maps, saliency, classes, independent=independent)
    for i in range(3):
        order = sorted(range(6), key=lambda p: (-float(saliency[i, p]), p))
        for j in range(7):
            for curve, cells in (
                (curves.deletion_curve, order[j:]),
                (curves.insertion_curve, order[:j]),
            ):
                if cells:
                    logits = head(maps[i : i + 1, cells], input_fmt="NLC")[0]
                else:
                    logits = head.classify(torch.zeros(1, head.num_features))[0]
                chance = logits.sigmoid() if independent else logits.softmax(0)
                assert abs(float(curve[i, j] - chance[classes[i]])) < 1e-6
        hand = (sum(curves.deletion_curve[i].tolist()) - 0.5 * (
            float(curves.deletion_curve[i, 0]) + float(curves.deletion_curve[i, -1])
        )) / 6  # fmt: skip
        assert float(curves.deletion[i]) == pytest.approx(hand, abs=1e-6)
    with pytest.raises(ValueError, match=r"saliency is \(3, 5\), must be \(3, 6\)"):
        cell_curves(head, maps, saliency[:, :5], classes)


def test_cell_curves_of_scenes_are_known(known):
    """Three cells hold all evidence: after three steps nothing is left, or everything is there."""
    model, _, maps, classes = known
    curves = cell_curves(
        model.head, maps, EXPLAINERS["evidence"](model.head, maps, classes), classes
    )
    torch.testing.assert_close(curves.deletion_curve[:, 3:], torch.full((12, 62), 1 / 8))
    whole = model.head(maps, input_fmt="NLC").softmax(1).gather(1, classes[:, None])
    torch.testing.assert_close(curves.insertion_curve[:, 3:], whole.expand(-1, 62))


def test_wrong_explainers_rank_last_over_cells(known):
    model, _, maps, classes = known
    deletion, insertion = {}, {}
    for name, explainer in (RIGHT | WRONG).items():
        curves = cell_curves(model.head, maps, explainer(model.head, maps, classes), classes)
        deletion[name], insertion[name] = curves.deletion.mean(), curves.insertion.mean()
    worst = max(deletion[name] for name in RIGHT), min(insertion[name] for name in RIGHT)
    assert all(deletion[name] > worst[0] + 0.01 for name in WRONG)
    assert all(insertion[name] < worst[1] - 0.01 for name in WRONG)


def test_wrong_explainers_rank_last_over_pixels(known):
    model, batch, maps, classes = known
    few = slice(0, 2)
    deletion, insertion = {}, {}
    for name, explainer in (RIGHT | WRONG).items():
        saliency = explainer(model.head, maps, classes)[few].unflatten(1, (8, 8))
        large = saliency.repeat_interleave(8, 1).repeat_interleave(8, 2)
        curves = pixel_curves(model, batch.images[few], large, classes[few], steps=64)
        deletion[name], insertion[name] = curves.deletion.mean(), curves.insertion.mean()
    assert min(deletion[n] for n in WRONG) > max(deletion[n] for n in RIGHT)
    assert max(insertion[n] for n in WRONG) < min(insertion[n] for n in RIGHT)


def test_pixel_curves_are_those_of_the_definition(known):
    model, batch, _, classes = known
    image, size = batch.images[:1], 64 * 64
    saliency = torch.rand(1, 64, 64)
    curves = pixel_curves(model, image, saliency, classes[:1], steps=5, batch_size=2)
    order = saliency.flatten().argsort(descending=True)
    at = torch.arange(11) - 5.0
    kernel = torch.exp(-(at[:, None] ** 2 + at**2) / 50).double()
    kernel = (kernel / kernel.sum()).expand(3, 1, 11, 11)
    padded = torch.nn.functional.pad(image.double(), [5] * 4, mode="reflect")
    blurred = torch.nn.functional.conv2d(padded, kernel, groups=3).float()[0].flatten(1)
    for step in range(6):
        first = order[: round(step * size / 5)]
        deleted, inserted = image[0].flatten(1).clone(), blurred.clone()
        deleted[:, first] = 0
        inserted[:, first] = image[0].flatten(1)[:, first]
        for pixels, curve in (
            (deleted, curves.deletion_curve),
            (inserted, curves.insertion_curve),
        ):
            with torch.no_grad():
                logits = model(pixels.view(1, 3, 64, 64))[0]
            assert abs(float(logits.softmax(0)[classes[0]] - curve[0, step])) < 1e-5
    assert pixel_curves(model, image, saliency, classes[:1]).deletion_curve.shape == (1, 65)
    with pytest.raises(ValueError, match=r"must be \(1, rows, columns\)"):
        pixel_curves(model, image, saliency[0], classes[:1])
    with pytest.raises(ValueError, match="allowed are 1 … 4096"):
        pixel_curves(model, image, saliency, classes[:1], steps=5000)


def test_localisation_of_scenes_is_known(known):
    """Attributions in cells against masks in cells: all of the evidence is on the parts."""
    model, batch, maps, classes = known
    mask = torch.nn.functional.max_pool2d(batch.figure[:, None].float(), 8)[:, 0] > 0
    figures = {}
    for name, explainer in (RIGHT | WRONG).items():
        cells = explainer(model.head, maps, classes).unflatten(1, (8, 8))
        figures[name] = [
            float(metric(cells, mask).mean())
            for metric in (
                localisation.pointing_game,
                localisation.mass_accuracy,
                localisation.rank_accuracy,
            )
        ]
    for name in RIGHT:
        assert figures[name] == pytest.approx([1, 1, 1])
    for name in WRONG:
        assert max(figures[name]) < 0.5, name
    # least where most counts: the three cells are the last of 64, and have no positive mass
    assert figures["inverted"][1:] == [0, 0]


def test_localisation_by_hand():
    saliency = torch.tensor([[[4.0, 2.0], [-1.0, 2.0]]]).expand(4, -1, -1)
    mask = torch.tensor([[[1, 1], [0, 0]], [[0, 0], [1, 1]], [[0, 1], [1, 1]], [[0, 0], [0, 0]]])
    mask = mask.bool()
    nan = float("nan")
    for metric, expected in (
        (localisation.pointing_game, [1, 0, 0, nan]),
        (localisation.mass_accuracy, [6 / 8, 2 / 8, 4 / 8, nan]),
        (localisation.rank_accuracy, [1.5 / 2, 0.5 / 2, 2 / 3, nan]),
    ):
        torch.testing.assert_close(metric(saliency, mask), torch.tensor(expected), equal_nan=True)
        with pytest.raises(ValueError, match="saliency is"):
            metric(saliency[0], mask[0])


def test_bootstrap_knows_the_error_of_a_mean():
    values = torch.randn(400, generator=torch.Generator().manual_seed(1)) * 3 + 5
    found = bootstrap(torch.cat([values, torch.tensor([float("nan")])]))
    assert found.images == 400
    assert found.mean == pytest.approx(float(values.mean()))
    half = 1.96 * float(values.std()) / 20
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)
    assert bootstrap(values) == found
    assert bootstrap(values, seed=1) != found
    same = bootstrap(torch.full((9,), 2.0))
    assert (same.mean, same.low, same.high) == (2, 2, 2)
    assert bootstrap(torch.tensor([])).mean is None
    with pytest.raises(ValueError, match="level is 1"):
        bootstrap(values, level=1)


def test_intervals_over_runs_and_images():
    g = torch.Generator().manual_seed(2)
    values = torch.randn(200, generator=g)
    one, plain = bootstrap_runs([values]), bootstrap(values)
    assert one.mean == pytest.approx(plain.mean)
    assert one.low == pytest.approx(plain.low, abs=0.03)
    assert one.high == pytest.approx(plain.high, abs=0.03)
    of = bootstrap_of(lambda at: float(values[at].mean()), 200, draws=500)
    assert of.low == pytest.approx(plain.low, abs=0.04)
    assert of.high == pytest.approx(plain.high, abs=0.04)
    seeds = bootstrap_runs([torch.zeros(50), torch.ones(50), torch.tensor([torch.nan])])
    assert (seeds.mean, seeds.low, seeds.high, seeds.images) == (0.5, 0, 1, 100)
    wide = bootstrap_runs([values, values + 1.0])
    assert wide.high - wide.low > 4 * (plain.high - plain.low) > 0
    assert bootstrap_runs([torch.tensor([torch.nan])]).mean is None
    assert bootstrap_of(lambda at: torch.nan, 3).mean is None
    assert bootstrap_of(lambda at: 1.0, 0).images == 0
