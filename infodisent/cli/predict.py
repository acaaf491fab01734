"""`infodisent predict`: classes and probabilities of many images, as a table."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from infodisent.cli.images import ReadOption, reading_from
from infodisent.cli.modules import ModuleOption, module_from
from infodisent.cli.options import RunArgument
from infodisent.cli.preprocessing import IntensityRangeOption, PageOption
from infodisent.cli.tables import print_result
from infodisent.progress import console, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infodisent.explanations.predictions import Prediction

ROWS_SHOWN = 40


def predict(
    images: Annotated[
        list[str],
        typer.Argument(
            help="Images, folders (searched recursively), patterns such as '*.jpg', or tar files "
            "and data sets (hfds/NAME …)."
        ),
    ],
    run: RunArgument,
    out: Annotated[
        str | None,
        typer.Option(
            "--out", "-o", help="Table to write, .csv or .json; '-' prints CSV; default: a table."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per pass.")] = 32,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images.")] = 0,
    intensity_range: IntensityRangeOption = None,
    page: PageOption = None,
    read: ReadOption = None,
    module: ModuleOption = None,
) -> None:
    """Predict images: class, probability, logit, runners-up, length of the explanation.

    In folders that are called as the model's classes the true class is known, and the accuracy is
    printed. Example: infodisent predict photos/ --run runs/fit -o table.csv
    """
    from infodisent import ranks
    from infodisent.data.tar_index import INDEX
    from infodisent.explanations.predictions import accuracy_of, predict_images
    from infodisent.report.notices import say
    from infodisent.report.sources import find_sources
    from infodisent.report.table import check_table_path, csv_text, write_predictions
    from infodisent.training.run import open_run

    to_file = out not in (None, "-")
    if to_file:
        check_table_path(str(out))
    ranks.start()
    # a table in a pipe must have nothing else in it
    piped = out == "-" or (out is None and not sys.stdout.isatty())
    opened, _, _ = open_run(run, module=module_from(module))
    # one output is a label that is there or not
    task = "multilabel" if len(opened.classes) == 1 else opened.task
    classes = opened.classes if task == "multiclass" else ()
    with ranks.leader_first():
        sources = find_sources(
            images, classes, command="predict", reading=reading_from(read), index=run / INDEX
        )
    predictions = predict_images(
        opened.model,
        sources.paths,
        classes=opened.classes,
        true_names=[item.true_name for item in sources.items],
        task=task,
        transform=opened.transform,
        intensity_range=intensity_range,
        page=page,
        batch_size=batch_size,
        num_workers=workers,
        progress=not piped,
    )
    leads = ranks.leads()
    ranks.stop()
    if not leads:  # of several processes the leading one writes and speaks
        return
    failures = [p.error for p in predictions if p.error]
    if len(failures) == len(predictions):
        raise ValueError(f"predict: no image can be read: {'; '.join(failures[:3])}")
    lines = sources.notices()
    if failures:
        lines.append(f"{len(failures)} image(s) could not be read; the table names them:")
        lines += [f"  {reason}" for reason in failures[:10]]
        lines += [f"  … and {len(failures) - 10} more"] if len(failures) > 10 else []
    found = accuracy_of(predictions) if task == "multiclass" else None
    if found:
        lines.append(
            f"accuracy {found.accuracy:.1%}, balanced {found.balanced:.1%}, on {found.images:,} "
            "image(s) whose folder, or data set, names their class"
        )
    silent = sum(prediction.abstained for prediction in predictions)
    if silent:
        lines.append(f"the model abstains on {silent:,} image(s): no class is supported")
    if piped:
        encoding = sys.stdout.encoding or "utf-8"
        text = csv_text(predictions, opened.classes, task)
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        for line in lines:
            print(line.encode("ascii", "backslashreplace").decode(), file=sys.stderr)
        return
    if to_file:
        write_predictions(str(out), predictions, opened.classes, task)
    else:
        console.print(_table(predictions, task))
    for line in lines:
        say(True, line)
    if to_file:
        print_result("table", out)


def _table(predictions: Sequence[Prediction], task: str) -> Table:
    """The first predictions for a terminal."""
    more = len(predictions) - ROWS_SHOWN
    caption = f"{more:,} more; -o table.csv has them all" if more > 0 else None
    table = Table(caption=caption, caption_justify="left")
    names = ("image", "labels", "") if task == "multilabel" else ("image", "predicted", "true")
    for name in names:
        table.add_column(name, overflow="fold")
    table.add_column("", justify="right")
    for p in predictions[:ROWS_SHOWN]:
        if p.error:
            cells = [p.path, p.error, "", ""]
        elif task == "multilabel":
            cells = [p.path, ", ".join(p.labels), "", f"{p.top[0][0]} {p.top[0][1]:.1%}"]
        else:
            wrong = "✗ " if p.correct is False else ""
            answer = "(abstains)" if p.abstained else str(p.predicted)
            cells = [p.path, answer, wrong + (p.true_name or ""), f"{p.top[0][1]:.1%}"]
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table
