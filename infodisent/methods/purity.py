"""How pure the channels of a rotated map are: of EPIC, see `infodisent.methods.epic`.

The purity of an image and a channel is ``|y_c| / |y|`` at one pixel, where the channel is greatest
(or least: either side has its own). A rotation leaves lengths, so that it is ``|y_c| / |x|``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from infodisent import ops
from infodisent.contract import SparsePool
from infodisent.layout import value_dtype
from infodisent.methods.stages import Batches, part_of

SIDES = ("positive", "both")
"""What the rotation may be trained for."""
SIGNS = (1.0, -1.0)
"""Of the mean of a channel: its positive and its negative prototypes."""


def pixel_norms(
    x: Tensor,  # [..., C]
) -> Tensor:
    """Lengths, ``[...]``, at least 1e-8 as published."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, dtype=value_dtype(x.dtype))
    return norm.clamp_min(1e-8)


def purities(
    best: SparsePool,  # [B, C] each, of `rotate_pool`
    rows: Tensor,  # [B, P, C], the map
) -> Tensor:
    """Of either side, ``[B, 2, C]``; 0 where no pixel is of that side."""
    norm = pixel_norms(rows)
    sides = (best.pos, best.pos_index), (best.neg, best.neg_index)
    return torch.stack([y / norm.gather(1, i.clamp_min(0).long()) for y, i in sides], dim=1)


def find_images(
    batches: Batches,
    means: Callable[[Tensor], Tensor],  # maps [n, P, C] to [n, C]
    channels: int,
    count: int,
) -> Tensor:
    """The images of greatest mean of every channel and side, ``[2, count, C]`` int64, -1 for none.

    Only means of the side's own sign count.
    """
    best = [ops.TopPixels(count, channels, above=0.0) for _ in SIGNS]
    for maps, _, positions in part_of(batches)():
        mean = means(maps)
        nowhere = torch.zeros_like(mean, dtype=torch.int32)
        for side, sign in zip(best, SIGNS, strict=True):
            side.update(sign * mean, nowhere, positions)
    for side in best:
        side.gather()
    return torch.stack([side.result().image for side in best])


def mean_purity(
    batches: Batches,
    pool: Callable[[Tensor], SparsePool],  # maps [n, P, C] to the units of a head
    rotation: Tensor,  # [C, C]
    count: int,
) -> Tensor:
    """Of the `count` images of greatest mean of a channel, both sides': ``[2]``, NaN for none."""
    best = [ops.TopPixels(count, len(rotation), above=0.0) for _ in SIGNS]
    for maps, _, positions in part_of(batches)():
        units = pool(maps)
        sides = (units.pos, units.pos_index), (units.neg, units.neg_index)
        for side, (value, index) in zip(best, sides, strict=True):
            side.update(value, index, positions, maps=maps)
    for side in best:
        side.gather()
    rows = rotation.float().cpu()
    means = []
    for side, sign in zip(best, SIGNS, strict=True):
        found = []
        images = side.result()
        assert images.vector is not None
        for image, x in zip(images.image, images.vector.float(), strict=True):  # x [C, C]
            y = sign * (x * rows).sum(1)
            found.append((y.clamp_min(0) / pixel_norms(x))[image >= 0])
        means.append(torch.cat(found).mean())
    return torch.stack(means)


def prototypes_mean(
    pure: Tensor,  # [n, 2, C], of `purities`
    positions: Tensor,  # [n] int64, of the images
    prototypes: Tensor,  # [2, m, C] int32, of `find_images`
) -> Tensor:
    """The mean of those images that are prototypes, of their channels and sides; 0 for none."""
    order = positions.argsort()
    known = positions[order].to(prototypes.dtype)
    place = torch.searchsorted(known, prototypes).clamp_max(len(known) - 1)
    here = known[place] == prototypes
    chosen = pure.transpose(0, 1).gather(1, order[place])
    return (chosen * here).sum() / here.sum().clamp_min(1)
