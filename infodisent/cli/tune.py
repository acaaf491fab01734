"""`infodisent tune`: search the tiles of the Triton kernel over map sizes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.table import Table

from infodisent.backends import triton as _triton
from infodisent.bench import cases as bench
from infodisent.cli.bench import DTYPES
from infodisent.progress import bar, console


def tune(
    shapes: Sequence[str] | None, batches: Sequence[int], dtype: str, out: Path | None
) -> None:
    """Search, write the file after every size, and print what was found.

    Raises:
        ValueError: an unknown shape or dtype, or no GPU that the kernels can run on.
    """
    for name, given, allowed in (
        ("shape", shapes or (), tuple(bench.SHAPES)),
        ("dtype", [dtype], tuple(DTYPES)),
    ):
        unknown = [g for g in given if g not in allowed]
        if unknown:
            raise ValueError(f"tune: {name} is {unknown[0]!r}, allowed here: {', '.join(allowed)}")
    device = torch.device("cuda")
    reason = _triton.objection("rotate_pool", device, DTYPES[dtype])
    if reason is not None:
        raise ValueError(f"tune: {reason}")
    kernel = _triton.module("rotate_pool")
    sizes = dict.fromkeys(bench.SHAPES[s] for s in shapes or bench.SHAPES)
    work = [(size, batch) for size in sizes for batch in batches]
    table = Table(title="milliseconds")
    for column in ("map", "batch", "fixed tiles", "fastest", "tiles"):
        table.add_column(column)
    with bar() as display:
        task = display.add_task("time tiles", total=len(work), note="")
        for (c, h, w), batch in work:
            display.update(task, note=f"{c}x{h}x{w}, {batch}")
            x = torch.randn(batch, h * w, c, device=device, dtype=DTYPES[dtype])
            u = torch.linalg.qr(torch.randn(c, c, device=device))[0].to(DTYPES[dtype]).contiguous()
            best, times = kernel.search(x, u, path=out)
            first = next(iter(times.values()))
            row = (f"{c}x{h}x{w}", str(batch), f"{first:.4f}", f"{times[best]:.4f}", str(best))
            table.add_row(*row)
            display.advance(task)
    console.print(table)
