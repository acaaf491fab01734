"""Triton kernel of `rotate_pool`: product and pool in one pass, the rotated map never in memory.

The main loop is `infodisent.kernels.product`, the pool `infodisent.kernels.epilogues.extremes`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .epilogues.extremes import pool
from .product import divisible, last_part, multiply, place, sum_of_parts


@triton.jit
def pool_tile(
    item,  # tile * TILES.split + part
    x,  # this and what follows: see `rotate_pool_kernel`
    u,
    outputs,
    parts,
    borders,
    ready,  # [B / READY] int32 or None: gets 1 for each image and row of tiles that is written
    B,
    C,
    P,
    TILES: tl.constexpr,
    ARITHMETIC: tl.constexpr,
    KEYS: tl.constexpr,
    READY: tl.constexpr,
):
    """Rotate a tile over part of the channels; the last of its parts adds them up and pools."""
    tile = item // TILES.split
    part = item % TILES.split
    i, j = place(tile, B, C, P, TILES)
    rows = divisible(C, ARITHMETIC.multiple)
    totals = multiply(x, u, i, j, part, B, rows, C, P, TILES, ARITHMETIC)
    if TILES.split == 1:
        pool(totals, i, j, u.scale, outputs, borders, ready, B, C, P, TILES, KEYS, READY)
    else:
        if last_part(totals, parts, tile, part, TILES):
            totals = sum_of_parts(parts, tile, TILES)
            pool(totals, i, j, u.scale, outputs, borders, ready, B, C, P, TILES, KEYS, READY)


@triton.jit
def rotate_pool_kernel(
    x,  # Pixels: [parts, B, P, C]
    u,  # Vectors: [parts, C, C], with the scale of its rows [C]
    outputs,  # Extremes: pos, neg [B, C] float32, pos_index, neg_index [B, C] int32
    parts,  # Parts: scratch where TILES.split > 1
    borders,  # Borders: scratch where TILES.images is 0
    B,
    C,
    SIZE,  # P, where it is not compiled in
    P: tl.constexpr,  # 0: not compiled in
    TILES: tl.constexpr,  # `infodisent.kernels.tiles.rotate_pool.Tiles`
    ARITHMETIC: tl.constexpr,
    KEYS: tl.constexpr,
):
    """The four results of ``max(0, +-u x)`` over the pixels: one program a tile and part.

    Or, where TILES.persistent, as many programs as there is room for, and tile after tile in each:
    the compiler makes one loop of that over tiles and that over the steps of one, so that the first
    loads of a tile are on their way while the one before is pooled.
    """
    PIXELS = P if P > 0 else SIZE
    if TILES.persistent:
        tl.static_assert(TILES.split == 1 and TILES.images > 0)
        tiles = tl.cdiv(C, TILES.channels) * tl.cdiv(B, TILES.images)
        for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
            pool_tile(
                tile, x, u, outputs, parts, borders, None,
                B, C, PIXELS, TILES, ARITHMETIC, KEYS, 1,
            )  # fmt: skip
    else:
        pool_tile(
            tl.program_id(0), x, u, outputs, parts, borders, None,
            B, C, PIXELS, TILES, ARITHMETIC, KEYS, 1,
        )  # fmt: skip
