"""The tiles that the models of ``csrc/sm90/tile_cost.h`` and ``grad_u_cost.h`` choose.

Modelled clocks, nothing measured. What a formula counts as waves is checked against a list of the
tiles that every block really computes.
"""

from __future__ import annotations

import math

import pytest

from infodisent.backends.cuda import module as native
from infodisent.bench.shapes import AT_224, OTHERS
from tests.cuda.common import needs_module

pytestmark = needs_module
SIZES = sorted({(s.channels, s.pixels) for s in (*AT_224.values(), *OTHERS.values())})
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PROCESSORS = (132, 114, 78)
"""Of an H100 SXM, an H100 PCIe, an H20."""


def problem(b: int, p: int, c: int, pitch: int | None = None):
    return native._module.Problem(b, p, c, p if pitch is None else pitch, -(-c // 64))


def clocks(tile: int, cluster: int, *what) -> float:
    return native._module.tile_cost(tile, cluster, *what)[3]


def legal(b: int, p: int, c: int) -> list[tuple[int, int]]:
    """Every (tile, cluster) that the kernel takes for a contiguous map."""
    whole = {"part of 64": p <= 64, "part of 224": p <= 224}
    kinds = [
        i
        for i, (name, _, images, pixels) in enumerate(native._module.tiles)
        if whole.get(name, images == 0 or pixels == p)
    ]
    pair = native._module.has_halves
    return [(i, n) for i in kinds for n in (1, 2) if n == 1 or pair(i, problem(b, p, c))]


def former_choice(b: int, p: int, c: int, processors: int) -> tuple[int, int]:
    """What was taken before there was a model: columns of the longest sequence of tiles."""
    channels = math.ceil(c / 128)

    def tiles(kind: int) -> int:
        _, columns, images, _ = native._module.tiles[kind]
        flat = min(math.ceil(b * p / columns), math.ceil(p / columns) * b)
        return channels * (math.ceil(b / images) if images else flat)

    def cost(kind: int) -> float:
        factor = 1.0 if native._module.tiles[kind][2] else 1.1
        return math.ceil(tiles(kind) / processors) * native._module.tiles[kind][1] * factor

    of_pixels = [i for i in range(6) if native._module.tiles[i][3] == p]
    kind = min([*of_pixels, 6], key=cost)
    return kind, 2 if channels % 2 == 0 and tiles(kind) >= processors else 1


@pytest.mark.parametrize("processors", PROCESSORS)
@pytest.mark.parametrize(("c", "p"), SIZES)
def test_the_choice_is_the_best_of_all_and_no_worse_than_the_former(c, p, processors):
    for b in BATCHES:
        what = problem(b, p, c), processors
        tile = native._module.choose_tile(*what)
        cluster = native._module.choose_cluster(what[0], tile, processors)
        chosen = clocks(tile, cluster, *what)
        assert chosen <= 1.05 * min(clocks(i, n, *what) for i, n in legal(b, p, c))
        assert chosen <= clocks(*former_choice(b, p, c, processors), *what)


@pytest.mark.parametrize("processors", PROCESSORS)
@pytest.mark.parametrize(("c", "p"), SIZES)
def test_waves_are_those_of_the_busiest_block(c, p, processors):
    """Blocks take units in turns; each unit is `cluster` tiles of channels by one of pixels."""
    for b in BATCHES:
        for tile, cluster in legal(b, p, c):
            name, columns, images, _ = native._module.tiles[tile]
            parts = 4 if name.startswith("part") else 1
            rows = 64 if name.startswith(("few", "part")) else 128
            across = math.ceil(b / images) if images else None
            if across is None:
                across = min(math.ceil(b * p / columns), math.ceil(p / columns) * b)
            units = across * math.ceil(math.ceil(c / rows) / cluster)
            room = processors // 16 * 16 // 4 if parts > 1 else processors // cluster
            clusters = min(units, room)
            taken = [len(range(first, units, clusters)) for first in range(clusters)]
            found = native._module.tile_cost(tile, cluster, problem(b, p, c), processors)
            assert found[:3] == (units * cluster * parts, clusters * cluster * parts, max(taken))


@pytest.mark.parametrize(
    ("c", "p", "share"), [(2048, 49, 0.9), (768, 196, 0.3), (768, 197, 0.3), (1536, 144, 0.7)]
)
def test_one_image_is_shared_out(c, p, share):
    """To many more multiprocessors than tiles of 128 channels would fill, in less time."""
    what = problem(1, p, c), 132
    tile = native._module.choose_tile(*what)
    cluster = native._module.choose_cluster(what[0], tile, 132)
    blocks = native._module.tile_cost(tile, cluster, *what)[1]
    former = former_choice(1, p, c, 132)
    assert blocks >= share * 132
    assert blocks >= 4 * native._module.tile_cost(*former, *what)[1]
    assert clocks(tile, cluster, *what) < 0.7 * clocks(*former, *what)


def test_large_batches_keep_large_tiles():
    """Tiles of 64 channels bring more bytes a product: they are for few images alone."""
    for c, p in SIZES:
        tile = native._module.choose_tile(problem(256, p, c), 132)
        assert not native._module.tiles[tile][0].startswith(("few", "part"))


def former_grad_u(b: int, p: int, c: int, processors: int) -> tuple[int, int]:
    """Pairs where tiles of channels come in pairs; parts by products and memory alone."""
    cluster = 2 if math.ceil(c / 128) % 2 == 0 else 1
    best = (math.inf, 1)
    for splits in range(1, min(b, 32) + 1):
        images = math.ceil(b / splits)
        splits = math.ceil(b / images)
        units = math.ceil(math.ceil(c / 128) / cluster) * math.ceil(c / 256) * splits
        moved = 8.0 * splits * c * c / 1700 if splits > 1 else 0.0
        one = math.ceil(units / (processors // cluster)) * images * 16.0 * p + moved
        best = min(best, (one, splits))
    return cluster, best[1]


@pytest.mark.parametrize("processors", PROCESSORS)
@pytest.mark.parametrize(("c", "p"), SIZES)
def test_grad_u(c, p, processors):
    for b in BATCHES:

        def cost(cluster: int, splits: int, b: int = b) -> float:
            size = b, p, c, p
            return native._module.grad_u_cost(*size, cluster, splits, processors)[2]

        chosen = cost(*native._module.choose_grad_u(b, p, c, p, processors))
        every = [cost(n, s) for n in (1, 2) for s in range(1, min(b, 32) + 1)]
        assert chosen <= 1.05 * min(every)
        assert chosen <= cost(*former_grad_u(b, p, c, processors))
