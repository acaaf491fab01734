"""Whether units mean parts, from annotated keypoints: consistency, stability, purity.

Keypoints are ``[B, J, 2]``, x and y in pixels of the images as the backbone is fed; ``visible`` is
``[B, J]`` bool. Consistency and stability: Huang et al., ICCV 2023, and its code EvalProtoPNet.
Purity: Nauta et al., "PIP-Net", CVPR 2023, and its code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from infodisent.backbones.backbone import evaluating
from infodisent.checks import check_choice, check_strength, check_strengths
from infodisent.classifier import InfoDisentClassifier
from infodisent.evaluation.arguments import (
    check_counts,
    check_found_parts,
    check_images,
    check_parts,
    check_tensor,
)
from infodisent.evaluation.images import (
    CLIP,
    STD,
    maps_of,
    noise_like,
    own_units,
)
from infodisent.evaluation.sizes import USED
from infodisent.explanations.unit_maps import UnitMaps
from infodisent.methods import Head

WHERE = ("bicubic", "cell")
HALF = 36 / 224
"""Half the side of the box around a unit's peak, in parts of the image's side."""
PATCH = 32 / 224
"""Side of the patch of purity, in parts of the image's side."""
LEAST = 0.8
"""Part of the images in which a part must be in the box for a unit to be consistent."""


@torch.no_grad()
def part_consistency(
    model: InfoDisentClassifier,
    images: Tensor,  # [B, 3, H, W], normalised
    labels: Tensor,  # [B] int64
    keypoints: Tensor,  # [B, J, 2]
    visible: Tensor,  # [B, J] bool
    *,
    own: int = 10,
    half: float = HALF,
    where: str = "bicubic",
    batch_size: int = 32,
) -> Tensor:
    """Whether a class's units look at one part: 1 or 0, ``[K, own]``; the score is the mean.

    Of a class's images in which a part is visible, it lies in the box around the unit's peak in at
    least 80 %, for some part. Higher is better. NaN where a class has fewer units of positive
    weight, or no images.

    Args:
        model: runs in evaluation mode, on its device.
        own: units of a class: those of its largest weights.
        half: half the box's side, in parts of the image's.
        where: the peak of the "bicubic" map at the image's size, as published, or the centre of the
            "cell" with the largest value, which is faster.
        batch_size: images at a time.

    Raises:
        ValueError: shapes differ, or an argument is not allowed.
    """
    check_counts("part_consistency", own=own, batch_size=batch_size)
    check_strength("part_consistency", "half", half)
    check_images("part_consistency", images, labels, model.head.num_classes)
    check_parts("part_consistency", images, keypoints, visible)
    units = own_units(model.head, own)
    found = part_vectors(
        model, images, units[labels], keypoints, visible,
        half=half, where=where, batch_size=batch_size,
    )  # fmt: skip
    return consistency_of(found, labels, visible, units)


def consistency_of(
    vectors: Tensor,  # [B, own, J] bool
    labels: Tensor,  # [B] int64
    visible: Tensor,  # [B, J] bool
    units: Tensor,  # [K, own] int64, -1 for none
) -> Tensor:
    """`part_consistency` from the parts that `part_vectors` found, ``[K, own]``.

    Raises:
        TypeError, ValueError: an argument has another shape or dtype, or names no class.
    """
    check_found_parts("consistency_of", "vectors", vectors, labels, units)
    check_tensor("consistency_of", "visible", visible, len(labels), vectors.shape[2])
    if visible.dtype != torch.bool:
        raise TypeError(f"consistency_of: visible is {visible.dtype}, must be bool")
    seen = _sums(visible.float(), labels, len(units))[:, None]  # [K, 1, J]
    share = _sums(vectors.float(), labels, len(units)) / seen.clamp_min(1)
    consistent = ((share >= LEAST) & (seen > 0)).any(2).float()
    known = (units >= 0) & (torch.bincount(labels, minlength=len(units)) > 0)[:, None]
    return torch.where(known, consistent, torch.nan)


