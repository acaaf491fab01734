"""Callbacks of `infodisent.training.fit.fit_head` that write figures for other programs."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infodisent.checks import check_choice
from infodisent.files import write_text
from infodisent.training.fit import Callback
from infodisent.training.folder import TABLE

LOGS = {"csv": TABLE, "tensorboard": "tensorboard"}
"""Kinds of logs, and their place in the folder of a run."""


def check_logs(owner: str, log: Sequence[str]) -> None:
    """Before anything that takes time.

    Raises:
        ValueError: a log that is not of `LOGS`.
        ModuleNotFoundError: see `tensorboard`.
    """
    for kind in log:
        check_choice(owner, "log", kind, tuple(LOGS))
    if "tensorboard" in log:
        _summary_writer()


def loggers(log: Sequence[str], folder: Path) -> list[Callback]:
    """Callbacks that write the logs of a run into its folder.

    Raises:
        ModuleNotFoundError: see `tensorboard`.
    """
    make = {"csv": csv_table, "tensorboard": tensorboard}
    return [make[kind](folder / LOGS[kind]) for kind in dict.fromkeys(log)]


def csv_table(path: str | os.PathLike[str]) -> Callback:
    """A callback that keeps a table of every epoch's figures, a row an epoch.

    The file is replaced at once or not at all. A run that goes on adds to the rows before its
    epoch, and replaces the others.
    """

    def write(epoch: int, figures: dict[str, float]) -> None:
        rows = [row for row in _read(Path(path)) if int(row["epoch"]) < epoch]
        _write(Path(path), [*rows, {"epoch": epoch, **figures}])

    return write


def write_history(path: str | os.PathLike[str], history: Sequence[dict[str, float]]) -> None:
    """The table of a whole training, as `csv_table` writes it."""
    _write(Path(path), [{"epoch": n, **figures} for n, figures in enumerate(history, 1)])


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    if rows and "epoch" not in rows[0]:
        raise ValueError(f"{path} is no table of a training: it has no column epoch")
    return rows


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    table = csv.DictWriter(text, names, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_text(path, text.getvalue())


def tensorboard(folder: str | os.PathLike[str]) -> Callback:
    """A callback that writes every epoch's figures for TensorBoard.

    Args:
        folder: of the event files, made if it is not there.

    Raises:
        ModuleNotFoundError: the package ``tensorboard`` is not installed.
    """
    writer = _summary_writer()(os.fspath(folder))

    def write(epoch: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            writer.add_scalar(name, value, epoch)
        writer.flush()

    return write


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ModuleNotFoundError(
            "a log for TensorBoard needs the package tensorboard: pip install tensorboard"
        ) from error
    return SummaryWriter
