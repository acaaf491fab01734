"""Triton kernels that lay operands of `rotate_pool` out: rows of contiguous channels, in parts.

A product of float32 numbers on tensor cores is a sum of products of their parts, ``v = high + low``
in TF32 or bfloat16, and parts are made once here rather than in each tile that reads them. U is
split so that Inf times U follows the formula: both parts of a number have its sign and none is 0,
so Inf times one never cancels Inf times the other. x is split to nearest, and Inf has no low part.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def nearest(v, LOW: tl.constexpr):
    """v rounded to the nearest number whose LOW last bits are 0, towards 0 from 2^127 on."""
    bits = v.to(tl.int32, bitcast=True)
    half = tl.where((bits & 0x7FFFFFFF) < 0x7F000000, 1 << (LOW - 1), 0)
    rounded = ((bits + half) & (-1 << LOW)).to(tl.float32, bitcast=True)
    return tl.where(v == v, rounded, v)


@triton.jit
def rows_kernel(
    x,  # [B, P, C], any strides
    out,  # [PARTS, B, P, C], contiguous
    P,
    C,
    x_image,  # elements from one to the next
    x_pixel,
    x_channel,
    out_part,
    PARTS: tl.constexpr,
    LOW: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Copy of x in another dtype, or its high and its low part: one read and one write."""
    across = tl.cdiv(C, BLOCK_C)
    down = tl.cdiv(P, BLOCK_P)
    p = tl.program_id(0)
    image = (p // (across * down)).to(tl.int64)
    pixel = p // across % down * BLOCK_P + tl.arange(0, BLOCK_P)[:, None]
    channel = p % across * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    mask = (pixel < P) & (channel < C)
    at = image * x_image + (pixel.to(tl.int64) * x_pixel + channel.to(tl.int64) * x_channel)
    v = tl.load(x + at, mask=mask, other=0.0)
    to = out + image * P * C + (pixel.to(tl.int64) * C + channel)
    if PARTS == 1:
        tl.store(to, v.to(out.dtype.element_ty), mask=mask)
    else:
        v = v.to(tl.float32)
        high = nearest(v, LOW)
        low = tl.where(tl.abs(v) < float("inf"), nearest(v - high, LOW), 0.0)
        tl.store(to, high.to(out.dtype.element_ty), mask=mask)
        tl.store(to + out_part, low.to(out.dtype.element_ty), mask=mask)


@triton.jit
def split_kernel(
    u,  # [M, C], any strides
    parts,  # [2, M, C], contiguous
    scale,  # [M] float32, or None: 1
    C,
    size,  # M C
    u_row,  # elements from one to the next
    u_column,
    LOW: tl.constexpr,
    TINY: tl.constexpr,  # the smallest number that parts may have
    BLOCK: tl.constexpr,
):
    """``u[m] = scale[m] (parts[0, m] + parts[1, m])``: one program a row.

    scale is a power of two that brings the largest entry of the row to 2^14 ... 2^15, so that no
    entry that matters is below the range of float16.
    """
    row = tl.program_id(0).to(tl.int64)
    inner = tl.arange(0, BLOCK)
    u += row * u_row
    high_at = parts + row * C
    low_at = high_at + tl.cast(size, tl.int64)
    factor = 1.0
    if scale is not None:
        largest = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, C, BLOCK):
            column = start + inner
            v = tl.load(u + column.to(tl.int64) * u_column, mask=column < C, other=0.0)
            largest = tl.maximum(largest, tl.abs(v.to(tl.float32)))
        bits = tl.max(largest, 0).to(tl.int32, bitcast=True)
        exponent = (bits >> 23) - 127
        exponent = tl.where((bits == 0) | (exponent > 127), 14, tl.maximum(exponent, -100))
        tl.store(scale + row, ((127 - 14 + exponent) << 23).to(tl.float32, bitcast=True))
        factor = ((127 + 14 - exponent) << 23).to(tl.float32, bitcast=True)
    for start in range(0, C, BLOCK):
        column = start + inner
        mask = column < C
        v = tl.load(u + column.to(tl.int64) * u_column, mask=mask, other=0.0)
        v = v.to(tl.float32) * factor
        tiny = tl.where(v == 0, 0.0, tl.where(v < 0, -TINY, TINY))
        # towards 0, so that what is left has the same sign
        cut = (v.to(tl.int32, bitcast=True) & (-1 << LOW)).to(tl.float32, bitcast=True)
        high = tl.where(v == v, cut, v).to(parts.dtype.element_ty).to(tl.float32)
        high = tl.where(high == 0, tiny, high)
        low = nearest(v - high, LOW)
        same = (low > 0) == (v > 0)
        low = tl.where((tl.abs(low) >= TINY) & same, low, tiny)
        tl.store(high_at + column, high.to(parts.dtype.element_ty), mask=mask)
        tl.store(low_at + column, low.to(parts.dtype.element_ty), mask=mask)
