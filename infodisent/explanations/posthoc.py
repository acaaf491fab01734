"""Post-hoc explanations in closed form: what sampling and backward passes are used for elsewhere.

All take the maps that a head is fed with, pixels as rows, and one class for each image, and give a
number for every feature cell, ``[B, P]``. None runs the backbone. A pool keeps one pixel of a unit,
so what a cell is worth is known exactly.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from infodisent.contract import SparsePool
from infodisent.explanations.unit_maps import UnitMaps, is_linear
from infodisent.methods import Head

Explainer = Callable[[Head, Tensor, Tensor], Tensor]
"""``(head, maps [B, P, C], classes [B]) -> [B, P]``, larger where a cell counts more."""


@torch.no_grad()
def evidence(
    head: Head,
    maps: Tensor,  # [B, P, C]
    classes: Tensor,  # [B] int64
) -> Tensor:
    """What this package shows, as one map ``[B, P]``: every contribution at the cell it comes from.

    Its sum is the score of the class without its offset, see `Head.contributions`; a unit with two
    sides gives each its own part, in proportion to ``pos`` and ``-neg``.
    """
    _check("evidence", head, maps, classes)
    pool = head.pool(maps, input_fmt="NLC")
    contributions = head.contributions(pool.pooled, classes)
    return at_cells(pool, contributions, head.class_weights()[classes], maps.shape[1])


def at_cells(
    pool: SparsePool,  # [B, M] each
    contributions: Tensor,  # [B, M]
    weights: Tensor,  # [B, M], of the classes
    pixels: int,
) -> Tensor:
    """Contributions summed at the cells they come from, ``[B, P]``, see `evidence`."""
    contributions = contributions.to(pool.pooled)
    total = pool.pooled.new_zeros(len(contributions), pixels)
    share = torch.where(pool.pooled != 0, contributions / pool.pooled, 0)
    both = (pool.pooled == 0) & (pool.pos > 0)  # two equal sides: what they have is not seen
    share = torch.where(both, weights.to(share), share)
    for value, index in ((pool.pos, pool.pos_index), (-pool.neg, pool.neg_index)):
        part = torch.where(index >= 0, share * value, 0)
        total.scatter_add_(1, index.clamp_min(0).long(), part)
    return total


@torch.no_grad()
def shapley_cells(
    head: Head,
    maps: Tensor,  # [B, P, C]
    classes: Tensor,  # [B] int64
) -> Tensor:
    """Exact Shapley values of the feature cells for the score of a class, ``[B, P]``.

    The players are the P cells; a coalition is worth the score when the head sees no other cells,
    and the empty one the offset. A maximum over cells is the airport game (Littlechild and Owen
    1973): with the values of a unit sorted, z_(1) <= … <= z_(P), z_(0) = 0,
    ``phi_(i) = sum_(j <= i) (z_(j) - z_(j-1)) / (P - j + 1)``. One sort a unit, of ReLU(y) and,
    read backwards, of ReLU(-y); then the class's weights mix the units. The sum over cells is the
    score without its offset. Kernel SHAP over the cells converges to these numbers. "Removed" means
    removed from the last map, not from the picture.

    Returns:
        float64 where the device has it, else float32.

    Raises:
        ValueError: scores are no weighted sum of units, or units are no maxima of their maps: the
            values would need 2^P passes.
    """
    _check("shapley_cells", head, maps, classes)
    units = UnitMaps(head)
    wide = torch.float32 if maps.device.type == "mps" else torch.float64
    parts = []
    for chunk in units.chunks(maps):
        pool = head.pool(maps[chunk], input_fmt="NLC")
        _require_linear("shapley_cells", head, pool.pooled)
        values = units.of_images(maps[chunk])  # [b, P, M]
        two_sided = units.check_extreme("shapley_cells", values, pool)
        weights = head.class_weights()[classes[chunk]].to(wide)  # [b, M]
        ordered, order = values.mT.sort(dim=2)  # [b, M, P]
        phi = _airport(ordered.clamp_min(0).to(wide))
        if two_sided:
            phi -= _airport(ordered.flip(2).neg().clamp_min(0).to(wide)).flip(2)
        phi *= weights[:, :, None]
        total = torch.zeros(values.shape[:2], dtype=wide, device=maps.device)
        parts.append(total.scatter_add_(1, order.flatten(1), phi.flatten(1)))
    return torch.cat(parts) if parts else maps.new_zeros(maps.shape[:2], dtype=wide)


def _airport(
    rising: Tensor,  # [..., P], sorted, >= 0
) -> Tensor:
    """Shapley values of the maximum, in the same order."""
    pixels = rising.shape[-1]
    steps = rising.diff(dim=-1, prepend=rising.new_zeros(*rising.shape[:-1], 1))
    return (steps / torch.arange(pixels, 0, -1, device=rising.device)).cumsum(-1)


@torch.no_grad()
def shapley_units(
    head: Head,
    pooled: Tensor,  # [n, M]
    classes: Tensor,  # [n] int64
) -> Tensor:
    """Exact Shapley values of the units for the score of a class, ``[n, M]``.

    The players are the M units, 0 where they are absent. A weighted sum leaves nothing to share:
    each is worth its weight times its value, which is its contribution.

    Raises:
        ValueError: scores are no weighted sum of units.
    """
    _require_linear("shapley_units", head, pooled)
    return head.class_weights()[classes].to(pooled.dtype) * pooled


def gradcam(
    head: Head,
    maps: Tensor,  # [B, P, C]
    classes: Tensor,  # [B] int64
) -> Tensor:
    """Grad-CAM of the head's map for the logit of a class, ``[B, P]`` >= 0, not normalised.

    ``ReLU(sum_c alpha_c x_pc)``, alpha the mean over pixels of d logit / d x (Selvaraju et al.
    2017). Only winners have a gradient. Where units are linear in a pixel it is their vector, so
    ``alpha = 1/P sum_m n_m w_m u_m`` with ``n_m = [pos_m > 0] + [neg_m > 0]`` needs two products
    and no backward pass. Other heads, such as those of cosines with prototypes, are differentiated
    themselves, from the map on. w is the class's weight, or d logit / d unit of a head that is no
    weighted sum.

    It spreads what at most two pixels of a unit decide over all pixels: `shapley_cells` and
    `evidence` say where a logit comes from.
    """
    _check("gradcam", head, maps, classes)
    with torch.no_grad():
        units = UnitMaps(head)
    parts = []
    for chunk in units.chunks(maps):
        x = maps[chunk]
        if units.vectors is not None:
            with torch.no_grad():
                pool = head.pool(x, input_fmt="NLC")
            slopes = _logit_slopes(head, pool.pooled, classes[chunk])
            sides = ((pool.pos_index, 1.0), (pool.neg_index, -1.0))
            count = sum((index >= 0).float() for index, _ in sides)
            alpha = (slopes * count) @ units.vectors.to(slopes)
        else:
            alpha = _mean_gradient(head, x, classes[chunk])
        alpha = alpha / x.shape[1]
        parts.append(torch.einsum("bpc,bc->bp", x.to(alpha), alpha).clamp_min(0))
    return torch.cat(parts) if parts else maps.new_zeros(maps.shape[:2])


def _logit_slopes(
    head: Head,
    pooled: Tensor,  # [b, M]
    classes: Tensor,  # [b] int64
) -> Tensor:
    """d logit / d unit, ``[b, M]``: the class's weights, where scores are their sum."""
    with torch.no_grad():
        logits = head.classify(pooled)
        plain = torch.equal(head.scores(logits), logits) and is_linear(head, pooled)
        if plain:
            return head.class_weights()[classes].to(pooled.dtype)
    with torch.enable_grad():
        units = pooled.detach().requires_grad_()
        chosen = head.classify(units).gather(1, classes[:, None]).sum()
        (slopes,) = torch.autograd.grad(chosen, units)
    return slopes


