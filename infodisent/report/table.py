"""Predictions as a table: a CSV or JSON file, or text for a terminal and a pipe."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infodisent.explanations.predictions import Prediction, accuracy_of
from infodisent.files import replacing, write_json

ENDINGS = (".csv", ".json")


def check_table_path(path: str | os.PathLike[str]) -> Path:
    """The path, if a table can be written there; asked before hours of work, not after.

    Raises:
        ValueError: it ends in neither ``.csv`` nor ``.json``.
        IsADirectoryError, NotADirectoryError, PermissionError: no file can be made there.
    """
    path = Path(path)
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"predict: --out is {path}, it must end in {' or '.join(ENDINGS)}")
    check_file(path, "predict")
    return path


def check_file(path: Path, command: str) -> None:
    """Raise IsADirectoryError where the file is a folder, else as `check_folder` of its folder."""
    if path.is_dir():
        raise IsADirectoryError(f"{command}: --out is {path}, which is a folder")
    check_folder(path.parent, command)


def check_folder(folder: str | os.PathLike[str], command: str) -> None:
    """Raise NotADirectoryError or PermissionError where no file can be written in a folder.

    A folder that does not exist yet is judged by the nearest that does.
    """
    nearest = Path(os.path.abspath(folder))
    while not os.path.lexists(nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        raise NotADirectoryError(f"{command}: {nearest} is a file, expected a folder for results")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(f"{command}: {nearest} is not writable; choose another --out")


def write_predictions(
    path: str | os.PathLike[str],
    predictions: Sequence[Prediction],
    classes: Sequence[str],
    task: str = "multiclass",
) -> None:
    """Write a table, at once or not at all; the ending says which, ``.csv`` or ``.json``.

    Raises:
        ValueError: another ending.
    """
    path = check_table_path(path)
    if path.suffix.lower() == ".csv":
        with replacing(path) as temporary:
            text = csv_text(predictions, classes, task)
            # a path of undecodable bytes is written as the bytes it has
            temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")
        return
    found = accuracy_of(predictions) if task == "multiclass" else None
    summary = {
        "task": task,
        "classes": list(classes),
        "images": len(predictions),
        "unreadable": sum(bool(p.error) for p in predictions),
        "accuracy": found and found.accuracy,
        "balanced_accuracy": found and found.balanced,
        "images_of_known_class": found.images if found else 0,
    }
    rows = [json_row(p, classes, task) for p in predictions]
    write_json(path, {**summary, "predictions": rows})


def csv_text(predictions: Sequence[Prediction], classes: Sequence[str], task: str) -> str:
    """The table as CSV: UTF-8, commas, one header line, empty cells for what is not known."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns(classes, task))
    writer.writerows(_cells(p, task) for p in predictions)
    return buffer.getvalue()


def columns(classes: Sequence[str], task: str) -> list[str]:
    """Names of the columns; a multi-label table has a probability for every label."""
    if task == "multilabel":
        return ["path", "labels", *(f"p:{name}" for name in classes), "error"]
    return [
        *("path", "predicted", "probability", "logit", "second", "second_probability"),
        *("third", "third_probability", "explanation_size", "true", "correct", "error"),
    ]


def _cells(p: Prediction, task: str) -> list[Any]:
    if task == "multilabel":
        # a label may hold any separator, so labels are quoted as a CSV line of their own
        labels = io.StringIO()
        csv.writer(labels, delimiter=";", lineterminator="").writerow(p.labels)
        chances = p.probabilities or ()
        return [p.path, labels.getvalue() if p.labels else "", *map(_short, chances), p.error]
    others = [cell for name, chance in p.top[1:] for cell in (name, _short(chance))]
    first: list[Any] = [None] * 3
    if p.abstained:  # the classes are equal: none of them is an answer
        others = []
    elif p.top:
        first = [p.predicted, _short(p.top[0][1]), _short(p.logit or 0.0)]
    correct = None if p.correct is None else "yes" if p.correct else "no"
    return [
        p.path, *first, *others, *[None] * (4 - len(others)), p.explanation_size, p.true_name,
        correct, p.error,
    ]  # fmt: skip


def _short(value: float) -> str:
    return f"{value:.6g}"


def json_row(p: Prediction, classes: Sequence[str], task: str) -> dict[str, Any]:
    """One prediction, JSON-able; null for what is not known."""
    row: dict[str, Any] = {"path": p.path}
    if task == "multilabel":
        chances = (
            None if p.probabilities is None else dict(zip(classes, p.probabilities, strict=True))
        )
        row |= {"labels": None if chances is None else list(p.labels), "probabilities": chances}
    else:
        row |= {
            "predicted": p.predicted,
            "probability": p.top[0][1] if p.top else None,
            "logit": p.logit,
            "top": [{"class": name, "probability": chance} for name, chance in p.top],
            "explanation_size": p.explanation_size,
            "true": p.true_name,
            "correct": p.correct,
        }
    if p.abstained:
        row["abstained"] = True
    return {**row, "error": p.error or None}
