"""What commands print: the comparison of heads, and where results lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer
from rich.table import Table

from infodisent.progress import console, printable

MULTICLASS = (
    ("accuracy", "accuracy", "{:.1%}"),
    ("balanced_accuracy", "balanced accuracy", "{:.1%}"),
    ("f1", "macro F1", "{:.3f}"),
    ("loss", "loss", "{:.3f}"),
)
MULTILABEL = (
    ("mean_ap", "mean AP", "{:.3f}"),
    ("auroc", "macro AUROC", "{:.3f}"),
    ("f1", "macro F1", "{:.3f}"),
    ("subset_accuracy", "all labels right", "{:.1%}"),
    ("loss", "loss", "{:.3f}"),
)
"""Key of a row, heading of its column, format."""


def metrics_title(metrics: dict[str, Any]) -> str:
    """What the comparison is of, in a line."""
    images = metrics["images"]
    kinds = "labels" if _multilabel(metrics) else "classes"
    text = f"{metrics['backbone']}: {images['val']} held-out images, "
    text += f"{len(images['classes'])} {kinds}"
    # other images than the run's: nothing was trained on them
    return text + (f", trained on {images['train']}" if images["train"] else "")


def metrics_table(metrics: dict[str, Any]) -> Table:
    """The comparison of heads as a table; `metrics` is what ``metrics.json`` of a run holds."""
    columns = MULTILABEL if _multilabel(metrics) else MULTICLASS
    table = Table()
    table.add_column("head", no_wrap=True)
    for _, heading, _ in columns:
        table.add_column(heading, justify="right")
    table.add_column(_units(metrics), justify="right")
    for row in metrics["rows"]:
        table.add_row(
            row["head"],
            *("–" if row[key] is None else form.format(row[key]) for key, _, form in columns),
            _size(row),
        )
    return table


def _size(row: dict[str, Any]) -> str:
    """How long explanations are; by magnitudes, with a star, where only that is defined."""
    if row["explanation_size"] is not None:
        return f"{row['explanation_size']:.0f}"
    magnitude = row.get("magnitude_size")  # runs of older versions do not say
    return "–" if magnitude is None else f"{magnitude:.0f}*"


def print_metrics(metrics: dict[str, Any]) -> None:
    """Print the comparison and what to read in it."""
    console.print(metrics_title(metrics), markup=False, highlight=False, soft_wrap=True)
    console.print(metrics_table(metrics))
    for line in _imbalance(metrics):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for row in metrics["rows"]:
        if row.get("abstained") is not None:
            line = f"{row['head']} abstains on {row['abstained']:.1%} of the images."
            console.print(line, markup=False, highlight=False)
    if all(row["head"] != "original head" for row in metrics["rows"]):
        console.print("[dim]The original head does not know these classes, so it has no row.")
    units = _units(metrics)
    note = f"[dim]{units}: median number of {units}, largest contributions first, that reach 95 % "
    note += "of the "
    note += "likeliest label's " if _multilabel(metrics) else "predicted class's "
    note += f"{metrics.get('score', 'logit')}."
    if any(_size(row).endswith("*") for row in metrics["rows"]):
        note += f" *: no sum is positive; the {units} that carry 95 % of all magnitudes."
    if any(row["head"] == "no rotation" for row in metrics["rows"]):
        note += " no rotation: the same head with U = I."
    console.print(note)


def _imbalance(metrics: dict[str, Any]) -> list[str]:
    """What to know of imbalanced classes; nothing where they are balanced, or of old runs."""
    from infodisent.training.objective import imbalanced

    counts = metrics["images"].get("train_per_class", [])
    if _multilabel(metrics) or not imbalanced(counts):
        return []
    few, many = min(c for c in counts if c), max(counts)
    lines = [
        f"Classes are imbalanced ({few} to {many} training images): read balanced accuracy, the "
        "mean over classes."
    ]
    title = _trained(metrics)
    worst = metrics.get("worst_classes", {}).get(title, [])[:3]
    if worst:
        named = ", ".join(f"{w['class']} {w['recall']:.0%} of {w['images']}" for w in worst)
        lines.append(f"{title} finds least of: {named}")
    return lines


def _trained(metrics: dict[str, Any]) -> str | None:
    """Title of the run's own head: the first that is no yardstick."""
    titles = [row["head"] for row in metrics["rows"]]
    return next((t for t in titles if t not in ("original head", "linear probe")), None)


def _multilabel(metrics: dict[str, Any]) -> bool:
    """Whether images have any number of labels; runs of version 0.1 do not say: one."""
    task: str = metrics.get("task", "multiclass")
    return task == "multilabel"


def _units(metrics: dict[str, Any]) -> str:
    """What evidence is counted in; runs of version 0.1 do not say: channels."""
    return f"{metrics.get('unit', 'channel')}s"


def print_result(what: str, value: object) -> None:
    """One result, such as a path, on one line, whatever characters it has."""
    console.print(
        f"{what:<8} {printable(str(value))}", markup=False, highlight=False, soft_wrap=True
    )


def exit_if_skipped(failures: Sequence[str]) -> None:
    """Print why images could not be read, and end with status 1; nothing where all could."""
    if not failures:
        return
    console.print(f"[yellow]{len(failures)} image(s) could not be read and were skipped:")
    for reason in failures:
        console.print(printable(f"  {reason}"), markup=False, highlight=False)
    raise typer.Exit(1)
