"""Tile sizes of `softmax_pool` with prototypes: those of `similarity_pool`, of one view."""

from __future__ import annotations

import functools
from dataclasses import replace

from . import cost
from . import similarity_pool as views
from .rotate_pool import Tiles


def candidates(
    batch: int, pixels: int, prototypes: int, products: str, capability: int, processors: int
) -> list[Tiles]:
    """Tiles worth a try for B, P, M, each of one program, those of the largest shape first.

    One tile serves all three kernels. Where a thread has whole rows of the products (sm_100, whose
    sums come from the memory of the matrix unit) what belongs to columns is in every thread:
    float32 maps have half the columns a thread there, or else two of the kernels spill.
    """
    wide = cost.unit(capability) >= 100 and products in ("tf32x3", "ieee")
    sizes = batch, pixels, prototypes, products, capability, processors
    options = views.candidates(*sizes, 2 if wide else 1)
    if wide:
        options = [replace(tiles, num_warps=8) for tiles in options]
    return list(dict.fromkeys(options))


@functools.lru_cache(maxsize=1024)
def choose(
    batch: int,
    pixels: int,
    prototypes: int,
    channels: int,
    products: str,
    capability: int,
    processors: int,
) -> Tiles:
    """The tiles for B, P, M, C of the fewest clocks in the model of `rotate_pool`."""
    machine = products, capability, processors
    options = candidates(batch, pixels, prototypes, *machine)
    return views.cheapest(options, batch, pixels, prototypes, channels, *machine)
