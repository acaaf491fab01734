"""`infodisent evaluate`: figures of a trained model."""

from __future__ import annotations

from typing import Annotated

import typer

from infodisent.cli.images import ReadOption, reading_from
from infodisent.cli.modules import ModuleOption, module_from
from infodisent.cli.options import RunArgument
from infodisent.cli.tables import print_metrics


def evaluate(
    run: RunArgument,
    images: Annotated[
        str | None,
        typer.Option(
            help="Another folder of class folders, CSV, tar files or a data set (hfds/NAME …); "
            "default: the run's held-out images."
        ),
    ] = None,
    read: ReadOption = None,
    module: ModuleOption = None,
) -> None:
    """Print accuracy and explanation size of a trained model.

    Example: infodisent evaluate --run runs/fit
    """
    from infodisent import ranks
    from infodisent.training.run import evaluate_run

    ranks.start()
    reading = reading_from(read)
    if images is None and reading.given():
        raise ValueError("evaluate: --read is of --images")
    figures = evaluate_run(run, images, reading=reading, module=module_from(module))
    if ranks.leads():
        print_metrics(figures)
    ranks.stop()
