"""Tile sizes of `rotate_pool`: the table, and which of its rows serves a problem."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, replace

from ..precision import run, terms
from . import cost


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
        persistent: whether a program has tile after tile in one loop, the first loads of the next
            under the pool of the last; for whole images and no `split`.
    """

    channels: int
    widths: tuple[int, ...]
    images: int
    block_k: int
    num_warps: int
    num_stages: int
    split: int = 1
    group: int = 8
    persistent: bool = False

    @property
    def columns(self) -> int:
        """Columns of all accumulators."""
        return sum(self.widths)

    @property
    def starts(self) -> tuple[int, ...]:
        """Column of the tile at which each accumulator begins."""
        return tuple(itertools.accumulate((0, *self.widths[:-1])))


# Not measured on a GPU yet. Chosen so that nothing spills on sm_80, sm_90 and sm_100 as compiled by
# Triton 3.9 (tests/kernels/test_rotate_pool.py). (products, least matrix unit as in `cost.unit`,
# shapes); the first row that fits is taken, and of its shapes the one that the model prefers.
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
MOST_IMAGES = 8  # in a tile: the pool of each is compiled apart
SHORTEST = 4  # steps along K that a part should have
MOST_SPLIT = 128  # columns of a tile whose channels are split
PACKINGS = 2  # ways to fill a shape that are compared
PERSISTENT = 128 * 256  # numbers of the tile that is also compiled as one loop over tiles, on sm_90
PACKED = 1024  # pixels up to which half maps have value and place in one integer


@functools.cache
def _shapes(products: str, capability: int) -> tuple[tuple[Shape, int], ...]:
    """Shapes, and the columns that a tile of each must have more than: those of the next smaller.

    So there is one way to compute a tile, and few kinds of them to compile and to check.
    """
    unit = cost.unit(capability)
    shapes = next(own for served, least, own in SHAPES if products in served and unit >= least)
    return tuple(
        (shape, max((s.columns for s in shapes
                     if s.channels == shape.channels and s.columns < shape.columns), default=0))
        for shape in shapes
    )  # fmt: skip


def _power(number: int) -> int:
    """The power of two that is not below a number, and at least 16."""
    return max(16, 1 << (number - 1).bit_length())


