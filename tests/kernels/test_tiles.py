"""Tiles of rotate_pool: which are chosen, and that all of them give the same.

With a GPU the tests run on it. Without one, `test_in_the_interpreter` runs this file again in the
interpreter, where products of bfloat16 and TF32 parts are computed in float32.
"""

from __future__ import annotations

import re

import pytest
import torch
from infodisent.kernels import device as gpu
from infodisent.kernels import rotate_pool as pool
from infodisent.kernels.tiles import cost
from infodisent.kernels.tiles import rotate_pool as tiles_of
from infodisent.kernels.tiles.rotate_pool import Tiles

from tests.kernels import kernel_compile
from tests.kernels.marks import outside, runs
from tests.kernels.rotate_pool_cases import F16, check, rotation_like, run

SMALL = {  # P = 20
    "one image": Tiles(16, (32,), 1, 16, 4, 1),
    "images": Tiles(16, (64,), 3, 16, 4, 1, group=2),
    "two accumulators": Tiles(32, (32, 16), 2, 16, 4, 1),
    "three accumulators": Tiles(16, (64, 32, 16), 5, 16, 4, 1, group=1),
    "tile after tile": Tiles(16, (64,), 3, 16, 4, 1, group=2, persistent=True),
    "tile after tile, two accumulators": Tiles(32, (32, 16), 2, 16, 4, 1, persistent=True),
    "borders, image in a tile": Tiles(16, (64,), 0, 16, 4, 1, group=2),
    "borders, tile in an image": Tiles(16, (16,), 0, 16, 4, 1),
    "borders, two accumulators": Tiles(32, (32, 16), 0, 32, 4, 1),
}


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("exact", [False, True])
def test_every_tile_gives_the_same(name, exact, monkeypatch):
    """Whole images, columns across borders, channels that are split, fewer programs than tiles."""
    monkeypatch.setattr(gpu, "processors", lambda _: 2)
    x, u = torch.randint(-8, 9, (7, 20, 34)).to(F16), torch.randint(-3, 4, (34, 34)).to(F16)
    plain = run(x, u)
    check(x, u, plain)
    whole = run(x, u, chosen=SMALL[name], exact=exact)
    assert all(map(torch.equal, whole, plain))
    if SMALL[name].persistent:
        return
    for parts in (2,) if exact else (2, 5):  # more parts than there are steps is allowed
        split = Tiles(**{**vars(SMALL[name]), "split": parts})
        assert all(map(torch.equal, run(x, u, chosen=split, exact=exact), plain))


def test_programs_of_a_launch():
    """One a tile, or as many as there is room for; in the test above, fewer than tiles."""
    one = SMALL["tile after tile"]
    number = tiles_of.count(one, 70, 20, 340)
    assert tiles_of.programs(one, number, "half", 90, 2) < number
    assert tiles_of.programs(SMALL["images"], number, "half", 90, 2) == number
    flagship = Tiles(128, (256,), 5, 64, 8, 4, persistent=True)
    assert tiles_of.programs(flagship, 832, "half", 90, 132) == 132
    assert tiles_of.programs(flagship, 100, "half", 90, 132) == 100


@runs
@pytest.mark.usefixtures("poisoned")
def test_split_is_deterministic():
    x, u = torch.randn(2, 30, 50), rotation_like(50)
    tiles = Tiles(16, (32,), 1, 16, 4, 1, split=3)
    first = run(x, u, chosen=tiles)
    check(x, u, first)
    assert all(map(torch.equal, run(x, u, chosen=tiles), first))


@pytest.mark.parametrize("pixels", [1, 7, 16, 49, 50, 100, 144, 196, 197, 225, 256, 257, 577, 3136])
@pytest.mark.parametrize("products", pool.PRODUCTS)
def test_choice_of_tiles(pixels, products):
    """Whatever is chosen covers its images, is a power of two a part, and fills the device."""
    for capability in (80, 89, 90, 100, 120):
        for batch, channels in ((1, 24), (1, 2048), (8, 768), (256, 2048)):
            case = (batch, pixels, channels, products, capability, 132)
            chosen = pool.choose(*case)
            options = pool.candidates(*case)
            assert chosen in options
            assert len(set(options)) == len(options)
            for tiles in options:
                assert all(w >= 16 and w & (w - 1) == 0 for w in tiles.widths)
                assert len(tiles.widths) <= 3
                assert tiles.images * pixels <= sum(tiles.widths)
                assert tiles.images > 0 or batch * pixels > sum(tiles.widths) / 2
                number = pool.count(tiles, batch, pixels, channels)
                one = tiles_of.work(pixels, channels, products)
                room = cost.residents(tiles, one.size, capability, one.runs)
                assert 1 <= tiles.split <= max(3, 132 * room // number)
                assert not tiles.persistent or tiles.images * (tiles.split == 1)
            assert cost.residents(chosen, one.size, capability, one.runs) > 0
    if pixels == 49 and products == "half":
        assert pool.choose(256, 49, 1280, "half", 90, 132).images == 5
        assert pool.choose(1, 49, 2048, "half", 90, 132).split > 1


@outside
def test_in_the_interpreter():
    passed = re.search(r"(\d+) passed", kernel_compile.interpret(__file__))
    assert int(passed[1]) >= 2 * len(SMALL)
