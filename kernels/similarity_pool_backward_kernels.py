"""Triton kernels of the gradients of `similarity_pool`: sums over winners, in float32.

Of image b and prototype m only the winner p takes part, with ``g = grad[b, m]``:

    dot     dX[b, p] += g v_m                          dV[m] += g x_p
    l2      dX[b, p] += 2 g (x_p - v_m)                dV[m] -= the same
    cosine  dX[b, p] += g (v_m / |v_m| - r x_p / |x_p|) / |x_p|, with the value r; dV[m] likewise

Every difference is taken before anything is summed, so that a pixel at distance 0 has a gradient of
exactly 0. Pixels that win nothing are not read, and get 0.

dV is a sum over images: a program has some prototypes and reads the winners of some images at a
time. dX is a sum over the prototypes that a pixel wins, which nobody knows at first: `lists_kernel`
sorts the prototypes of each image by their pixel, by counting, and then a program has one pixel and
reads the vectors on its list. All sums have a fixed order and nothing is atomic, so the same call
gives the same bits.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .product import divisible

NOWHERE = tl.constexpr(0x7FFFFFFF)  # behind every pixel


class Won(NamedTuple):
    """What one similarity has found, and its gradient.

    Attributes:
        grad: ``[B, M]`` float32.
        value: ``[B, M]`` float32; None but for "cosine".
        place: ``[B, M]`` int32.
        order: ``[B, M]`` int32: the prototypes by their pixel and then by number; None for dV.
        start: ``[B, P + 1]`` int32: where a pixel's begin in `order`; None for dV.
    """

    grad: Tensor
    value: Tensor | None
    place: Tensor
    order: Tensor | None
    start: Tensor | None


class Operands(NamedTuple):
    """Map and prototypes as rows of contiguous channels, and what "cosine" needs of them.

    Attributes:
        x: ``[B, P, C]``.
        image, pixel: elements from one to the next.
        v: ``[M, C]``.
        row: elements from one to the next.
        x_scale: ``[B P]`` float32, ``1 / |x_p|`` or 0; None but for "cosine".
        v_scale: ``[M]`` float32, likewise.
    """

    x: Tensor
    image: int
    pixel: int
    v: Tensor
    row: int
    x_scale: Tensor | None
    v_scale: Tensor | None


@triton.jit
def lists_kernel(
    place,  # [B, M] int32
    order,  # [B, M] int32: is written
    start,  # [B, P + 1] int32: is written
    M,
    P,
    BLOCK_P: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """The prototypes of an image by their pixel: one program some pixels.

    It counts those of earlier pixels, and so knows where its own begin. Pixel P, which nobody has,
    marks the end.
    """
    across = tl.cdiv(P + 1, BLOCK_P)
    image = (tl.program_id(0) // across).to(tl.int64)
    pixel = tl.program_id(0) % across * BLOCK_P + tl.arange(0, BLOCK_P)
    earlier = tl.zeros((BLOCK_P, BLOCK_M), tl.int32)
    for k in range(0, M, BLOCK_M):
        m = k + tl.arange(0, BLOCK_M)
        won = tl.load(place + (image * M + m), mask=m < M, other=NOWHERE)
        earlier += (won[None, :] < pixel[:, None]).to(tl.int32)
    at = tl.sum(earlier, 1)
    tl.store(start + (image * (P + 1) + pixel), at, mask=pixel <= P)
    for k in range(0, M, BLOCK_M):
        m = k + tl.arange(0, BLOCK_M)
        won = tl.load(place + (image * M + m), mask=m < M, other=NOWHERE)
        own = (won[None, :] == pixel[:, None]) & (pixel < P)[:, None]
        rank = tl.cumsum(own.to(tl.int32), 1) - 1
        to = image * M + (at[:, None] + rank)
        tl.store(order + to, tl.broadcast_to(m[None, :], (BLOCK_P, BLOCK_M)), mask=own)
        at += tl.sum(own.to(tl.int32), 1)


@triton.jit
def _slope(
    own,  # [K, N] of what the gradient is taken
    other,  # [K, N] of what it is compared with
    own_scale,  # [K] or None: 1 / |own|, 0 where that is 0
    other_scale,
    value,  # [K] or None
    VIEW: tl.constexpr,
):
    """d(value) / d(own), [K, N]; there is none where a norm is 0."""
    if VIEW == "dot":
        slope = other
    elif VIEW == "l2":
        slope = 2.0 * (own - other)
    else:
        unit = own * own_scale[:, None]
        slope = (other * other_scale[:, None] - value[:, None] * unit) * own_scale[:, None]
        # of a vector with an infinity the scale is 0, too, but its value is NaN
        none = ((own_scale == 0) | (other_scale == 0)) & (value == value)
        slope = tl.where(none[:, None], 0.0, slope)
    return slope


@triton.jit
def _add_vectors(
    total,  # [N] float32
    image,
    pixel,
    own,  # [1, N] of the pixel, float32; None where VIEW is "dot"
    c,  # [N] channels
    operands,  # Operands
    won,  # Won
    M,
    P,
    C,
    row,
    VIEW: tl.constexpr,
    ENTRIES: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Add what the prototypes on a pixel's list say, ENTRIES at a time."""
    first = won.start + (image * (P + 1) + pixel)
    stop = tl.load(first + 1)
    sums = tl.zeros((ENTRIES, BLOCK_C), tl.float32)
    for entry in range(tl.load(first), stop, ENTRIES):
        at = entry + tl.arange(0, ENTRIES)
        some = at < stop
        m = tl.load(won.order + (image * M + at), mask=some, other=0)
        grad = tl.load(won.grad + (image * M + m), mask=some, other=0.0)
        mask = some[:, None] & (c < C)[None, :]
        source = operands.v + (m.to(tl.int64)[:, None] * row + c[None, :])
        vectors = tl.load(source, mask=mask, other=0.0).to(tl.float32)
        if VIEW == "cosine":
            x_scale = tl.load(operands.x_scale + (image * P + pixel + at * 0), mask=some, other=0.0)
            v_scale = tl.load(operands.v_scale + m, mask=some, other=0.0)
            value = tl.load(won.value + (image * M + m), mask=some, other=0.0)
            slope = _slope(own, vectors, x_scale, v_scale, value, VIEW)
        else:
            slope = _slope(own, vectors, None, None, None, VIEW)
        sums += tl.where(some[:, None], grad[:, None] * slope, 0.0)
    return total + tl.sum(sums, 0)


