"""`infodisent evaluate`: figures of a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infodisent.cli.modules import ModuleOption, module_from
from infodisent.cli.options import RunArgument
from infodisent.cli.tables import print_metrics


def evaluate(
    run: RunArgument,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Another folder of class folders, CSV or tar files; default: the run's held-out "
            "images."
        ),
    ] = None,
    module: ModuleOption = None,
) -> None:
    """Print accuracy and explanation size of a trained model.

    Example: infodisent evaluate --run runs/fit
    """
    from infodisent import ranks
    from infodisent.training.run import evaluate_run

    ranks.start()
    figures = evaluate_run(run, images, module=module_from(module))
    if ranks.leads():
        print_metrics(figures)
    ranks.stop()