@torch.no_grad()
def part_stability(
    model: InfoDisentClassifier,
    images: Tensor,  # [B, 3, H, W], normalised
    labels: Tensor,  # [B] int64
    keypoints: Tensor,  # [B, J, 2]
    visible: Tensor,  # [B, J] bool
    *,
    own: int = 10,
    half: float = HALF,
    where: str = "bicubic",
    std: float = STD,
    clip: float = CLIP,
    batch_size: int = 32,
    seed: int = 0,
) -> Tensor:
    """Part of a class's images in whose box a unit has the very same parts despite noise.

    ``[K, own]`` in [0, 1], higher is better; the score is the mean. Noise as in `noise_stability`;
    arguments, NaN and errors as in `part_consistency`.
    """
    check_counts("part_stability", own=own, batch_size=batch_size)
    check_strength("part_stability", "half", half)
    check_images("part_stability", images, labels, model.head.num_classes)
    check_parts("part_stability", images, keypoints, visible)
    units = own_units(model.head, own)
    check_strengths("part_stability", std=std, clip=clip)
    g = torch.Generator().manual_seed(seed)
    vectors = []
    for pictures in (images, images + noise_like(images, g, std, clip)):
        vectors.append(
            part_vectors(
                model, pictures, units[labels], keypoints, visible,
                half=half, where=where, batch_size=batch_size,
            )
        )  # fmt: skip
    return stability_of(vectors[0], vectors[1], labels, units)


def stability_of(
    before: Tensor,  # [B, own, J] bool
    after: Tensor,  # [B, own, J] bool
    labels: Tensor,  # [B] int64
    units: Tensor,  # [K, own] int64, -1 for none
) -> Tensor:
    """`part_stability` from the parts that `part_vectors` found without and with noise.

    Raises:
        TypeError, ValueError: an argument has another shape or dtype, or names no class.
    """
    check_found_parts("stability_of", "before", before, labels, units)
    check_found_parts("stability_of", "after", after, labels, units)
    check_tensor("stability_of", "after", after, *before.shape)
    same = _sums((before == after).all(2).float(), labels, len(units))  # [K, own]
    count = torch.bincount(labels, minlength=len(units))[:, None]
    known = (units >= 0) & (count > 0)
    return torch.where(known, same / count.clamp_min(1), torch.nan)


def _sums(
    values: Tensor,  # [B, ...]
    labels: Tensor,  # [B] int64
    classes: int,
) -> Tensor:
    """Sums over the images of each class, ``[K, ...]``."""
    return values.new_zeros(classes, *values.shape[1:]).index_add_(0, labels, values)


@torch.no_grad()
def part_vectors(
    model: InfoDisentClassifier,
    images: Tensor,  # [B, 3, H, W], normalised
    units: Tensor,  # [B, n] int64, -1 for none
    keypoints: Tensor,  # [B, J, 2]
    visible: Tensor,  # [B, J] bool
    *,
    half: float = HALF,
    where: str = "bicubic",
    batch_size: int = 32,
) -> Tensor:
    """Which visible parts lie in the box around the peak of an image's units, ``[B, n, J]`` bool.

    Arguments and errors as in `part_consistency`.
    """
    points = _peaks(model, images, units, where, batch_size)
    return _inside(points, keypoints, visible, half, images)


@torch.no_grad()
def part_purity(
    model: InfoDisentClassifier,
    images: Tensor,  # [B, 3, H, W], normalised
    keypoints: Tensor,  # [B, J, 2]
    visible: Tensor,  # [B, J] bool
    *,
    groups: Sequence[int] | None = None,
    count: int = 10,
    patch: float = PATCH,
    sign: int = 1,
    batch_size: int = 32,
) -> Tensor:
    """How often one part is in a unit's patch, over its strongest images: ``[M]`` in [0, 1].

    The largest part's share of the `count` images with the largest value in which it lies in the
    patch around the cell. Higher is better; the score is the mean. NaN where a unit has no weight
    above 1e-3, or responds to no image (the published code counts images of value 0 too).

    Args:
        groups: a number for every part; parts of the same number count as one, such as left and
            right eye. Default: each by itself.
        count: images a unit.
        patch: side of the patch, in parts of the image's.
        sign: 1, or -1 for the negative side.
        batch_size: images at a time.

    Raises:
        ValueError: shapes differ, or an argument is not allowed.
    """
    check_counts("part_purity", count=count, batch_size=batch_size)
    check_strength("part_purity", "patch", patch)
    check_images("part_purity", images)
    check_parts("part_purity", images, keypoints, visible)
    parts = keypoints.shape[1]
    kinds = torch.tensor(list(range(parts)) if groups is None else list(groups))
    if len(kinds) != parts or sign not in (1, -1):
        raise ValueError(
            f"part_purity: groups has {len(kinds)} numbers for {parts} parts and sign is {sign}, "
            "must be as many and 1 or -1"
        )
    found = [
        part_responses(model, images[at], keypoints[at], visible[at], patch=patch, sign=sign)
        for at in torch.arange(len(images)).split(batch_size)
    ]
    value, present = (torch.cat(columns) for columns in zip(*found, strict=True))
    return purity_of(model.head, value, present, kinds, count)


