"""`infodisent explain`: figures and a page for given images."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from infodisent.cli.modules import ModuleOption, module_from
from infodisent.cli.options import ImagesRootOption, OutOption, RunArgument
from infodisent.cli.preprocessing import IntensityRangeOption, PageOption
from infodisent.cli.tables import print_result
from infodisent.progress import console


def explain(
    run: RunArgument,
    images: Annotated[
        list[str] | None,
        typer.Argument(help="Images, folders (searched recursively) or patterns such as '*.jpg'."),
    ] = None,
    out: OutOption = Path("explanations"),
    top: Annotated[int, typer.Option(min=1, help="Supporting channels to show.")] = 4,
    opposing: Annotated[int, typer.Option(min=0, help="Opposing channels to show.")] = 2,
    class_name: Annotated[
        str | None, typer.Option("--class", help="Explain this class, not the predicted one.")
    ] = None,
    intensity_range: IntensityRangeOption = None,
    page: PageOption = None,
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
    limit: Annotated[int, typer.Option(min=1, help="Explain at most so many images.")] = 64,
    images_root: ImagesRootOption = None,
) -> None:
    """Explain predictions: which channels, where in the image, and what they mean.

    Writes one PNG per image and one page with all of them. In folders that are called as the
    model's classes the true class is known, and wrong predictions are marked.

    Example: infodisent explain photo.jpg --run runs/fit

    Example: infodisent explain --held-out 20 --wrong-only --run runs/fit
    """
    from infodisent.report.notices import say
    from infodisent.report.publish import report_held_out, report_sources

    names = list(images or ())
    options: dict[str, Any] = {"class_name": class_name, "top": top, "top_opposing": opposing}
    options |= {"wrong_only": wrong_only, "images_root": images_root, "out": out}
    options["module"] = module_from(module)
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
        written = report_held_out(run, limit, **options)
    elif names:
        reading: dict[str, Any] = {"intensity_range": intensity_range, "page": page}
        written, failures = report_sources(run, names, limit=limit, **reading, **options)
    else:
        raise ValueError("explain: no image is given; name images or folders, or pass --held-out")
    if written is not None:
        print_result("figures", written.parent / "figures")
        print_result("open", written)
    if failures:
        console.print(f"[yellow]{len(failures)} image(s) could not be read and were skipped:")
        for reason in failures:
            say(True, f"  {reason}")
        raise typer.Exit(1)
