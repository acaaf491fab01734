"""Problems that between them run every kind of tile that the Triton kernels would ever take here.

A choice is made between candidates, and these are asked for, for a grid of sizes that leaves out no
kind (`tests/kernels/test_coverage.py` asks for others, and which are chosen). Each kind gets one
small problem that is run with its tiles.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from infodisent.kernels.tiles.blocks import Block
    from infodisent.kernels.tiles.rotate_pool import Tiles
    from infodisent.kernels.tiles.rotate_pool_backward import Cut

BATCHES = (1, 2, 4, 8, 32, 1024)
PIXELS = (*range(1, 260), 576, 577, 784, 1025, 3136)  # of more, no tile holds an image
CHANNELS = (64, 1024, 4096)


class Kind(NamedTuple):
    """What tells the machine code of one tile of `rotate_pool` from another's.

    Attributes:
        channels, widths: its size.
        across: whether its columns run across the borders of images.
        split: whether several programs share its channels.
        stages: steps in flight.
        persistent: whether a program has one tile after the other.
    """

    channels: int
    widths: tuple[int, ...]
    across: bool
    split: bool
    stages: int
    persistent: bool


class Case(NamedTuple):
    """A problem, and the tiles to run it with."""

    batch: int
    pixels: int
    channels: int
    tiles: Tiles


def kind(tiles: Tiles) -> Kind:
    """The kind of some tiles."""
    return Kind(
        tiles.channels, tiles.widths, tiles.images == 0, tiles.split > 1, tiles.num_stages,
        tiles.persistent,
    )  # fmt: skip


def pool_cases(products: str, capability: int, processors: int) -> dict[Kind, Case]:
    """One small problem for each kind of tile that a forward with these products may take.

    Args:
        products: one of `infodisent.kernels.precision.ROTATE_POOL`.
        capability: compute capability, 80, 90, ...
        processors: how many multiprocessors there are.
    """
    from infodisent.kernels.tiles.rotate_pool import candidates

    found: dict[Kind, tuple[tuple[int, int], int, int, Tiles]] = {}
    for channels in CHANNELS:
        for pixels in PIXELS:
            for batch in BATCHES:
                sizes = batch, pixels, channels
                for tiles in candidates(*sizes, products, capability, processors):
                    key = kind(tiles)
                    # the least pixels for each kind; but one image alone where it has several tiles
                    # whose channels are split: the launcher makes a constant of a batch of 1
                    rank = (batch if key.across and key.split else 0), pixels
                    if key not in found or rank < found[key][0]:
                        found[key] = rank, batch, pixels, tiles
    cases = {}
    for number, (key, (_, batch, pixels, tiles)) in enumerate(sorted(found.items())):
        # two rows of tiles and two columns, the last of which are not full; channels that are a
        # multiple of a step, of 8 and of nothing in turn
        channels = 2 * key.channels - (0, 40, 3)[number % 3]
        if key.split:  # two parts at least
            channels = max(channels, 2 * tiles.block_k)
            tiles = replace(tiles, split=2 + number % 2)
        least = tiles.images + 1 if tiles.images else tiles.columns // pixels + 2
        cases[key] = Case(min(batch, least), pixels, channels, tiles)
    return cases


class ViewCase(NamedTuple):
    """A problem of `similarity_pool` or `softmax_pool`, and the tiles to run it with."""

    batch: int
    pixels: int
    channels: int
    prototypes: int
    views: int
    tiles: Tiles


@functools.cache
def view_cases(products: str, capability: int, processors: int) -> dict[tuple[Kind, int], ViewCase]:
    """One small problem for each kind of tile and number of views; not to be changed.

    Arguments: see `pool_cases`.
    """
    from infodisent.kernels.tiles.similarity_pool import candidates

    machine = products, capability, processors
    return _view_cases(
        lambda views, *sizes: candidates(*sizes, *machine, views, CHANNELS[-1]), (1, 2)
    )


def softmax_cases(products: str, capability: int, processors: int) -> dict[Kind, ViewCase]:
    """One small problem for each kind of tile of `softmax_pool` with prototypes.

    Arguments: see `pool_cases`.
    """
    from infodisent.kernels.tiles.softmax_pool import candidates

    machine = products, capability, processors
    cases = _view_cases(lambda _, *sizes: candidates(*sizes, *machine), (1,))
    return {kind: case for (kind, _), case in cases.items()}


def _view_cases(
    candidates: Callable[..., list[Tiles]], numbers: tuple[int, ...]
) -> dict[tuple[Kind, int], ViewCase]:
    """A problem for each kind of tile that the candidates of (views, B, P, M) have."""
    found: dict[tuple[Kind, int], tuple[int, Tiles]] = {}
    for views, prototypes, pixels, batch in itertools.product(numbers, CHANNELS, PIXELS, BATCHES):
        for tiles in candidates(views, batch, pixels, prototypes):
            key = kind(tiles), views
            if key not in found or pixels < found[key][0]:
                found[key] = pixels, tiles
    cases = {}
    for number, (key, (pixels, tiles)) in enumerate(sorted(found.items(), key=lambda f: f[0])):
        # as in `pool_cases`: tiles that are not full, depths of every kind
        batch = tiles.images + 1 if tiles.images else tiles.columns // pixels + 2
        channels = (64, 40, 33)[number % 3]
        if tiles.split > 1:  # two parts at least, and one that may have nothing
            channels = max(channels, 2 * tiles.block_k)
            tiles = replace(tiles, split=2 + number % 2)
        cases[key] = ViewCase(batch, pixels, channels, 2 * tiles.channels - 3, key[1], tiles)
    return cases


class GradientKind(NamedTuple):
    """What tells the machine code of one tile of the gradients from another's.

    Attributes:
        block: the tile.
        rows, pieces: of the pieces of an image, and pieces in a step of dU or in a tile of dX.
        images: of a step of dU; 0: it is one of dX.
    """

    block: Block
    rows: int
    pieces: int
    images: int


class GradientCase(NamedTuple):
    """Sizes for the gradients, in how many parts dU's batch is summed, and how steps are cut."""

    batch: int
    pixels: int
    channels: int
    splits: int
    cut: Cut


