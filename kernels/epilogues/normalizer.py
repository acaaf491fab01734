"""Epilogues of a softmax over the rows of the products, pixel by pixel, and of its gradient.

A column of the tile is a pixel, its rows some of the M prototypes. Of a pixel the normalizer is two
numbers: the largest score, before it is divided by the temperature T, and the sum over the rows of
``exp((w - largest) / T)``. Each row of tiles has its own, of the M that it holds; they are merged
by `merged`, in one order, so that the same call gives the same bits.

A pixel with a NaN or +Inf score, or with nothing but -Inf, has no softmax: its sum is NaN.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .views import scores

NEGATIVE = tl.constexpr(float("-inf"))


class Normalizers(NamedTuple):
    """Normalizers of pixels by rows of tiles.

    Attributes:
        top: ``[rows of tiles, B P]`` float32: the largest score.
        total: ``[rows of tiles, B P]`` float32: the sum of exponentials.
    """

    top: Tensor
    total: Tensor


@triton.jit
def level(
    top,
):
    """What is subtracted before the exponential: the largest score, or 0 where that is -Inf."""
    return tl.where(top == NEGATIVE, 0.0, top)


@triton.jit
def merged(
    top,
    total,
    other_top,
    other_total,
    inverse,
):
    """The normalizer of what two have been taken of."""
    both = tl.maximum(top, other_top)
    base = level(both)
    total = total * tl.exp((top - base) * inverse)
    return both, total + other_total * tl.exp((other_top - base) * inverse)


@triton.jit
def of_some(
    w,  # scores
    AXIS: tl.constexpr,  # along which the softmax is taken
    inverse,
):
    """The normalizer of some scores."""
    top = tl.max(w, AXIS)
    base = tl.expand_dims(level(top), AXIS)
    return top, tl.sum(tl.exp((w - base) * inverse), AXIS)


@triton.jit
def _columns(
    n: tl.constexpr,
    j,
    B,
    P,
    TILES: tl.constexpr,
):
    """Of accumulator n [N]: pixels counted from the map's first, and whether they are any."""
    N: tl.constexpr = TILES.widths[n]
    column = TILES.starts[n] + tl.arange(0, N)
    if TILES.images > 0:
        inside = column < TILES.images * P
        column += j * (TILES.images * P)
    else:
        inside = column >= 0
        column += j * TILES.columns
    return column, inside & (column < B * P)


@triton.jit
def _scores(
    total,  # [M, N] float32
    scale,  # [M] float32 or None
    bias,  # [M] float32 or None
    row,
    mask,
):
    """Of products of a tile, see `infodisent.kernels.epilogues.views.scores`."""
    factor = None
    if scale is not None:
        factor = tl.load(scale + row, mask=mask, other=1.0)
    shift = None
    if bias is not None:
        shift = tl.load(bias + row, mask=mask, other=0.0)
    return scores(total, factor, shift)


@triton.jit
def normalize(
    totals,  # one to three of [M, N] float32, see `infodisent.kernels.product`
    i,  # row of the tile
    j,  # column of the tile
    scale,  # [M] float32: products are to be multiplied by it; or None
    bias,  # [M] float32 or None
    inverse,
    out,  # Normalizers
    B,
    M,
    P,
    TILES: tl.constexpr,  # `infodisent.kernels.tiles.rotate_pool.Tiles`
):
    """Write the normalizers of a tile's pixels, of its rows alone."""
    row = i * TILES.channels + tl.arange(0, TILES.channels)
    mask = row < M
    for n in tl.static_range(len(TILES.widths)):
        column, inside = _columns(n, j, B, P, TILES)
        w = _scores(totals[n], scale, bias, row, mask)
        w = tl.where(mask[:, None], w, NEGATIVE)
        top, total = of_some(w, 0, inverse)
        at = i.to(tl.int64) * B * P + column
        tl.store(out.top + at, top, mask=inside)
        tl.store(out.total + at, total, mask=inside)


@triton.jit
def gradient(
    totals,  # one to three of [M, N] float32
    i,  # row of the tile
    j,  # column of the tile
    scale,  # [M] float32 or None
    bias,  # [M] float32 or None
    inverse,
    top,  # [B P] float32
    share,  # [B P] float32: ``sum over the pixel's winners of grad value / (sum T)``
    out,  # [B P, M] float32
    B,
    M,
    P,
    TILES: tl.constexpr,
):
    """Write ``-exp((w - top) / T) share``, 0 where the share is 0, whatever the pixel holds."""
    row = i * TILES.channels + tl.arange(0, TILES.channels)
    mask = row < M
    for n in tl.static_range(len(TILES.widths)):
        column, inside = _columns(n, j, B, P, TILES)
        w = _scores(totals[n], scale, bias, row, mask)
        high = tl.load(top + column, mask=inside, other=0.0)
        part = tl.load(share + column, mask=inside, other=0.0)
        d = tl.exp((w - high[None, :]) * inverse) * -part[None, :]
        d = tl.where(part[None, :] == 0, 0.0, d)
        at = column.to(tl.int64)[None, :] * M + row[:, None]
        tl.store(out + at, d, mask=mask[:, None] & inside[None, :])
