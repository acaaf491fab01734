"""The table of modelled times is what the kernels' own models say, and says what it is."""

from __future__ import annotations

import pytest

from benchmarks import modelled_times
from infodisent.backends.cuda import module as native
from tests.cuda.common import needs_module

STORED = {path: path.read_text(encoding="utf-8") for path in modelled_times.files()}


@needs_module
def test_the_table_is_up_to_date():
    """Otherwise: python -m benchmarks.modelled_times."""
    assert modelled_times.files() == STORED


def test_rows_that_cannot_be_made_here_stay(monkeypatch):
    """Where the CUDA module is not built, say."""
    monkeypatch.setattr(native, "_load", lambda: "not built")
    assert modelled_times.cuda_rows() is None
    assert modelled_times.files() == STORED


@needs_module
def test_a_row_that_differs_is_noticed(monkeypatch):
    rows = modelled_times.cuda_rows()
    rows[3] = rows[3]._replace(clocks=rows[3].clocks + 1)
    monkeypatch.setitem(modelled_times.BACKENDS, "cuda", lambda: rows)
    monkeypatch.setattr("sys.argv", ["modelled_times", "--check"])
    with pytest.raises(SystemExit, match="out of date"):
        modelled_times.main()


def test_it_says_that_nothing_was_measured():
    text = next(text for path, text in STORED.items() if path.suffix == ".md")
    assert "MODELLED, not measured" in text


def test_no_time_is_below_its_floor():
    rows = modelled_times.stored()
    assert len(rows) > 80
    for row in rows:
        assert row["microseconds"] >= row["floor"], row
        assert 0 < row["filled"] <= 1
        programs = {"cuda": 1, "triton": 8}[row["backend"]]  # on a multiprocessor at most
        assert row["blocks"] <= programs * modelled_times.PROCESSORS


def test_floors():
    """Of ResNet-50's map: 2 · 256 · 49 · 2048² operations, and 60 MB."""
    floor = modelled_times.floor_of(modelled_times.AT_224["resnet50"], 256)
    assert floor.arithmetic == pytest.approx(131.5, abs=0.1)
    assert floor.memory == pytest.approx((256 * 49 * 2048 + 2048**2) * 2 / 3e6)