@triton.jit
def grad_x_kernel(
    out,  # [B, P, C], contiguous
    operands,  # Operands
    first,  # Won
    second,  # Won; or None
    M,
    P,
    C,
    MULTIPLE: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    ENTRIES: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """dX: one program some channels of a pixel."""
    C = divisible(C, MULTIPLE)
    row = divisible(operands.row, MULTIPLE)
    across = tl.cdiv(C, BLOCK_C)
    column = tl.program_id(0) // across  # of B P
    c = tl.program_id(0) % across * BLOCK_C + tl.arange(0, BLOCK_C)
    image, pixel = (column // P).to(tl.int64), column % P
    own = None
    if FIRST != "dot" or SECOND != "dot":
        at = image * divisible(operands.image, MULTIPLE)
        at += pixel.to(tl.int64) * divisible(operands.pixel, MULTIPLE)
        own = tl.load(operands.x + (at + c), mask=c < C, other=0.0).to(tl.float32)[None, :]
    total = tl.zeros((BLOCK_C,), tl.float32)
    total = _add_vectors(
        total, image, pixel, own, c, operands, first, M, P, C, row, FIRST, ENTRIES, BLOCK_C
    )
    if second is not None:
        total = _add_vectors(
            total, image, pixel, own, c, operands, second, M, P, C, row, SECOND, ENTRIES, BLOCK_C
        )
    to = out + (column.to(tl.int64) * C + c)
    tl.store(to, total.to(out.dtype.element_ty), mask=c < C)


@triton.jit
def _add_pixels(
    sums,  # [IMAGES BLOCK_M, N] float32
    m,  # [IMAGES BLOCK_M] prototypes
    later,  # [IMAGES BLOCK_M] images after the first
    own,  # [IMAGES BLOCK_M, N] of the prototypes, float32; None where VIEW is "dot"
    c,  # [N] channels
    operands,  # Operands
    won,  # Won
    B,
    M,
    P,
    C,
    image_stride,
    pixel_stride,
    VIEW: tl.constexpr,
    IMAGES: tl.constexpr,
):
    """Add what the winners of all images say, IMAGES at a time."""
    for start in range(0, B, IMAGES):
        image = (start + later).to(tl.int64)
        there = (image < B) & (m < M)
        pixel = tl.load(won.place + (image * M + m), mask=there, other=-1)
        some = (pixel >= 0) & (pixel < P)
        grad = tl.load(won.grad + (image * M + m), mask=some, other=0.0)
        at = image * image_stride + pixel.to(tl.int64) * pixel_stride
        mask = some[:, None] & (c < C)[None, :]
        winners = tl.load(operands.x + (at[:, None] + c[None, :]), mask=mask, other=0.0)
        winners = winners.to(tl.float32)
        if VIEW == "cosine":
            x_scale = tl.load(operands.x_scale + (image * P + pixel), mask=some, other=0.0)
            v_scale = tl.load(operands.v_scale + m, mask=some, other=0.0)
            value = tl.load(won.value + (image * M + m), mask=some, other=0.0)
            slope = _slope(own, winners, v_scale, x_scale, value, VIEW)
        else:
            slope = _slope(own, winners, None, None, None, VIEW)
        sums += tl.where(some[:, None], grad[:, None] * slope, 0.0)
    return sums


@triton.jit
def grad_v_kernel(
    out,  # [M, C], contiguous
    operands,  # Operands
    first,  # Won
    second,  # Won; or None
    B,
    M,
    P,
    C,
    MULTIPLE: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    IMAGES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """dV: one program some channels of some prototypes."""
    C = divisible(C, MULTIPLE)
    image_stride = divisible(operands.image, MULTIPLE)
    pixel_stride = divisible(operands.pixel, MULTIPLE)
    across = tl.cdiv(C, BLOCK_C)
    top = tl.program_id(0) // across * BLOCK_M
    c = tl.program_id(0) % across * BLOCK_C + tl.arange(0, BLOCK_C)
    line = tl.arange(0, IMAGES * BLOCK_M)
    later, m = line // BLOCK_M, top + line % BLOCK_M
    own = None
    if FIRST != "dot" or SECOND != "dot":
        at = m.to(tl.int64)[:, None] * divisible(operands.row, MULTIPLE) + c[None, :]
        mask = (m < M)[:, None] & (c < C)[None, :]
        own = tl.load(operands.v + at, mask=mask, other=0.0).to(tl.float32)
    sums = tl.zeros((IMAGES * BLOCK_M, BLOCK_C), tl.float32)
    sums = _add_pixels(
        sums, m, later, own, c, operands, first, B, M, P, C, image_stride, pixel_stride, FIRST,
        IMAGES,
    )  # fmt: skip
    if second is not None:
        sums = _add_pixels(
            sums, m, later, own, c, operands, second, B, M, P, C, image_stride, pixel_stride,
            SECOND, IMAGES,
        )  # fmt: skip
    total = tl.sum(tl.reshape(sums, (IMAGES, BLOCK_M, BLOCK_C)), 0)
    row = top + tl.arange(0, BLOCK_M)
    to = out + (row.to(tl.int64)[:, None] * C + c[None, :])
    mask = (row < M)[:, None] & (c < C)[None, :]
    tl.store(to, total.to(out.dtype.element_ty), mask=mask)
