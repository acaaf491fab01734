"""Tile sizes of the class scores of `infodisent_head`."""

from __future__ import annotations

from .blocks import Block

# Images x classes, and a step along the channels. Not measured on a GPU yet. A group of four warps
# has 64 rows of wgmma; on fewer, two warps would compute the same. 64 tiles at B = 256 and 1000
# classes do not fill the device, but few enough registers for several on a multiprocessor.
# (most images, block); the first row that fits is taken.
SCORES = (
    (16, Block(16, 32, 64, 4, 3)),
    (1 << 31, Block(64, 64, 32, 4, 3)),
)


def scores_block(batch: int) -> Block:
    """The block for this many images."""
    return next(block for most, block in SCORES if batch <= most)
