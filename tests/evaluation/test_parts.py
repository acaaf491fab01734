"""Part metrics on scenes: a detector that is right has 1, one that looks elsewhere 0."""

from __future__ import annotations

import pytest
import torch

from infodisent.evaluation.images import maps_of
from infodisent.evaluation.parts import part_consistency, part_purity, part_stability
from infodisent.evaluation.stability import (
    head_randomisation,
    model_randomisation,
    noise_stability,
    rank_correlation,
)
from infodisent.explanations.posthoc import EXPLAINERS, random_cells
from infodisent.testing.scenes import Scenes

from .scene_models import Elsewhere, scene_model

BOX = 0.08
"""Half a box of 10 pixels in 64: a cell and a little, less than the distance of two parts."""


@pytest.fixture(scope="module")
def scenes():
    return Scenes(24, cell=8, seed=2)


@pytest.fixture(scope="module")
def batch(scenes):
    return scenes.batch()


def truths(batch):
    return batch.images, batch.labels, batch.keypoints, batch.visible


@pytest.mark.parametrize("where", ["bicubic", "cell"])
def test_consistency_of_known_detectors(scenes, batch, where):
    options = {"own": 4, "half": BOX, "where": where}
    right = part_consistency(scene_model(scenes), *truths(batch), **options)
    assert right.shape == (8, 4)
    assert (right[:, :3] == 1).all()
    assert right[:, 3].isnan().all()  # a class has three units
    wrong = part_consistency(scene_model(scenes, Elsewhere), *truths(batch), **options)
    assert wrong.nanmean() < 0.1


def test_consistency_needs_four_images_of_five(scenes, batch):
    """The first class has three images; a keypoint that is elsewhere in one of them is 67 %."""
    model, keypoints = scene_model(scenes), batch.keypoints.clone()
    keypoints[0, 0] = torch.tensor([-99.0, 0.0])
    score = part_consistency(model, batch.images, batch.labels, keypoints, batch.visible, own=3)
    assert (score[1:] == 1).all()
    moved = part_consistency(
        model, batch.images, batch.labels, keypoints, batch.visible, own=3, half=BOX
    )
    assert moved[0].sum() == 2
    visible = batch.visible.clone()
    visible[0, 0] = False  # and where it is not visible nobody asks
    unseen = part_consistency(
        model, batch.images, batch.labels, keypoints, visible, own=3, half=BOX
    )
    assert (unseen == 1).all()


def test_stability_of_known_detectors(scenes, batch):
    model = scene_model(scenes, width=0.45)
    options = {"own": 3, "half": BOX}
    assert (part_stability(model, *truths(batch), **options, std=0.05) == 1).all()
    noisy = part_stability(scene_model(scenes), *truths(batch), **options, std=1.0, clip=9.0)
    assert noisy.mean() < 0.9  # what sees nothing any more looks at the first cell


def test_purity_of_known_detectors(scenes, batch):
    _, _, keypoints, visible = truths(batch)
    pure = part_purity(scene_model(scenes), batch.images, keypoints, visible, count=5)
    assert (pure == 1).all()
    assert len(pure) == 6
    model = scene_model(scenes, Elsewhere)
    shifted = part_purity(model, batch.images, keypoints, visible, count=5)
    assert shifted.mean() < 0.3
    every = part_purity(
        model, batch.images, keypoints, visible, count=5, groups=[0, 0, 0], patch=3.0
    )
    assert (every == 1).all()  # of a patch that is the picture
    with torch.no_grad():
        model.head.fc.weight[:, 2] = 0
    irrelevant = part_purity(model, batch.images, keypoints, visible)
    assert irrelevant.isnan().tolist() == [False, False, True, False, False, False]
    negative = part_purity(model, batch.images, keypoints, visible, sign=-1)
    assert negative.isnan().all()  # the detector has no such side
    with pytest.raises(ValueError, match="groups has 2 numbers for 3 parts"):
        part_purity(model, batch.images, keypoints, visible, groups=[0, 1])


def test_purity_is_a_share_of_the_images(scenes, batch):
    """The head's keypoint taken away in two of the five strongest images of its unit."""
    model, keypoints = scene_model(scenes), batch.keypoints.clone()
    with torch.no_grad():
        pooled = model.head.pool(maps_of(model, batch.images), input_fmt="NLC").pos
    strongest = pooled[:, 0].argsort(descending=True, stable=True)[:5]
    keypoints[strongest[:2], 0] = -99.0
    pure = part_purity(model, batch.images, keypoints, batch.visible, count=5, patch=2 * BOX)
    assert pure[0] == pytest.approx(3 / 5)
    with pytest.raises(ValueError, match=r"keypoints is \(23, 3, 2\), must be \(24, parts, 2\)"):
        part_purity(model, batch.images, keypoints[1:], batch.visible)


def test_noise_stability_of_known_detectors(scenes, batch):
    model = scene_model(scenes)
    still = noise_stability(model, batch.images, std=0.0)
    assert (still.places == 1).all()
    assert (still.prediction == 1).all()
    gone = noise_stability(model, batch.images, std=3.0, clip=9.0)
    assert gone.places.mean() < 0.5
    assert gone.prediction.mean() < 0.6
    nothing = noise_stability(model, torch.zeros(2, 3, 64, 64), std=0.0)
    assert nothing.places.isnan().all()


def test_explanations_of_shuffled_models_differ_unless_they_ignore_the_model(scenes, batch):
    model = scene_model(scenes)
    with torch.no_grad():
        maps = maps_of(model, batch.images)
    blind = {"random": random_cells, "energy": lambda head, maps, classes: maps.norm(dim=2)}
    for name, explainer in blind.items():
        same = head_randomisation(model.head, maps, batch.labels, explainer)
        assert same.tolist() == pytest.approx([1.0] * 24), name
    sees = head_randomisation(model.head, maps, batch.labels, EXPLAINERS["evidence"])
    assert sees.nanmean() < 0.9
    whole = model_randomisation(model, batch.images, batch.labels, blind["energy"])
    assert not (whole == 1).any()


def test_rank_correlation_by_hand():
    a = torch.tensor([[1.0, 2, 3, 4], [1, 2, 3, 4], [1, 1, 2, 2], [5, 5, 5, 5]])
    b = torch.tensor([[10.0, 20, 30, 99], [4, 3, 2, 1], [1, 2, 1, 2], [1, 2, 3, 4]])
    found = rank_correlation(a, b)
    assert found[:3].tolist() == pytest.approx([1, -1, 0])
    assert found[3].isnan()
