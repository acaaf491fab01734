"""The report of the pools of prototypes: memory, rows that are measured again, bars."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from benchmarks import pools_report
from infodisent.bench import cases


def test_peak_memory():
    """What is taken and given back within a run counts, page by page."""
    kept = np.ones(8 << 20, dtype=np.uint8)
    needed = pools_report.peak_memory(lambda: np.ones(64 << 20, dtype=np.uint8))
    assert 60 < needed < 80
    assert pools_report.peak_memory(lambda: kept.sum()) < 8


SPINS = """
import sys, time
while time.process_time() < 0.4: pass
print("done", flush=True)
sys.stdin.read()
"""


def test_watched_clock():
    """What this process uses is not the others'; what a child uses is, until it has ended."""
    own, child = pools_report.WatchedClock(), pools_report.WatchedClock()
    seconds = own(lambda: spin(0.3))
    assert seconds >= 0.3
    with subprocess.Popen(
        [sys.executable, "-c", SPINS], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as work:
        child(work.stdout.readline)
        used = child.others
        assert used >= 0.3
        work.stdin.close()
        child(work.wait)  # takes milliseconds: other processes cannot make up for it
        assert child.others < used - 0.3
    own.others = own.seconds
    assert own.share == pytest.approx(1 / os.cpu_count())


def spin(seconds):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def row(shape, mode, ours=1.0, published=4.0, mib=10.0):
    times = {"infodisent": ours, "published": published, "best eager": 2.0, "torch.compile": 3.0}
    return {
        "op": cases.POOLS[shape].op,
        "shape": shape,
        "mode": mode,
        "size": [8, 3, 3],
        "batch": 2,
        "prototypes": cases.POOLS[shape].prototypes,
        "served by": ["native"],
        "used by others": 0.05,
        "milliseconds": times,
        "speedup": {name: ms / ours for name, ms in times.items()},
        "peak MiB": {"infodisent": mib, "published": 99.0, "best eager": 50.0},
    }


def test_rows_measured_again():
    rows = []
    for shape, mode in (("st_full", "forward"), ("protopnet_cub", "forward+backward")):
        rows = pools_report.merge(rows, row(shape, mode))
    rows = pools_report.merge(rows, row("protopnet_cub", "forward"))
    assert [(r["shape"], r["mode"]) for r in rows] == [
        ("protopnet_cub", "forward"),
        ("protopnet_cub", "forward+backward"),
        ("st_full", "forward"),
    ]
    again = pools_report.merge(rows, row("st_full", "forward", ours=2.0))
    assert [r["milliseconds"]["infodisent"] for r in again] == [1.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("published", "mib", "words"), [(4.0, 10.0, "holds"), (2.9, 65.0, "missed")]
)
def test_bars(published, mib, words):
    rows = [row("protopnet_cub", "forward", published=published, mib=mib)]
    lines = pools_report.bars(rows).splitlines()[2:]
    assert len(lines) == 3  # of what was measured, and no other
    assert words in lines[0]
    assert f"{published:.2f}×" in lines[0]
    assert "holds" in lines[1]
    assert words in lines[2]
    report = {"machine": {"device": "Abacus"}, "commit": "abc", "results": rows}
    text = pools_report.markdown(report)
    assert text.startswith("device Abacus, commit abc")
    assert f"| 1.00 | {published:.2f}× | 2.00× | 3.00× | {mib:.0f} | 99 | 50 | 5% |" in text
