"""Tile sizes of `rotation`, and the choice between them."""

from __future__ import annotations

import functools

from ..precision import ROTATION
from .blocks import Block, Row, clocks, serving

PARTS = tuple(products for products in ROTATION if products != "ieee")

# Not measured on a GPU yet. Chosen so that no more than a few scalars spill on sm_80, sm_90 and
# sm_100 as compiled by Triton 3.9, and nothing in tf32x3 (tests/kernels/test_rotation.py).
# Sizes that are no multiple of 4 need a mask and an address for each element, and take the small
# tile. Blocks are square. Of the rows that fit, the model takes the fastest.
BLOCKS = (
    Row(0, 0, ("ieee",), Block(64, 64, 32, 8, 3)),
    Row(1024, 90, PARTS, Block(128, 128, 32, 8, 3), multiple=4),
    # on sm_120 a few numbers of these spill where there are two products a step (`both`)
    Row(1024, 0, ("tf32x3",), Block(128, 128, 16, 8, 4), multiple=4, below=120),
    Row(1024, 0, ("bf16x3", "tf32"), Block(128, 128, 32, 8, 3), multiple=4, below=120),
    Row(0, 0, PARTS, Block(64, 64, 32, 4, 3)),
)
GROUP = 8  # tile rows that share the columns of B in L2
COMBINE_BLOCK = 32
NORM_ROWS, NORM_COLS = 16, 128
MOVE_BLOCK = 1024


def count(block: Block, channels: int, symmetric: bool) -> int:
    """Tiles of a product of matrices [C, C]: all, or those of the lower triangle."""
    across = -(-channels // block.block_m)
    return across * (across + 1) // 2 if symmetric else across * across


@functools.lru_cache(maxsize=1024)
def choose(
    channels: int, products: str, symmetric: bool, capability: int, processors: int
) -> Block:
    """The fastest block in the model; of two alike the first.

    A triangle is half of a square's tiles, but half of the time only where that is fewer rounds:
    at 2048 channels one of 136 tiles of 128 takes an H100's 132 multiprocessors as long as the
    square's 256, and one of 528 tiles of 64 half as long.
    """
    work = channels, 1 if products == "tf32" else 3, 2 if products == "bf16x3" else 4

    def time(block: Block) -> float:
        return clocks(block, count(block, channels, symmetric), *work, capability, processors)

    return min(serving(BLOCKS, channels, products, capability), key=time)
