"""`infodisent bench`: run the comparisons of `infodisent.bench.cases` and show them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from rich.table import Table

from infodisent.bench import cases as bench
from infodisent.files import write_json
from infodisent.progress import bar, console

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def run_bench(
    op_names: Sequence[str],
    shapes: Sequence[str],
    batch: int,
    rounds: int,
    device: str,
    dtype: str,
    json: str | os.PathLike[str] | None,
) -> dict[str, Any]:
    """Time, print one table per operator, and write the figures as JSON if asked.

    Raises:
        ValueError: an unknown operator, shape or dtype, or a device that is not there.
    """
    for name, given, allowed in (
        ("op", op_names, bench.OPS),
        ("shape", shapes, tuple(bench.SHAPES)),
        ("dtype", [dtype], tuple(DTYPES)),
        ("device", [device], ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)),
    ):
        unknown = [g for g in given if g not in allowed]
        if unknown:
            raise ValueError(f"bench: {name} is {unknown[0]!r}, allowed here: {', '.join(allowed)}")
    cases = bench.cases(op_names, shapes, batch, device=device, dtype=DTYPES[dtype])
    results = []
    with bar() as display:
        task = display.add_task("time side by side", total=len(cases), note="")
        for case in cases:
            display.update(task, note=f"{case.op} {case.shape} {case.mode}")
            torch.compiler.reset()
            results.append(bench.compare(case, rounds))
            display.advance(task)
    machine = bench.machine(device)
    report = {"machine": machine, "rounds": rounds, "results": results}
    for op in op_names:
        console.print(_table(op, [r for r in results if r["op"] == op]))
    console.print("[dim]" + ", ".join(f"{k} {v}" for k, v in machine.items()))
    if "rotation" in op_names:
        console.print("[dim]* another map to the orthogonal matrices, for comparison of cost only")
    if "rotate_pool" in op_names:
        console.print("[dim]† part of the work: the matrix product, on rows laid out beforehand")
    if json is not None:
        write_json(json, report)
    return report


def _table(op: str, results: list[dict[str, Any]]) -> Table:
    table = Table(title=op)
    for name in ("map", "batch", "mode"):
        table.add_column(name, no_wrap=True)
    table.add_column("implementation")
    for name in ("ms", "× ours"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        c, h, w = result["size"]
        first = [f"{c}×{c}" if op == "rotation" else f"{c}×{h}×{w}", str(result["batch"])]
        first.append(result["mode"].replace("forward+backward", "fwd+bwd"))
        for name, ms in result["milliseconds"].items():
            table.add_row(*first, name, f"{ms:.2f}", f"{result['speedup'][name]:.2f}")
            first = ["", "", ""]
        table.add_section()
    return table
