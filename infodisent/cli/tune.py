"""`infodisent tune`: search the tiles of the Triton kernel over map sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from infodisent.cli.options import DTYPES, check_allowed
from infodisent.progress import bar, console


def tune(
    shape: Annotated[
        list[str] | None,
        typer.Option(
            help="Backbones whose map sizes are searched (default: all), or sizes of your own: "
            "B,C,P (images, channels, pixels), C,P or CxHxW."
        ),
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Batch sizes; default: 256.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Of the maps: float32, bfloat16, float16.")
    ] = "bfloat16",
    out: Annotated[
        Path | None,
        typer.Option(help="The file to write; default: that of INFODISENT_TILES, or the cache."),
    ] = None,
) -> None:
    """Search the tiles of the GPU kernel for some map sizes, and keep the fastest in a file.

    Later runs on the same kind of GPU take them from the cache, or from a file that
    INFODISENT_TILES names, which can be shipped.

    Example: infodisent tune --shape resnet50 --batch 64 --batch 256
    """
    import torch

    from infodisent.backends.triton import loading
    from infodisent.bench.shapes import SHAPES, shape_size

    wanted = [shape_size(name, "tune") for name in shape or SHAPES]
    check_allowed("tune", "dtype", [dtype], DTYPES)
    device, torch_dtype = torch.device("cuda"), getattr(torch, dtype)
    reason = loading.objection("rotate_pool", device, torch_dtype)
    if reason is not None:
        raise ValueError(f"tune: {reason}")
    from infodisent.kernels import rotate_pool  # after the objection, which says what is missing

    work = list(
        dict.fromkeys(
            (size, images) for size, own in wanted for images in ([own] if own else batch or [256])
        )
    )
    table = Table(title="milliseconds")
    for column in ("map", "batch", "fixed tiles", "fastest", "tiles"):
        table.add_column(column)
    with bar() as display:
        task = display.add_task("time tiles", total=len(work), note="")
        for (c, h, w), images in work:
            display.update(task, note=f"{c}x{h}x{w}, {images}")
            x = torch.randn(images, h * w, c, device=device, dtype=torch_dtype)
            u = torch.linalg.qr(torch.randn(c, c, device=device))[0].to(torch_dtype).contiguous()
            # The file is written after every size: an interrupted search keeps what it has.
            best, times = rotate_pool.search(x, u, path=out)
            fixed = next(iter(times.values()))
            row = (f"{c}x{h}x{w}", str(images), f"{fixed:.4f}", f"{times[best]:.4f}", str(best))
            table.add_row(*row)
            display.advance(task)
    console.print(table)
