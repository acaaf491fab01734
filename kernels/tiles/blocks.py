"""Tile sizes of a plain product, tables of what serves which problem, and a model of the time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .cost import (
    CLEARED,
    FIRST,
    LATENCY,
    LOADED,
    OTHERS,
    REGISTERS,
    WRITTEN,
    processor,
    unit,
)


@dataclass(frozen=True)
class Block:
    """A product's tile [block_m, block_n], its step along K, and how it is launched."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Row:
    """A row of a table: what a block serves.

    Attributes:
        least: channels from which on.
        capability: matrix unit from which on, 80, 90 or 100 as in `cost.unit`; 0: any.
        products: of `infodisent.kernels.precision`.
        block: the block.
        multiple: what the channels must be a multiple of.
        below: compute capability from which on the row does not serve.
    """

    least: int
    capability: int
    products: tuple[str, ...]
    block: Block
    multiple: int = 1
    below: int = 1000


def serving(table: Sequence[Row], channels: int, products: str, capability: int) -> Iterator[Block]:
    """The blocks of all rows that serve, in their order."""
    for row in table:
        if (
            channels >= row.least
            and channels % row.multiple == 0
            and unit(capability) >= row.capability
            and capability < row.below
            and products in row.products
        ):
            yield row.block


def pick(table: Sequence[Row], channels: int, products: str, capability: int) -> Block:
    """The block of the first row that serves; StopIteration where none does."""
    return next(serving(table, channels, products, capability))


def clocks(
    block: Block,
    items: int,
    channels: int,
    terms: int,
    size: int,
    capability: int,
    processors: int,
    *,
    loads: int = 1,
    split: int = 1,
) -> float:
    """Of a launch of so many tiles of a product of float32 matrices, as `cost.clocks`.

    Parts are made from what has been loaded: each number is loaded once, for all terms.

    terms: products of parts that are added up; size: bytes of a part's numbers; loads: numbers that
    make one of the left operand; split: programs that share the channels of a tile, the last of
    which adds up what they have stored.
    """
    one, threads = processor(capability), 32 * block.num_warps
    # whole groups of warps have 64 rows; with fewer, all GPUs have the matrix unit of the oldest
    rate = one.rate if block.block_m >= 64 else min(one.rate, processor(80).rate)
    area = block.block_m * block.block_n
    step = (loads * block.block_m + block.block_n) * block.block_k  # numbers that are loaded
    registers = min(255, (area + step) // threads + OTHERS)
    room = one.shared // (block.num_stages * step * 4)
    most = max(1, min(room, REGISTERS // (registers * threads)))
    load = -(-items * split // processors)
    rounds = -(-load // most)
    multiplied = terms * area * block.block_k / (rate * 2 / size)
    waited = LATENCY / (max(block.num_stages - 1, 1) * min(most, load))
    steps = -(-channels // block.block_k)
    product = -(-steps // split) * max(multiplied, step * 4 / LOADED, waited)
    written, before = 4 * area / WRITTEN, 0
    if split > 1:
        written += LATENCY + 4 * area * split / LOADED
        before = CLEARED
    return before + load * (product + written) + rounds * FIRST