def _mean_gradient(
    head: Head,
    maps: Tensor,  # [b, P, C]
    classes: Tensor,  # [b] int64
) -> Tensor:
    """Sum over pixels of d logit / d x, ``[b, C]``, of any head; the pools' gradient is sparse."""
    with torch.enable_grad():
        x = maps.detach().float().requires_grad_()
        logits = head.classify(head.pool(x, input_fmt="NLC").pooled)
        chosen = logits.gather(1, classes[:, None]).sum()
        (gradient,) = torch.autograd.grad(chosen, x)
    return gradient.sum(1)


def random_cells(
    head: Head,
    maps: Tensor,  # [B, P, C]
    classes: Tensor,  # [B] int64
) -> Tensor:
    """Noise ``[B, P]``: what an explanation must be better than. The same at every call."""
    _check("random_cells", head, maps, classes)
    draw = torch.rand(maps.shape[:2], generator=torch.Generator().manual_seed(0))
    return draw.to(maps.device)


EXPLAINERS: dict[str, Explainer] = {
    "evidence": evidence,
    "shapley": shapley_cells,
    "gradcam": gradcam,
    "random": random_cells,
}
"""Every closed form by its name in tables, and the control."""


def _require_linear(what: str, head: Head, pooled: Tensor) -> None:
    if not is_linear(head, pooled):
        raise ValueError(
            f"{what}: the scores of {head.title} are no weighted sum of its {head.unit}s, which "
            "this closed form needs"
        )


def _check(what: str, head: Head, maps: Tensor, classes: Tensor) -> None:
    if maps.ndim != 3 or maps.shape[2] != head.in_features:
        raise ValueError(
            f"{what}: maps is {tuple(maps.shape)}, must be (images, pixels, {head.in_features})"
        )
    if classes.shape != maps.shape[:1]:
        raise ValueError(
            f"{what}: classes is {tuple(classes.shape)}, must be ({len(maps)},), one an image"
        )
    if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < head.num_classes:
        raise ValueError(
            f"{what}: classes are {int(classes.min())} … {int(classes.max())}, allowed are 0 … "
            f"{head.num_classes - 1}"
        )
