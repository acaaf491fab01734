"""Triton kernels of `similarity_pool`: norms of the pixels, the search, values from the winners.

The main loop of the search is `infodisent.kernels.product`, what follows it
`infodisent.kernels.epilogues.views`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .epilogues.views import best_pixels
from .product import last_part, multiply, place, sum_of_parts


@triton.jit
def _best_by_views(
    totals,
    i,
    j,
    scale,
    sides,
    first,
    second,
    B,
    M,
    P,
    TILES: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
):
    """The epilogue, once for each view."""
    best_pixels(totals, i, j, scale, sides, first, B, M, P, TILES, FIRST)
    if second is not None:
        best_pixels(totals, i, j, scale, sides, second, B, M, P, TILES, SECOND)


@triton.jit
def similarity_pool_kernel(
    x,  # Pixels: [parts, B, P, C]
    u,  # Vectors: [parts, M, C], with the scale of its rows [M]
    sides,  # Sides: scale, shift, counts [B P]
    first,  # Found: value, place [B, M], and scratch
    second,  # Found; or None
    parts,  # Parts: scratch where TILES.split > 1
    B,
    M,
    C,
    SIZE,  # P, where it is not compiled in
    P: tl.constexpr,  # 0: not compiled in
    TILES: tl.constexpr,  # `infodisent.kernels.tiles.rotate_pool.Tiles`
    ARITHMETIC: tl.constexpr,
    FIRST: tl.constexpr,  # the view, see `infodisent.kernels.epilogues.views`
    SECOND: tl.constexpr,
):
    """The best pixels by one view or two, from one product: one program a tile.

    Or one a tile and part of the channels; the last of a tile's parts adds them up and compares.
    """
    PIXELS = P if P > 0 else SIZE
    tile = tl.program_id(0) // TILES.split
    part = tl.program_id(0) % TILES.split
    i, j = place(tile, B, M, PIXELS, TILES)
    totals = multiply(x, u, i, j, part, B, M, C, PIXELS, TILES, ARITHMETIC)
    if TILES.split == 1:
        _best_by_views(
            totals, i, j, u.scale, sides, first, second, B, M, PIXELS, TILES, FIRST, SECOND
        )
    else:
        if last_part(totals, parts, tile, part, TILES):
            totals = sum_of_parts(parts, tile, TILES)
            _best_by_views(
                totals, i, j, u.scale, sides, first, second, B, M, PIXELS, TILES, FIRST, SECOND
            )


@triton.jit
def norms_kernel(
    x,  # Pixels: [1, B, P, C], whole numbers
    scale,  # [B P] float32 or None
    shift,  # [B P] float32 or None
    rows,  # B P
    P,
    C,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """``1 / |x_p|``, 0 for a pixel of zeros, and ``-|x_p|^2 / 2``."""
    row = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = row < rows
    at = (row // P).to(tl.int64) * x.image + (row % P).to(tl.int64) * x.pixel
    inner = tl.arange(0, BLOCK_C)[None, :]
    sums = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for k in range(0, C, BLOCK_C):
        mask = inside[:, None] & (inner + k < C)
        v = tl.load(x.data + (at[:, None] + (inner + k)), mask=mask, other=0.0).to(tl.float32)
        sums += v * v
    square = tl.sum(sums, 1)
    if scale is not None:
        some = tl.where(square == 0, 1.0, square)
        one = tl.div_rn(tl.full((BLOCK_P,), 1.0, tl.float32), tl.sqrt_rn(some))
        tl.store(scale + row, tl.where(square == 0, 0.0, one), mask=inside)
    if shift is not None:
        tl.store(shift + row, square * -0.5, mask=inside)


@triton.jit
def _compare(
    x,  # Pixels
    x_at,  # [M, 1] or [1, 1] places of pixels, int64
    v,  # [M, C], any dtype
    v_at,  # [M, 1] places of prototypes, int64
    v_column,
    some,  # [M, 1]: the others are not read
    C,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """``|x - v|^2``, ``x v``, ``|x|^2`` and ``|v|^2``, each [M], by sums in one order."""
    inner = tl.arange(0, BLOCK_C)[None, :]
    distance = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    dot = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    x_square = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    v_square = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for k in range(0, C, BLOCK_C):
        mask = some & (inner + k < C)
        a = tl.load(x.data + (x_at + (inner + k)), mask=mask, other=0.0).to(tl.float32)
        b = tl.load(v + (v_at + (inner + k).to(tl.int64) * v_column), mask=mask, other=0.0)
        b = b.to(tl.float32)
        distance += (a - b) * (a - b)
        dot += a * b
        x_square += a * a
        v_square += b * b
    return tl.sum(distance, 1), tl.sum(dot, 1), tl.sum(x_square, 1), tl.sum(v_square, 1)


@triton.jit
def refine_kernel(
    x,  # Pixels: [1, B, P, C], whole numbers
    v,  # [M, C], any dtype and strides
    value,  # [B, M] float32: of the view; is written
    place,  # [B, M] int32; is written where it changes
    counts,  # [B P] uint8 or None
    M,
    P,
    C,
    v_row,
    v_column,
    VIEW: tl.constexpr,  # "l2" or "cosine"
    OPERAND: tl.constexpr,  # of a term of the search's products, relative, what its parts leave out
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The value of every winner from its own numbers.

    Where a distance is so small that the rounding of the search may have hidden a nearer pixel, or
    a number of the search is not finite, the distances of all pixels are compared.
    """
    down = tl.cdiv(M, BLOCK_M)
    image = (tl.program_id(0) // down).to(tl.int64)
    m = tl.program_id(0) % down * BLOCK_M + tl.arange(0, BLOCK_M)
    there = m < M
    to = image * M + m
    pixel = tl.load(place + to, mask=there, other=0)
    v_at = (m.to(tl.int64) * v_row)[:, None]
    image_at = image * x.image
    x_at = (image_at + pixel.to(tl.int64) * x.pixel)[:, None]
    distance, dot, x_square, v_square = _compare(
        x, x_at, v, v_at, v_column, there[:, None], C, BLOCK_M, BLOCK_C
    )
    if VIEW == "cosine":
        norms = tl.sqrt_rn(x_square) * tl.sqrt_rn(v_square)
        zero = (norms == 0) & (dot == dot)
        cosine = tl.div_rn(dot, tl.where(zero, 1.0, norms))
        tl.store(value + to, tl.where(zero, 0.0, cosine), mask=there)
    else:
        key = tl.load(value + to, mask=there, other=0.0)
        # eight times what sums of C products may be off by in a unit that rounds toward zero
        slack = 8.0 * ((C + 8) * 1.1920928955078125e-07 + OPERAND)
        sure = (distance > slack * (x_square + v_square)) & (tl.abs(key) < float("inf"))
        doubt = there & (sure == 0)
        if tl.max(doubt.to(tl.int32), 0) > 0:
            least = tl.zeros((BLOCK_M,), tl.float32)
            nearest = tl.full((BLOCK_M,), -1, tl.int32)
            for p in range(0, P):
                counted = 1
                if counts is not None:
                    counted = tl.load(counts + image * P + p).to(tl.int32)
                if counted != 0:
                    at = image_at + tl.zeros((1, 1), tl.int64) + tl.cast(p, tl.int64) * x.pixel
                    each, _, _, _ = _compare(
                        x, at, v, v_at, v_column, doubt[:, None], C, BLOCK_M, BLOCK_C
                    )
                    nearer = (nearest < 0) | (each < least) | ((each != each) & (least == least))
                    least = tl.where(nearer, each, least)
                    nearest = tl.where(nearer, p, nearest)
            distance = tl.where(doubt, least, distance)
            tl.store(place + to, tl.maximum(nearest, 0), mask=doubt)
        tl.store(value + to, distance, mask=there)
