"""`infodisent demo`: the main job on real photographs, with one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from infodisent.cli.options import (
    EpochsOption,
    OutOption,
    OverwriteOption,
    ParametrizationOption,
    SeedOption,
)
from infodisent.cli.tables import print_metrics, print_result
from infodisent.progress import console


def demo(
    images: Annotated[
        str | None,
        typer.Option(help="Your own folder of class folders, or data set (hfds/NAME …), instead."),
    ] = None,
    all_images: Annotated[
        bool, typer.Option("--all", help="All 2,624 solar cells instead of every second one.")
    ] = False,
    out: OutOption = Path("runs/demo"),
    epochs: EpochsOption = None,
    seed: SeedOption = 0,
    parametrization: ParametrizationOption = "exp",
    synthetic: Annotated[
        bool,
        typer.Option(
            "--synthetic",
            help="Instead: what the metrics say of drawn scenes whose truth is known, in seconds.",
        ),
    ] = False,
    explain: Annotated[int, typer.Option(min=1, help="Held-out images to explain.")] = 16,
    overwrite: OverwriteOption = False,
) -> None:
    """Run the main job on real photographs: extract, train, compare, explain.

    Writes a model, figures and a page to open in a browser. The photographs are 1,313 solar cells,
    functional or defective, or 2,624 with --all; the backbone is EfficientNet-Lite0. Needs the demo
    extra.

    Example: infodisent demo --epochs 30 -o runs/demo

    Example: infodisent demo --synthetic
    """
    if synthetic:
        if images is not None or all_images:
            raise typer.BadParameter("--synthetic draws its own images; leave --images, --all out")
        _judge_scenes(out, seed)
        return
    from infodisent.data.images import scan_folder
    from infodisent.data.notices import print_notices
    from infodisent.demo import efficientnet_lite0, solar_cells
    from infodisent.report.preview import Preview
    from infodisent.report.publish import report_run
    from infodisent.training import run as training
    from infodisent.training.fit import FitConfig

    if images is not None and all_images:
        raise typer.BadParameter("--all is of the solar cells, --images of your own; give one")
    if images is not None:
        image_set = scan_folder(images, seed=seed)
    else:
        image_set = solar_cells(every=1 if all_images else 2, seed=seed)
    print_notices(image_set)
    classes = image_set.classes
    counts = {split: sum(i.split == split for i in image_set.items) for split in ("train", "val")}
    console.print(
        f"[bold]{len(image_set.items)} images[/bold] of {len(classes)} classes "
        f"({escape(', '.join(classes[:6]))}{' …' if len(classes) > 6 else ''}): "
        f"{counts['train']} to train on, {counts['val']} held out"
    )
    model = efficientnet_lite0(len(classes), parametrization=parametrization)
    # of half as many images half as many a step: as many passes over them as all of them get
    few = images is None and not all_images
    config = FitConfig(epochs=epochs, seed=seed, batch_size=128 if few else 256)

    def say(path: Path, epochs: int) -> None:
        print_result(f"a first look after {epochs} epochs:", path)

    preview = Preview(model, image_set, out, say)
    run = training.fit(model, image_set, out, config, callbacks=[preview], overwrite=overwrite)
    print_metrics(run.metrics)
    page = report_run(run, count=explain)
    print_result("model", run.folder / training.MODEL)
    print_result("figures", run.folder / "figures")
    print_result("open", page)


def _judge_scenes(out: Path, seed: int) -> None:
    """Print, draw and write what metrics say of scenes; ends with 1 where that is not the truth."""
    from rich.table import Table

    from infodisent.evaluation.known_truth import known_truth
    from infodisent.files import replacing, write_json
    from infodisent.report.known_truth import known_truth_figure
    from infodisent.report.table import check_folder

    check_folder(out, "demo")
    known = known_truth(seed=seed)
    table = Table(title=f"{len(known.scenes.images)} scenes of known truth", title_justify="left")
    for column in ("metric", "of"):
        table.add_column(column)
    for column in ("found", "must be"):
        table.add_column(column, justify="right")
    table.add_column("")
    of = None
    for row in known.rows:
        if row.of != of:
            table.add_section()
            of = row.of
        sign = "[green]✓" if row.right else "[bold red]✗"
        table.add_row(row.measure, row.of, f"{row.value:.3f}", row.truth, sign)
    console.print(table)
    for key, last in known.contest.ranked.items():
        verdict = "shifted, random and inverted explainers rank last" if last else "NOT ranked last"
        console.print(f"{key}: {verdict}", highlight=False)
    with replacing(out / "synthetic.png") as temporary:
        known_truth_figure(known).savefig(temporary, dpi=120, format="png")
    figures = {name: dict(values) for name, values in known.contest.figures.items()}
    write_json(
        out / "synthetic.json",
        {
            "rows": [
                {"measure": r.measure, "of": r.of, "value": r.value, "low": r.low, "high": r.high}
                for r in known.rows
            ],
            "explainers": figures,
        },
    )
    print_result("picture", out / "synthetic.png")
    if not known.right:
        raise typer.Exit(1)
