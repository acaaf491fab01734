"""Times the pools of prototypes on the CPU beside the published forms, and says which bars hold.

    python -m benchmarks.pools_report                      # cpu-pools.json and .md, all of it
    python -m benchmarks.pools_report --only prototree_cub # measures one size (again), keeps others
    python benchmarks/tables.py                            # the Markdown, from the JSON

Every implementation is judged by float64 and then timed in turn; memory is the process's peak
beyond what it held before the call. What other processes used of the processors is in the rows.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.cpu_report import commit
from infodisent.allocator import keep_memory
from infodisent.backends.native import module as _native
from infodisent.bench import cases as bench
from infodisent.bench.labels import check_served
from infodisent.files import read_json, write_json, write_text
from infodisent.training.footprint import peak_bytes, process_bytes

RESULTS = Path(__file__).parent / "results"
TARGET = RESULTS / "cpu-pools.json"
ROUNDS = 7
FEWER = {"protopnet_imagenet": 3, "pipnet_convnext": 3}
"""Timed rounds where a call of the published form takes seconds."""
THREADS = 2
BARS: tuple[tuple[str, str, str, float], ...] = (
    ("protopnet_cub", "forward", "published", 3.0),
    ("protopnet_cub", "forward", "best eager", 1.3),
    ("protopnet_cub", "forward+backward", "published", 3.0),
    ("pipnet_convnext", "forward+backward", "published", 2.0),
)
"""Size, mode, peer, and by how much ours is to be faster."""
MEMORY_BARS = {"protopnet_cub": 64, "protopnet_imagenet": 64}
"""MiB that a forward may need."""


def peak_memory(run: Callable[[], object]) -> float:
    """MiB that the process held at most during a run, beyond what it held before; Linux.

    Raises:
        OSError: the system does not tell.
    """
    found = peak_bytes(run, torch.device("cpu"))
    if found is None:
        raise OSError("this system does not tell how much memory a process held")
    return found / 2**20


def resident() -> int:
    """Bytes of memory of this process that belong to no file; Linux."""
    return process_bytes("RssAnon")


class WatchedClock:
    """The host's clock, and what share of all processors others used meanwhile; Linux."""

    def __init__(self) -> None:
        self.seconds = self.others = 0.0

    def __call__(self, run: Callable[[], object]) -> float:
        """Seconds of a run."""
        before, start = _others(), time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        self.seconds += seconds
        self.others += _others() - before
        return seconds

    @property
    def share(self) -> float:
        """Of the time that all processors had, 0 to 1; of clock ticks, so the sum of many runs."""
        return max(0.0, self.others / (self.seconds * (os.cpu_count() or 1)))


def _others() -> float:
    """Seconds that the processors have worked, idling and waiting apart, for anyone but us.

    We are this process and those that it has started and that have ended.
    """
    user, nice, system, _, _, *rest = map(
        int, Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
    )
    own = os.times()
    ticks = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + sum(rest)) / ticks - sum(own[:4])  # of children, too


def memory(case: bench.Case) -> dict[str, float]:
    """MiB of the first full call of every implementation that compiles nothing.

    A call on two images goes before, so that code and threads are there; scratch memory is not.
    """
    needed = {}
    for name, function in bench.peers(case).items():
        if name == "torch.compile":
            continue
        small = bench.Case(case.op, case.shape, 2, case.mode, case.dtype)
        bench.runner(small, function)()
        needed[name] = round(peak_memory(bench.runner(case, function)), 1)
    return needed


def case_of(shape: str, mode: str) -> bench.Case:
    """A size of `POOLS` at its own batch."""
    return bench.Case(bench.POOLS[shape].op, shape, bench.POOLS[shape].batch, mode)


def measure(shape: str, mode: str, needed: dict[str, float]) -> dict[str, Any]:
    """One row: times, with the memory that was `needed`."""
    torch.compiler.reset()
    case = case_of(shape, mode)
    ours = bench.runner(case, bench.peers(case)["infodisent"])
    check_served(f"{case}: infodisent", ours, ("native",))
    rounds = FEWER.get(shape, ROUNDS)
    clock = WatchedClock()
    row = bench.compare(case, rounds, clock)
    row |= {"prototypes": bench.POOLS[shape].prototypes, "rounds": rounds}
    return row | {"peak MiB": needed, "used by others": round(clock.share, 3)}


def merge(stored: list[dict[str, Any]], row: dict[str, Any]) -> list[dict[str, Any]]:
    """The stored rows with this one in the place of its predecessor, in the order of `POOLS`."""
    kept = [r for r in stored if (r["shape"], r["mode"]) != (row["shape"], row["mode"])]
    order = [(shape, mode) for shape in bench.POOLS for mode in bench.MODES]
    return sorted([*kept, row], key=lambda r: order.index((r["shape"], r["mode"])))


