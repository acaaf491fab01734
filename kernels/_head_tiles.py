"""Triton kernels of `infodisent_head`: the class scores, after the pool or in the same launch."""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from ._rotate_pool_tiles import pool_tile


@dataclass(frozen=True)
class HeadTiles:
    """A tile of the logits, [images, classes], its step along the channels, how it is launched."""

    images: int
    classes: int
    block_k: int
    num_warps: int
    num_stages: int


# Not measured on a GPU yet: one or two tiles a multiprocessor at B = 256 and 1000 classes, and few
# enough registers for several of them on one. (most images, tiles); the first row that fits is
# taken.
HEAD_TILES = (
    (16, HeadTiles(16, 32, 64, 4, 3)),
    (1 << 31, HeadTiles(32, 32, 64, 4, 3)),
)


def head_tiles(batch: int) -> HeadTiles:
    """The tiles for this many images."""
    return next(tiles for most, tiles in HEAD_TILES if batch <= most)


@triton.jit
def _head_tile(
    i,
    j,
    pos,  # [B, C] float32
    neg,  # [B, C] float32
    weight,  # [CLASSES, C], rows contiguous
    bias,  # [CLASSES] or None
    logits,  # [B, CLASSES]
    B,
    C,
    CLASSES,
    w_row,  # elements from one row of weight to the next
    RELU: tl.constexpr,
    HEAD_B: tl.constexpr,
    HEAD_N: tl.constexpr,
    HEAD_K: tl.constexpr,
    HEAD_MASK: tl.constexpr,
    HEAD_PRECISION: tl.constexpr,
):
    """Tile (i, j) of ``(pos - neg) relu(weight)^T + bias``, summed in float32."""
    image = tl.minimum(tl.arange(0, HEAD_B), B - 1 - i * HEAD_B)[:, None]
    row = tl.minimum(tl.arange(0, HEAD_N), CLASSES - 1 - j * HEAD_N)[:, None]
    inner = tl.arange(0, HEAD_K)[None, :]
    corner = i.to(tl.int64) * HEAD_B * C
    pos_at = pos + corner + (image * C + inner)
    neg_at = neg + corner + (image * C + inner)
    weight_at = weight + j.to(tl.int64) * HEAD_N * w_row + (row * w_row + inner)
    total = tl.zeros((HEAD_B, HEAD_N), tl.float32)
    for k in range(0, C, HEAD_K):
        if HEAD_MASK:
            mask = inner < C - k
            pooled = tl.load(pos_at, mask=mask, other=0.0) - tl.load(neg_at, mask=mask, other=0.0)
            w = tl.load(weight_at, mask=mask, other=0.0).to(tl.float32)
        else:
            pooled = tl.load(pos_at) - tl.load(neg_at)
            w = tl.load(weight_at).to(tl.float32)
        if RELU:
            w = tl.where(w < 0, 0.0, w)  # a NaN stays
        total = tl.dot(pooled, w.T, total, input_precision=HEAD_PRECISION)
        pos_at += HEAD_K
        neg_at += HEAD_K
        weight_at += HEAD_K
    down = i * HEAD_B + tl.arange(0, HEAD_B)
    column = j * HEAD_N + tl.arange(0, HEAD_N)
    if bias is not None:
        add = tl.load(bias + column, mask=column < CLASSES, other=0.0)
        total += add.to(tl.float32)[None, :]
    at = down.to(tl.int64)[:, None] * CLASSES + column[None, :]
    mask = (down < B)[:, None] & (column < CLASSES)[None, :]
    tl.store(logits + at, total.to(logits.dtype.element_ty), mask=mask)


@triton.jit
def head_kernel(
    pos,  # [B, C] float32
    neg,  # [B, C] float32
    weight,  # [CLASSES, C], rows contiguous
    bias,  # [CLASSES] or None
    logits,  # [B, CLASSES]
    B,
    C,
    CLASSES,
    w_row,
    RELU: tl.constexpr,
    HEAD_B: tl.constexpr,
    HEAD_N: tl.constexpr,
    HEAD_K: tl.constexpr,
    HEAD_MASK: tl.constexpr,
    HEAD_PRECISION: tl.constexpr,
):
    """``logits = (pos - neg) relu(weight)^T + bias``: one program a tile."""
    p = tl.program_id(0)
    across = tl.cdiv(CLASSES, HEAD_N)
    _head_tile(
        p // across, p % across, pos, neg, weight, bias, logits, B, C, CLASSES, w_row,
        RELU, HEAD_B, HEAD_N, HEAD_K, HEAD_MASK, HEAD_PRECISION,
    )  # fmt: skip


@triton.jit
def head_in_one_kernel(
    x,  # this and what follows: see `rotate_pool_kernel`
    u,
    scale,
    outputs,
    work,
    B,
    C,
    SIZE,
    x_part,
    x_image,
    x_pixel,
    u_part,
    u_row,
    weight,  # [CLASSES, C], rows contiguous
    bias,  # [CLASSES] or None
    logits,  # [B, CLASSES]
    state,  # [2 + B / HEAD_B] int32, 0 before and after: tickets, programs that left, ready
    items,  # of the pool: tiles times parts
    CLASSES,
    w_row,
    P: tl.constexpr,
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
    RELU: tl.constexpr,
    HEAD_B: tl.constexpr,
    HEAD_N: tl.constexpr,
    HEAD_K: tl.constexpr,
    HEAD_MASK: tl.constexpr,
    HEAD_PRECISION: tl.constexpr,
):
    """The pool, and the logits of a group of images as soon as all its channels are pooled.

    A program takes the next ticket, so whoever has one of the head knows that every item of the
    pool is done or in the hands of a program that runs, and that waits for nobody: waiting for it
    cannot be forever, however few programs run at a time.
    """
    ready = state + 2  # [B / HEAD_B]: pairs of image and row of tiles that are written
    ticket = tl.atomic_add(state, 1, sem="relaxed")
    if ticket < items:
        pool_tile(
            ticket // SPLIT, ticket % SPLIT, x, u, scale, outputs, work, ready,
            B, C, P if P > 0 else SIZE, x_part, x_image, x_pixel, u_part, u_row,
            IMAGES, N0, N1, N2, BLOCK_M, BLOCK_K, K_MASK, SPLIT, TERMS,
            MASK, EXACT, PRECISION, EMULATE, GROUP, HEAD_B,
        )  # fmt: skip
    else:
        across = tl.cdiv(CLASSES, HEAD_N)
        i = (ticket - items) // across
        j = (ticket - items) % across
        needed = tl.minimum(HEAD_B, B - i * HEAD_B) * tl.cdiv(C, BLOCK_M)
        seen = tl.atomic_add(ready + i, 0, sem="acquire")
        while seen < needed:
            seen = tl.atomic_add(ready + i, 0, sem="acquire")
        tl.debug_barrier()  # what one thread has seen counts for all
        _head_tile(
            i, j, outputs[0], outputs[1], weight, bias, logits, B, C, CLASSES, w_row,
            RELU, HEAD_B, HEAD_N, HEAD_K, HEAD_MASK, HEAD_PRECISION,
        )  # fmt: skip
    if tl.atomic_add(state + 1, 1, sem="acq_rel") == tl.num_programs(0) - 1:
        # the last to leave: nobody looks at these any more
        for k in range(0, 2 + tl.cdiv(B, HEAD_B), 128):
            at = k + tl.arange(0, 128)
            tl.store(state + at, tl.zeros((128,), tl.int32), mask=at < 2 + tl.cdiv(B, HEAD_B))
