"""Sums over winning pixels: the gradient of every pool, without a map of its own.

With B images, M rows of a matrix and S sides (extremes, similarities) a gradient touches S·B·M rows
of length C. ``embedding_bag`` with per-sample weights is exactly that gather-accumulate,
vectorised, parallel over output rows and free of atomics on the CPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

CHUNK_BYTES = 8 << 20
"""Size of what is computed at a time. It should stay in the last-level cache until it is used."""
GATHERING = ("cpu", "cuda", "meta")
"""Devices whose torch has an ``embedding_bag`` with weights, from the oldest that is supported on;
Apple's has not."""


def chunks(batch: int, image_numbers: int, itemsize: int) -> list[tuple[int, int]]:
    """``(start, stop)`` of groups of images, of `image_numbers` numbers each."""
    step = max(1, CHUNK_BYTES // (image_numbers * itemsize))
    return [(i, min(i + step, batch)) for i in range(0, batch, step)]


def rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[n, P, C] -> [n·P, C] with contiguous rows; a view where memory already is that way."""
    return x.to(dtype).reshape(-1, x.shape[2]).contiguous()


def sum_of_pixels(
    weights: Tensor,  # [S, B, M]
    index: Tensor,  # [S, B, M]
    x: Tensor,  # [B, P, C]
) -> Tensor:
    """``out[m] = sum over sides and images of weights[., b, m] · x[b, index[., b, m]]``, [M, C]."""
    sides, batch, count = weights.shape
    pixels, channels = x.shape[1:]
    dtype = weights.dtype
    total = torch.zeros(count, channels, dtype=dtype, device=x.device)
    # Contiguous rows of the right dtype are gathered in place; anything else chunk by chunk.
    in_place = x.dtype == dtype and x.is_contiguous()
    whole = [(0, batch)] if batch else []
    for start, stop in whole if in_place else chunks(batch, pixels * channels, dtype.itemsize):
        n = stop - start
        first = torch.arange(0, n * pixels, pixels, device=x.device, dtype=torch.int64)
        bags = index[:, start:stop] + first[:, None]
        total += F.embedding_bag(
            bags.permute(2, 1, 0).reshape(count, sides * n),
            rows(x[start:stop], dtype),
            mode="sum",
            per_sample_weights=weights[:, start:stop].permute(2, 1, 0).reshape(count, sides * n),
        )
    return total


def pixels_of_sums(
    weights: Tensor,  # [S, B, M]
    index: Tensor,  # [S, B, M]
    table: Tensor,  # [M, C], or [B, M, C] with rows of every image's own and S = 1
    pixels: int,
) -> Tensor:
    """[B, P, C]: pixel p gets ``weights[., b, m] · table[m]`` of every m whose winner it is."""
    sides, batch, count = weights.shape
    channels, own = table.shape[-1], table.ndim == 3
    out = torch.empty(batch, pixels, channels, dtype=table.dtype, device=table.device)
    # the entries of an image, sorted by pixel so that every pixel's entries form one bag
    flat = index.permute(1, 0, 2).reshape(batch, sides * count)
    order = flat.argsort(dim=1, stable=True)  # stable: a fixed order of summation
    row = order.remainder(count)
    sorted_weights = weights.permute(1, 0, 2).reshape(batch, sides * count).gather(1, order)
    counts = torch.zeros(batch, pixels, dtype=torch.int64, device=table.device)
    counts.scatter_add_(1, flat.long(), torch.ones_like(order))
    for start, stop in chunks(batch, pixels * channels, table.dtype.itemsize):
        n = stop - start
        offsets = counts[start:stop].flatten().cumsum(0).roll(1)
        offsets[0] = 0
        bags = row[start:stop]
        if own:
            bags = bags + torch.arange(0, n * count, count, device=bags.device)[:, None]
        summed = F.embedding_bag(
            bags.flatten(),
            table[start:stop].reshape(-1, channels) if own else table,
            offsets,
            mode="sum",
            per_sample_weights=sorted_weights[start:stop].flatten(),
        )
        out[start:stop] = summed.view(n, pixels, channels)
    return out