def _over(number: int, each: int) -> int:
    """So many times `each` is not below the number."""
    return -(-number // each)


@functools.cache
def _widths(columns: int) -> list[tuple[int, ...]]:
    """One, two or three powers of two that cover this many columns."""
    covers: list[tuple[int, ...]] = []
    done: tuple[int, ...] = ()
    while len(done) < 3:
        rest = columns - sum(done)
        covers.append((*done, _power(rest)))
        floor = 1 << (rest.bit_length() - 1)
        if floor < 16 or floor == rest:
            break
        done = (*done, floor)
    return [widths for widths in covers if len(set(widths)) == len(widths)]


def _packings(
    shape: Shape, least: int, batch: int, pixels: int
) -> list[tuple[int, tuple[int, ...]]]:
    """Ways to fill more than `least` of the shape's columns with images of P pixels.

    Each is the number of whole images, or 0 for columns across their borders, and the widths. Of
    whole images those that take the least of a column each.
    """
    # a tile need not be larger than the problem
    columns = min(shape.columns, _power(batch * pixels))
    options = list(_whole(columns, least, pixels))
    if batch * pixels > columns > least:
        options.append((0, shape.across))
    return options


@functools.lru_cache(maxsize=4096)
def _whole(columns: int, least: int, pixels: int) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """The part of `_packings` that has whole images."""
    whole: list[tuple[float, int, int, tuple[int, ...]]] = []
    for images in range(1, min(MOST_IMAGES, columns // pixels) + 1):
        for widths in _widths(images * pixels):
            # three accumulators in large tiles only: each is a load and a pool of its own
            if least < sum(widths) <= columns and len(widths) <= 2 + (columns > 128):
                each = sum(max(w, cost.NARROW) for w in widths) / (images * pixels)
                whole.append((each, len(widths), images, widths))
    # of the same cost, the fewest accumulators and the largest tile
    whole.sort(key=lambda option: (option[0], option[1], -sum(option[3])))
    return tuple((images, widths) for _, _, images, widths in whole[:PACKINGS])


def _of_shape(shape: Shape, images: int, widths: tuple[int, ...]) -> Tiles:
    return Tiles(
        shape.channels, widths, images, shape.block_k, shape.num_warps, shape.num_stages
    )  # fmt: skip


def count(tiles: Tiles, batch: int, pixels: int, channels: int) -> int:
    """Tiles of a problem."""
    whole = tiles.images > 0
    across = _over(batch, tiles.images) if whole else _over(batch * pixels, tiles.columns)
    return _over(channels, tiles.channels) * across


def programs(tiles: Tiles, items: int, products: str, capability: int, processors: int) -> int:
    """Programs of a launch of so many tiles or parts."""
    if not tiles.persistent:
        return items
    size = work(1, 1, products)
    room = cost.residents(tiles, size.size, capability, size.runs)
    return min(items, processors * max(1, room))


@functools.lru_cache(maxsize=4096)
def work(pixels: int, channels: int, products: str) -> cost.Work:
    """What the model of the cost has to know of a problem."""
    half = products in ("half", "split")
    return cost.Work(
        pixels,
        channels,
        terms(products),
        2 if half or products == "bf16x3" else 4,
        run(products, 32) > 0,
        exact=not half or pixels > PACKED,
        slower=16 if products == "ieee" else 1,  # a guess
    )


def clocks(
    tiles: Tiles,
    batch: int,
    pixels: int,
    channels: int,
    products: str,
    capability: int,
    processors: int,
) -> float:
    """Modelled clocks of the launch, infinite if the tiles do not fit; see `cost`."""
    items = count(tiles, batch, pixels, channels) * tiles.split
    return cost.clocks(tiles, items, work(pixels, channels, products), capability, processors)


def splits(
    tiles: Tiles, number: int, channels: int, products: str, capability: int, processors: int
) -> list[Tiles]:
    """The tiles whole, and with their channels shared by several programs.

    As many as there is room for; or two or three, where more tiles than that leave the last wave
    nearly empty.
    """
    if tiles.columns > MOST_SPLIT:
        return [tiles]
    steps = _over(channels, tiles.block_k) * terms(products)
    size = work(1, channels, products)
    room = processors * cost.residents(tiles, size.size, capability, size.runs)
    shares = {1, 2, 3, processors // number, room // number}
    shares = {max(1, min(share, steps // SHORTEST)) for share in shares}
    return [tiles if share == 1 else replace(tiles, split=share) for share in sorted(shares)]


def candidates(
    batch: int, pixels: int, channels: int, products: str, capability: int, processors: int
) -> list[Tiles]:
    """Tiles worth a try for B, P, C, those of the largest shape first.

    Args:
        batch: B.
        pixels: P.
        channels: C.
        products: one of `infodisent.kernels.precision.ROTATE_POOL`.
        capability: compute capability, 80, 90, ...
        processors: how many multiprocessors there are.
    """
    options: list[Tiles] = []
    for shape, least in _shapes(products, capability):
        for images, widths in _packings(shape, least, batch, pixels):
            whole = _of_shape(shape, images, widths)
            number = count(whole, batch, pixels, channels)
            options += splits(whole, number, channels, products, capability, processors)
            loop = images > 0 and number > processors and cost.unit(capability) == 90
            if loop and shape.channels * whole.columns == PERSISTENT and products == "half":
                options.append(replace(whole, persistent=True))
    return list(dict.fromkeys(options))


@functools.lru_cache(maxsize=1024)
def choose(
    batch: int, pixels: int, channels: int, products: str, capability: int, processors: int
) -> Tiles:
    """The tiles for B, P, C of the fewest clocks in the model. Arguments: see `candidates`."""
    sizes = batch, pixels, channels, products, capability, processors
    return min(candidates(*sizes), key=lambda tiles: clocks(tiles, *sizes))
