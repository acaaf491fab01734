"""A model of the time that tiles of `rotate_pool` take, to choose between them.

Nothing here was measured: rates are those of data sheets, latencies are round numbers. What the
model is for is the ratio of two tiles on one GPU: how many each multiprocessor gets of them, and
what one costs. Tiles take turns on the matrix unit of their multiprocessor, and hide each other's
waiting there. So where each has `load` tiles, at most `residents` of them at a time, that is

    load · product + ceil(load / residents) · (first loads + pool)

clocks. The registers and the shared memory that bound `residents` are estimates from the size of a
tile, which tests compare with those of compiled kernels.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .rotate_pool import Tiles


@dataclass(frozen=True)
class Processor:
    """A multiprocessor.

    Attributes:
        rate: multiply-adds of 16-bit numbers a clock, added in float32; of TF32 half as many.
        shared: bytes of shared memory, for all programs on it.
        most: bytes that one program may have.
        threads: on it at most.
    """

    rate: int
    shared: int
    most: int
    threads: int


# Rates of the dense products of the data sheets, by clocks and multiprocessors: A100, RTX 3090 and
# A10 (half of these), RTX 4090 (half) and L40S, H100, B200, RTX 5090 (half) and RTX PRO 6000.
PROCESSORS: tuple[tuple[int, Processor], ...] = (
    (120, Processor(512, 100 << 10, 99 << 10, 1536)),
    (100, Processor(4096, 228 << 10, 227 << 10, 2048)),
    (90, Processor(2048, 228 << 10, 227 << 10, 2048)),
    (89, Processor(512, 100 << 10, 99 << 10, 1536)),
    (87, Processor(512, 164 << 10, 163 << 10, 1536)),
    (86, Processor(512, 100 << 10, 99 << 10, 1536)),
    (0, Processor(1024, 164 << 10, 163 << 10, 2048)),
)
"""(least compute capability, a multiprocessor of it)."""
REGISTERS = 1 << 16  # of a multiprocessor; a thread has 255 at most
OTHERS, OTHERS_ACROSS = 64, 96  # registers beside the accumulators
LOADED = 48  # bytes a clock from L2: 64 a multiprocessor may have, but not all of them at once
LATENCY = 700  # clocks of a load from L2, until the matrix unit may read it
FIRST = 1500  # clocks of the first loads, from memory, and of what comes before
SWEPT = 32  # numbers a clock of which the pool takes the extremes: about four instructions each
MERGED = 600  # clocks to merge an image across tiles: atomics, and the last who reads them
WRITTEN = 32  # bytes a clock of the sums of parts; they are read as fast as L2 gives them
CLEARED = 4000  # clocks of a launch before this one, which sets counters and keys to 0
FLATTENED = 30  # clocks a step of the one loop of a persistent program: whether a tile ends
NARROW = 32  # an accumulator of fewer columns takes the time of this many: it rereads all of U


@functools.cache
def processor(capability: int) -> Processor:
    """The multiprocessor of a compute capability."""
    return next(one for least, one in PROCESSORS if capability >= least)


def unit(capability: int) -> int:
    """Which matrix unit: 80 (mma.sync), 90 (wgmma) or 100 (tcgen05).

    GPUs of compute capability 12.0 have the first, and the shared memory of 8.9.
    """
    if capability >= 120:
        return 80
    return 100 if capability >= 100 else 90 if capability >= 90 else 80


def shared(tiles: Tiles, size: int, capability: int) -> int:
    """Bytes of shared memory of a program: the steps that are in flight, and a little.

    size: bytes of a number.
    """
    stages = tiles.num_stages - (unit(capability) == 80)
    return stages * (tiles.channels + tiles.columns) * tiles.block_k * size + 1024


def registers(tiles: Tiles, capability: int, runs: bool) -> int:
    """Registers of a thread. runs: whether there is a second sum of the tile."""
    sums = tiles.channels * tiles.columns // (32 * tiles.num_warps)
    if unit(capability) == 100:  # the sums of products are in memory of the matrix unit
        runs = False
    return min(255, sums * (1 + runs) + (OTHERS if tiles.images else OTHERS_ACROSS))


def residents(tiles: Tiles, size: int, capability: int, runs: bool) -> int:
    """Programs on a multiprocessor at a time, 0 if it has not enough shared memory for one."""
    one, threads = processor(capability), 32 * tiles.num_warps
    taken = shared(tiles, size, capability)
    if taken > one.most:
        return 0
    each = -(-registers(tiles, capability, runs) // 8) * 8
    return min(one.shared // taken, REGISTERS // (each * threads), one.threads // threads)


@dataclass(frozen=True)
class Work:
    """What is to be multiplied.

    Attributes:
        pixels, channels: P, and the length of the sums.
        terms: products of parts that are added up.
        size: bytes of a number of the operands; 4: TF32, or float32.
        runs: whether sums go to a second one now and then.
        exact: whether places are found by a second sweep.
        slower: by which factor products are slower than those of this size usually are.
    """

    pixels: int
    channels: int
    terms: int
    size: int
    runs: bool
    exact: bool
    slower: float = 1.0


def product_clocks(tiles: Tiles, work: Work, capability: int, beside: int) -> float:
    """Of the product of a tile or part, with so many on the multiprocessor."""
    steps = -(-(-(-work.channels // tiles.block_k) * work.terms) // tiles.split)
    columns = sum(max(width, NARROW) for width in tiles.widths)
    rate = processor(capability).rate * 2 / work.size / work.slower
    multiplied = tiles.channels * columns * tiles.block_k / rate
    loaded = (tiles.channels + tiles.columns) * tiles.block_k * work.size / LOADED
    waited = LATENCY / (max(tiles.num_stages - 1, 1) * beside)
    return steps * (max(multiplied, loaded, waited) + FLATTENED * tiles.persistent)


def pool_clocks(tiles: Tiles, work: Work) -> float:
    """Of what comes after the product: the sums of its parts, and the pool."""
    numbers = tiles.channels * tiles.columns
    sweeps = tiles.images or tiles.columns / work.pixels + 1
    clocks = sweeps * numbers * (2 if work.exact else 1) / SWEPT
    if not tiles.images:
        clocks += sweeps * MERGED
    if tiles.split > 1:  # each part writes its own; the last reads all
        clocks += LATENCY + 4 * numbers * (1 / WRITTEN + tiles.split / LOADED)
    return clocks


def clocks(tiles: Tiles, items: int, work: Work, capability: int, processors: int) -> float:
    """Of a launch of so many tiles or parts; infinite if the tiles do not fit."""
    most = residents(tiles, work.size, capability, work.runs)
    if most == 0:
        return float("inf")
    load = -(-items // processors)
    rounds = -(-load // most)
    product = product_clocks(tiles, work, capability, min(most, load))
    after = pool_clocks(tiles, work)
    before = 0 if tiles.images and tiles.split == 1 else CLEARED
    if tiles.persistent:  # the first loads of a tile run under the pool of the one before
        return load * product + rounds * after + FIRST
    return before + load * product + rounds * (FIRST + after)
