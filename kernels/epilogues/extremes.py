"""Epilogue of `rotate_pool`: the pool of a tile in registers, its packed keys and their merging.

A row of the tile is a channel, a column a pixel; the columns are in one to three accumulators side
by side (`infodisent.kernels.product`). Both extremes of an image are got by one sweep of integer
maxima. An image whose columns are in several tiles is merged by integer maxima too, whose order
does not matter, and the last tile to arrive writes the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

INFINITY = tl.constexpr(0x7F800000)  # the bits of float32 Inf; what is above, without sign, is NaN
SIGN = tl.constexpr(-0x80000000)
NOWHERE = tl.constexpr(0x7FFFFFFF)  # above every pixel


@dataclass(frozen=True)
class Keys:
    """How a value and its pixel are one integer; a constant of the kernel's compilation.

    Attributes:
        mask: ones for the bits that number the P pixels of an image.
        exact: whether values are whole float32 ones. Else their last bits, those of `mask`, give
            way to ``mask - pixel``.
    """

    mask: int
    exact: bool


class Borders(NamedTuple):
    """Scratch of tiles that run across the borders of images; None twice for whole images.

    Attributes:
        keys: ``[2 B C]`` int32, int64 for exact values: of pos, then of neg; 0 before.
        merged: ``[rows of tiles B]`` int32; 0 before.
    """

    keys: Tensor | None
    merged: Tensor | None


@triton.jit
def _largest(
    total,  # [M, N] float32
    shift,  # column n is pixel n + shift of the image, if the image has such a pixel
    P,
    KEYS: tl.constexpr,
):
    """Bits of the image's largest and of its smallest value, by integer maxima: [M], [M].

    As signed integers, positive floats order as they should and above all negative ones; as
    unsigned ones, negative floats order by magnitude and above all positive ones. So one key serves
    both sides. The key is the bits of the value, unless exact with ``mask - pixel`` for the last
    ones: of equal values the lowest pixel is the maximum. Columns outside count as +0.
    """
    pixel = tl.arange(0, total.shape[1]) + shift
    inside = (pixel >= 0) & (pixel < P)
    bits = total.to(tl.int32, bitcast=True)
    if KEYS.exact:
        # one kind of NaN, so that the first of them is chosen
        bits = tl.where(total != total, 0x7FC00000, bits)
        key = tl.where(inside[None, :], bits, 0)
    else:
        keep = tl.where(inside, -1 - KEYS.mask, 0)
        pixel = tl.where(inside, KEYS.mask - pixel, 0)
        key = (bits & keep[None, :]) | pixel[None, :]
    return tl.max(key, 1), tl.max(key.to(tl.uint32, bitcast=True), 1)


@triton.jit
def first_place(
    bits,  # [M, N] int32
    pixel,  # [1, N] int32: NOWHERE outside the image
    wanted,  # [M] int32
):
    """The first pixel with these bits, NOWHERE if there is none: [M]."""
    return tl.min(tl.where(bits == wanted[:, None], pixel, NOWHERE), 1)


@triton.jit
def _first(
    total,  # [M, N] float32
    shift,  # as in `_largest`
    P,
    largest,  # [M] bits
    smallest,  # [M] bits
):
    """The first pixel of the image with these bits, NOWHERE if there is none: [M], [M]."""
    bits = total.to(tl.int32, bitcast=True)
    bits = tl.where(total != total, 0x7FC00000, bits)
    pixel = tl.arange(0, total.shape[1]) + shift
    pixel = tl.where((pixel >= 0) & (pixel < P), pixel, NOWHERE)[None, :]
    return first_place(bits, pixel, largest), first_place(bits, pixel, smallest)


@triton.jit
def _extremes(
    totals,  # one to three of [M, N] float32
    shift,  # column n is pixel n + shift of the image, if the image has such a pixel
    P,
    TILES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """One image of the tile: bits of pos and its pixel, bits of neg and its pixel, each [M].

    Bits are 0 where there is no such value; those of NaN are above INFINITY.
    """
    largest, smallest = _largest(totals[0], shift, P, KEYS)
    for n in tl.static_range(1, len(TILES.widths)):
        more, less = _largest(totals[n], shift + TILES.starts[n], P, KEYS)
        largest = tl.maximum(largest, more)
        smallest = tl.maximum(smallest, less)
    smallest = smallest.to(tl.int32, bitcast=True)
    pos = tl.maximum(largest, 0)
    neg = tl.maximum(smallest ^ SIGN, 0)
    if KEYS.exact:
        at_pos, at_neg = _first(totals[0], shift, P, largest, smallest)
        for n in tl.static_range(1, len(TILES.widths)):
            first_pos, first_neg = _first(totals[n], shift + TILES.starts[n], P, largest, smallest)
            at_pos = tl.minimum(at_pos, first_pos)
            at_neg = tl.minimum(at_neg, first_neg)
    else:
        at_pos = KEYS.mask - (pos & KEYS.mask)
        at_neg = KEYS.mask - (neg & KEYS.mask)
        pos = pos & (-1 - KEYS.mask)
        neg = neg & (-1 - KEYS.mask)
    return pos, at_pos, neg, at_neg


@triton.jit
def _write(
    at,  # [M] places of the image's channels in [B, C]
    mask,  # [M]
    bits_pos,  # [M] int32
    at_pos,  # [M] int32
    bits_neg,  # [M] int32
    at_neg,  # [M] int32
    scale,  # [M] or 1.0
    outputs,  # Extremes: pos, neg [B, C] float32, pos_index, neg_index [B, C] int32
):
    """The four results of one image. A NaN, whichever side its sign put it on, is on both."""
    nan_pos = bits_pos > INFINITY
    nan_neg = bits_neg > INFINITY
    nan = nan_pos | nan_neg
    at_nan = tl.minimum(tl.where(nan_pos, at_pos, NOWHERE), tl.where(nan_neg, at_neg, NOWHERE))
    value = tl.where(nan, float("nan"), bits_pos.to(tl.float32, bitcast=True) * scale)
    index = tl.where(nan, at_nan, tl.where(value > 0, at_pos, -1))
    tl.store(outputs.pos + at, value, mask=mask)
    tl.store(outputs.pos_index + at, index, mask=mask)
    value = tl.where(nan, float("nan"), bits_neg.to(tl.float32, bitcast=True) * scale)
    index = tl.where(nan, at_nan, tl.where(value > 0, at_neg, -1))
    tl.store(outputs.neg + at, value, mask=mask)
    tl.store(outputs.neg_index + at, index, mask=mask)


@triton.jit
def _pack(
    bits,  # [M] int32
    pixel,  # [M] int32
    KEYS: tl.constexpr,
):
    """Value and pixel in one integer that orders by value, then by lowest pixel; 0 is neither."""
    if KEYS.exact:
        low = (pixel ^ NOWHERE).to(tl.int64)  # NOWHERE - pixel
        key = (bits.to(tl.int64) << 32) | low
    else:
        key = bits | (KEYS.mask - pixel)
    return tl.where(bits > 0, key, 0)


@triton.jit
def _unpack(
    key,  # [M] int32, int64 for exact values
    KEYS: tl.constexpr,
):
    """Bits of the value and pixel, int32 [M], [M], of what `_pack` made."""
    if KEYS.exact:
        bits = (key >> 32).to(tl.int32)
        pixel = (key & NOWHERE).to(tl.int32) ^ NOWHERE
    else:
        bits = key & (-1 - KEYS.mask)
        pixel = KEYS.mask - (key & KEYS.mask)
    return bits, pixel


@triton.jit
def _announce(
    ready,  # [B / READY] int32
    first,
    last,
    IMAGES: tl.constexpr,  # last - first, or less
    READY: tl.constexpr,
):
    """Count images first ... last - 1 to their groups, in one instruction: one fence a tile."""
    GROUPS: tl.constexpr = triton.next_power_of_2((IMAGES - 1) // READY + 2)
    group = first // READY + tl.arange(0, GROUPS)
    inside = tl.minimum(last, group * READY + READY) - tl.maximum(first, group * READY)
    tl.atomic_add(ready + group, inside, mask=inside > 0, sem="release")


@triton.jit
def images_across(
    j,  # column of the tile
    B,
    P,
    TILES: tl.constexpr,
):
    """Of a tile across borders: its first image, the pixel it begins at, how many it touches."""
    column = j * TILES.columns
    first = column // P
    skip = column - first * P
    return first, skip, tl.minimum((skip + TILES.columns - 1) // P + 1, B - first)


@triton.jit
def last_of_image(
    merged,  # [rows of tiles B] int32
    i,  # row of the tile
    image,
    B,
    P,
    TILES: tl.constexpr,
):
    """Whether all other tiles of the image have merged theirs, as this one has."""
    N: tl.constexpr = TILES.columns
    tl.debug_barrier()  # every thread has merged
    tiles = (image * P + P - 1) // N - image * P // N + 1
    return tl.atomic_add(merged + (i * B + image), 1, sem="acq_rel") == tiles - 1


@triton.jit
def pool(
    totals,  # one to three of [M, N] float32, see `infodisent.kernels.product`
    i,  # row of the tile
    j,  # column of the tile
    scale,  # [C] float32: values are to be multiplied by it; or None
    outputs,  # Extremes: pos, neg [B, C] float32, pos_index, neg_index [B, C] int32
    borders,  # Borders: scratch where TILES.images is 0
    ready,  # [B / READY] int32 or None: gets 1 for each image and row of tiles that is written
    B,
    C,
    P,
    TILES: tl.constexpr,  # `infodisent.kernels.tiles.rotate_pool.Tiles`
    KEYS: tl.constexpr,
    READY: tl.constexpr,
):
    """Pool a rotated tile and write, or merge, its images."""
    channel = i * TILES.channels + tl.arange(0, TILES.channels)
    mask = channel < C
    factor = 1.0
    if scale is not None:
        factor = tl.load(scale + channel, mask=mask, other=1.0)
    IMAGES: tl.constexpr = TILES.images
    if IMAGES > 0:
        for s in tl.static_range(IMAGES):
            image = j * IMAGES + s
            bits_pos, at_pos, bits_neg, at_neg = _extremes(totals, -s * P, P, TILES, KEYS)
            at = image.to(tl.int64) * C + channel
            there = channel < tl.where(image < B, C, 0)
            _write(at, there, bits_pos, at_pos, bits_neg, at_neg, factor, outputs)
        if ready is not None:
            tl.debug_barrier()  # every thread has written
            _announce(ready, j * IMAGES, tl.minimum(j * IMAGES + IMAGES, B), IMAGES, READY)
    else:
        first, skip, count = images_across(j, B, P, TILES)
        for s in range(0, count):
            image = first + s
            bits_pos, at_pos, bits_neg, at_neg = _extremes(totals, skip - s * P, P, TILES, KEYS)
            at = image.to(tl.int64) * C + channel
            other = at + tl.cast(B, tl.int64) * C
            key = _pack(bits_pos, at_pos, KEYS)
            tl.atomic_max(borders.keys + at, key, mask=mask & (key > 0), sem="relaxed")
            key = _pack(bits_neg, at_neg, KEYS)
            tl.atomic_max(borders.keys + other, key, mask=mask & (key > 0), sem="relaxed")
            if last_of_image(borders.merged, i, image, B, P, TILES):
                # the last tile of the image; past L1, which knows nothing of the maxima in L2
                key = tl.load(borders.keys + at, mask=mask, other=0, cache_modifier=".cg")
                bits_pos, at_pos = _unpack(key, KEYS)
                key = tl.load(borders.keys + other, mask=mask, other=0, cache_modifier=".cg")
                bits_neg, at_neg = _unpack(key, KEYS)
                _write(at, mask, bits_pos, at_pos, bits_neg, at_neg, factor, outputs)
                if ready is not None:
                    tl.debug_barrier()
                    tl.atomic_add(ready + image // READY, 1, sem="release")
