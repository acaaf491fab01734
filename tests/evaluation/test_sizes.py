"""Sizes and disentanglement: by hand, and against all sets of units."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from infodisent.evaluation import sizes
from infodisent.evaluation.disentanglement import (
    channel_purity,
    complexity,
    duplicate_prototypes,
    spatial_entropy,
)
from infodisent.evaluation.images import maps_of
from infodisent.evaluation.sizes import active_size, global_size, pipnet_size, sufficient_size
from infodisent.explanations import unit_maps
from infodisent.explanations.prototypes import Prototypes
from infodisent.methods import InfoDisentHead, build_head
from infodisent.testing.scenes import Scenes

from .scene_models import scene_model


@pytest.fixture(scope="module")
def known():
    scenes = Scenes(16, cell=8)
    model, batch = scene_model(scenes).requires_grad_(False), scenes.batch()
    return model, maps_of(model, batch.images), batch.labels


def test_sizes_of_scenes_are_known(known):
    """Three parts of two variants: six units, three a class, three in every picture."""
    model, maps, labels = known
    assert global_size(model.head) == (6, 0.5)
    pooled = model.head.pool(maps, input_fmt="NLC").pooled
    assert pipnet_size(model.head, pooled, labels).tolist() == [3] * 16
    assert active_size(model.head, pooled).tolist() == [3] * 16
    kept = sufficient_size(model.head, pooled)  # without a part its two variants are equal
    assert kept.size.tolist() == [3] * 16
    assert kept.exact.all()


def test_thresholds_of_sizes():
    head = InfoDisentHead(4, 2, rotate=False).requires_grad_(False)
    head.fc.weight.copy_(torch.tensor([[1.0, 1, 0.0005, 0], [0, 0, 0.0005, 0]]))
    assert global_size(head) == (2, 0.75)
    signed = build_head("protopnet", 4, 2, per_class=1)  # 1 for its own class, -0.5 for the other
    assert global_size(signed) == (2, 0)
    pooled = torch.tensor([[0.05, 0.15, 9, -0.3], [0.5, -0.5, 9, 0.2]])
    assert pipnet_size(head, pooled, torch.tensor([0, 0])).tolist() == [2, 2]
    assert active_size(head, pooled).tolist() == [2, 3]


@pytest.mark.parametrize(("classes", "bias"), [(2, False), (2, True), (4, False), (5, True)])
@pytest.mark.parametrize("tried", [0, 4096])
def test_the_smallest_set_is_that_of_all_sets(classes, bias, tried, monkeypatch):
    monkeypatch.setattr(sizes, "TRIED", tried)
    torch.manual_seed(classes)
    head = InfoDisentHead(9, classes, rotate=False, bias=bias).requires_grad_(False).eval()
    for parameter in head.parameters():
        parameter.uniform_(0, 1)
    pooled = torch.randn(20, 9)
    found = sufficient_size(head, pooled)
    for i in range(20):
        label = int(head.classify(pooled[i : i + 1]).argmax())
        truth = None
        for size in range(10):
            sets = list(itertools.combinations(range(9), size))
            units = torch.zeros(len(sets), 9)
            for row, members in enumerate(sets):
                units[row, list(members)] = pooled[i, list(members)]
            scores = head.classify(units)
            best = scores.amax(1, keepdim=True)
            alone = (scores == best).sum(1) == 1
            if ((scores.argmax(1) == label) & alone).any():
                truth = size
                break
        assert truth is not None
        assert found.size[i] >= truth
        if found.exact[i] or classes == 2:
            assert found.size[i] == truth
    assert found.exact.float().mean() > 0.5
    if classes == 2 or tried:
        assert found.exact.all()


def test_a_tie_keeps_nothing_and_other_heads_are_refused(monkeypatch):
    head = InfoDisentHead(3, 2, rotate=False).requires_grad_(False)
    head.fc.weight.fill_(1.0)
    found = sufficient_size(head, torch.rand(2, 3))
    assert found.size.tolist() == [3, 3]
    assert not found.exact.any()
    plain = InfoDisentHead.classify
    monkeypatch.setattr(InfoDisentHead, "classify", lambda self, x: plain(self, x).exp())
    with pytest.raises(ValueError, match="no weighted sum of its channels"):
        sufficient_size(head, torch.rand(2, 3))


def test_purity_of_scenes_is_known(known, monkeypatch):
    """A cell has one part: its channel alone responds there. Half a turn makes two of it."""
    model, maps, _ = known
    for by in ("sum", "max"):
        pure = channel_purity(model.head, [maps[:8], maps[8:]], by=by)
        assert pure.tolist() == pytest.approx([1.0] * 6)
    turned = maps.clone()
    turned[..., 0], turned[..., 1] = maps[..., 0] + maps[..., 1], maps[..., 0] - maps[..., 1]
    mixed = channel_purity(model.head, [turned])
    half = math.sqrt(0.5)
    assert mixed.tolist() == pytest.approx([half, half, 1, 1, 1, 1])
    negative = channel_purity(model.head, [turned], sign=-1, count=2)
    assert negative[1] == pytest.approx(half)
    monkeypatch.setattr(unit_maps, "BYTES", 1)
    assert torch.equal(
        channel_purity(model.head, maps.split(3)), channel_purity(model.head, [maps])
    )


def test_purity_is_the_mean_over_the_strongest_images():
    torch.manual_seed(0)
    head = build_head("infodisent", 4, 2).requires_grad_(False).eval()
    head.rotation.A.normal_()
    head.eval()
    maps = torch.randn(9, 6, 4)
    y = maps.double() @ head.rotation().double().mT
    found = channel_purity(head, maps.split(4), count=3)
    for unit in range(4):
        order = sorted(range(9), key=lambda i: -float(y[i, :, unit].sum()))[:3]
        values = []
        for i in order:
            pixel = int(y[i, :, unit].argmax())
            values.append(float(y[i, pixel, unit] / y[i, pixel].norm()))
        assert float(found[unit]) == pytest.approx(sum(values) / 3, abs=1e-6)
    with pytest.raises(ValueError, match="by is 'mean', allowed are sum, max"):
        channel_purity(head, [maps], by="mean")
    with pytest.raises(ValueError, match="no images"):
        channel_purity(head, [])


def test_entropy_of_flat_and_peaked_maps():
    head = InfoDisentHead(2, 1, rotate=False).requires_grad_(False).eval()
    maps = torch.zeros(3, 10, 2)
    maps[0] = 7.0  # flat
    maps[1, 3] = 50.0  # one pixel
    maps[2, :, 0], maps[2, 4, 1] = 1.0, 3e3  # flat, but the peak has the weight
    found = spatial_entropy(head, maps)
    assert found.tolist() == pytest.approx([math.log(10), 0, math.log(10) / 3001], abs=1e-6)
    assert complexity(torch.tensor([[1.0, -1, 1, 1], [5, 0, 0, 0]])).tolist() == pytest.approx(
        [math.log(4), 0]
    )
    assert complexity(torch.zeros(1, 4)).isnan()


def test_duplicates_are_patches_shown_before():
    none = torch.full((2, 4), -1)
    found = duplicate_prototypes(
        Prototypes(
            pos_value=torch.ones(2, 4),
            pos_image=torch.tensor([[0, 0, 1, 0], [5, 5, 5, 5]]),
            pos_index=torch.tensor([[3, 3, 3, 4], [0, 0, 0, 0]], dtype=torch.int32),
            neg_value=torch.zeros(2, 4),
            neg_image=torch.cat([torch.tensor([[1, -1, -1, -1]]), none[:1]]),
            neg_index=torch.cat([torch.tensor([[3, -1, -1, -1]]), none[:1]]).int(),
            files=[], labels=torch.zeros(0), classes=(), grid=(2, 3), transform={},
        )
    )  # fmt: skip
    assert (found.sides, found.duplicates, found.part) == (5, 2, 2 / 5)
