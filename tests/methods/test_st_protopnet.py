"""ST-ProtoPNet against its formulas in float64; stages, projection, training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from infodisent.methods.st_protopnet import STProtoPNetHead, largest_products
from infodisent.methods.stages import LoopOptions, TrainingBatch
from infodisent.training.fit import FitConfig, fit_head, new_head

from .formulas import cluster_terms, orthogonal_term, projections, same_loss_and_gradients

STRONG = {"cluster": 0.7, "trivial_separation": 0.2, "support_separation": 0.5}
STRONG |= {"orthogonal": 0.05, "discrimination": 0.6, "closeness": 0.4, "wrong_weight": 0.01}


def small(variant, classes=3, **options):
    torch.manual_seed(3)
    head = STProtoPNetHead(6, classes, variant=variant, per_class=2, dimension=5, **options)
    return head.double().eval()


def sides(head, x):
    """Of each branch the projections and cosines of every pixel, [B, P, M / 2]."""
    half = head.num_features // 2
    found = []
    for branch, vectors in zip(head.add_on, head.prototypes.split(half), strict=True):
        pairs = [projections(rows, vectors) for rows in branch(x.flatten(2).mT)]
        found.append([torch.stack(part) for part in zip(*pairs, strict=True)])
    return found


def products(bases, choose):
    """Mean over ordered pairs of classes of the chosen product of their vectors."""
    total, pairs = 0.0, 0
    for p in bases:
        for q in bases:
            if p is not q:
                total = total + choose(torch.stack([(a * b).sum() for a in p for b in q]))
                pairs += 1
    return total / pairs


@pytest.mark.parametrize("variant", ["cropped", "full"])
def test_logits_are_the_formula(variant):
    head = small(variant)
    functions = {type(layer) for branch in head.add_on for layer in branch}
    assert functions == {nn.Linear, nn.Tanh if variant == "cropped" else nn.Identity}
    with torch.no_grad():
        head.prototypes.mul_(3)
    x = torch.randn(4, 6, 2, 3, dtype=torch.float64)
    each = [pair[variant == "full"] for pair in sides(head, x)]
    every = torch.cat(each, 2)
    value = every.amax(1).clamp_min(0)
    pool = head.pool(x)
    torch.testing.assert_close(pool.pos, value)
    there = every.gather(1, pool.pos_index.long().clamp_min(0)[:, None])[:, 0]
    torch.testing.assert_close(there[value > 0], value[value > 0])
    logits = 0.0
    for units in value.chunk(2, 1):  # each branch adds its own
        weight = torch.full((3, 6), -0.5, dtype=torch.float64)
        for k in range(3):
            weight[k, 2 * k : 2 * k + 2] = 1
        logits = logits + units @ weight.mT
    torch.testing.assert_close(head(x), logits)
    some = torch.tensor([7, 0, 4])
    rows = head.maps(x[0].flatten(1).mT, some)
    torch.testing.assert_close(rows, every[0][:, some].clamp_min(0).float())


@pytest.mark.parametrize(
    ("variant", "several"), [("cropped", False), ("full", False), ("full", True)]
)
def test_loss_and_gradients_are_the_formula(variant, several):
    head = small(variant, **STRONG)
    x = torch.randn(4, 6, 2, 3, dtype=torch.float64)
    labels, named = torch.tensor([2, 0, 1, 2]), [2, 0, 1, 2]
    if several:
        labels = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 1]]).double()
        named = [[0, 2], [1], [0, 1], [2]]
    wanted = 0.0
    weights, bases = head.last.weight.chunk(2, 1), head.prototypes.view(2, 3, 2, 5)
    for (dots, cosines), weight, separation in zip(
        sides(head, x), weights, (0.2, 0.5), strict=True
    ):
        cosine = cosines.amax(1)
        units = dots.amax(1) if variant == "cropped" else cosine
        logits = units.clamp_min(0) @ weight.mT
        if several:
            wanted = wanted + nn.functional.binary_cross_entropy_with_logits(logits, labels)
        else:
            wanted = wanted + nn.functional.cross_entropy(logits, labels)
        if variant == "full":
            cosine = cosine.clamp_min(0)
        own, other = cluster_terms(cosine, named, [0, 0, 1, 1, 2, 2])
        wanted = wanted - 0.7 * own + separation * other
        wanted = wanted + 0.01 * sum(
            weight[k, m].abs() for k in range(3) for m in range(6) if m // 2 != k
        )
    wanted = wanted + 0.05 * sum(orthogonal_term(side) for side in bases)
    wanted = wanted + 0.6 * products(list(bases[0]), torch.amax)
    wanted = wanted - 0.4 * products(list(bases[1]), torch.amin)
    same_loss_and_gradients(head, x, labels, wanted)


def test_one_class_has_no_pairs():
    assert largest_products(torch.ones(1, 2, 3), torch.ones(1, 2, 3)).item() == 0


def test_branches_share_nothing():
    """So both may train on every batch: neither changes what the other's loss says."""
    head = small("cropped")
    x, labels = torch.randn(2, 6, 2, 3, dtype=torch.float64), torch.tensor([0, 1])
    pooled = head.pool(x).pooled
    only = nn.functional.cross_entropy(pooled[:, :6] @ head.last.weight[:, :6].mT, labels)
    gradients = torch.autograd.grad(
        only, [*head.add_on[1].parameters(), head.prototypes], allow_unused=True
    )
    assert all(g is None or (g == 0).all() for g in gradients[:-1])
    assert (gradients[-1][6:] == 0).all()
    assert (gradients[-1][:6] != 0).any()


