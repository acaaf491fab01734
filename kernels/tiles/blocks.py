"""Tile sizes of a plain product, and tables that say which serves a problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .cost import unit


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


def pick(table: Sequence[Row], channels: int, products: str, capability: int) -> Block:
    """The block of the first row that serves; StopIteration where none does."""
    return next(
        row.block
        for row in table
        if channels >= row.least
        and channels % row.multiple == 0
        and unit(capability) >= row.capability
        and capability < row.below
        and products in row.products
    )
