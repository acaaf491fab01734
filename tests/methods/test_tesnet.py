"""TesNet against its formulas in float64; stages, projection, training."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from infodisent.methods.stages import LoopOptions, TrainingBatch
from infodisent.methods.tesnet import TesNetHead, subspace_distances
from infodisent.training.fit import FitConfig, fit_head, new_head

from .formulas import cluster_terms, orthogonal_term, projections, same_loss_and_gradients

STRONG = {"cluster": 0.8, "separation": 0.3, "orthogonal": 0.05, "subspaces": 0.02}
STRONG |= {"wrong_weight": 0.01}


def small(activation="none", classes=3, **options):
    torch.manual_seed(2)
    head = TesNetHead(6, classes, activation=activation, per_class=2, dimension=5, **options)
    return head.double().eval()


def every(head, x):
    """Projections and cosines of every pixel, [B, P, M]."""
    pairs = [projections(rows, head.prototypes) for rows in head.add_on(x.flatten(2).mT)]
    return (torch.stack(part) for part in zip(*pairs, strict=True))


def loop_distances(bases):
    """The subspace term as published, one pair of classes after the other."""
    total = 0.0
    for p in bases:
        for q in bases:
            if p is not q:
                total = total + (p.mT @ p - q.mT @ q).square().sum().sqrt()
    return total / (2 * math.sqrt(2))


@pytest.mark.parametrize("activation", ["none", "sigmoid"])
def test_logits_are_the_formula(activation):
    head = small(activation)
    with torch.no_grad():
        head.prototypes.mul_(3)  # after the projection they are patches of any length
    x = torch.randn(4, 6, 2, 3, dtype=torch.float64)
    dots, cosines = every(head, x)
    value = dots.amax(1).clamp_min(0)
    pool = head.pool(x)
    torch.testing.assert_close(pool.pos, value)
    there = dots.gather(1, pool.pos_index.long().clamp_min(0)[:, None])[:, 0]
    torch.testing.assert_close(there[value > 0], value[value > 0])
    assert torch.equal(pool.pos_index >= 0, value > 0)
    weight = torch.full((3, 6), -0.5, dtype=torch.float64)
    for k in range(3):
        weight[k, 2 * k : 2 * k + 2] = 1
    torch.testing.assert_close(head(x), value @ weight.mT)
    pooled, extra = head.training_pool(x)
    torch.testing.assert_close(pooled, value)
    torch.testing.assert_close(extra["cosine"], cosines.amax(1))
    assert not torch.equal(cosines.argmax(1), dots.argmax(1))  # the two are other pixels


@pytest.mark.parametrize("several", [False, True])
def test_loss_and_gradients_are_the_formula(several):
    head = small("sigmoid", **STRONG)
    x = torch.randn(4, 6, 2, 3, dtype=torch.float64)
    labels, named = torch.tensor([2, 0, 1, 2]), [2, 0, 1, 2]
    if several:
        labels = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 1]]).double()
        named = [[0, 2], [1], [0, 1], [2]]
    dots, cosines = every(head, x)
    logits = dots.amax(1).clamp_min(0) @ head.last.weight.mT
    if several:
        wanted = nn.functional.binary_cross_entropy_with_logits(logits, labels)
    else:
        wanted = nn.functional.cross_entropy(logits, labels)
    own, other = cluster_terms(cosines.amax(1), named, [0, 0, 1, 1, 2, 2])
    bases = head.prototypes.view(3, 2, 5)
    wanted = wanted - 0.8 * own + 0.3 * other + 0.05 * orthogonal_term(bases)
    wanted = wanted - 0.02 * loop_distances(list(bases))
    weight = head.last.weight
    wanted = wanted + 0.01 * sum(
        weight[k, m].abs() for k in range(3) for m in range(6) if m // 2 != k
    )
    same_loss_and_gradients(head, x, labels, wanted)


def test_negative_cosines_are_not_hidden():
    """The published maximum of cosine times mask is 0 where all of a class's are negative."""
    head = small()
    cosine = torch.tensor([[-0.5, -0.25, -0.75, -0.5, -0.9, -0.9]], dtype=torch.float64)
    own, other = head.clusters(cosine, torch.tensor([1]), head.own())
    assert (own.item(), other.item()) == (-0.5, -0.25)
    published = (cosine * head.own().mT[1]).amax(1)
    assert published.item() == 0


def test_subspaces_by_one_gram_matrix():
    torch.manual_seed(0)
    bases = torch.randn(4, 3, 6, dtype=torch.float64, requires_grad=True)
    pair = torch.stack([subspace_distances(bases), loop_distances(list(bases))])
    torch.testing.assert_close(pair[0], pair[1], rtol=1e-12, atol=0)
    found, wanted = (torch.autograd.grad(p, bases, retain_graph=True)[0] for p in pair)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    alike = bases.detach()[:1].expand(3, 3, 6).float().clone().requires_grad_()
    total = subspace_distances(alike)  # equal subspaces: 0, and no NaN
    total.backward()
    assert total.item() == 0
    assert (alike.grad == 0).all()


def test_projection_and_lengths():
    head = small(classes=4).float()
    maps, labels = torch.randn(6, 6, 6), torch.tensor([0, 1, 2, 0, 1, 2])  # none of class 3
    with torch.no_grad():
        head.prototypes.mul_(2)
        head.after_step()
        before = head.prototypes.clone()
        torch.testing.assert_close(before.norm(dim=1), torch.ones(8))
        _, last = head.stages(LoopOptions())
        head.start_stage(last, lambda: iter([(maps, labels, torch.arange(6))]))
    patches = head.add_on(maps)
    for m, prototype in enumerate(head.prototypes):
        if m >= 6:
            assert torch.equal(prototype, before[m])
            continue
        own = patches[labels == m // 2].flatten(0, 1)
        assert torch.equal(prototype, own[(own @ before[m]).argmax()])  # raw, not of length 1
    assert head.unprojected.tolist() == [False] * 6 + [True] * 2
    patched = head.prototypes.detach().clone()
    head.prototypes.requires_grad_(False)  # as while the last layer trains
    head.after_step()
    assert torch.equal(head.prototypes, patched)
    batch = TrainingBatch(labels, torch.ones(6, 8))
    penalty = head.penalty(LoopOptions(), batch)
    torch.testing.assert_close(penalty.item(), 1e-4 * 0.5 * 24)  # wrong weights alone


def test_trains_on_stored_features(store):
    head = new_head(store.channels, 2, 0, method="tesnet", per_class=2, dimension=16)
    config = FitConfig(epochs=40, batch_size=64, rotation_lr=0.02)
    history = fit_head(head, store, config, progress=False)
    assert len(history) == 60
    assert history[-1]["accuracy"] > 0.9
    assert not head.unprojected.any()


BAD = {
    "activation": ({"activation": "tanh"}, "activation is 'tanh', allowed are none, sigmoid"),
    "per_class": ({"per_class": 0}, "per_class is 0"),
    "dimension": ({"dimension": 1.5}, "dimension is 1.5"),
    "subspaces": ({"subspaces": -1.0}, "subspaces is -1.0"),
    "nan": ({"orthogonal": float("nan")}, "orthogonal is nan"),
    "classes": ({"num_classes": True}, "num_classes is True"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_name_the_argument(case):
    change, message = BAD[case]
    with pytest.raises(ValueError, match=f"TesNetHead: {message}"):
        TesNetHead(**{"in_features": 4, "num_classes": 2, **change})
