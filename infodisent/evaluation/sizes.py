"""How long explanations are, by each definition in use. Shorter is easier to read.

`infodisent.explanations.sparsity` has the package's own: how many units carry 95 % of a logit.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from infodisent.evaluation.arguments import check_labels, check_pooled
from infodisent.explanations.sparsity import exact
from infodisent.explanations.unit_maps import is_linear
from infodisent.methods import Head

USED = 1e-3
"""A weight or a contribution that is no larger counts as nothing (PIP-Net's code)."""
PRESENT = 0.1
"""A unit's value below this counts as absent in PIP-Net's local size (its code)."""
ACTIVE = 0.2
"""A unit is shown from this value on in SIDE's figure (Dubovik et al. 2025)."""
TRIED = 4096
"""Sets of units that the search for a smaller sufficient one may try for an image."""


@torch.no_grad()
def global_size(head: Head) -> tuple[int, float]:
    """Units with some weight beyond ± 1e-3, and the part of all weights that are not (sparsity).

    Nauta et al., "PIP-Net", CVPR 2023. Fewer units, and a larger part, are better.
    """
    weights = head.class_weights()
    used = weights.abs() > USED
    return int(used.any(0).sum()), float((~used).float().mean())


@torch.no_grad()
def pipnet_size(
    head: Head,
    pooled: Tensor,  # [n, M]
    classes: Tensor,  # [n] int64
) -> Tensor:
    """Units with a contribution above 1e-3 once values below 0.1 count as 0, ``[n]`` int64.

    PIP-Net's local size, of the predicted class. Its values are probabilities; channels have
    another scale, so it compares prototype heads, not these with InfoDisent.
    """
    check_pooled("pipnet_size", head, pooled)
    check_labels("pipnet_size", "classes", classes, len(pooled), head.num_classes)
    present = torch.where(pooled.abs() < PRESENT, 0, pooled)
    return (head.contributions(present, classes) > USED).sum(1)


@torch.no_grad()
def active_size(
    head: Head,
    pooled: Tensor,  # [n, M]
) -> Tensor:
    """Units with a value above 0.2, on either side, ``[n]`` int64.

    What SIDE's figure 1 counts for SIDE and InfoDisent (arXiv 2507.19321); how values are
    normalised there is not said, here they are as the head gives them.
    """
    check_pooled("active_size", head, pooled)
    return (pooled.abs() > ACTIVE).sum(1)


class SufficientSet(NamedTuple):
    """How many units keep a prediction, ``[n]`` each.

    Attributes:
        size: int64, of the smallest set known; 0 where the offsets alone decide so.
        exact: bool, it is proved that no smaller one does it.
    """

    size: Tensor
    exact: Tensor


@torch.no_grad()
def sufficient_size(
    head: Head,
    pooled: Tensor,  # [n, M]
) -> SufficientSet:
    """The smallest set of units that keeps the prediction when all others are 0.

    Without a threshold, lower is better. For one rival class the largest differences of
    contributions are the smallest set, which is exact; the largest such number over all rivals is a
    lower bound. A set that beats all rivals is found greedily, in several orders, less what it does
    not need. Where its size is the bound it is `exact` (always for two classes). Otherwise the
    problem is a set cover: up to `TRIED` smaller sets are tried, which is exact again if those are
    all, and else the size is an upper bound. A tie keeps nothing: the class must be ahead.

    Raises:
        ValueError: scores are no weighted sum of units.
    """
    check_pooled("sufficient_size", head, pooled)
    if not is_linear(head, pooled):
        raise ValueError(
            f"sufficient_size: the scores of {head.title} are no weighted sum of its {head.unit}s"
        )
    weights = exact(head.class_weights())
    offsets = exact(head.offsets(torch.arange(len(weights), device=head.device)))
    sizes, proofs = [], []
    for units in exact(pooled):
        size, proof = _sufficient(weights * units, offsets)
        sizes.append(size)
        proofs.append(proof)
    return SufficientSet(
        torch.tensor(sizes, dtype=torch.int64), torch.tensor(proofs, dtype=torch.bool)
    )


def _sufficient(
    parts: Tensor,  # [K, M] float64, contributions
    offsets: Tensor,  # [K] float64
) -> tuple[int, bool]:
    scores = parts.sum(1) + offsets
    label = int(scores.argmax())
    rivals = torch.arange(len(scores)) != label
    gains = parts[label] - parts[rivals]  # [R, M]
    ahead = offsets[label] - offsets[rivals]  # [R]
    if not len(ahead) or bool((ahead > 0).all()):
        return 0, True
    running = gains.sort(dim=1, descending=True).values.cumsum(1) + ahead[:, None]
    first = torch.where((running > 0).any(1), (running > 0).to(torch.uint8).argmax(1) + 1, 0)
    first = torch.where(ahead > 0, 0, first)
    least = int(first.max())
    if bool((running[:, -1] <= 0).any()):  # a tie of the whole
        return parts.shape[1], False
    most = parts.shape[1]
    orders = [gains[rival].argsort(descending=True) for rival in first.topk(min(4, len(first)))[1]]
    for order in orders:
        most = min(most, _pruned(gains, ahead, order))
        if most == least:
            return most, True
    for total in (False, True):
        most = min(most, _greedy(gains, ahead, most, total=total))
    return _searched(gains[:, (gains > 0).any(0)], ahead, least, most)


def _searched(gains: Tensor, ahead: Tensor, least: int, most: int) -> tuple[int, bool]:
    """Try every set of the units that help, from `least` units on, as long as `TRIED` allows."""
    tried = 0
    for size in range(least, most):
        tried += math.comb(gains.shape[1], size)
        if tried > TRIED:
            return most, False
        sets = torch.combinations(torch.arange(gains.shape[1]), size)  # [n, size]
        margins = gains[:, sets].sum(2) + ahead[:, None]  # [R, n]
        if bool((margins > 0).all(0).any()):
            return size, True
    return most, True


def _pruned(
    gains: Tensor,  # [R, M]
    ahead: Tensor,  # [R]
    order: Tensor,  # [m] int64
) -> int:
    """How many units of an order beat all rivals, without those that are not needed for it."""
    beaten = (gains[:, order].cumsum(1) + ahead[:, None] > 0).all(0)
    if not bool(beaten.any()):
        return gains.shape[1]
    chosen = order[: int(beaten.to(torch.uint8).argmax()) + 1].tolist()
    margins = gains[:, chosen].sum(1) + ahead
    count = len(chosen)
    for unit in reversed(chosen):
        if bool((margins - gains[:, unit] > 0).all()):
            margins, count = margins - gains[:, unit], count - 1
    return count


def _greedy(gains: Tensor, ahead: Tensor, most: int, *, total: bool) -> int:
    """Add units until all rivals are beaten, or `most` are reached.

    By the smallest margin that they leave, of equal ones by their sum over rivals not yet beaten;
    or by that sum alone (`total`).
    """
    margins = ahead.clone()
    order: list[int] = []
    free = (gains > 0).any(0)
    while len(order) < most and bool(free.any()):
        helpful = gains[margins <= 0].sum(0).masked_fill(~free, -torch.inf)  # [M]
        if not total:
            worst = (margins[:, None] + gains).amin(0).masked_fill(~free, -torch.inf)
            helpful = helpful.masked_fill(worst < worst.amax() - 1e-12, -torch.inf)
        unit = int(helpful.argmax())
        order.append(unit)
        free[unit] = False
        margins = margins + gains[:, unit]
        if bool((margins > 0).all()):
            return _pruned(gains, ahead, torch.tensor(order))
    return most
