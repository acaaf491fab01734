"""`infodisent explain`: figures and a page for given images."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from infodisent.cli.images import ReadOption, reading_from
from infodisent.cli.modules import ModuleOption, module_from
from infodisent.cli.options import ImagesRootOption, OutOption, RunArgument
from infodisent.cli.preprocessing import IntensityRangeOption, PageOption
from infodisent.cli.tables import exit_if_skipped, print_result
from infodisent.progress import console


def explain(
    run: RunArgument,
    images: Annotated[
        list[str] | None,
        typer.Argument(
            help="Images, folders (searched recursively), patterns such as '*.jpg', or tar files "
            "and data sets (hfds/NAME …)."
        ),
    ] = None,
    out: OutOption = Path("explanations"),
    top: Annotated[int, typer.Option(min=1, help="Supporting channels to show.")] = 4,
    opposing: Annotated[int, typer.Option(min=0, help="Opposing channels to show.")] = 2,
    class_name: Annotated[
        str | None, typer.Option("--class", help="Explain this class, not the predicted one.")
    ] = None,
    intensity_range: IntensityRangeOption = None,
    page: PageOption = None,
    read: ReadOption = None,
    module: ModuleOption = None,
    held_out: Annotated[
        bool,
        typer.Option(
            "--held-out", help="Explain the run's own held-out images; a number says how many."
        ),
    ] = False,
    wrong_only: Annotated[
        bool,
        typer.Option("--wrong-only", help="Only images that are predicted wrongly."),
    ] = False,
    beside: Annotated[
        str | None,
        typer.Option(
            "--beside",
            metavar="all|closed|NAME,…",
            help="Instead: other methods beside ours, a picture an image with each one's figures; "
            "LIME, Kernel SHAP, occlusion … need the extra posthoc, closed forms nothing.",
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(min=1, help="Masked pictures of LIME and Kernel SHAP; default 300."),
    ] = None,
    parts: Annotated[
        str | None,
        typer.Option(
            metavar="KIND:FOLDER",
            help="Of --beside: masks of the objects, as `judge --parts` takes them.",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Explain at most so many images; default 64, of --beside 8."),
    ] = None,
    images_root: ImagesRootOption = None,
) -> None:
    """Explain predictions: which channels, where in the image, and what they mean.

    Writes one PNG per image and one page with all of them. In folders that are called as the
    model's classes the true class is known, and wrong predictions are marked.

    Example: infodisent explain photo.jpg --run runs/fit

    Example: infodisent explain --held-out 20 --wrong-only --run runs/fit

    Example: infodisent explain photo.jpg --run runs/fit --beside all
    """
    from infodisent.report.publish import report_held_out, report_sources

    names = list(images or ())
    options: dict[str, Any] = {"class_name": class_name, "top": top, "top_opposing": opposing}
    options |= {"wrong_only": wrong_only, "images_root": images_root, "out": out}
    options["module"] = module_from(module)
    asked = reading_from(read)
    if held_out and asked.given():
        raise ValueError("explain: --read is of data sets that are named, not of --held-out")
    failures: list[str] = []
    if held_out:
        if (
            len(names) == 1
            and re.fullmatch("[1-9][0-9]*", names[0])
            and not Path(names[0]).exists()
        ):
            limit = int(names.pop())
        if names:
            raise ValueError(
                f"explain: --held-out takes the run's own images, but {names[0]!r} is given too"
            )
    elif not names:
        raise ValueError("explain: no image is given; name images or folders, or pass --held-out")
    if beside is not None:
        given = (("--intensity-range", intensity_range), ("--page", page))
        if unused := [name for name, value in given if value is not None]:
            raise ValueError(f"explain: --beside reads images as the run does, without {unused[0]}")
        if wrong_only and not held_out:
            raise ValueError("explain: --beside --wrong-only is of --held-out images")
        _write_beside(
            run, None if held_out else names, out=out, methods=beside, limit=limit or 8,
            samples=samples, annotations=parts, class_name=class_name, wrong_only=wrong_only,
            images_root=images_root, reading=asked, module=options["module"],
        )  # fmt: skip
        return
    if samples is not None or parts is not None:
        raise ValueError("explain: --samples and --parts are of --beside")
    limit = limit or 64
    if held_out:
        written = report_held_out(run, limit, **options)
    else:
        reading: dict[str, Any] = {
            "intensity_range": intensity_range,
            "page": page,
            "reading": asked,
        }
        written, failures = report_sources(run, names, limit=limit, **reading, **options)
    if written is not None:
        print_result("figures", written.parent / "figures")
        print_result("open", written)
    exit_if_skipped(failures)


def _write_beside(run: Path, names: list[str] | None, *, limit: int, **options: Any) -> None:
    """Draw methods beside each other, and print the means of their figures."""
    from rich.table import Table

    from infodisent.report.beside import FIGURES, write_beside
    from infodisent.report.notices import say

    written = write_beside(run, names, limit=limit, **options)
    means = written.means()
    columns = [
        key
        for key in ("deletion", "insertion", "pointing", "mass", "rank", "seconds")
        if any(key in figures for figures in means.values())
    ]
    count = len(written.results)
    table = Table(title=f"means of {count} image{'s' * (count > 1)}", title_justify="left")
    table.add_column("method", no_wrap=True)
    better = {"deletion": "deletion ↓", "seconds": "s ↓"}
    for key in columns:
        table.add_column(better.get(key, f"{key} ↑"), justify="right")
    for title, figures in means.items():
        cells = (f"{figures[key]:.3f}" if key in figures else "–" for key in columns)
        table.add_row(title, *cells)
    console.print(table)
    notes = dict.fromkeys(note for result in written.results for note in result.notes)
    for line in (*notes, *written.failures):
        say(True, f"note: {line}")
    print_result("pictures", written.folder)
    print_result("figures", written.folder / FIGURES)
