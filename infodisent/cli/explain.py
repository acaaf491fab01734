"""`infodisent explain`: figures and a page for given images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infodisent.cli.options import OutOption, RunArgument
from infodisent.cli.tables import print_result
from infodisent.progress import console


def explain(
    images: Annotated[list[Path], typer.Argument(help="Images to explain.")],
    run: RunArgument,
    out: OutOption = Path("explanations"),
    top: Annotated[int, typer.Option(min=1, help="Supporting channels to show.")] = 4,
    opposing: Annotated[int, typer.Option(min=0, help="Opposing channels to show.")] = 2,
    class_name: Annotated[
        str | None, typer.Option("--class", help="Explain this class, not the predicted one.")
    ] = None,
) -> None:
    """Explain predictions: which channels, where in the image, and what they mean.

    Writes one PNG per image and one page with all of them.

    Example: infodisent explain photo.jpg --run runs/fit
    """
    from infodisent.report.publish import report_images
    from infodisent.training.run import open_run

    loaded, prototypes, opened = open_run(run)
    page, failures = report_images(
        loaded,
        prototypes,
        images,
        out,
        metrics=opened.metrics,
        class_name=class_name,
        top=top,
        top_opposing=opposing,
    )
    print_result("figures", out)
    print_result("open", page)
    if failures:
        console.print(f"[yellow]{len(failures)} image(s) could not be read and were skipped:")
        for reason in failures:
            console.print(f"  {reason}", markup=False)
        raise typer.Exit(1)
