"""What commands print: the comparison of heads, and where results lie."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from infodisent.progress import console


def metrics_table(metrics: dict[str, Any]) -> Table:
    """The comparison of heads as a table; `metrics` is what ``metrics.json`` of a run holds."""
    images = metrics["images"]
    table = Table(
        title=f"{metrics['backbone']}: {images['val']} held-out images, "
        f"{len(images['classes'])} classes, trained on {images['train']}"
    )
    table.add_column("head", no_wrap=True)
    for name in ("accuracy", "balanced", "macro F1", "loss", _units(metrics)):
        table.add_column(name, justify="right")
    for row in metrics["rows"]:
        size = row["explanation_size"]
        table.add_row(
            row["head"],
            f"{row['accuracy']:.1%}",
            f"{row['balanced_accuracy']:.1%}",
            f"{row['f1']:.3f}",
            f"{row['loss']:.3f}",
            "–" if size is None else f"{size:.0f}",
        )
    return table


def print_metrics(metrics: dict[str, Any]) -> None:
    """Print the comparison and what to read in it."""
    console.print(metrics_table(metrics))
    if all(row["head"] != "original head" for row in metrics["rows"]):
        console.print("[dim]The original head does not know these classes, so it has no row.")
    units = _units(metrics)
    note = f"[dim]{units}: median number of {units}, largest contributions first, that reach 95 % "
    note += "of the predicted class's logit."
    if any(row["head"] == "no rotation" for row in metrics["rows"]):
        note += " no rotation: the same head with U = I."
    console.print(note)


def _units(metrics: dict[str, Any]) -> str:
    """What evidence is counted in; runs of version 0.1 do not say: channels."""
    return f"{metrics.get('unit', 'channel')}s"


def print_result(what: str, value: object) -> None:
    """One result, such as a path, on one line, whatever characters it has."""
    # a path may hold bytes that are no text
    text = str(value).encode("utf-8", "backslashreplace").decode("utf-8")
    console.print(f"{what:<8} {text}", markup=False, highlight=False, soft_wrap=True)
