"""`infodisent prototypes`: what channels of a trained model mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infodisent.cli.modules import ModuleOption, module_from
from infodisent.cli.options import ImagesRootOption, RunArgument
from infodisent.cli.tables import print_result


def prototypes(
    run: RunArgument,
    channels: Annotated[
        str | None,
        typer.Option(help="Channels to draw, e.g. 3,17,200; default: the heaviest of each class."),
    ] = None,
    keep: Annotated[int, typer.Option("-k", min=1, help="Images per channel and side.")] = 5,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="PNG to write; default: in the run, named by channels."),
    ] = None,
    module: ModuleOption = None,
    images_root: ImagesRootOption = None,
) -> None:
    """Find the training images that excite every channel most, and draw some of them.

    Example: infodisent prototypes --run runs/fit --channels 3,17,200 -k 8
    """
    from infodisent import ranks
    from infodisent.report.publish import draw_prototypes

    ranks.start()
    picture = draw_prototypes(
        run, channels, keep, out, images_root=images_root, module=module_from(module)
    )
    if ranks.leads():
        print_result("picture", picture)
    ranks.stop()
