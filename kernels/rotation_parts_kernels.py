"""Triton kernels of the products of `rotation` from parts that are written before: "parts".

A float32 product on tensor cores is three of TF32 parts, ``v = high + low``. `product_kernel` of
`rotation_kernels` makes the parts of what it has loaded, in every tile and step, and waits for the
matrix unit each time. Here a launch of its own writes them, once and in the order in which the
matrix unit reads both operands (K contiguous), so that a step is loads and three products that
wait for nothing: what is loaded is twice as much.
"""

# mypy: disable-error-code="assignment, attr-defined, no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from .rotation_kernels import store_tile, tile_at
from .rows_kernels import nearest


@triton.jit(do_not_specialize=["flag", "level"])
def parts_kernel(
    x,  # [C, C]
    straight,  # [2, W, W] or None: high and low parts of x
    turned,  # [2, W, W] or None: those of its transpose
    numbers,  # [WIDTH]
    flag,  # they are needed where numbers[flag] > level
    level,
    C,
    W,  # C, up to a whole number of tiles; what is beyond C is written as 0
    LOW: tl.constexpr,  # bits that parts do without
    BLOCK: tl.constexpr,
):
    """Parts of a matrix: one read, and a write of each."""
    if tl.load(numbers + flag) <= level:
        return
    across = tl.cdiv(W, BLOCK)
    down = tl.program_id(0) // across * BLOCK + tl.arange(0, BLOCK)[:, None]
    right = tl.program_id(0) % across * BLOCK + tl.arange(0, BLOCK)[None, :]
    at = down.to(tl.int64) * C + right
    v = tl.load(x + at, mask=(down < C) & (right < C), other=0.0)
    high = nearest(v, LOW)
    low = tl.where(tl.abs(v) < float("inf"), nearest(v - high, LOW), 0.0)
    mask = (down < W) & (right < W)
    size = tl.cast(W, tl.int64) * W
    if straight is not None:
        to = straight + (down.to(tl.int64) * W + right)
        tl.store(to, high, mask=mask)
        tl.store(to + size, low, mask=mask)
    if turned is not None:
        to = turned + (right.to(tl.int64) * W + down)
        tl.store(to, high, mask=mask)
        tl.store(to + size, low, mask=mask)


@triton.jit
def _accumulate(
    total,  # [BLOCK, BLOCK], of the matrix unit
    exact,  # [BLOCK, BLOCK], of sums rounded to nearest
    a,  # [2, W, W]
    b,  # [2, W, W]
    i,
    j,
    W,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    RUN: tl.constexpr,
):
    """Add tile (i, j) of ``a b^T`` to the sum of the two."""
    outer = tl.arange(0, BLOCK)
    inner = tl.arange(0, BLOCK_K)
    # a 64-bit address for the tile and 32-bit offsets in it: half the registers
    at = outer[:, None] * W + inner[None, :]
    size = tl.cast(W, tl.int64) * W
    a += i.to(tl.int64) * BLOCK * W
    b += j.to(tl.int64) * BLOCK * W
    a_low = a + size
    b_low = b + size
    for step in range(0, W // BLOCK_K):
        k = step * BLOCK_K
        x = tl.load(a + k + at)
        y = tl.load(b + k + at)
        x_low = tl.load(a_low + k + at)
        y_low = tl.load(b_low + k + at)
        # without low by low; the small terms first
        total = tl.dot(x_low, y.T, total, input_precision="tf32")
        total = tl.dot(x, y_low.T, total, input_precision="tf32")
        # The matrix unit has been waited for here, and the last product goes on under the next
        # step's waiting. After it Triton 3.9 reads the accumulators in a branch without a wait.
        if RUN > 1:  # noqa: SIM102  (known to the compiler)
            if (step + 1) % RUN == 0:
                exact += total
                total = tl.zeros((BLOCK, BLOCK), tl.float32)
        total = tl.dot(x, y.T, total, input_precision="tf32")
        if RUN == 1:  # of matrix units that nobody waits for: one sum a step takes fewer registers
            exact += total
            total = tl.zeros((BLOCK, BLOCK), tl.float32)
    return total, exact


@triton.jit(do_not_specialize=["flag", "level"])
def parts_product_kernel(
    a,  # [2, W, W]: parts of the left operand
    b,  # [2, W, W]: parts of the transpose of the right one
    other_a,  # [2, W, W] or None: of a second product that is added
    other_b,
    d,  # [C, C] or None; may be out
    out,  # [C, C]
    numbers,  # [WIDTH]
    flag,  # the product is needed where numbers[flag] > level
    level,
    beta,
    C,
    W,
    SYMMETRIC: tl.constexpr,
    RUN: tl.constexpr,  # steps after which a sum of the matrix unit is added in plain float32
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """``out = a b^T [+ other_a other_b^T] [+ beta d]``, as `rotation_kernels.product_kernel`."""
    if tl.load(numbers + flag) <= level:
        return
    i, j = tile_at(tl.program_id(0), C, SYMMETRIC, BLOCK, GROUP)
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    exact = tl.zeros((BLOCK, BLOCK), tl.float32)
    total, exact = _accumulate(total, exact, a, b, i, j, W, BLOCK, BLOCK_K, RUN)
    if other_a is not None:
        total, exact = _accumulate(total, exact, other_a, other_b, i, j, W, BLOCK, BLOCK_K, RUN)
    store_tile(exact + total, d, out, beta, i, j, C, SYMMETRIC, BLOCK)
