"""Triton kernel of `rotate_pool`: product and pool in one pass, the rotated map never in memory.

A tile is BLOCK_M output channels by N0 + N1 + N2 columns, and a column is a pixel. Channels are the
rows of the product so that the pool runs along a row, inside a warp. Two kinds of tile:

- whole images side by side (IMAGES > 0): 5 x 49 = 245 of 256 columns, 196 of 128 + 64 + 16. Where
  an image begins and ends is known when the kernel is compiled;
- columns across the borders of images (IMAGES = 0), for maps of any size. What the tiles of an
  image find is merged by integer maxima, whose order does not matter, and the last tile to arrive
  writes the image.

Columns that belong to no image repeat the last pixel, and rows beyond C the last channel: the loads
need no mask, and what comes of them is dropped.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._pool import pool


@triton.jit
def place(p, down, across, GROUP: tl.constexpr):
    """Tile p as (row, column): down all rows of GROUP columns, then the next columns.

    Programs that run together share rows of U and of x in L2, and images are done early.
    """
    first = p // (GROUP * down) * GROUP
    width = tl.minimum(across - first, GROUP)
    rest = p - first * down
    return rest // width, first + rest % width


@triton.jit
def _product(
    total,  # [M, N] float32
    a,  # [M, K]
    b_at,  # [N, K] pointers
    left,
    K_MASK: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATE: tl.constexpr,
):
    """``total + a b^T``; of b only the first `left` of K with K_MASK, else all."""
    b = _load(b_at, left, K_MASK)
    if EMULATE:  # Triton's interpreter multiplies the bits of bfloat16 as integers
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b.T, total, input_precision=PRECISION)


@triton.jit
def _load(at, left, K_MASK: tl.constexpr):
    """What the pointers [M, K] point at; with K_MASK only the first `left` of K, else 0."""
    if K_MASK:
        inner = tl.arange(0, at.shape[1])[None, :]
        return tl.load(at, mask=inner < left, other=0.0)
    return tl.load(at)


@triton.jit
def _columns_at(q, x_image, x_pixel, pixels, last):
    """Offset of the pixels of columns q [N], counted from the first image's first pixel."""
    q = tl.minimum(q, last)
    return q // pixels * x_image + q % pixels * x_pixel


