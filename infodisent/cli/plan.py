"""`infodisent plan`: what a training would cost, before it is started."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from infodisent.cli.options import OutOption
from infodisent.progress import console

if TYPE_CHECKING:
    from infodisent.classifier import InfoDisentClassifier
    from infodisent.training.plan import Plan, Rates

RATES = (
    *("decode", "copy", "forward", "extract", "extract_copies"),
    *("step", "fixed_step", "pool", "probe", "read", "write"),
)
HELD_OUT = 25
"""Training images for one held-out image, as in ImageNet."""


def plan(
    images: Annotated[int, typer.Option(min=1, help="Training images.")],
    backbone: Annotated[
        str, typer.Option("--backbone", "-b", help="Any timm name, or torchvision/<name>.")
    ] = "resnet50",
    held_out: Annotated[
        int | None, typer.Option(min=0, help="Held-out images; default: 1 for 25 of training.")
    ] = None,
    classes: Annotated[int, typer.Option(min=1, help="Classes.")] = 1000,
    method: Annotated[
        str, typer.Option(help="Of the head; infodisent methods lists them.")
    ] = "infodisent",
    gpus: Annotated[
        int, typer.Option(min=1, help="Devices that work together, over all machines.")
    ] = 1,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode, a device.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per training step.")] = 256,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Of one training; default: as `fit` takes.")
    ] = None,
    compare: Annotated[
        bool, typer.Option(help="Also what `fit` trains for comparison: probe, ablations.")
    ] = True,
    view_pairs: Annotated[
        int,
        typer.Option(min=1, help="Stored pairs of augmented copies, for methods that compare two."),
    ] = 2,
    feature_dtype: Annotated[
        str, typer.Option(help="Of the stored features; one of float16, bfloat16, float32, float8.")
    ] = "float16",
    rate: Annotated[
        list[str] | None,
        typer.Option(
            help="name=number, a second, that is stated and not measured: decode, copy, forward, "
            "fixed_step, pool (images of one process or device), extract, extract_copies "
            "(images of the whole of it on a processor), step (maps), probe (rows), read, write "
            "(bytes)."
        ),
    ] = None,
    pictures: Annotated[
        str | None,
        typer.Option(help="A folder or data set of such images, to see how fast they decode."),
    ] = None,
    out: OutOption = Path("runs"),
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda … ; default: cuda if present.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a training would take: disk, memory, seconds a stage, and what bounds each.

    Rates are measured here in about half a minute, on the device and on the disk of --out.

    Example: infodisent plan --images 1281167 -b resnet50 --gpus 8 --workers 12
    """
    from infodisent.classifier import attach
    from infodisent.data.encoding import DTYPES
    from infodisent.devices import pick_device
    from infodisent.training.calibration import measure_rates, passes_of
    from infodisent.training.fit import compared_heads
    from infodisent.training.plan import Job
    from infodisent.training.plan import plan as cost

    given = stated(rate or [])
    if feature_dtype not in DTYPES:
        raise ValueError(f"feature_dtype is {feature_dtype!r}, allowed: {', '.join(DTYPES)}")
    model = attach(backbone, classes, method=method).to(pick_device(device))
    others = compared_heads(model.head, 0) if compare else ()
    job = Job(
        train=images,
        held_out=max(1, images // HELD_OUT) if held_out is None else held_out,
        channels=model.num_features,
        pixels=_pixels(model),
        classes=classes,
        original_classes=model.backbone.num_classes,
        item_bytes=DTYPES[feature_dtype].itemsize,
        batch_size=batch_size,
        epochs=epochs,
        devices=gpus,
        workers=workers,
        probe=compare,
        parameters=sum(parameter.numel() for parameter in model.head.parameters()),
        stages=passes_of(model.head, epochs),
        compared=tuple(passes_of(head, epochs) for _, head in others),
        view_pairs=view_pairs,
    )
    with console.status("measuring") as status:
        rates = measure_rates(
            model,
            job,
            out,
            pictures=_files(pictures),
            given=given,
            say=lambda name: status.update(f"measuring: {name}"),
        )
    result = cost(job, rates)
    if as_json:
        values = dataclasses.asdict(result) | {"seconds": result.seconds}
        print(json.dumps(values | {"rates": dataclasses.asdict(rates)}, indent=1))
        return
    _print(result, rates, given)


def stated(pairs: list[str]) -> dict[str, float]:
    """Rates given as ``name=number``.

    Raises:
        ValueError: no such rate, or no number above 0.
    """
    rates: dict[str, float] = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        try:
            rates[name] = float(text)
        except ValueError:
            rates[name] = 0.0
        if name not in RATES or not 0 < rates[name] < float("inf"):
            raise ValueError(
                f"--rate is {pair!r}, must be name=number > 0; names are {', '.join(RATES)}"
            )
    return rates


def _pixels(model: InfoDisentClassifier) -> int:
    from infodisent.backbones.preprocess import transform_config

    height, width = model.backbone.grid_size(
        tuple(transform_config(model.backbone)["input_size"][1:])
    )
    return height * width


def _files(folder: str | None) -> list[str]:
    from infodisent.data.readers import read_records
    from infodisent.data.tree import extensions

    if folder is None:
        return []
    records = read_records(folder)
    if records is not None:
        return [row.path for row in records.rows]
    known = extensions()
    files = sorted(str(file) for file in Path(folder).rglob("*") if file.suffix.lower() in known)
    if not files:
        raise ValueError(f"--pictures: there are no images in {folder}")
    return files


def _print(result: Plan, rates: Rates, given: dict[str, float]) -> None:
    from infodisent.files import size_text

    job = result.job
    copies = f" and {job.copies:,} of augmented copies" if job.copies else ""
    split = f"{job.train:,} to train on, {job.held_out:,} held out"
    console.print(
        f"{job.images:,} maps ({split}){copies} of {job.channels} channels and "
        f"{job.pixels} pixels: "
        f"[bold]{size_text(result.store)}[/bold] on disk; {size_text(result.memory)} of memory a "
        "process besides torch and the backbone",
        highlight=False,
    )
    table = Table()
    for column in ("stage", "time", "waits for", "at the same time"):
        table.add_column(column, justify="right" if column == "time" else "left")
    for stage in result.stages:
        parts = ", ".join(f"{name} {clock(value)}" for name, value in stage.parts.items())
        table.add_row(stage.name, clock(stage.seconds), stage.bound, parts)
    table.add_row("all", clock(result.seconds), "", f"one epoch {clock(result.epoch)}")
    console.print(table)
    values: dict[str, Any] = dataclasses.asdict(rates)
    told = ", ".join(
        f"{name} {values[name]:,.4g}{' (stated)' if name in given else ''}"
        for name in RATES
        if values[name] is not None
    )
    console.print(f"[dim]rates a second: {told}; {job.devices} device(s)", highlight=False)


def clock(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
