"""Tile sizes of `similarity_pool`: those of `rotate_pool` that serve M rows of C numbers."""

from __future__ import annotations

import functools
from dataclasses import replace

from . import cost
from . import rotate_pool as pool
from .rotate_pool import Tiles

# Not measured on a GPU yet. Chosen so that nothing spills as compiled by Triton 3.9
# (tests/kernels/test_similarity_pool.py).
MOST: tuple[tuple[int, dict[int, int], int], ...] = (
    (100, {1: 64, 2: 32}, 64 * 64),
    (0, {1: 128, 2: 64}, 64 * 128),
)
"""(least matrix unit as in `cost.unit`, products a thread may hold by the number of views, numbers
of a tile across the borders of images). Keys of the first of two views are beside the products."""


def candidates(
    batch: int,
    pixels: int,
    prototypes: int,
    products: str,
    capability: int,
    processors: int,
    views: int,
    channels: int = 0,
) -> list[Tiles]:
    """Tiles worth a try for B, P, M, those of the largest shape first.

    Of C channels, where they are given, several programs may have a share of a tile each.
    """
    options = pool.candidates(batch, pixels, prototypes, products, capability, processors)
    unit = cost.unit(capability)
    held, across = next((held, across) for least, held, across in MOST if unit >= least)

    def fits(tiles: Tiles) -> bool:
        numbers = tiles.channels * tiles.columns
        return numbers <= 32 * held[views] * tiles.num_warps and (
            tiles.images > 0 or numbers <= across
        )

    whole = [t for t in options if t.split == 1 and not t.persistent and fits(t)]
    if not channels:
        return whole
    shared: list[Tiles] = []
    for tiles in whole:
        number = pool.count(tiles, batch, pixels, prototypes)
        shared += pool.splits(tiles, number, channels, products, capability, processors)
    return shared


@functools.lru_cache(maxsize=1024)
def choose(
    batch: int,
    pixels: int,
    prototypes: int,
    channels: int,
    products: str,
    capability: int,
    processors: int,
    views: int,
) -> Tiles:
    """The tiles for B, P, M, C of the fewest clocks in the model of `rotate_pool`.

    Its pool stands for that of a view: two sweeps, as there for whole float32 values.
    """
    options = candidates(
        batch, pixels, prototypes, products, capability, processors, views, channels
    )
    return cheapest(options, batch, pixels, prototypes, channels, products, capability, processors)


def cheapest(
    options: list[Tiles],
    batch: int,
    pixels: int,
    prototypes: int,
    channels: int,
    products: str,
    capability: int,
    processors: int,
) -> Tiles:
    """Of some tiles those of the fewest clocks, see `choose`."""
    work = replace(pool.work(pixels, channels, products), exact=True)

    def clocks(tiles: Tiles) -> float:
        items = pool.count(tiles, batch, pixels, prototypes) * tiles.split
        return cost.clocks(tiles, items, work, capability, processors)

    return min(options, key=clocks)
