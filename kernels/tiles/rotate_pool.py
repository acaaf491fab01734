"""Tile sizes of `rotate_pool`: the table, and which of its rows serves a problem."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, replace

import triton

from ..precision import terms


@dataclass(frozen=True)
class Shape:
    """A product's tile, its step along K, and how it is launched.

    Attributes:
        channels: rows of the tile.
        columns: most pixels of whole images that it holds.
        across: widths of the accumulators where columns run across the borders of images; that
            pool takes more registers.
    """

    channels: int
    columns: int
    across: tuple[int, ...]
    block_k: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Tiles:
    """What a launch is compiled for.

    Attributes:
        channels: rows of the tile.
        widths: columns of its accumulators, one to three powers of two, at least 16.
        images: whole images in the columns; 0: columns run across the borders of images.
        block_k: channels of a step of the product.
        split: programs that share the channels of one tile.
        group: columns of tiles that go down together, see `infodisent.kernels.product.place`.
    """

    channels: int
    widths: tuple[int, ...]
    images: int
    block_k: int
    num_warps: int
    num_stages: int
    split: int = 1
    group: int = 8

    @property
    def columns(self) -> int:
        """Columns of all accumulators."""
        return sum(self.widths)

    @property
    def starts(self) -> tuple[int, ...]:
        """Column of the tile at which each accumulator begins."""
        return tuple(itertools.accumulate((0, *self.widths[:-1])))


# Not measured on a GPU yet. Chosen so that nothing spills on sm_80, sm_90 and sm_100 as compiled by
# Triton 3.9 (tests/kernels/test_rotate_pool.py). The largest tile first: it reads least for what it
# computes. (products, least compute capability, shapes); the first row that fits is taken.
# Products that are added to a second sum now and then (`infodisent.kernels.precision.RUN`) have two
# of each accumulator in registers; on sm_90 but one accumulator, or else ptxas runs the products
# one by one ("wgmma.mma_async instructions are serialized").
SHAPES: tuple[tuple[tuple[str, ...], int, tuple[Shape, ...]], ...] = (
    (
        ("half", "split"),
        100,
        (
            Shape(128, 256, (128,), 64, 8, 4),
            Shape(128, 128, (128,), 64, 8, 3),
            Shape(64, 128, (128,), 64, 4, 4),
            Shape(64, 64, (64,), 64, 8, 4),
        ),
    ),
    (
        ("half", "split"),
        90,
        (
            Shape(128, 256, (128, 128), 64, 8, 4),
            Shape(128, 128, (128,), 64, 8, 3),
            Shape(64, 128, (128,), 64, 4, 4),
            Shape(64, 64, (64,), 64, 4, 4),
        ),
    ),
    (
        ("half", "split"),
        0,
        (
            Shape(128, 256, (128, 64), 32, 8, 4),
            Shape(128, 128, (128,), 32, 8, 4),
            Shape(64, 128, (128,), 32, 4, 4),
            Shape(64, 64, (64,), 64, 4, 4),
        ),
    ),
    (
        ("bf16x3",),
        100,
        (
            Shape(128, 208, (128,), 64, 8, 4),
            Shape(128, 128, (128,), 64, 8, 3),
            Shape(64, 128, (128,), 64, 4, 4),
            Shape(64, 64, (64,), 64, 8, 4),
        ),
    ),
    (
        ("bf16x3",),
        90,
        (
            Shape(128, 128, (128,), 64, 8, 4),
            Shape(64, 128, (128,), 64, 4, 4),
            Shape(64, 64, (64,), 64, 8, 4),
        ),
    ),
    (
        ("tf32x3", "tf32"),
        100,
        (
            Shape(128, 208, (128,), 32, 8, 4),
            Shape(128, 128, (128,), 32, 8, 3),
            Shape(64, 128, (128,), 32, 4, 4),
            Shape(64, 64, (64,), 32, 4, 4),
        ),
    ),
    (
        ("tf32x3", "tf32"),
        90,
        (
            Shape(128, 128, (128,), 32, 8, 4),
            Shape(64, 128, (128,), 32, 4, 4),
            Shape(64, 64, (64,), 32, 4, 4),
        ),
    ),
    (
        ("bf16x3",),
        0,
        (
            Shape(128, 192, (128,), 32, 8, 4),
            Shape(128, 128, (128,), 32, 8, 4),
            Shape(64, 128, (128,), 32, 4, 4),
            Shape(64, 64, (64,), 64, 4, 4),
        ),
    ),
    (
        ("tf32x3", "tf32"),
        0,
        (
            Shape(128, 192, (128,), 16, 8, 4),
            Shape(128, 128, (128,), 32, 8, 3),
            Shape(64, 128, (128,), 16, 4, 4),
            Shape(64, 64, (64,), 32, 4, 4),
        ),
    ),
    (
        ("ieee",),
        0,
        (
            Shape(64, 128, (128,), 16, 8, 3),
            Shape(64, 64, (64,), 16, 8, 3),
        ),
    ),
)
NARROW = 32  # an accumulator of fewer columns takes the time of this many: it rereads all of U
BORDERS, SWEEP = (
    1.4,
    0.1,
)  # what a column costs at least in a tile across borders, whose pool takes a
# sweep of the tile an image, and what each of them adds
MOST_IMAGES = 8  # in a tile: the pool of each is compiled apart
FULL = 0.75  # tiles per multiprocessor from which on no smaller ones are taken
SHORTEST = 4  # steps along K that a part should have


def _shapes(products: str, capability: int) -> tuple[Shape, ...]:
    return next(
        shapes for served, least, shapes in SHAPES if products in served and capability >= least
    )


def _widths(columns: int) -> list[tuple[int, ...]]:
    """One, two or three powers of two that cover this many columns."""
    covers: list[tuple[int, ...]] = []
    done: tuple[int, ...] = ()
    while len(done) < 3:
        rest = columns - sum(done)
        covers.append((*done, max(16, triton.next_power_of_2(rest))))
        floor = triton.next_power_of_2(rest + 1) // 2
        if floor < 16 or floor == rest:
            break
        done = (*done, floor)
    return [widths for widths in covers if len(set(widths)) == len(widths)]


def _packings(shape: Shape, batch: int, pixels: int) -> list[tuple[int, tuple[int, ...]]]:
    """Ways to fill the shape's columns with images of P pixels, the best first.

    Each is the number of whole images, or 0 for columns across their borders, and the widths.
    """
    # a tile need not be larger than the problem
    columns = min(shape.columns, max(16, triton.next_power_of_2(batch * pixels)))
    options: list[tuple[float, int, int, tuple[int, ...]]] = []
    if batch * pixels > columns:
        cost = max(BORDERS, 1 + SWEEP * (sum(shape.across) / pixels + 1))
        options.append((cost, len(shape.across), 0, shape.across))
    for images in range(1, min(MOST_IMAGES, columns // pixels) + 1):
        for widths in _widths(images * pixels):
            if sum(widths) <= columns:
                cost = sum(max(w, NARROW) for w in widths) / (images * pixels)
                options.append((cost, len(widths), images, widths))
    # of the same cost, the fewest accumulators and the largest tile
    options.sort(key=lambda option: (option[0], option[1], -sum(option[3])))
    return [(images, widths) for _, _, images, widths in options]


def _of_shape(shape: Shape, images: int, widths: tuple[int, ...]) -> Tiles:
    return Tiles(
        shape.channels, widths, images, shape.block_k, shape.num_warps, shape.num_stages
    )  # fmt: skip


def count(tiles: Tiles, batch: int, pixels: int, channels: int) -> int:
    """Tiles of a problem."""
    if tiles.images:
        across = triton.cdiv(batch, tiles.images)
    else:
        across = triton.cdiv(batch * pixels, tiles.columns)
    down: int = triton.cdiv(channels, tiles.channels)
    return down * int(across)


def _split(tiles: Tiles, number: int, channels: int, products: str, processors: int) -> Tiles:
    """The tiles with their channels shared by as many programs as there is room for."""
    steps = triton.cdiv(channels, tiles.block_k) * terms(products)
    return replace(tiles, split=max(1, min(processors // number, steps // SHORTEST)))


def candidates(
    batch: int, pixels: int, channels: int, products: str, capability: int, processors: int
) -> list[Tiles]:
    """Tiles worth a try for B, P, C, the largest first.

    Args:
        batch: B.
        pixels: P.
        channels: C.
        products: one of `infodisent.kernels.precision.ROTATE_POOL`.
        capability: compute capability, 80, 90, ...
        processors: how many multiprocessors there are.
    """
    options: list[Tiles] = []
    for shape in _shapes(products, capability):
        for images, widths in _packings(shape, batch, pixels)[:3]:
            whole = _of_shape(shape, images, widths)
            number = count(whole, batch, pixels, channels)
            options += [whole, _split(whole, number, channels, products, processors)]
    return list(dict.fromkeys(options))


@functools.lru_cache(maxsize=1024)
def choose(
    batch: int, pixels: int, channels: int, products: str, capability: int, processors: int
) -> Tiles:
    """The tiles for B, P, C: the largest that give nearly every multiprocessor one.

    Where none does, the smallest, and their channels are split. Arguments: see `candidates`.
    """
    for shape in _shapes(products, capability):
        tiles = _of_shape(shape, *_packings(shape, batch, pixels)[0])
        number = count(tiles, batch, pixels, channels)
        if number >= FULL * processors:
            return tiles
    return _split(tiles, number, channels, products, processors)
