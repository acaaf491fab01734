"""`infodisent report`: the page of a run, to look at and to ask."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from infodisent.cli.modules import ModuleOption, module_from
from infodisent.cli.options import ImagesRootOption, RunArgument, SeedOption
from infodisent.cli.preprocessing import IntensityRangeOption, PageOption
from infodisent.cli.tables import exit_if_skipped, print_result

MOST_IMAGES = 1000
"""A page of more opens too slowly."""


def report(
    run: RunArgument,
    images: Annotated[
        list[str] | None,
        typer.Option(help="An image, a folder or a pattern; may be given again."),
    ] = None,
    held_out: Annotated[
        int,
        typer.Option(min=1, max=MOST_IMAGES, help="Without --images: so many held-out images."),
    ] = 64,
    wrong_only: Annotated[
        bool, typer.Option("--wrong-only", help="Only images that are predicted wrongly.")
    ] = False,
    class_name: Annotated[
        str | None, typer.Option("--class", help="Explain this class, not the predicted one.")
    ] = None,
    compare: Annotated[
        list[Path] | None,
        typer.Option(help="Another run whose explanations stand beside; may be given again."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Page to write; default: report.html in the run."),
    ] = None,
    attribution: Annotated[
        str, typer.Option(help="Whose the photographs are and under which licence.")
    ] = "",
    seed: SeedOption = 0,
    intensity_range: IntensityRangeOption = None,
    page: PageOption = None,
    module: ModuleOption = None,
    images_root: ImagesRootOption = None,
) -> None:
    """Write one HTML file to look at a run's explanations and ask them: no server, no network.

    In the page: all units of every image, why one class and not another, heat maps, what the logits
    are without a unit, filters, galleries of classes and units, and how good the model is.

    Example: infodisent report --run runs/fit --held-out 200

    Example: infodisent report --run runs/fit --images photos --compare runs/protopnet -o why.html
    """
    from infodisent.report.publish import PAGE, report_held_out, report_sources
    from infodisent.report.table import check_file

    target = _target(out, run / PAGE)
    check_file(target, "report")
    options: dict[str, Any] = {
        "out": target.parent, "name": target.name, "figures": False, "wrong_only": wrong_only,
        "class_name": class_name, "images_root": images_root, "module": module_from(module),
        "attribution": attribution, "compare": compare or (),
    }  # fmt: skip
    failures: list[str] = []
    if images:
        reading: dict[str, Any] = {"intensity_range": intensity_range, "page": page}
        reading["more"] = "a page holds no more"
        written, failures = report_sources(run, images, limit=MOST_IMAGES, **reading, **options)
    else:
        written = report_held_out(run, held_out, seed=seed, **options)
    if written is not None:
        print_result("open", written)
    exit_if_skipped(failures)


def _target(out: Path | None, default: Path) -> Path:
    """The file to write; in a folder that is named, of the usual name.

    Raises:
        ValueError: it has another ending.
    """
    if out is None:
        return default
    if out.is_dir():
        return out / default.name
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"report: --out is {out}, must end in .html, or be a folder that is there")
    return out
