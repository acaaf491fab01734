"""Epilogue of `similarity_pool` and `softmax_pool`: the best pixel by a view of the products.

A row of the tile is a prototype, a column a pixel, as in `infodisent.kernels.product`. A view is
``S a_p + b_p``, the larger the more alike, with a scale or a shift of each pixel:

- "dot": S itself;
- "cosine": ``a_p = 1 / |x_p|``, 0 for a pixel of zeros;
- "l2": ``b_p = -|x_p|^2 / 2``, as ``|x - v|^2 = -2 (S + b) + |v|^2``;
- "softmax": the logarithm of the probability, ``(S + bias_m - top_p) / T - log_p``; what is written
  is the probability.

Values become integers that order alike, with NaN above all and one zero; the largest is found by a
sweep of integer maxima, and its first pixel by another. Pixels that do not count are left out of
both, so what they hold never shows. What tiles across the borders of images have is merged by
64-bit maxima, as in `infodisent.kernels.epilogues.extremes`.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .extremes import NOWHERE, first_place, images_across, last_of_image

NAN = tl.constexpr(0x7FFFFFFF)  # above every number
NOTHING = tl.constexpr(-0x80000000)  # below every number
MAGNITUDE = tl.constexpr(0x7FFFFFFF)
HALF_RANGE = tl.constexpr(0x80000000)
PLACE_BITS = tl.constexpr(31)


class Sides(NamedTuple):
    """What views need beside the products; None what none of them needs.

    Attributes:
        scale: ``[B P]`` float32, of "cosine".
        shift: ``[B P]`` float32, of "l2".
        counts: ``[B P]`` uint8, 0 for pixels that do not count.
        top: ``[B P]`` float32, of "softmax": the largest score of the pixel.
        log: ``[B P]`` float32, of "softmax": the logarithm of its sum of exponentials.
        bias: ``[M]`` float32, of "softmax": what is added to the products; None: nothing.
        inverse: ``1 / T``, of "softmax".
    """

    scale: Tensor | None
    shift: Tensor | None
    counts: Tensor | None
    top: Tensor | None = None
    log: Tensor | None = None
    bias: Tensor | None = None
    inverse: float | None = None


class Found(NamedTuple):
    """Results of a view, and the scratch of tiles that run across the borders of images.

    Attributes:
        value: ``[B, M]`` float32.
        place: ``[B, M]`` int32.
        keys: ``[B M]`` int64; 0 before; None for whole images.
        merged: ``[rows of tiles B]`` int32; 0 before; None for whole images.
    """

    value: Tensor
    place: Tensor
    keys: Tensor | None
    merged: Tensor | None


@triton.jit
def _ordered(
    bits,  # int32
):
    """Bits of floats as integers that order as the floats do, and back."""
    return bits ^ ((bits >> 31) & MAGNITUDE)


@triton.jit
def key_of(
    value,  # float32
):
    """Values as integers that order alike."""
    # -0 and 0 are a tie; and one kind of NaN, so that the first of them is chosen
    bits = _ordered(tl.where(value == 0, 0, value.to(tl.int32, bitcast=True)))
    return tl.where(value != value, NAN, bits)


@triton.jit
def scores(
    total,  # [M, N] float32
    factor,  # [M] float32 or None
    bias,  # [M] float32 or None
):
    """What a softmax is taken of, before it is divided by the temperature: [M, N]."""
    if factor is not None:
        total = total * factor[:, None]
    if bias is not None:
        total = total + bias[:, None]
    return total


@triton.jit
def log_probability(
    w,  # scores
    top,  # of each pixel the largest score
    log,  # of each pixel the logarithm of its sum of exponentials
    inverse,
):
    """Of a softmax over scores; NaN where there is none, as `log` is NaN."""
    return (w - top) * inverse - log


@triton.jit
def _key(
    total,  # [M, N] float32
    factor,  # [M] float32 or None
    bias,  # [M] float32 or None
    column,  # [N] places in `sides`
    sides,  # Sides
    VIEW: tl.constexpr,
):
    """The view as integers, [M, N]."""
    value = scores(total, factor, bias)
    if VIEW == "cosine":
        value = value * tl.load(sides.scale + column)[None, :]
    if VIEW == "l2":
        value = value + tl.load(sides.shift + column)[None, :]
    if VIEW == "softmax":
        top = tl.load(sides.top + column)[None, :]
        log = tl.load(sides.log + column)[None, :]
        value = log_probability(value, top, log, sides.inverse)
    return key_of(value)


@triton.jit
def _best(
    keys,  # one to three of [M, N] int32
    counts,  # as many of [N]: whether a pixel counts
    shift,  # column n is pixel n + shift of the image, if the image has such a pixel
    P,
    TILES: tl.constexpr,
):
    """One image of the tile: its largest key, and the first pixel with it; or NOTHING, NOWHERE."""
    pixels = ()
    largest = tl.full((TILES.channels,), NOTHING, tl.int32)
    for n in tl.static_range(len(TILES.widths)):
        pixel = tl.arange(0, keys[n].shape[1]) + (shift + TILES.starts[n])
        inside = (pixel >= 0) & (pixel < P) & counts[n]
        largest = tl.maximum(largest, tl.max(tl.where(inside[None, :], keys[n], NOTHING), 1))
        pixels = pixels + (tl.where(inside, pixel, NOWHERE)[None, :],)  # noqa: RUF005
    place = tl.full((TILES.channels,), NOWHERE, tl.int32)
    for n in tl.static_range(len(TILES.widths)):
        place = tl.minimum(place, first_place(keys[n], pixels[n], largest))
    return largest, place


@triton.jit
def write(
    at,  # [M] places of the image's prototypes in [B, M]
    mask,  # [M]
    key,  # [M] int32
    place,  # [M] int32
    found,  # Found
    VIEW: tl.constexpr,
):
    """The two results of one image.

    Of one where no pixel counts NaN, in a softmax -Inf, and 0, a place in memory.
    """
    value = _ordered(key).to(tl.float32, bitcast=True)
    if VIEW == "softmax":
        value = tl.where(key == NOTHING, float("-inf"), tl.exp(value))
    tl.store(found.value + at, tl.where(key == NAN, float("nan"), value), mask=mask)
    tl.store(found.place + at, tl.where(key == NOTHING, 0, place), mask=mask)


@triton.jit
def best_pixels(
    totals,  # one to three of [M, N] float32, see `infodisent.kernels.product`
    i,  # row of the tile
    j,  # column of the tile
    scale,  # [M] float32: products are to be multiplied by it; or None
    sides,  # Sides
    found,  # Found
    B,
    M,
    P,
    TILES: tl.constexpr,  # `infodisent.kernels.tiles.rotate_pool.Tiles`
    VIEW: tl.constexpr,
):
    """Best pixels of a tile by one view: written, or merged with what other tiles have."""
    IMAGES: tl.constexpr = TILES.images
    row = i * TILES.channels + tl.arange(0, TILES.channels)
    mask = row < M
    factor = None
    if scale is not None:
        factor = tl.load(scale + row, mask=mask, other=1.0)
    bias = None
    if sides.bias is not None:
        bias = tl.load(sides.bias + row, mask=mask, other=0.0)
    # tile after tile, columns are pixel after pixel
    if IMAGES > 0:  # noqa: SIM108  (known to the compiler)
        start = j * IMAGES * P
    else:
        start = j * TILES.columns
    keys = ()
    counts = ()
    for n in tl.static_range(len(TILES.widths)):
        column = start + TILES.starts[n] + tl.arange(0, totals[n].shape[1])
        column = tl.minimum(column, B * P - 1)
        keys = keys + (_key(totals[n], factor, bias, column, sides, VIEW),)  # noqa: RUF005
        if sides.counts is not None:
            counts = counts + (tl.load(sides.counts + column) != 0,)  # noqa: RUF005
        else:
            counts = counts + (column >= 0,)  # noqa: RUF005
    if IMAGES > 0:
        for s in tl.static_range(IMAGES):
            image = j * IMAGES + s
            key, place = _best(keys, counts, -s * P, P, TILES)
            there = row < tl.where(image < B, M, 0)
            write(image.to(tl.int64) * M + row, there, key, place, found, VIEW)
    else:
        first, skip, count = images_across(j, B, P, TILES)
        for s in range(0, count):
            image = first + s
            key, place = _best(keys, counts, skip - s * P, P, TILES)
            at = image.to(tl.int64) * M + row
            # by value, then by lowest pixel; above 0 but for NOTHING
            high = (key.to(tl.int64) + HALF_RANGE) << PLACE_BITS
            packed = high | (place ^ NOWHERE).to(tl.int64)  # NOWHERE - place
            tl.atomic_max(found.keys + at, packed, mask=mask & (packed > 0), sem="relaxed")
            if last_of_image(found.merged, i, image, B, P, TILES):
                # past L1, which knows nothing of the maxima in L2
                packed = tl.load(found.keys + at, mask=mask, other=0, cache_modifier=".cg")
                key = ((packed >> PLACE_BITS) - HALF_RANGE).to(tl.int32)
                place = (packed & NOWHERE).to(tl.int32) ^ NOWHERE
                write(at, mask, key, place, found, VIEW)
