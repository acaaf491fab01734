"""Tile sizes of `rotation`."""

from __future__ import annotations

from ..precision import ROTATION
from .blocks import Block, Row

# Not measured on a GPU yet. Chosen so that no more than a few scalars spill on sm_80, sm_90 and
# sm_100 as compiled by Triton 3.9, and nothing in tf32x3 (tests/kernels/test_rotation.py), and,
# below 1024, for a tile on every multiprocessor.
# Sizes that are no multiple of 4 need a mask and an address for each element, and take the small
# tile. Blocks are square. The first row that fits is taken.
BLOCKS = (
    Row(0, 0, ("ieee",), Block(64, 64, 32, 8, 3)),
    Row(1024, 90, ROTATION, Block(128, 128, 32, 8, 3), multiple=4),
    # on sm_120 a few numbers of these spill where there are two products a step (`both`)
    Row(1024, 0, ("tf32x3",), Block(128, 128, 16, 8, 4), multiple=4, below=120),
    Row(1024, 0, ("bf16x3", "tf32"), Block(128, 128, 32, 8, 3), multiple=4, below=120),
    Row(0, 0, ROTATION, Block(64, 64, 32, 4, 3)),
)
GROUP = 8  # tile rows that share the columns of B in L2
COMBINE_BLOCK = 32
NORM_ROWS, NORM_COLS = 16, 128
MOVE_BLOCK = 1024
