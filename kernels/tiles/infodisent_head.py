"""Tile sizes of the class scores of `infodisent_head`."""

from __future__ import annotations

from .blocks import Block

# Images x classes, and a step along the channels. Not measured on a GPU yet: one or two tiles a
# multiprocessor at B = 256 and 1000 classes, and few enough registers for several of them on one.
# (most images, block); the first row that fits is taken.
SCORES = (
    (16, Block(16, 32, 64, 4, 3)),
    (1 << 31, Block(32, 32, 64, 4, 3)),
)


def scores_block(batch: int) -> Block:
    """The block for this many images."""
    return next(block for most, block in SCORES if batch <= most)