def bars(rows: list[dict[str, Any]]) -> str:
    """A line a bar: what was asked for, what was measured."""
    by = {(r["shape"], r["mode"]): r for r in rows}
    lines = ["| bar | asked | measured | |", "|---|---|---|---|"]

    def line(what: str, asked: str, measured: str, holds: bool) -> None:
        lines.append(f"| {what} | {asked} | {measured} | {'holds' if holds else '**missed**'} |")

    for shape, mode, peer, asked in BARS:
        if (shape, mode) in by:
            ratio = by[shape, mode]["speedup"][peer]
            title = f"{bench.POOLS[shape].title}, {mode}, against {peer}"
            line(title, f"{asked:.1f}×", f"{ratio:.2f}×", ratio >= asked)
    for shape, most in MEMORY_BARS.items():
        if (shape, "forward") in by:
            needed = by[shape, "forward"]["peak MiB"]
            measured = f"{needed['infodisent']:.0f} MiB (published {needed['published']:.0f})"
            title = f"{bench.POOLS[shape].title}, forward, extra memory"
            line(title, f"{most} MiB", measured, needed["infodisent"] <= most)
    return "\n".join(lines)


def table(rows: list[dict[str, Any]]) -> str:
    """A line a size and mode: ours in milliseconds, the others as multiples, and memory."""
    peers = ("published", "best eager", "torch.compile")
    lines = [
        "| operator | what | images × M × C × P | mode | ours, ms | "
        + " | ".join(peers)
        + " | extra MiB: ours | published | best eager | others' CPU |",
        "|---" * 12 + "|",
    ]
    for r in rows:
        c, h, w = r["size"]
        cells = [r["op"], bench.POOLS[r["shape"]].title]
        cells += [f"{r['batch']} × {r['prototypes'] or c} × {c} × {h * w}", r["mode"]]
        cells += [f"{r['milliseconds']['infodisent']:.2f}"]
        cells += [f"{r['speedup'][peer]:.2f}×" for peer in peers]
        cells += [f"{r['peak MiB'][peer]:.0f}" for peer in ("infodisent", *peers[:2])]
        cells += [f"{r['used by others']:.0%}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def markdown(report: dict[str, Any]) -> str:
    """The whole report."""
    facts = {**report["machine"], "commit": report["commit"]}
    text = ", ".join(f"{k} {v}" for k, v in facts.items())
    rows = report["results"]
    others = [r["used by others"] for r in rows]
    note = (
        f"float32, medians of interleaved rounds ({FEWER['pipnet_convnext']} of the two largest, "
        f"{ROUNDS} of the others). Others' CPU: share of the processors' time that went to other "
        f"processes while a row was timed, {min(others):.0%} to {max(others):.0%}; rows with more "
        "than a few percent are rough. Freed memory stays with the process, so that no call pays "
        "for what another one left. Served by "
        f"{', '.join(sorted({name for r in rows for name in r['served by']}))}. Extra memory of "
        "forward+backward holds the gradients of map and prototypes. Published: the form of the "
        "methods' own code. Best eager: plain PyTorch with the least arithmetic, not always the "
        "faster of the two (`infodisent/bench/pools.py` has both)."
    )
    return f"{text}\n\n{note}\n\n{bars(rows)}\n\n{table(rows)}\n"


def _compared(report: dict[str, Any]) -> dict[str, Any]:
    """Machine and code; without what the native module timed when it was loaded."""
    machine = {k: v for k, v in report.get("machine", {}).items() if k != "native"}
    return {**machine, "commit": report.get("commit")}


def main() -> None:
    """Run and write both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", choices=tuple(bench.POOLS), default=None)
    parser.add_argument("--modes", nargs="+", choices=bench.MODES, default=bench.MODES)
    chosen = parser.parse_args()
    if _native.objection() is not None:
        sys.exit(f"pools_report: {_native.objection()}")  # its figures would not be the package's
    torch.set_num_threads(THREADS)
    report = read_json(TARGET) if TARGET.is_file() else {"results": []}
    about = {"machine": bench.machine(), "commit": commit()}
    if chosen.only is None or _compared(report) != _compared(about):
        report["results"] = []  # figures of another machine or code are no comparison
    report |= about
    rows = [(shape, mode) for shape in chosen.only or bench.POOLS for mode in chosen.modes]
    # first of all, while freed memory still goes back: what is kept lies in pieces and counts twice
    needed = {row: memory(case_of(*row)) for row in rows}
    keep_memory(all_of_it=True)
    for row in rows:
        report["results"] = merge(report["results"], measure(*row, needed[row]))
        write_json(TARGET, report)
        write_text(TARGET.with_suffix(".md"), markdown(report))


if __name__ == "__main__":
    main()
