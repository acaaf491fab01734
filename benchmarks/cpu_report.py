"""Times the head on the CPU at every size of the named backbones, and writes the figures.

    python -m benchmarks.cpu_report        # benchmarks/results/cpu-head.json and cpu-head.md
    python benchmarks/tables.py            # the tables of README, from that

Every implementation is checked against float64 and then timed in turn. A run that was stopped goes
on where it was, if package, machine and code are the same.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from infodisent import ops
from infodisent.allocator import keep_memory
from infodisent.backbones.torchvision_import import ensure_torchvision
from infodisent.backends.native import module as _native
from infodisent.bench import cases as bench
from infodisent.bench.labels import check_served
from infodisent.bench.shapes import EACH_SIZE
from infodisent.bench.timing import host_clock, medians
from infodisent.files import read_json, write_json, write_text
from infodisent.progress import bar

RESULTS = Path(__file__).parent / "results"
TARGET = RESULTS / "cpu-head.json"
PARTIAL = RESULTS / "cpu-head.partial.json"
"""Where a run is kept until it is complete."""
ROUNDS = {1: 31, 16: 9, 64: 5}
"""Timed rounds by batch size."""
HEAD_SIZES = ("resnet34", "vit_base_patch16_224", "resnet50")
"""Of which the whole head is timed."""


def cases() -> list[bench.Case]:
    """What is timed, the short ones first."""
    timed = [
        bench.Case("rotate_pool", shape, batch, mode)
        for batch in ROUNDS
        for shape in EACH_SIZE
        for mode in ("forward", "backward", "forward+backward")
    ]
    timed += [
        bench.Case("rotate_pool", shape, 16, mode, torch.bfloat16)
        for shape in EACH_SIZE
        for mode in bench.MODES
    ]
    timed += [
        bench.Case("infodisent_head", shape, 16, mode)
        for shape in HEAD_SIZES
        for mode in bench.MODES
    ]
    return [*timed, bench.Case("training_step", "resnet50", 64, "forward+backward")]


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit() -> str:
    """The last commit that changed what is measured, and whether more has changed since."""
    measured = ("csrc", "infodisent", "setup.py")
    changed = _git("status", "--porcelain", "-uno", "--", *measured)
    return _git("log", "-1", "--format=%h", "--", *measured) + (" with changes" if changed else "")


def overhead() -> dict[str, float]:
    """Microseconds of a call on a map so small that only the call counts, and of its products."""
    x, u = torch.randn(1, 16, 7, 7), torch.linalg.qr(torch.randn(16, 16))[0].contiguous()
    rows, weight = x.flatten(2).mT[0].contiguous(), torch.rand(10, 16)
    pooled = torch.rand(1, 16)
    runs: dict[str, Callable[[], object]] = {
        "rotate_pool": lambda: ops.rotate_pool(x, u),
        "its product": lambda: torch.mm(rows, u.mT),
        "infodisent_head": lambda: ops.infodisent_head(x, u, weight),
        "its products": lambda: (
            torch.mm(rows, u.mT),
            torch.nn.functional.linear(pooled, weight),
        ),
    }
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            seconds = medians(runs, 9, host_clock(calls=2000))
    finally:
        torch.set_num_threads(before)
    return {name: round(1e6 * value, 1) for name, value in seconds.items()}


def _key(result: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(result[k] for k in ("op", "shape", "batch", "mode", "dtype"))


def run() -> dict[str, Any]:
    """Time what is not in the file yet, which is rewritten after every case."""
    report: dict[str, Any] = {"machine": bench.machine(), "commit": commit(), "results": []}
    if PARTIAL.is_file():
        before = read_json(PARTIAL)
        if all(before.get(k) == report[k] for k in ("machine", "commit")):
            report = before
    report["overhead_us"] = overhead()
    done = {_key(result) for result in report["results"]}
    with bar() as display:
        wanted = cases()
        task = display.add_task("time side by side", total=len(wanted), note="")
        for case in wanted:
            display.update(task, note=f"{case.op} {case.shape} B={case.batch} {case.mode}")
            dtype = str(case.dtype).removeprefix("torch.")
            if (case.op, case.shape, case.batch, case.mode, dtype) not in done:
                torch.compiler.reset()
                ours = bench.runner(case, bench.peers(case)["infodisent"])
                check_served(f"{case}: infodisent", ours, ("native",))
                rounds = 3 if case.op == "training_step" else ROUNDS[case.batch]
                report["results"].append({**bench.compare(case, rounds), "rounds": rounds})
                write_json(PARTIAL, report)
            display.advance(task)
    return report


def table(results: list[dict[str, Any]]) -> str:
    """One line a case: ours in milliseconds, the others as multiples of it."""
    lines = [
        "| operator | map, batch, dtype | mode | ours, ms | others, as a multiple of ours |",
        "|---|---|---|---|---|",
    ]
    for r in results:
        c, h, w = r["size"]
        others = ", ".join(
            f"{name} {ratio:.2f}×" for name, ratio in r["speedup"].items() if name != "infodisent"
        )
        size = f"{c}×{h}×{w}, {r['batch']}, {r['dtype']}"
        ours = r["milliseconds"]["infodisent"]
        lines.append(f"| {r['op']} | {size} | {r['mode']} | {ours:.2f} | {others} |")
    return "\n".join(lines)


def summary(results: list[dict[str, Any]]) -> str:
    """Geometric means over the sizes, the smallest in brackets."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for r in results:
        groups.setdefault((r["op"], r["batch"], r["dtype"], r["mode"]), []).append(r)
    peers = (
        "GEMM alone†",
        "eager",
        "torch.compile",
        "conv2d + max-pool",
        "GEMM + aminmax",
        "eager, torch.matrix_exp",
    )
    peers = tuple(p for p in peers if any(p in r["speedup"] for r in results))
    lines = ["| operator | batch, dtype | mode | sizes | " + " | ".join(peers) + " |"]
    lines.append("|---" * (4 + len(peers)) + "|")
    for (op, batch, dtype, mode), members in groups.items():
        cells = []
        for peer in peers:
            ratios = [r["speedup"][peer] for r in members if peer in r["speedup"]]
            if not ratios:
                cells.append("")
            elif len(ratios) == 1:
                cells.append(f"{ratios[0]:.2f}×")
            else:
                cells.append(f"{statistics.geometric_mean(ratios):.2f}× ({min(ratios):.2f})")
        lines.append(
            f"| {op} | {batch}, {dtype} | {mode} | {len(members)} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines)


def markdown(report: dict[str, Any]) -> str:
    """The whole report: what it was measured on, the means, and every case."""
    facts = {**report["machine"], "commit": report["commit"]}
    text = ", ".join(f"{k} {v}" for k, v in facts.items())
    legend = (
        "Multiples of our time: above 1× the other takes longer. Geometric means over the sizes, "
        "the worst in brackets. † part of the work: the library's product alone."
    )
    return f"{text}\n\n{legend}\n\n{summary(report['results'])}\n\n{table(report['results'])}\n"


def main() -> None:
    """Run and write both files."""
    ensure_torchvision()
    keep_memory(all_of_it=True)
    if _native.objection() is not None:
        sys.exit(f"cpu_report: {_native.objection()}")  # its figures would not be the package's
    report = run()
    write_json(TARGET, report)
    PARTIAL.unlink(missing_ok=True)
    write_text(TARGET.with_suffix(".md"), markdown(report))


if __name__ == "__main__":
    main()
