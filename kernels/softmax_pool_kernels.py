"""Triton kernels of `softmax_pool`: normalizers, best pixels, and the gradient of the scores.

With prototypes the main loop is `infodisent.kernels.product`, run once for the normalizers and once
for the best pixels, with the epilogues `infodisent.kernels.epilogues.normalizer` and ``.views``.
Where the map holds the scores itself it is read twice, and no product is taken.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .epilogues.extremes import NOWHERE
from .epilogues.normalizer import NEGATIVE, gradient, merged, normalize, of_some
from .epilogues.views import NOTHING, best_pixels, key_of, log_probability, write
from .product import multiply, place


@triton.jit
def normalizer_kernel(
    x,  # Pixels: [parts, B, P, C]
    u,  # Vectors: [parts, M, C], with the scale of its rows [M]
    bias,  # [M] float32 or None
    out,  # Normalizers: [rows of tiles, B P]
    inverse,
    B,
    M,
    C,
    SIZE,  # P, where it is not compiled in
    P: tl.constexpr,  # 0: not compiled in
    TILES: tl.constexpr,  # `infodisent.kernels.tiles.rotate_pool.Tiles`
    ARITHMETIC: tl.constexpr,
):
    """Normalizers of the pixels by rows of tiles: one program a tile."""
    PIXELS = P if P > 0 else SIZE
    i, j = place(tl.program_id(0), B, M, PIXELS, TILES)
    totals = multiply(x, u, i, j, 0, B, M, C, PIXELS, TILES, ARITHMETIC)
    normalize(totals, i, j, u.scale, bias, inverse, out, B, M, PIXELS, TILES)


@triton.jit
def softmax_pool_kernel(
    x,  # Pixels: [parts, B, P, C]
    u,  # Vectors: [parts, M, C], with the scale of its rows [M]
    sides,  # Sides: top, log, counts [B P], bias [M], inverse
    found,  # Found: value, place [B, M], and scratch
    B,
    M,
    C,
    SIZE,
    P: tl.constexpr,
    TILES: tl.constexpr,
    ARITHMETIC: tl.constexpr,
):
    """The pixels with the largest probabilities, from the same products: one program a tile."""
    PIXELS = P if P > 0 else SIZE
    i, j = place(tl.program_id(0), B, M, PIXELS, TILES)
    totals = multiply(x, u, i, j, 0, B, M, C, PIXELS, TILES, ARITHMETIC)
    best_pixels(totals, i, j, u.scale, sides, found, B, M, PIXELS, TILES, "softmax")


@triton.jit
def scores_gradient_kernel(
    x,  # Pixels: [parts, B, P, C]
    u,  # Vectors: [parts, M, C], with the scale of its rows [M]
    bias,  # [M] float32 or None
    top,  # [B P] float32
    share,  # [B P] float32
    out,  # [B P, M] float32
    inverse,
    B,
    M,
    C,
    SIZE,
    P: tl.constexpr,
    TILES: tl.constexpr,
    ARITHMETIC: tl.constexpr,
):
    """The gradient of the scores but for the winners' own, see `winners_kernel`."""
    PIXELS = P if P > 0 else SIZE
    i, j = place(tl.program_id(0), B, M, PIXELS, TILES)
    totals = multiply(x, u, i, j, 0, B, M, C, PIXELS, TILES, ARITHMETIC)
    gradient(totals, i, j, u.scale, bias, inverse, top, share, out, B, M, PIXELS, TILES)


@triton.jit
def _write_normalizers(
    at,  # [N] pixels
    mask,
    top,  # [N]
    total,  # [N]
    to_top,  # [B P] float32
    to_total,  # [B P] float32
    to_log,  # [B P] float32
):
    """Write both numbers and the logarithm; of a pixel without a softmax NaN."""
    total = tl.where(top == NEGATIVE, float("nan"), total)
    tl.store(to_top + at, top, mask=mask)
    tl.store(to_total + at, total, mask=mask)
    tl.store(to_log + at, tl.log(total), mask=mask)


