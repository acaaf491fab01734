"""Tile sizes of the gradients of `rotate_pool`, and the rules that cut up their sums."""

from __future__ import annotations

import functools
from typing import NamedTuple

import triton

from ..precision import GRADIENT_OF_FLOAT, GRADIENT_OF_HALF
from .blocks import Block, Row
from .cost import LATENCY, LOADED

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
INSTRUCTIONS = 128  # of threads, a clock of a multiprocessor's four schedulers
ROWS = 16  # that are computed again at a time where a tile is not finite
SCALE_BLOCK, SCALE_STEP = 8, 256
ADD_BLOCK = 1024


LEAST = 8
"""Rows of the smallest pieces of an image."""
MOST_IMAGES = 3
"""Images, at most, of which a step of dU has pixels."""
REACH = 1 << 31
"""Offsets in a step of dU, in elements, have 32 bits."""


class Cut(NamedTuple):
    """How the rows of images are cut up.

    Attributes:
        rows: of a piece; the last piece of an image may be part empty.
        blocks: pieces that an image has.
        pieces: that a step of dU has, or a tile of dX.
        images: whose pixels they are at most.
    """

    rows: int
    blocks: int
    pieces: int
    images: int


def cut_of(pixels: int, rows: int, length: int) -> Cut:
    """Pieces of so many rows in steps or tiles of `length` rows."""
    blocks, pieces = -(-pixels // rows), length // rows
    # the first is the last piece of its image at worst
    return Cut(rows, blocks, pieces, 1 + (blocks + pieces - 2) // blocks)


def image_clocks(cut: Cut, products: str, tile: Block) -> float:
    """Modelled clocks that an image takes of a tile of dU, on an H100 and one program there.

    2048 multiply-adds a clock. dY is made with four instructions an element (two comparisons, two
    choices), for each of its parts; a piece chooses its image with four more a channel.
    """
    length = cut.pieces * cut.rows
    parts = {"split": 2, "split3": 3, "bf16x3": 2}.get(products, 1)
    made = 4 * parts * length + 4 * (cut.images - 1) * cut.pieces
    made_clocks = tile.block_m * made / INSTRUCTIONS
    multiplied = tile.block_m * tile.block_n * length * COST[products] / 2048
    size = 2 if products in GRADIENT_OF_HALF else 4
    # of each image and channel two gradients and two places
    loaded = (length * tile.block_n * size + 16 * cut.images * tile.block_m) / LOADED
    waited = LATENCY / (tile.num_stages - 1)
    step = max(multiplied + made_clocks, loaded, waited)
    return cut.blocks / cut.pieces * step


@functools.lru_cache(maxsize=1024)
def cut_u(
    pixels: int, products: str, tile: Block, image: int = 0, pixel: int = 0, alone: bool = False
) -> Cut:
    """How dU's steps are cut: the fewest clocks in the model.

    One piece a step, whose rows are a step's, or, unless it is to be `alone`, pieces of several
    images in a step of ``tile.block_k`` rows. image, pixel: strides of the map in elements.
    """
    sizes = [rows for rows in (128, 64, 32, 16) if rows <= tile.block_k]
    options = [cut_of(pixels, rows, rows) for rows in sizes]
    for rows in () if alone else (32, 16, LEAST):
        cut = cut_of(pixels, rows, tile.block_k)
        reach = cut.images * max(image, (pixels + rows) * pixel) + tile.block_k * pixel
        if cut.pieces > 1 and cut.images <= MOST_IMAGES and reach < REACH:
            options.append(cut)
    return min(options, key=lambda cut: image_clocks(cut, products, tile))


@functools.lru_cache(maxsize=1024)
def cut_x(pixels: int, products: str, tile: Block) -> Cut:
    """How dX's tiles of ``tile.block_m`` rows are cut: the fewest clocks an image in the model.

    As in `image_clocks`; but the winners of all pieces are loaded, in every step.
    """
    size = 2 if products in GRADIENT_OF_HALF else 4
    area = tile.block_m * tile.block_n

    def clocks(cut: Cut) -> float:
        multiplied = area * COST[products] / 2048 + tile.block_m * 4 / INSTRUCTIONS
        loaded = (tile.block_n * size + 16 * cut.pieces) / LOADED
        return cut.blocks / cut.pieces * max(multiplied, loaded)

    sizes = [rows for rows in (128, 64, 32, 16, LEAST) if rows <= tile.block_m]
    return min((cut_of(pixels, rows, tile.block_m) for rows in sizes), key=clocks)


def clocks(
    count: int, batch: int, channels: int, image: float, tile: Block, multiprocessors: int
) -> float:
    """Modelled clocks of dU with the batch in `count` parts; 1700 bytes a clock from memory.

    The parts are written and read. image: `image_clocks`.
    """
    across = triton.cdiv(channels, tile.block_m) * triton.cdiv(channels, tile.block_n)
    waves: int = triton.cdiv(across * count, multiprocessors)
    images: int = triton.cdiv(batch, count)
    moved = 8 * count * channels**2 if count > 1 else 0
    return waves * images * image + moved / 1700


@functools.lru_cache(maxsize=1024)
def splits(
    batch: int, channels: int, cut: Cut, products: str, tile: Block, multiprocessors: int
) -> int:
    """Parts of the batch that are summed apart, for work on every multiprocessor; see `clocks`."""
    sizes = batch, channels, image_clocks(cut, products, tile), tile, multiprocessors
    best = min(range(1, min(batch, 32) + 1), key=lambda count: clocks(count, *sizes))
    parts: int = triton.cdiv(batch, triton.cdiv(batch, best))  # none is empty
    return parts
