"""Tile sizes of `rotation`, and the choice between them."""

from __future__ import annotations

import functools

from ..precision import ROTATION, RUN
from .blocks import Block, Row, serving
from .cost import FIRST, LATENCY, LOADED, OTHERS, REGISTERS, WRITTEN, processor, unit

TENSOR = tuple(products for products in ROTATION if products not in ("ieee", "parts"))

# Not measured on a GPU yet. Chosen so that no more than a few scalars spill on sm_80, sm_90 and
# sm_100 as compiled by Triton 3.9, and nothing in tf32x3 (tests/kernels/test_rotation.py).
# Sizes that are no multiple of 4 need a mask and an address for each element, and take the small
# tile. Blocks are square. Of the rows that fit, the model takes the fastest.
BLOCKS = (
    Row(0, 0, ("ieee",), Block(64, 64, 32, 8, 3)),
    Row(1024, 90, TENSOR, Block(128, 128, 32, 8, 3), multiple=4),
    # on sm_120 a few numbers of these spill where there are two products a step (`both`)
    Row(1024, 0, ("tf32x3",), Block(128, 128, 16, 8, 4), multiple=4, below=120),
    Row(1024, 0, ("bf16x3", "tf32"), Block(128, 128, 32, 8, 3), multiple=4, below=120),
    Row(0, 0, TENSOR, Block(64, 64, 32, 4, 3)),
    Row(0, 90, ("parts",), Block(128, 128, 32, 8, 3)),
    Row(0, 0, ("parts",), Block(128, 128, 16, 8, 4), multiple=4, below=90),
    Row(0, 0, ("parts",), Block(64, 64, 32, 4, 3)),
)
GROUP = 8  # tile rows that share the columns of B in L2
COMBINE_BLOCK = 32
NORM_ROWS, NORM_COLS = 16, 128
MOVE_BLOCK = 1024
PARTS_BLOCK = 32

# Of the model, on an H100. Counted in the loop that Triton 3.9 makes of 128 x 128 in tf32x3, but
# for the third, a guess:
PORT = 128  # bytes a clock that shared memory takes or gives
ISSUED = 128  # instructions of threads a clock
DRAINED = 100  # clocks from the end of a product that is waited for to the start of the next
SPLIT = 4  # instructions for a number that is loaded: its load, two parts, a store
ADDED = 3  # and for one of the sum: what is NaN of the small terms is put aside, and all added


def count(block: Block, channels: int, symmetric: bool) -> int:
    """Tiles of a product of matrices [C, C]: all, or those of the lower triangle."""
    across = -(-channels // block.block_m)
    return across * (across + 1) // 2 if symmetric else across * across


def _step(block: Block, products: str, capability: int, beside: int) -> float:
    """Modelled clocks of a step along K, with so many programs on the multiprocessor.

    The longest of multiplying, loading, what goes through shared memory, and, on an H100 where a
    program waits for its products, all that it does one after the other. "parts" does little
    beside its products, and its groups of four warps hide each other's waits; the others make the
    parts of what they have loaded, those of B go back to shared memory, and nothing runs meanwhile.
    """
    one, apart = processor(capability), products == "parts"
    terms, size = 1 if products == "tf32" else 3, 2 if products == "bf16x3" else 4
    area, numbers = block.block_m * block.block_n, (block.block_m + block.block_n) * block.block_k
    # whole groups of warps have 64 rows; with fewer, all GPUs have the matrix unit of the oldest
    rate = one.rate if block.block_m >= 64 else min(one.rate, processor(80).rate)
    multiplied = terms * area * block.block_k / (rate * 2 / size)
    filled = numbers * (8 if apart else 4)
    waited = LATENCY / (max(block.num_stages - 1, 1) * beside)
    step = max(multiplied, filled / LOADED, waited)
    if unit(capability) != 90 or block.block_m < 64:
        return step
    # each group reads B, and A where it is not in registers, for each term
    groups = block.block_m // 64
    b_read = size * block.block_n * block.block_k
    if apart:
        moved = filled + terms * groups * (b_read + size * 64 * block.block_k)
        chain = multiplied / groups + (terms - 1) * DRAINED
    else:
        parts = 1 if products == "tf32" else 2
        moved = 2 * filled + (parts + terms * groups) * b_read
        chain = multiplied + (SPLIT * numbers + ADDED * area) / ISSUED + terms * DRAINED
    return max(step, moved / PORT, chain / beside)


def time(
    block: Block, channels: int, products: str, symmetric: bool, capability: int, processors: int
) -> float:
    """Modelled clocks of a product; of "parts" without the launches that write them."""
    one, threads = processor(capability), 32 * block.num_warps
    area, numbers = block.block_m * block.block_n, (block.block_m + block.block_n) * block.block_k
    apart = products == "parts"
    # "parts" has two sums of a tile, the others one and the numbers that they have loaded
    registers = min(255, (2 * area if apart else area + numbers) // threads + OTHERS)
    room = one.shared // (block.num_stages * numbers * (8 if apart else 4))
    most = max(1, min(room, REGISTERS // (registers * threads)))
    load = -(-count(block, channels, symmetric) // processors)
    steps = -(-channels // block.block_k)
    product = steps * _step(block, products, capability, min(most, load))
    return load * (product + 4 * area / WRITTEN) + -(-load // most) * FIRST


@functools.lru_cache(maxsize=1024)
def choose(
    channels: int, products: str, symmetric: bool, capability: int, processors: int
) -> Block:
    """The fastest block in the model; of two alike the first.

    A triangle is half of a square's tiles, but half of the time only where that is fewer rounds:
    at 2048 channels one of 136 tiles of 128 takes an H100's 132 multiprocessors as long as the
    square's 256, and one of 528 tiles of 64 half as long.
    """
    return min(
        serving(BLOCKS, channels, products, capability),
        key=lambda block: time(block, channels, products, symmetric, capability, processors),
    )


def run(block: Block, capability: int) -> int:
    """Steps of "parts" that the matrix unit adds up, which rounds toward zero: `precision.RUN`.

    A quarter of the channels there, as the small terms are added to a sum that is large by then.
    1 for the oldest unit, whose products are done when the next instruction runs.
    """
    return 1 if unit(capability) == 80 else max(1, RUN // 4 // block.block_k)