@triton.jit
def pool_tile(
    tile,  # tile * SPLIT + part is the work item
    part,
    x,  # [parts, B, P, C]
    u,  # [parts, C, C]
    scale,  # [C] float32: values are to be multiplied by it; or None
    outputs,  # pos, neg [B, C] float32, pos_index, neg_index [B, C] int32
    work,  # partial, arrived, keys, merged: see `rotate_pool_kernel`
    ready,  # [B / READY] int32 or None: gets 1 for each image and row of tiles that is written
    B,
    C,
    P,
    x_part,  # elements from one to the next
    x_image,
    x_pixel,
    u_part,
    u_row,
    IMAGES: tl.constexpr,
    N0: tl.constexpr,
    N1: tl.constexpr,
    N2: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    K_MASK: tl.constexpr,
    SPLIT: tl.constexpr,
    TERMS: tl.constexpr,
    MASK: tl.constexpr,
    EXACT: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATE: tl.constexpr,
    GROUP: tl.constexpr,
    READY: tl.constexpr,
):
    """Rotate a tile over part of the channels; the last of SPLIT parts adds them up and pools."""
    N: tl.constexpr = N0 + N1 + N2
    partial, arrived, keys, merged = work
    down = tl.cdiv(C, BLOCK_M)
    across = tl.cdiv(B, IMAGES) if IMAGES > 0 else tl.cdiv(B * P, N)
    i, j = place(tile, down, across, GROUP)
    if IMAGES > 0:
        first = j * IMAGES
        skip = 0
        last = tl.minimum(IMAGES, B - first) * P - 1
    else:
        first = j * N // P
        skip = j * N - first * P
        last = (B - first) * P - 1
    inner = tl.arange(0, BLOCK_K)[None, :]
    row = tl.minimum(tl.arange(0, BLOCK_M), C - 1 - i * BLOCK_M)
    q0 = tl.arange(0, N0) + skip
    # 64-bit addresses for the tile and 32-bit offsets in it: half the registers
    x += first.to(tl.int64) * x_image
    u += i.to(tl.int64) * BLOCK_M * u_row
    u_at = u + (row[:, None] * u_row + inner)
    x0_at = x + (_columns_at(q0, x_image, x_pixel, P, last)[:, None] + inner)
    total0 = tl.zeros((BLOCK_M, N0), tl.float32)
    total1 = 0.0
    total2 = 0.0
    if N1 > 0:
        q1 = tl.arange(0, N1) + (skip + N0)
        x1_at = x + (_columns_at(q1, x_image, x_pixel, P, last)[:, None] + inner)
        total1 = tl.zeros((BLOCK_M, N1), tl.float32)
    if N2 > 0:
        q2 = tl.arange(0, N2) + (skip + N0 + N1)
        x2_at = x + (_columns_at(q2, x_image, x_pixel, P, last)[:, None] + inner)
        total2 = tl.zeros((BLOCK_M, N2), tl.float32)
    # A product of parts is one long product, the small terms first: high u by low x if TERMS is 3,
    # low u by high x if it is 2 or 3, high u by high x. Like this it waits for no product before.
    steps = tl.cdiv(C, BLOCK_K)
    start = 0
    end = steps * TERMS
    if SPLIT > 1:
        length = tl.cdiv(end, SPLIT)
        start = part * length
        end = tl.minimum(start + length, end)
    for step in range(start, end):
        k = step * BLOCK_K
        u_k = k
        x_k = k
        if TERMS > 1:
            term = (step >= steps).to(tl.int32)
            if TERMS == 3:
                term += (step >= 2 * steps).to(tl.int32)
            k -= term * steps * BLOCK_K
            u_k = k + (term == TERMS - 2).to(tl.int32) * u_part
            x_k = k
            if TERMS == 3:
                x_k = k + (term == 0).to(tl.int32) * x_part
        a = _load(u_at + u_k, C - k, K_MASK)
        total0 = _product(total0, a, x0_at + x_k, C - k, K_MASK, PRECISION, EMULATE)
        if N1 > 0:
            total1 = _product(total1, a, x1_at + x_k, C - k, K_MASK, PRECISION, EMULATE)
        if N2 > 0:
            total2 = _product(total2, a, x2_at + x_k, C - k, K_MASK, PRECISION, EMULATE)
    if SPLIT == 1:
        pool(
            total0, total1, total2, i, j, scale, outputs, keys, merged, ready, B, C, P,
            IMAGES, N0, N1, N2, BLOCK_M, MASK, EXACT, READY,
        )  # fmt: skip
    else:
        SIZE: tl.constexpr = BLOCK_M * N
        down = tl.arange(0, BLOCK_M)[:, None]
        at0 = down * N0 + tl.arange(0, N0)[None, :]
        partial += tile.to(tl.int64) * SPLIT * SIZE
        mine = partial + part * SIZE
        tl.store(mine + at0, total0)
        if N1 > 0:
            at1 = BLOCK_M * N0 + down * N1 + tl.arange(0, N1)[None, :]
            tl.store(mine + at1, total1)
        if N2 > 0:
            at2 = BLOCK_M * (N0 + N1) + down * N2 + tl.arange(0, N2)[None, :]
            tl.store(mine + at2, total2)
        tl.debug_barrier()  # every thread has written
        if tl.atomic_add(arrived + tile, 1, sem="acq_rel") == SPLIT - 1:
            tl.store(arrived + tile, 0)
            # always in the same order, whoever comes last; past L1, others wrote this
            total0 = tl.zeros((BLOCK_M, N0), tl.float32)
            for s in range(SPLIT):
                total0 += tl.load(partial + s * SIZE + at0, cache_modifier=".cg")
            if N1 > 0:
                total1 = tl.zeros((BLOCK_M, N1), tl.float32)
                for s in range(SPLIT):
                    total1 += tl.load(partial + s * SIZE + at1, cache_modifier=".cg")
            if N2 > 0:
                total2 = tl.zeros((BLOCK_M, N2), tl.float32)
                for s in range(SPLIT):
                    total2 += tl.load(partial + s * SIZE + at2, cache_modifier=".cg")
            pool(
                total0, total1, total2, i, j, scale, outputs, keys, merged, ready, B, C, P,
                IMAGES, N0, N1, N2, BLOCK_M, MASK, EXACT, READY,
            )  # fmt: skip


@triton.jit
def rotate_pool_kernel(
    x,  # [parts, B, P, C], channels contiguous; high part first
    u,  # [parts, C, C], columns contiguous; high part first
    scale,  # [C] float32 or None: row c of u has been divided by scale[c]
    outputs,  # pos, neg [B, C] float32, pos_index, neg_index [B, C] int32
    # what is of no use is None:
    #   partial [tiles, SPLIT, BLOCK_M * N] float32, for SPLIT > 1
    #   arrived [tiles] int32, for SPLIT > 1: 0 before and after
    #   keys [2, B, C] int32, int64 with EXACT, for IMAGES = 0: 0 before
    #   merged [rows of tiles, B] int32, for IMAGES = 0: 0 before
    work,
    B,
    C,
    SIZE,  # P, where it is not compiled in
    x_part,  # elements from one to the next
    x_image,
    x_pixel,
    u_part,
    u_row,
    P: tl.constexpr,  # 0: not compiled in
    IMAGES: tl.constexpr,
    N0: tl.constexpr,
    N1: tl.constexpr,
    N2: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    K_MASK: tl.constexpr,
    SPLIT: tl.constexpr,
    TERMS: tl.constexpr,
    MASK: tl.constexpr,
    EXACT: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATE: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One program a tile and part: the four results of ``max(0, +-u x)`` over the pixels."""
    p = tl.program_id(0)
    pool_tile(
        p // SPLIT, p % SPLIT, x, u, scale, outputs, work, None,
        B, C, P if P > 0 else SIZE, x_part, x_image, x_pixel, u_part, u_row,
        IMAGES, N0, N1, N2, BLOCK_M, BLOCK_K, K_MASK, SPLIT, TERMS,
        MASK, EXACT, PRECISION, EMULATE, GROUP, 1,
    )  # fmt: skip
