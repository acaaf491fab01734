"""Tile sizes of the class scores of `infodisent_head`, and the choice between them."""

from __future__ import annotations

import functools

from .blocks import Block, Row, clocks, serving
from .rotate_pool import SHORTEST, Tiles

# Images x classes, and a step along the channels. Not measured on a GPU yet. Chosen so that nothing
# spills on sm_80, sm_90, sm_100 and sm_120 as compiled by Triton 3.9
# (tests/kernels/test_infodisent_head.py). No two warps have the same numbers of a tile: on sm_90 a
# group of four has 64 rows, and with fewer rows each has 16 rows or 8 columns of its own.
SCORES = (
    Row(0, 0, ("tf32x3", "ieee"), Block(16, 32, 64, 4, 3)),
    Row(0, 0, ("tf32x3",), Block(32, 64, 32, 4, 3)),
    Row(0, 0, ("tf32x3", "ieee"), Block(64, 64, 32, 4, 3)),
    # with mma.sync it spills; with eight warps two groups of wgmma would compute the same rows
    Row(0, 90, ("tf32x3",), Block(64, 128, 32, 4, 3)),
)
SPLITS = (1, 2, 3, 4, 6, 8)
"""Programs that may share the channels of a tile."""


def count(block: Block, batch: int, classes: int) -> int:
    """Tiles of the scores [B, K]."""
    return -(-batch // block.block_m) * -(-classes // block.block_n)


def of_block(block: Block, split: int) -> Tiles:
    """The same as tiles: rows are images, columns classes."""
    widths = (block.block_n,)
    return Tiles(
        block.block_m, widths, 0, block.block_k, block.num_warps, block.num_stages, split
    )  # fmt: skip


def time(
    block: Block,
    split: int,
    batch: int,
    classes: int,
    channels: int,
    capability: int,
    processors: int,
) -> float:
    """Modelled clocks; what is multiplied is the difference of two numbers with one."""
    sizes = count(block, batch, classes), channels, 3, 4, capability, processors
    return clocks(block, *sizes, loads=2, split=split)


@functools.lru_cache(maxsize=1024)
def choose(
    batch: int,
    classes: int,
    channels: int,
    products: str,
    capability: int,
    processors: int,
    splits: tuple[int, ...] = SPLITS,
) -> Tiles:
    """The tiles of the fewest clocks in the model.

    A batch has few of them: 64 images and 1000 classes are 16 tiles of 64 x 64, each with all
    channels to itself, on an H100's 132 multiprocessors. So tiles are small, or programs share the
    channels of one.
    """

    def clocks_of(option: tuple[Block, int]) -> float:
        return time(*option, batch, classes, channels, capability, processors)

    options = [
        (block, split)
        for block in serving(SCORES, channels, products, capability)
        for split in splits
        if split == 1 or -(-channels // block.block_k) >= SHORTEST * split
    ]
    return of_block(*min(options, key=clocks_of))
