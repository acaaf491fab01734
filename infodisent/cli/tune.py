"""`infodisent tune`: what is fastest on this GPU: tiles of the Triton kernel, and backends."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from infodisent.cli.options import DTYPES, check_allowed
from infodisent.progress import bar, console

if TYPE_CHECKING:
    import torch

Work = tuple[tuple[int, int, int], int]
"""(C, H, W) of a map, and its batch."""
ONLY = ("tiles", "backends")


def tune(
    shape: Annotated[
        list[str] | None,
        typer.Option(
            help="Backbones whose map sizes are timed (default: all), or sizes of your own: "
            "B,C,P (images, channels, pixels), C,P or CxHxW."
        ),
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Batch sizes; default: 256.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Of the maps: float32, bfloat16, float16.")
    ] = "bfloat16",
    only: Annotated[
        str | None, typer.Option(help="'tiles' or 'backends'; default: one after the other.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The file for the tiles; default: that of INFODISENT_TILES, or the cache."
        ),
    ] = None,
) -> None:
    """Search the tiles of the Triton kernel for some map sizes, and who is faster, triton or cuda.

    Later runs on the same kind of GPU take the tiles from the cache, or from a file that
    INFODISENT_TILES names, which can be shipped. The backends' times are kept for this machine
    alone; "auto" then takes the faster one at these sizes and at batches between two of them.

    Example: infodisent tune --shape resnet50 --batch 64 --batch 256
    """
    import torch

    from infodisent.backends.triton import loading
    from infodisent.bench.shapes import SHAPES, shape_size

    wanted = [shape_size(name, "tune") for name in shape or SHAPES]
    check_allowed("tune", "dtype", [dtype], DTYPES)
    check_allowed("tune", "only", [only] if only else [], ONLY)
    if importlib.util.find_spec("triton") is None:
        raise ModuleNotFoundError(
            "tune: Triton is not installed: pip install triton (on Linux, for an NVIDIA GPU). "
            "Without it there is nothing to tune: the other backends need none, and "
            "`infodisent doctor` says which of them serves"
        )
    device, torch_dtype = torch.device("cuda"), getattr(torch, dtype)
    reason = loading.objection("rotate_pool", device, torch_dtype)
    if reason is not None:
        raise ValueError(f"tune: {reason}")
    work: list[Work] = list(
        dict.fromkeys(
            (size, images) for size, own in wanted for images in ([own] if own else batch or [256])
        )
    )
    if only != "backends":
        tune_tiles(work, device, torch_dtype, out)
    if only != "tiles":
        tune_backends(work, device, torch_dtype)


def tune_tiles(
    work: list[Work], device: torch.device, dtype: torch.dtype, out: Path | None
) -> None:
    """Keep the fastest tiles of each map."""
    import torch

    from infodisent.kernels import rotate_pool

    table = Table(title="milliseconds")
    for column in ("map", "batch", "fixed tiles", "fastest", "tiles"):
        table.add_column(column)
    with bar() as display:
        task = display.add_task("time tiles", total=len(work), note="")
        for (c, h, w), images in work:
            display.update(task, note=f"{c}x{h}x{w}, {images}")
            x = torch.randn(images, h * w, c, device=device, dtype=dtype)
            u = torch.linalg.qr(torch.randn(c, c, device=device))[0].to(dtype).contiguous()
            # The file is written after every size: an interrupted search keeps what it has.
            best, times = rotate_pool.search(x, u, path=out)
            fixed = next(iter(times.values()))
            row = (f"{c}x{h}x{w}", str(images), f"{fixed:.4f}", f"{times[best]:.4f}", str(best))
            table.add_row(*row)
            display.advance(task)
    console.print(table)


def tune_backends(work: list[Work], device: torch.device, dtype: torch.dtype) -> None:
    """Time `triton` and `cuda` side by side at each size, and keep the times for ``auto``."""
    from infodisent import backends
    from infodisent.backends import choices
    from infodisent.backends.cuda import module
    from infodisent.bench import contest

    reason = backends.explain("rotate_pool", device, dtype)["cuda"]
    if reason != "ok":
        console.print(f"backends: auto has triton alone to take here, since cuda: {reason}")
        return
    contestants = {"triton": ("triton",), "cuda": ("cuda", "triton")}
    table = Table(title="microseconds: forward, and forward + backward for U")
    for column in ("map", "batch", *contestants, "auto takes"):
        table.add_column(column)
    remarks = []
    watch = contest.stopwatch()
    with bar() as display:
        task = display.add_task("time backends", total=len(work), note="")
        for (c, h, w), images in work:
            display.update(task, note=f"{c}x{h}x{w}, {images}")
            result, wrong = contest.contest((c, h, w), images, dtype, device, contestants, watch)
            remarks += [f"{c}x{h}x{w}, {images}: {name}: {why}" for name, why in wrong.items()]
            cells = [
                "{:.1f}, {:.1f}".format(*result.times[name]) if name in result.times else "wrong"
                for name in contestants
            ]
            taken = choices.winner(result.times)
            if "triton" in result.times:  # else there is nothing that auto could compare with
                choices.remember(device, module.identity(), result)
            table.add_row(f"{c}x{h}x{w}", str(images), *cells, taken)
            display.advance(task)
    console.print(table)
    for remark in remarks:
        console.print(f"not timed: {remark}")
    console.print(f"[dim]kept in {choices.cache_file()}")
