"""Tile sizes of the gradients of `rotate_pool`, and the rules that cut up their sums."""

from __future__ import annotations

import functools

import triton

from ..precision import GRADIENT_OF_FLOAT, GRADIENT_OF_HALF
from .blocks import Block, Row

COST = {"half": 1, "split": 2, "split3": 3, "tf32x3": 6, "bf16x3": 3, "ieee": 16}
"""Cost of a product in those of half operands: TF32 has half their rate; ieee is a guess."""

# Nothing here was measured on a GPU. Chosen so that no more than a few scalars spill on sm_80,
# sm_90 and sm_100 as compiled by Triton 3.6 and 3.9 (tests/kernels/test_rotate_pool_backward.py),
# and, on sm_100, so that the accumulators fit tensor memory: those of three products do not in
# 128 x 256, and Triton 3.6 then makes an empty kernel. "split" and "split3" have two sums of a tile
# in registers, that of a step and that of all. The first row that fits is taken.
GRAD_U = (  # channels x columns, K pixels
    Row(0, 0, ("ieee",), Block(64, 64, 16, 8, 2)),
    Row(128, 90, GRADIENT_OF_FLOAT, Block(128, 128, 32, 8, 3)),
    Row(128, 0, GRADIENT_OF_FLOAT, Block(128, 128, 16, 8, 3)),
    Row(0, 0, GRADIENT_OF_FLOAT, Block(64, 64, 32, 4, 2)),
    Row(128, 90, ("split", "split3"), Block(128, 128, 64, 8, 3)),
    Row(256, 90, GRADIENT_OF_HALF, Block(128, 256, 64, 8, 3)),
    Row(128, 0, GRADIENT_OF_HALF, Block(128, 128, 32, 8, 3)),
    Row(0, 0, GRADIENT_OF_HALF, Block(64, 64, 32, 4, 3)),
)
GRAD_X = (  # pixels x columns, K channels
    Row(0, 0, ("ieee",), Block(64, 64, 16, 8, 2)),
    Row(128, 90, GRADIENT_OF_FLOAT, Block(128, 128, 32, 8, 3)),
    Row(128, 0, GRADIENT_OF_FLOAT, Block(128, 128, 16, 8, 3)),
    Row(0, 0, GRADIENT_OF_FLOAT, Block(64, 64, 32, 4, 2)),
    Row(128, 90, ("split", "split3"), Block(128, 128, 64, 8, 3)),
    Row(256, 90, GRADIENT_OF_HALF, Block(128, 256, 64, 8, 3)),
    Row(128, 0, ("half",), Block(128, 128, 64, 8, 3)),
    Row(128, 0, GRADIENT_OF_HALF, Block(128, 128, 32, 8, 2)),
    Row(0, 0, GRADIENT_OF_HALF, Block(64, 64, 32, 4, 3)),
)
ROWS = 16  # that are computed again at a time where a tile is not finite
SCALE_BLOCK, SCALE_STEP = 8, 256
ADD_BLOCK = 1024


@functools.lru_cache(maxsize=1024)
def piece(pixels: int, most: int) -> int:
    """Rows of a piece: a power of two from 16 to `most`.

    Few empty rows, and as large as may be: each piece has its own indices to load, as if it had
    four rows more.
    """
    sizes = [size for size in (128, 64, 32, 16) if size <= most]
    return min(sizes, key=lambda size: int(triton.cdiv(pixels, size)) * (size + 4))


@functools.lru_cache(maxsize=1024)
def splits(
    batch: int, channels: int, rows: int, products: str, tile: Block, multiprocessors: int
) -> int:
    """Parts of the batch that are summed apart, for work on every multiprocessor.

    Clocks of a model: 2048 multiply-adds a clock and multiprocessor, one program at a time on it,
    and 1700 bytes a clock from memory for the parts, which are written and read.
    """
    across = triton.cdiv(channels, tile.block_m) * triton.cdiv(channels, tile.block_n)
    image = tile.block_m * tile.block_n * rows * COST[products] / 2048

    def clocks(count: int) -> float:
        waves: int = triton.cdiv(across * count, multiprocessors)
        images: int = triton.cdiv(batch, count)
        moved = 8 * count * channels**2 if count > 1 else 0
        return waves * images * image + moved / 1700

    best = min(range(1, min(batch, 32) + 1), key=clocks)
    parts: int = triton.cdiv(batch, triton.cdiv(batch, best))  # none is empty
    return parts