@pytest.mark.parametrize("variant", ["cropped", "full"])
def test_projection_takes_directions_of_own_patches(variant):
    head = small(variant, classes=4).float()
    maps, labels = torch.randn(6, 6, 6), torch.tensor([0, 1, 2, 0, 1, 2])  # none of class 3
    with torch.no_grad():
        before = head.prototypes.clone()
        _, last = head.stages(LoopOptions())
        head.start_stage(last, lambda: iter([(maps, labels, torch.arange(6))]))
    for m, prototype in enumerate(head.prototypes):
        side, unit = divmod(m, 8)
        if unit >= 6:
            assert torch.equal(prototype, before[m])
            continue
        own = head.add_on[side](maps[labels == unit // 2]).flatten(0, 1)
        directions = own / own.norm(dim=1, keepdim=True)
        alike = (own if variant == "cropped" else directions) @ before[m]
        torch.testing.assert_close(prototype, directions[alike.argmax()])
    assert head.unprojected.tolist() == ([False] * 6 + [True] * 2) * 2
    assert head.duplicate_of.max() < 16
    penalty = head.penalty(LoopOptions(), TrainingBatch(labels, torch.ones(6, 16)))
    torch.testing.assert_close(penalty.item(), 1e-4 * 0.5 * 48)


@pytest.mark.parametrize("variant", ["cropped", "full"])
def test_trains_on_stored_features(store, variant):
    head = new_head(
        store.channels, 2, 0, method="st_protopnet", per_class=2, dimension=16, variant=variant
    )
    config = FitConfig(epochs=40, batch_size=64, rotation_lr=0.02)
    history = fit_head(head, store, config, progress=False)
    assert len(history) == 60
    assert history[-1]["accuracy"] > 0.9
    lengths = head.prototypes.norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))


BAD = {
    "variant": ({"variant": "both"}, "variant is 'both', allowed are cropped, full"),
    "per_class": ({"per_class": 0}, "per_class is 0"),
    "closeness": ({"closeness": -1.0}, "closeness is -1.0"),
    "nan": ({"support_separation": float("nan")}, "support_separation is nan"),
    "classes": ({"num_classes": -1}, "num_classes is -1"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_name_the_argument(case):
    change, message = BAD[case]
    with pytest.raises(ValueError, match=f"STProtoPNetHead: {message}"):
        STProtoPNetHead(**{"in_features": 4, "num_classes": 2, **change})
