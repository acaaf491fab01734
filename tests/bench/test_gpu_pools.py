"""The GPU report's rows of the pools of prototypes, on the CPU: what is right, planted faults."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu import machine, pool_checks, pools, tables
from infodisent.backends.table import BY_NAME
from infodisent.contract import Best
from infodisent.testing import WrongResultError

POOL, GRADIENT = "similarity_pool", "similarity_pool_backward"


class Sparse(machine.Rehearsal):
    """One backend, whose faults are planted."""

    ours = {"sparse": ("sparse",)}  # noqa: RUF012


@pytest.fixture
def cpu():
    return Sparse()


@pytest.fixture
def plant(monkeypatch):
    """Replaces a function of the sparse backend by one that spoils what it gives."""

    def plant(name, spoil):
        backend = BY_NAME["sparse"]
        plain = getattr(backend, name)
        monkeypatch.setattr(backend, name, lambda *a, **k: spoil(plain(*a, **k)))

    return plant


def off(found):
    return tuple(Best(b.value * 1.001, b.index) for b in found)


def misplaced(found):
    return tuple(Best(b.value, torch.zeros_like(b.index)) for b in found)


@pytest.mark.parametrize("mode", pools.MODES)
@pytest.mark.parametrize("shape", machine.Rehearsal.pools)
def test_every_size(cpu, shape, mode):
    row = pools.compare(pools.PoolCase(shape, mode, "fp32"), cpu, compile_too=mode == "forward")
    measure = pools.COPY if shape.startswith("pipnet") else pools.PRODUCT
    others = [pools.COMPILED] if mode == "forward" else list(pools.EAGER)
    assert sorted(row["microseconds"]) == sorted(["sparse", *others, measure])
    assert row["share"][measure] == 1
    assert row["size"][:2] == [3, 8 if measure == pools.COPY else 10]
    assert "sparse" in row["errors"]
    text = tables._pools({"stages": {"pools": {"x": row}}})
    assert f"| {row['op']}: {row['title']} | " in text[-2]


def test_minutes(cpu):
    names = [[str(case) for case in pools.cases(cpu, minutes)] for minutes in (1, 10, 30)]
    assert names[0] == []
    assert len(names[1]) == 2 * len(cpu.pools)
    assert len(names[2]) == 4 * len(cpu.pools)
    assert len(list(pools.items(cpu, 30))) == 6 * len(cpu.pools)


@pytest.mark.parametrize(("spoil", "message"), [(off, "off by"), (misplaced, "off by|gradient")])
def test_what_is_wrong_is_not_timed(cpu, plant, spoil, message):
    plant(POOL, spoil)
    with pytest.raises(WrongResultError, match=message):
        pools.compare(pools.PoolCase("protopnet_cub", "forward+backward", "fp32"), cpu)


def test_a_distance_that_cancels_is_not_timed(cpu, plant):
    plant(POOL, lambda found: tuple(Best(b.value + 1e-6, b.index) for b in found))
    with pytest.raises(WrongResultError, match="distance of a pixel to itself"):
        pools.compare(pools.PoolCase("protopnet_cub", "forward", "bf16"), cpu)


def test_another_backend_is_not_timed(monkeypatch):
    """A row that says sparse and ran native."""
    if "native" not in machine.Rehearsal().ours:
        pytest.skip("the compiled module is not here")
    monkeypatch.setattr(pools.ways, "by", lambda _, function: function)
    with pytest.raises(WrongResultError, match="sparse: ran similarity_pool by native, not"):
        pools.compare(pools.PoolCase("protopnet_cub", "forward", "fp32"), Sparse())


@pytest.mark.parametrize("spoil", [off, misplaced])
def test_whole_numbers_show_every_fault(cpu, plant, spoil):
    assert pool_checks.integers(cpu, "sparse", (3, 9, 8, 5), "bf16")["ok"]
    plant(POOL, spoil)
    with pytest.raises(WrongResultError, match="is not exact"):
        pool_checks.integers(cpu, "sparse", (3, 9, 8, 5), "bf16")


def test_whole_numbers_show_a_wrong_gradient(cpu, plant):
    plant(GRADIENT, lambda found: (found[0], found[1] + 1))
    with pytest.raises(WrongResultError, match="dV is not exact"):
        pool_checks.integers(cpu, "sparse", (3, 9, 8, 5), "fp32")


def test_the_second_of_two_equal_pixels_is_found(cpu, plant):
    for size in pool_checks.SIZES:
        assert pool_checks.ties(cpu, "sparse", size, "fp32")["ok"]
    last = lambda found: (Best(found[0].value, found[0].index + 5), found[1])  # noqa: E731
    plant("softmax_pool", last)
    with pytest.raises(WrongResultError, match="second of two equal"):
        pool_checks.ties(cpu, "sparse", (3, 9, 8, 5), "fp32")


def test_random_problems(cpu, plant):
    assert pool_checks.several(cpu, 0, 20) == {"shapes": 20, "mismatches": [], "ok": True}
    plant(POOL, misplaced)
    wrong = pool_checks.several(cpu, 0, 20)["mismatches"]
    assert len(wrong) >= 5
    assert all("places" in text or "values" in text or "dX" in text for text in wrong)