@torch.no_grad()
def part_responses(
    model: InfoDisentClassifier,
    images: Tensor,  # [b, 3, H, W], normalised
    keypoints: Tensor,  # [b, J, 2]
    visible: Tensor,  # [b, J] bool
    *,
    patch: float = PATCH,
    sign: int = 1,
) -> tuple[Tensor, Tensor]:
    """Every unit's value ``[b, M]``, and the visible parts in its patch, ``[b, M, J]`` bool."""
    with evaluating(model):
        pool = model.head.pool(maps_of(model, images), input_fmt="NLC")
    value, cell = (pool.pos, pool.pos_index) if sign == 1 else (pool.neg, pool.neg_index)
    centre = _centres(cell.cpu().long(), model.grid_size(images.shape[2:]), images)
    return value.cpu(), _inside(centre, keypoints, visible, patch / 2, images)


def purity_of(
    head: Head,
    value: Tensor,  # [B, M]
    present: Tensor,  # [B, M, J] bool
    kinds: Tensor,  # [J] int64
    count: int = 10,
) -> Tensor:
    """`part_purity` from what `part_responses` found, ``[M]``; `kinds` are the groups of parts.

    Raises:
        TypeError, ValueError: an argument has another shape or dtype.
    """
    check_tensor("purity_of", "value", value, "images", head.num_features)
    check_tensor("purity_of", "present", present, *value.shape, "parts")
    check_tensor("purity_of", "kinds", kinds, present.shape[2])
    check_counts("purity_of", count=count)
    merged = torch.stack([present[..., kinds == k].any(2) for k in kinds.unique()], 2).float()
    best = value.argsort(dim=0, descending=True, stable=True)[:count]  # [count, M]
    chosen = merged.gather(0, best[..., None].expand(-1, -1, merged.shape[2]))
    responds = (value.gather(0, best) > 0).float()[..., None]
    share = (chosen * responds).sum(0) / responds.sum(0)  # 0 / 0 is NaN
    relevant = (head.class_weights() > USED).any(0).cpu()
    return torch.where(relevant, share.amax(1), torch.nan)


def _peaks(
    model: InfoDisentClassifier,
    images: Tensor,  # [B, 3, H, W]
    units: Tensor,  # [B, n] int64, -1 for none
    where: str,
    batch_size: int,
) -> Tensor:
    """Where units respond most, ``[B, n, 2]``, x and y in pixels."""
    check_choice("parts", "where", where, WHERE)
    maps_by_unit, grid = UnitMaps(model.head), model.grid_size(images.shape[2:])
    parts = []
    with evaluating(model):
        for at in range(0, len(images), batch_size):
            batch = slice(at, at + batch_size)
            maps = maps_of(model, images[batch])
            named, place = units[batch].clamp_min(0).unique(return_inverse=True)
            values = maps_by_unit.of_images(maps, named.to(maps.device)).cpu()  # [b, P, named]
            rows = values.mT.gather(1, place[..., None].expand(-1, -1, values.shape[1]))
            if where == "cell":
                parts.append(_centres(rows.argmax(2), grid, images))
                continue
            large = nn.functional.interpolate(
                rows.unflatten(2, grid).clamp_min(0), images.shape[2:], mode="bicubic"
            )
            flat = large.flatten(2).argmax(2)
            parts.append(torch.stack([flat % images.shape[3], flat // images.shape[3]], 2) + 0.5)
    return torch.cat(parts) if parts else torch.zeros(0, units.shape[1], 2)


def _centres(
    cells: Tensor,  # [...] int64
    grid: tuple[int, int],
    images: Tensor,  # [B, 3, H, W]
) -> Tensor:
    """Centres of feature cells, ``[..., 2]``, x and y in pixels."""
    height, width = images.shape[2:]
    x = (cells % grid[1] + 0.5) * width / grid[1]
    y = (torch.div(cells, grid[1], rounding_mode="floor") + 0.5) * height / grid[0]
    return torch.stack([x, y], -1)


def _inside(
    points: Tensor,  # [B, n, 2]
    keypoints: Tensor,  # [B, J, 2]
    visible: Tensor,  # [B, J] bool
    half: float,
    images: Tensor,  # [B, 3, H, W]
) -> Tensor:
    """Whether a visible keypoint lies in the box around a point, ``[B, n, J]`` bool."""
    reach = half * torch.tensor([images.shape[3], images.shape[2]])
    away = (points[:, :, None] - keypoints[:, None]).abs()
    return (away <= reach).all(3) & visible[:, None]
