"""`infodisent bench`: run the comparisons of `infodisent.bench.cases` and show them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from infodisent.cli.options import DTYPES, check_allowed
from infodisent.progress import bar, console

DEFAULT_POOLS = ("protopnet_cub", "tesnet_cub", "st_full", "prototree_cub", "pipnet_small")
"""Sizes of the pools of prototypes; the others need some gigabytes for the published forms."""
OF_PROTOTYPES = ("similarity_pool", "softmax_pool", "softmax_alignment")


def bench(
    op: Annotated[
        list[str] | None,
        typer.Option(
            help="What to time, several times: rotation, mx_pool, rotate_pool, infodisent_head, "
            "training_step, similarity_pool, softmax_pool, softmax_alignment; default: rotation, "
            "rotate_pool and infodisent_head."
        ),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            help="Backbones whose map sizes are timed (default: three of them), or sizes of your "
            "own: B,C,P (images, channels, pixels), C,P or CxHxW; several times. Of the three of "
            "prototypes: protopnet_cub, tesnet_cub, st_full, prototree_cub, protopnet_imagenet; "
            "pipnet_small, pipnet_convnext, softmax_codes; pipnet_alignment."
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images in a batch.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds; medians are printed.")] = 7,
    device: Annotated[str, typer.Option(metavar="cpu|cuda", help="Where.")] = "cpu",
    dtype: Annotated[
        str, typer.Option(help="Of the maps: float32, bfloat16, float16.")
    ] = "float32",
    json: Annotated[Path | None, typer.Option(help="Also write the figures here.")] = None,
) -> None:
    """Time the operators against eager PyTorch, torch.compile and other ways to the same result.

    All implementations are checked against float64 first and then timed in turn, so that a noisy
    machine is as noisy for all of them.

    Example: infodisent bench --op rotate_pool --shape resnet50 --shape 32,768,196
    """
    import torch

    from infodisent.allocator import keep_memory
    from infodisent.bench import cases
    from infodisent.bench.machine import machine
    from infodisent.bench.shapes import shape_size
    from infodisent.files import write_json

    keep_memory(all_of_it=True)
    ops = op or ["rotation", "rotate_pool", "infodisent_head"]
    shapes = shape or ["resnet34", "vit_base_patch16_224", "resnet50", *DEFAULT_POOLS]
    check_allowed("bench", "op", ops, cases.OPS)
    for given in shapes:
        if given not in cases.POOLS:
            shape_size(given)
    check_allowed("bench", "dtype", [dtype], DTYPES)
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    check_allowed("bench", "device", [device], devices)
    todo = cases.cases(ops, shapes, batch, device=device, dtype=getattr(torch, dtype))
    results = []
    with bar() as display:
        task = display.add_task("time side by side", total=len(todo), note="")
        for case in todo:
            display.update(task, note=f"{case.op} {case.shape} {case.mode}")
            torch.compiler.reset()
            results.append(cases.compare(case, rounds))
            display.advance(task)
    this_machine = machine(device)
    for name in ops:
        console.print(_table(name, [r for r in results if r["op"] == name]))
    console.print("[dim]" + ", ".join(f"{k} {v}" for k, v in this_machine.items()))
    if "rotation" in ops:
        console.print("[dim]* another map to the orthogonal matrices, for comparison of cost only")
    if "rotate_pool" in ops:
        console.print("[dim]† part of the work: the matrix product, on rows laid out beforehand")
    if json is not None:
        write_json(json, {"machine": this_machine, "rounds": rounds, "results": results})


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
        if op in OF_PROTOTYPES:
            first[0] = f"{result['shape']} {first[0]}"
        for name, ms in result["milliseconds"].items():
            label = name
            if name == "infodisent":
                label = f"{name} ({', '.join(result['served by'])})"
            table.add_row(*first, label, f"{ms:.2f}", f"{result['speedup'][name]:.2f}")
            first = ["", "", ""]
        table.add_section()
    return table
