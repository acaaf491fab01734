"""Triton kernels of `infodisent_head`: the class scores, after the pool or in the same launch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .product import divisible, last_part, sum_of_parts
from .rotate_pool_kernels import pool_tile
from .tiles.rotate_pool import Tiles


class Scores(NamedTuple):
    """What class scores are made from, and where they go.

    Attributes:
        weight: ``[K, C]``, rows contiguous.
        row: elements from one row of `weight` to the next.
        bias: ``[K]`` or None.
        logits: ``[B, K]``.
    """

    weight: Tensor
    row: int
    bias: Tensor | None
    logits: Tensor


@dataclass(frozen=True)
class Scoring:
    """How scores are computed; a constant of the kernels' compilation.

    Attributes:
        tiles: images x classes, the step along the channels, and how many programs share these.
        relu: whether negative weights count as zero.
        ragged: whether the channels are no multiple of the step.
        multiple: what divides the channels and the row of `weight`.
        precision: of the product, ``input_precision`` of ``tl.dot``.
    """

    tiles: Tiles
    relu: bool
    ragged: bool
    multiple: int
    precision: str


@triton.jit
def _products(
    i,
    j,
    part,
    pos,  # [B, C] float32
    neg,  # [B, C] float32
    scores,  # Scores: weight [CLASSES, C], bias [CLASSES] or None, logits [B, CLASSES]
    B,
    C,
    CLASSES,
    SCORING: tl.constexpr,
):
    """Tile (i, j) of ``(pos - neg) relu(weight)^T`` over one part of the channels, in float32."""
    IMAGES: tl.constexpr = SCORING.tiles.channels
    COLUMNS: tl.constexpr = SCORING.tiles.columns
    STEP: tl.constexpr = SCORING.tiles.block_k
    C = divisible(C, SCORING.multiple)
    weight_row = divisible(scores.row, SCORING.multiple)
    start = 0
    end = C
    if SCORING.tiles.split > 1:
        length = tl.cdiv(tl.cdiv(C, STEP), SCORING.tiles.split) * STEP
        start = part * length
        end = tl.minimum(start + length, C)
    image = tl.minimum(tl.arange(0, IMAGES), B - 1 - i * IMAGES)[:, None]
    row = tl.minimum(tl.arange(0, COLUMNS), CLASSES - 1 - j * COLUMNS)[:, None]
    inner = tl.arange(0, STEP)[None, :]
    corner = i.to(tl.int64) * IMAGES * C + start
    pos_at = pos + corner + (image * C + inner)
    neg_at = neg + corner + (image * C + inner)
    first = j.to(tl.int64) * COLUMNS * weight_row + start
    weight_at = scores.weight + first + (row * weight_row + inner)
    total = tl.zeros((IMAGES, COLUMNS), tl.float32)
    for k in range(start, end, STEP):
        if SCORING.ragged:
            mask = inner < C - k
            pooled = tl.load(pos_at, mask=mask, other=0.0) - tl.load(neg_at, mask=mask, other=0.0)
            w = tl.load(weight_at, mask=mask, other=0.0).to(tl.float32)
        else:
            pooled = tl.load(pos_at) - tl.load(neg_at)
            w = tl.load(weight_at).to(tl.float32)
        if SCORING.relu:
            w = tl.where(w < 0, 0.0, w)  # a NaN stays
        total = tl.dot(pooled, w.T, total, input_precision=SCORING.precision)
        pos_at += STEP
        neg_at += STEP
        weight_at += STEP
    return total


@triton.jit
def _store_scores(
    total,  # [images, classes] float32
    i,
    j,
    scores,  # Scores: weight [CLASSES, C], bias [CLASSES] or None, logits [B, CLASSES]
    B,
    CLASSES,
    SCORING: tl.constexpr,
):
    """Tile (i, j) of the logits: the products with the bias added."""
    down = i * SCORING.tiles.channels + tl.arange(0, total.shape[0])
    column = j * SCORING.tiles.columns + tl.arange(0, total.shape[1])
    if scores.bias is not None:
        add = tl.load(scores.bias + column, mask=column < CLASSES, other=0.0)
        total += add.to(tl.float32)[None, :]
    at = down.to(tl.int64)[:, None] * CLASSES + column[None, :]
    mask = (down < B)[:, None] & (column < CLASSES)[None, :]
    tl.store(scores.logits + at, total.to(scores.logits.dtype.element_ty), mask=mask)


@triton.jit
def head_kernel(
    pos,  # [B, C] float32
    neg,  # [B, C] float32
    scores,  # Scores: weight [CLASSES, C], bias [CLASSES] or None, logits [B, CLASSES]
    parts,  # Parts: scratch where the channels of a tile are shared
    B,
    C,
    CLASSES,
    SCORING: tl.constexpr,
):
    """``logits = (pos - neg) relu(weight)^T + bias``: one program a tile and part."""
    tile = tl.program_id(0) // SCORING.tiles.split
    part = tl.program_id(0) % SCORING.tiles.split
    across = tl.cdiv(CLASSES, SCORING.tiles.columns)
    i, j = tile // across, tile % across
    total = _products(i, j, part, pos, neg, scores, B, C, CLASSES, SCORING)
    if SCORING.tiles.split == 1:
        _store_scores(total, i, j, scores, B, CLASSES, SCORING)
    else:
        if last_part((total,), parts, tile, part, SCORING.tiles):
            total = sum_of_parts(parts, tile, SCORING.tiles)[0]
            _store_scores(total, i, j, scores, B, CLASSES, SCORING)


@triton.jit
def head_in_one_kernel(
    x,  # this and what follows: see `rotate_pool_kernel`
    u,
    outputs,
    parts,
    borders,
    B,
    C,
    SIZE,
    scores,  # Scores: weight [CLASSES, C], bias [CLASSES] or None, logits [B, CLASSES]
    state,  # [1 + B / images of a block] int32, 0 before: tickets, then what is ready
    items,  # of the pool: tiles times parts
    CLASSES,
    P: tl.constexpr,
    TILES: tl.constexpr,
    ARITHMETIC: tl.constexpr,
    KEYS: tl.constexpr,
    SCORING: tl.constexpr,
):
    """The pool, and the logits of a group of images as soon as all its channels are pooled.

    A program takes the next ticket, so whoever has one of the head knows that every item of the
    pool is done or in the hands of a program that runs, and that waits for nobody: waiting for it
    cannot be forever, however few programs run at a time.

    Experimental: whether it is faster than two launches was not measured on a GPU.
    """
    IMAGES: tl.constexpr = SCORING.tiles.channels
    ready = state + 1  # [B / IMAGES]: pairs of image and row of tiles that are written
    ticket = tl.atomic_add(state, 1, sem="relaxed")
    if ticket < items:
        pool_tile(
            ticket, x, u, outputs, parts, borders, ready,
            B, C, P if P > 0 else SIZE, TILES, ARITHMETIC, KEYS, IMAGES,
        )  # fmt: skip
    else:
        across = tl.cdiv(CLASSES, SCORING.tiles.columns)
        i = (ticket - items) // across
        j = (ticket - items) % across
        needed = tl.minimum(IMAGES, B - i * IMAGES) * tl.cdiv(C, TILES.channels)
        seen = tl.atomic_add(ready + i, 0, sem="acquire")
        while seen < needed:
            seen = tl.atomic_add(ready + i, 0, sem="acquire")
        tl.debug_barrier()  # what one thread has seen counts for all
        total = _products(i, j, 0, outputs.pos, outputs.neg, scores, B, C, CLASSES, SCORING)
        _store_scores(total, i, j, scores, B, CLASSES, SCORING)
