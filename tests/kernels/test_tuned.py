"""The search for tiles: what it keeps, where, and what of a file it believes."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
from infodisent.kernels import rotate_pool as kernel
from infodisent.kernels import tuned
from infodisent.kernels.tiles.rotate_pool import Tiles

from tests.kernels import kernel_compile
from tests.kernels.marks import DEVICE, outside, runs

TILES = Tiles(64, (64,), 1, 32, 4, 3)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(tuned.ENV, raising=False)
    tuned._results.cache_clear()
    yield
    tuned._results.cache_clear()


@runs
def test_search_keeps_the_fastest_and_it_is_used(monkeypatch, tmp_path):
    x, u = torch.randn(3, 5, 40, device=DEVICE).half(), torch.randn(40, 40, device=DEVICE).half()
    wanted = kernel.rotate_pool(x, u)
    fixed = kernel.best_tiles(x, "half")
    ranks = iter(range(100, 0, -1))  # the last one measured is the fastest
    path = tmp_path / "tiles.json"
    best, times = kernel.search(x, u, measure=lambda run: (run(), next(ranks))[1], path=path)
    assert best == min(times, key=times.get)
    assert fixed in times
    assert kernel.best_tiles(x, "half") == fixed  # nobody named the file
    monkeypatch.setenv(tuned.ENV, str(path))
    assert kernel.best_tiles(x, "half") == best
    assert kernel.best_tiles(x[:2], "half") != best or best == fixed  # another problem
    for actual, want in zip(kernel.rotate_pool(x, u), wanted, strict=True):
        torch.testing.assert_close(actual, want, rtol=2**-10, atol=2**-10)


def test_the_named_file_goes_before_the_cache(monkeypatch, tmp_path):
    device = torch.device("cpu")
    name = tuned.key(device, "half", 1, 2, 3)
    tuned.remember(name, TILES)
    assert tuned.default_file().is_file()
    assert tuned.lookup(device, "half", 1, 2, 3) == TILES
    other = Tiles(128, (32, 16), 2, 64, 8, 3, 2, 4)
    monkeypatch.setenv(tuned.ENV, str(tmp_path / "other.json"))
    tuned.remember(name, other)
    assert tuned.lookup(device, "half", 1, 2, 3) == other
    assert tuned.lookup(device, "half", 1, 2, 4) is None


@pytest.mark.parametrize(
    "entry",
    [
        "x", 3, {}, {"channels": 64}, {"channels": 65}, {"widths": [64, 64, 64, 64]},
        {"widths": []}, {"num_warps": 3}, {"num_stages": 0}, {"split": "2"}, {"images": -1},
        {"persistent": 2}, {"persistent": True, "split": 2},
        {"block_k": True, "unknown": 1},
    ],
)  # fmt: skip
def test_what_is_no_tiles_is_left_out(entry, caplog):
    good = {
        "channels": 64, "widths": [64], "images": 1, "block_k": 32, "num_warps": 4,
        "num_stages": 3, "split": 1, "group": 8,
    }  # fmt: skip
    bad = {**good, **entry} if isinstance(entry, dict) and len(entry) else entry
    if entry == {"channels": 64}:
        bad = entry
    device = torch.device("cpu")
    names = [tuned.key(device, "half", 1, 1, c) for c in (1, 2)]
    tuned.default_file().parent.mkdir(parents=True)
    tuned.default_file().write_text(json.dumps({names[0]: bad, names[1]: good}))
    assert tuned.lookup(device, "half", 1, 1, 1) is None
    assert tuned.lookup(device, "half", 1, 1, 2) == TILES
    assert "are no tiles" in caplog.text


@pytest.mark.parametrize("content", ["{", "[]", "\x00"])
def test_a_damaged_file(content):
    tuned.default_file().parent.mkdir(parents=True)
    tuned.default_file().write_text(content)
    assert tuned.lookup(torch.device("cpu"), "half", 1, 1, 1) is None


def test_candidates_that_fail_are_left_out():
    def run(one):
        if one == 0:
            raise ValueError("does not compile")
        return (torch.full((2,), 1.1 if one == 1 else 1.0),)

    def wrong(results):
        return None if results[0].eq(1).all() else "values"

    best, times = tuned.fastest([0, 1, 2, 3], run, wrong, lambda call: (call(), 5.0)[1])
    assert best == 2
    assert times == {2: 5.0, 3: 5.0}
    with pytest.raises(RuntimeError, match="none of the tiles works"):
        tuned.fastest([0, 1], run, wrong, lambda call: 1.0)


@pytest.mark.parametrize("products", ["half", "tf32x3"])
def test_a_search_is_judged_by_float64_and_places(products):
    """Whatever the tiles of the table give is no truth."""
    dtype = torch.float16 if products == "half" else torch.float32
    x, u = torch.randn(12, 9, 16).to(dtype), torch.linalg.qr(torch.randn(16, 16))[0].to(dtype)
    y = x.double() @ u.double().mT
    sides = [(side.amax(1).clamp_min(0), side.argmax(1)) for side in (y, -y)]
    right = [value.float() for value, _ in sides]
    right += [torch.where(value > 0, at, -1).int() for value, at in sides]
    wrong = kernel._judge(x, u, products)
    assert wrong(right) is None
    assert wrong([right[0] * 1.01, *right[1:]]) == "values of pos are wrong"
    assert wrong([*right[:3], (right[3] + 1) % 9]) == "places of neg are wrong"
    assert wrong([*right[:2], right[2] * 0 + 9, right[3]]) == "places of pos are wrong"
    assert wrong([right[0] * math.nan, *right[1:]]) == "values of pos are wrong"


@outside
def test_in_the_interpreter():
    passed = re.search(r"(\d+) passed", kernel_compile.interpret(__file__))
    assert int(passed[1]) >= 10