def kind_of_u(block: Block, cut: Cut) -> GradientKind:
    """The kind of a tile of dU."""
    return GradientKind(block, cut.rows, cut.pieces, cut.images)


def kind_of_x(block: Block, cut: Cut) -> GradientKind:
    """The kind of a tile of dX."""
    return GradientKind(block, cut.rows, cut.pieces, 0)


def gradient_cases(of_u: str, of_x: str, capability: int) -> dict[GradientKind, GradientCase]:
    """A problem for each kind of tile of dU and of dX; many are of one of each.

    of_u, of_x: how dU and dX are multiplied.
    """
    from infodisent.kernels.tiles import rotate_pool_backward as tiles
    from infodisent.kernels.tiles.blocks import pick

    cases: dict[GradientKind, GradientCase] = {}
    for number, channels in enumerate((72, 136, 264)):
        block_u = pick(tiles.GRAD_U, channels, of_u, capability)
        block_x = pick(tiles.GRAD_X, channels, of_x, capability)
        for pixels in PIXELS:
            of_image = kind_of_x(block_x, tiles.cut_x(pixels, of_x, block_x))
            for alone in (False, True):  # with strides that are too large for a step of several
                cut = tiles.cut_u(pixels, of_u, block_u, alone=alone)
                case = GradientCase(3, pixels, channels, 1 + (number + pixels) % 2, cut)
                cases.setdefault(kind_of_u(block_u, cut), case)
                cases.setdefault(of_image, case)
    return cases


def score_tiles(products: str, capability: int) -> list[Tiles]:
    """The tiles that the class scores of the head may take: whole, and each shared by two programs.

    products: "tf32x3" or "ieee".
    """
    from infodisent.kernels.tiles import infodisent_head as tiles
    from infodisent.kernels.tiles.blocks import serving

    blocks = serving(tiles.SCORES, CHANNELS[-1], products, capability)
    return [tiles.of_block(block, split) for block in blocks for split in (1, 2)]


def rotation_blocks(products: str, capability: int) -> list[Block]:
    """The tiles that a product of the rotation may take."""
    from infodisent.kernels.tiles import rotation as tiles
    from infodisent.kernels.tiles.blocks import serving

    return list(dict.fromkeys(serving(tiles.BLOCKS, CHANNELS[-1], products, capability)))
