"""The pool of `rotate_pool` on a tile in registers: device functions called by its kernel.

A row of the tile is a channel, a column a pixel; the columns are in up to three accumulators side
by side. Both extremes of an image are found in one sweep of integer maxima.
"""

from __future__ import annotations

import triton
import triton.language as tl

INFINITY = tl.constexpr(0x7F800000)  # the bits of float32 Inf; what is above, without sign, is NaN
SIGN = tl.constexpr(-0x80000000)
NOWHERE = tl.constexpr(0x7FFFFFFF)  # above every pixel


@triton.jit
def _largest(
    total,  # [M, N] float32
    shift,  # column n is pixel n + shift of the image, if the image has such a pixel
    P,
    N: tl.constexpr,
    MASK: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Bits of the image's largest and of its smallest value, by integer maxima: [M], [M].

    As signed integers, positive floats order as they should and above all negative ones; as
    unsigned ones, negative floats order by magnitude and above all positive ones. So one key serves
    both sides. The key is the bits of the value, without EXACT with ``MASK - pixel`` for the last
    ones: of equal values the lowest pixel is the maximum. Columns outside count as +0.
    """
    pixel = tl.arange(0, N) + shift
    inside = (pixel >= 0) & (pixel < P)
    bits = total.to(tl.int32, bitcast=True)
    if EXACT:
        # one kind of NaN, so that the first of them is found
        bits = tl.where(total != total, 0x7FC00000, bits)
        key = tl.where(inside[None, :], bits, 0)
    else:
        keep = tl.where(inside, -1 - MASK, 0)
        pixel = tl.where(inside, MASK - pixel, 0)
        key = (bits & keep[None, :]) | pixel[None, :]
    return tl.max(key, 1), tl.max(key.to(tl.uint32, bitcast=True), 1)


@triton.jit
def _first(
    total,  # [M, N] float32
    shift,  # as in `_largest`
    P,
    largest,  # [M] bits
    smallest,  # [M] bits
    N: tl.constexpr,
):
    """The first pixel of the image with these bits, NOWHERE if there is none: [M], [M]."""
    bits = total.to(tl.int32, bitcast=True)
    bits = tl.where(total != total, 0x7FC00000, bits)
    pixel = tl.arange(0, N) + shift
    pixel = tl.where((pixel >= 0) & (pixel < P), pixel, NOWHERE)[None, :]
    at_largest = tl.min(tl.where(bits == largest[:, None], pixel, NOWHERE), 1)
    return at_largest, tl.min(tl.where(bits == smallest[:, None], pixel, NOWHERE), 1)


@triton.jit
def _extremes(
    total0,  # [M, N0] float32
    total1,  # [M, N1] or anything
    total2,  # [M, N2] or anything
    shift,  # column n is pixel n + shift of the image, if the image has such a pixel
    P,
    N0: tl.constexpr,
    N1: tl.constexpr,
    N2: tl.constexpr,
    MASK: tl.constexpr,
    EXACT: tl.constexpr,
):
    """One image of the tile: bits of pos and its pixel, bits of neg and its pixel, each [M].

    Bits are 0 where there is no such value; those of NaN are above INFINITY.
    """
    largest, smallest = _largest(total0, shift, P, N0, MASK, EXACT)
    if N1 > 0:
        largest1, smallest1 = _largest(total1, shift + N0, P, N1, MASK, EXACT)
        largest = tl.maximum(largest, largest1)
        smallest = tl.maximum(smallest, smallest1)
    if N2 > 0:
        largest2, smallest2 = _largest(total2, shift + (N0 + N1), P, N2, MASK, EXACT)
        largest = tl.maximum(largest, largest2)
        smallest = tl.maximum(smallest, smallest2)
    smallest = smallest.to(tl.int32, bitcast=True)
    pos = tl.maximum(largest, 0)
    neg = tl.maximum(smallest ^ SIGN, 0)
    if EXACT:
        at_pos, at_neg = _first(total0, shift, P, largest, smallest, N0)
        if N1 > 0:
            at_pos1, at_neg1 = _first(total1, shift + N0, P, largest, smallest, N1)
            at_pos = tl.minimum(at_pos, at_pos1)
            at_neg = tl.minimum(at_neg, at_neg1)
        if N2 > 0:
            at_pos2, at_neg2 = _first(total2, shift + (N0 + N1), P, largest, smallest, N2)
            at_pos = tl.minimum(at_pos, at_pos2)
            at_neg = tl.minimum(at_neg, at_neg2)
    else:
        at_pos = MASK - (pos & MASK)
        at_neg = MASK - (neg & MASK)
        pos = pos & (-1 - MASK)
        neg = neg & (-1 - MASK)
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
    outputs,  # pos, neg [B, C] float32, pos_index, neg_index [B, C] int32
):
    """The four results of one image. A NaN, whichever side its sign put it on, is on both."""
    pos, neg, pos_index, neg_index = outputs
    nan_pos = bits_pos > INFINITY
    nan_neg = bits_neg > INFINITY
    nan = nan_pos | nan_neg
    at_nan = tl.minimum(tl.where(nan_pos, at_pos, NOWHERE), tl.where(nan_neg, at_neg, NOWHERE))
    value = tl.where(nan, float("nan"), bits_pos.to(tl.float32, bitcast=True) * scale)
    tl.store(pos + at, value, mask=mask)
    tl.store(pos_index + at, tl.where(nan, at_nan, tl.where(value > 0, at_pos, -1)), mask=mask)
    value = tl.where(nan, float("nan"), bits_neg.to(tl.float32, bitcast=True) * scale)
    tl.store(neg + at, value, mask=mask)
    tl.store(neg_index + at, tl.where(nan, at_nan, tl.where(value > 0, at_neg, -1)), mask=mask)


@triton.jit
def _pack(bits, pixel, MASK: tl.constexpr, EXACT: tl.constexpr):
    """Value and pixel in one integer that orders by value, then by lowest pixel; 0 is neither."""
    if EXACT:
        low = (pixel ^ NOWHERE).to(tl.int64)  # NOWHERE - pixel
        key = (bits.to(tl.int64) << 32) | low
    else:
        key = bits | (MASK - pixel)
    return tl.where(bits > 0, key, 0)


@triton.jit
def _unpack(key, MASK: tl.constexpr, EXACT: tl.constexpr):
    if EXACT:
        bits = (key >> 32).to(tl.int32)
        pixel = (key & NOWHERE).to(tl.int32) ^ NOWHERE
    else:
        bits = key & (-1 - MASK)
        pixel = MASK - (key & MASK)
    return bits, pixel


@triton.jit
def pool(
    total0,  # [M, N0] float32
    total1,  # [M, N1] or anything
    total2,  # [M, N2] or anything
    i,
    j,
    scale,
    outputs,
    keys,
    merged,
    ready,
    B,
    C,
    P,
    IMAGES: tl.constexpr,
    N0: tl.constexpr,
    N1: tl.constexpr,
    N2: tl.constexpr,
    BLOCK_M: tl.constexpr,
    MASK: tl.constexpr,
    EXACT: tl.constexpr,
    READY: tl.constexpr,
):
    """Pool a rotated tile and write, or merge, its images. Arguments: see `pool_tile`."""
    N: tl.constexpr = N0 + N1 + N2
    channel = i * BLOCK_M + tl.arange(0, BLOCK_M)
    mask = channel < C
    factor = 1.0
    if scale is not None:
        factor = tl.load(scale + channel, mask=mask, other=1.0)
    if IMAGES > 0:
        for s in tl.static_range(IMAGES):
            image = j * IMAGES + s
            bits_pos, at_pos, bits_neg, at_neg = _extremes(
                total0, total1, total2, -s * P, P, N0, N1, N2, MASK, EXACT
            )  # fmt: skip
            at = image.to(tl.int64) * C + channel
            there = channel < tl.where(image < B, C, 0)
            _write(at, there, bits_pos, at_pos, bits_neg, at_neg, factor, outputs)
            if ready is not None:
                tl.debug_barrier()  # every thread has written
                tl.atomic_add(ready + image // READY, 1, mask=image < B, sem="release")
    else:
        column = j * N
        first = column // P
        skip = column - first * P
        for s in range(0, tl.minimum((skip + N - 1) // P + 1, B - first)):
            image = first + s
            bits_pos, at_pos, bits_neg, at_neg = _extremes(
                total0, total1, total2, skip - s * P, P, N0, N1, N2, MASK, EXACT
            )  # fmt: skip
            at = image.to(tl.int64) * C + channel
            other = at + B.to(tl.int64) * C
            key = _pack(bits_pos, at_pos, MASK, EXACT)
            tl.atomic_max(keys + at, key, mask=mask & (key > 0), sem="relaxed")
            key = _pack(bits_neg, at_neg, MASK, EXACT)
            tl.atomic_max(keys + other, key, mask=mask & (key > 0), sem="relaxed")
            tl.debug_barrier()  # every thread has merged
            tiles = (image * P + P - 1) // N - image * P // N + 1
            if tl.atomic_add(merged + (i * B + image), 1, sem="acq_rel") == tiles - 1:
                # the last tile of the image; past L1, which knows nothing of the maxima in L2
                key = tl.load(keys + at, mask=mask, other=0, cache_modifier=".cg")
                bits_pos, at_pos = _unpack(key, MASK, EXACT)
                key = tl.load(keys + other, mask=mask, other=0, cache_modifier=".cg")
                bits_neg, at_neg = _unpack(key, MASK, EXACT)
                _write(at, mask, bits_pos, at_pos, bits_neg, at_neg, factor, outputs)
                if ready is not None:
                    tl.debug_barrier()
                    tl.atomic_add(ready + image // READY, 1, sem="release")
