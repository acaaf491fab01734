"""Text files of a row a line that begins with a number, as CUB-200-2011 has them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor


def numbered(path: Path) -> dict[str, str]:
    """A file of ``number name`` lines, at least one; a name may have spaces.

    Raises:
        ValueError: it has none, or a number twice.
    """
    lines = list(rows(path, str, str))
    names = dict(lines)
    if len(names) < max(1, len(lines)):
        raise ValueError(
            f"{path} has {len(lines)} lines with {len(names)} numbers, must have a number a line"
        )
    return names


def rows(path: Path, *columns: Callable[[str], Any]) -> Iterator[list[Any]]:
    """Lines of columns, each read by its function, the last of two with its spaces.

    Raises:
        ValueError: another line, or what a function raises; the message names file and line.
    """
    with path.open(encoding="utf-8", errors="surrogateescape") as lines:
        for at, line in enumerate(lines, 1):
            row = line.split(None, 1) if len(columns) == 2 else line.split()
            if not row:
                continue
            if len(row) != len(columns):
                raise ValueError(
                    f"{path} line {at} has {len(row)} columns, must have {len(columns)}"
                )
            try:
                yield [read(cell.strip()) for read, cell in zip(columns, row, strict=True)]
            except ValueError as error:
                raise ValueError(f"{path} line {at}: {error}") from None


def number(cell: str) -> float:
    """A finite number; ValueError where it is none."""
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{cell[:60]!r} is no number")
    return value


def place_in(file: str, named: Mapping[str, str]) -> Callable[[str], int]:
    """What reads a number of a file's lines as the position of its line."""
    places = {key: i for i, key in enumerate(named)}

    def read(cell: str) -> int:
        if cell not in places:
            raise ValueError(f"{cell[:60]!r} is no number of {file}")
        return places[cell]

    return read


def check_whole(path: Path, known: Tensor, names: Mapping[str, str]) -> None:
    """Raise ValueError unless a file has said something of every image."""
    if not bool(known.all()):
        first = list(names.values())[int((~known).nonzero()[0])]
        raise ValueError(f"{path} lacks {int((~known).sum())} of the images, such as {first}")