@triton.jit
def merge_kernel(
    parts,  # Normalizers: [rows of tiles, B P]
    to_top,  # [B P] float32
    to_total,  # [B P] float32
    to_log,  # [B P] float32
    inverse,
    down,  # rows of tiles
    columns,  # B P
    BLOCK: tl.constexpr,
):
    """The normalizers of the pixels from those of all rows of tiles, in their order."""
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = column < columns
    top = tl.full((BLOCK,), NEGATIVE, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for i in range(0, down):
        at = tl.cast(i, tl.int64) * columns + column
        other = tl.load(parts.top + at, mask=mask, other=NEGATIVE)
        some = tl.load(parts.total + at, mask=mask, other=0.0)
        top, total = merged(top, total, other, some, inverse)
    _write_normalizers(column, mask, top, total, to_top, to_total, to_log)


@triton.jit
def _place_of_pixels(
    P,
    BLOCK_P: tl.constexpr,
):
    """Image of a program and its pixels, which are P or above where there are none."""
    across = tl.cdiv(P, BLOCK_P)
    image = (tl.program_id(0) // across).to(tl.int64)
    return image, tl.program_id(0) % across * BLOCK_P + tl.arange(0, BLOCK_P)


@triton.jit
def _memory(
    image,
    pixel,
    image_stride,
    pixel_stride,
):
    """Where some pixels [N] are in memory: [N, 1]."""
    return image * image_stride + pixel[:, None].to(tl.int64) * pixel_stride


@triton.jit
def map_normalizer_kernel(
    x,  # [B, P, C], any strides
    to_top,  # [B P] float32
    to_total,  # [B P] float32
    to_log,  # [B P] float32
    inverse,
    P,
    C,
    x_image,  # elements from one to the next
    x_pixel,
    x_channel,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Normalizers of pixels that hold the scores themselves: one program some pixels."""
    image, pixel = _place_of_pixels(P, BLOCK_P)
    at, inside = _memory(image, pixel, x_image, x_pixel), pixel < P
    top = tl.full((BLOCK_P,), NEGATIVE, tl.float32)
    total = tl.zeros((BLOCK_P,), tl.float32)
    for k in range(0, C, BLOCK_C):
        channel = k + tl.arange(0, BLOCK_C)[None, :]
        mask = inside[:, None] & (channel < C)
        w = tl.load(x + (at + channel.to(tl.int64) * x_channel), mask=mask, other=NEGATIVE)
        other, some = of_some(w.to(tl.float32), 1, inverse)
        top, total = merged(top, total, other, some, inverse)
    _write_normalizers(image * P + pixel, inside, top, total, to_top, to_total, to_log)


@triton.jit
def map_best_kernel(
    x,  # [B, P, C], any strides
    sides,  # Sides: top, log, counts [B P], inverse
    found,  # Found: value, place [B, C]
    P,
    C,
    x_image,
    x_pixel,
    x_channel,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The pixels with the largest probabilities: one program some channels of an image.

    Each lane keeps the first best of its pixels; the first of these is the lowest pixel.
    """
    across = tl.cdiv(C, BLOCK_C)
    image = (tl.program_id(0) // across).to(tl.int64)
    channel = tl.program_id(0) % across * BLOCK_C + tl.arange(0, BLOCK_C)
    there = channel < C
    at = image * x_image + channel[None, :].to(tl.int64) * x_channel
    best = tl.full((BLOCK_P, BLOCK_C), NOTHING, tl.int32)
    where = tl.full((BLOCK_P, BLOCK_C), NOWHERE, tl.int32)
    for start in range(0, P, BLOCK_P):
        pixel = start + tl.arange(0, BLOCK_P)
        counted = pixel < P
        if sides.counts is not None:
            counted &= tl.load(sides.counts + (image * P + pixel), mask=counted, other=0) != 0
        top = tl.load(sides.top + (image * P + pixel), mask=counted, other=0.0)
        log = tl.load(sides.log + (image * P + pixel), mask=counted, other=0.0)
        mask = counted[:, None] & there[None, :]
        w = tl.load(x + (at + pixel[:, None].to(tl.int64) * x_pixel), mask=mask, other=0.0)
        value = log_probability(w.to(tl.float32), top[:, None], log[:, None], sides.inverse)
        key = tl.where(counted[:, None], key_of(value), NOTHING)
        better = key > best
        best = tl.where(better, key, best)
        where = tl.where(better, pixel[:, None], where)
    largest = tl.max(best, 0)
    first = tl.min(tl.where(best == largest[None, :], where, NOWHERE), 0)
    write(image * C + channel, there, largest, first, found, "softmax")


@triton.jit
def shares_kernel(
    grad,  # [B, M] float32
    value,  # [B, M] float32
    index,  # [B, M] int32
    total,  # [B P] float32: sums of exponentials
    common,  # [B P] float32: is written
    share,  # [B P] float32: is written
    inverse,
    M,
    P,
    BLOCK_P: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Of each pixel the sum of ``grad value`` over what it wins; and that by its sum and T."""
    image, pixel = _place_of_pixels(P, BLOCK_P)
    row, inside = image * P + pixel, pixel < P
    sums = tl.zeros((BLOCK_P, BLOCK_M), tl.float32)
    for k in range(0, M, BLOCK_M):
        m = k + tl.arange(0, BLOCK_M)
        at, mask = image * M + m, m < M
        won = tl.load(index + at, mask=mask, other=-1)
        v = tl.load(value + at, mask=mask, other=0.0)
        part = tl.load(grad + at, mask=mask, other=0.0) * tl.where(v == NEGATIVE, 0.0, v)
        sums += tl.where(won[None, :] == pixel[:, None], part[None, :], 0.0)
    own = tl.sum(sums, 1)
    tl.store(common + row, own, mask=inside)
    one = tl.load(total + row, mask=inside, other=1.0)
    tl.store(share + row, tl.where(own == 0, 0.0, own / one * inverse), mask=inside)


@triton.jit
def map_gradient_kernel(
    x,  # [B, P, C], any strides
    dx,  # [B, P, C], any strides: is written
    top,  # [B P] float32
    share,  # [B P] float32
    inverse,
    P,
    C,
    x_image,
    x_pixel,
    x_channel,
    dx_image,
    dx_pixel,
    dx_channel,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The gradient of scores that the map holds, but for the winners' own; others are not read."""
    image, pixel = _place_of_pixels(P, BLOCK_P)
    row, inside = image * P + pixel, pixel < P
    at = _memory(image, pixel, x_image, x_pixel)
    to = _memory(image, pixel, dx_image, dx_pixel)
    high = tl.load(top + row, mask=inside, other=0.0)[:, None]
    part = tl.load(share + row, mask=inside, other=0.0)[:, None]
    for k in range(0, C, BLOCK_C):
        channel = k + tl.arange(0, BLOCK_C)[None, :]
        there = channel < C
        column = channel.to(tl.int64)
        w = tl.load(x + (at + column * x_channel), mask=(part != 0) & there, other=0.0)
        d = tl.exp((w.to(tl.float32) - high) * inverse) * -part
        d = tl.where(part == 0, 0.0, d)
        mask = inside[:, None] & there
        tl.store(dx + (to + column * dx_channel), d.to(dx.dtype.element_ty), mask=mask)


@triton.jit
def winners_kernel(
    grad,  # [B, M] float32
    value,  # [B, M] float32
    index,  # [B, M] int32
    common,  # [B P] float32
    out,  # [B, P, M], any strides: is written where somebody wins
    inverse,
    size,  # B M
    M,
    P,
    out_image,
    out_pixel,
    out_channel,
    BLOCK: tl.constexpr,
):
    """The gradient of the winners' own scores, ``value (grad - common) / T``."""
    entry = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    image, m = entry // M, entry % M
    pixel = tl.load(index + entry, mask=entry < size, other=-1)
    mask = (pixel >= 0) & (pixel < P)
    v = tl.load(value + entry, mask=mask, other=0.0)
    v = tl.where(v == NEGATIVE, 0.0, v)
    own = tl.load(common + image * P + pixel, mask=mask, other=0.0)
    d = v * (tl.load(grad + entry, mask=mask, other=0.0) - own) * inverse
    to = image * out_image + pixel.to(tl.int64) * out_pixel + m * out_channel
    tl.store(out + to, d.to(out.dtype.element_ty), mask=mask)
