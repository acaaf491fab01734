"""What `infodisent.report.judged.judge_run` leaves in a run's folder, and reading it back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from infodisent.evaluation.judgement import MEASURES
from infodisent.files import read_json, reading
from infodisent.training.folder import JUDGED, JUDGED_IMAGES

FORMAT = 2
_NUMBERS = ("mean", "low", "high")


def check_place(folder: Path) -> None:
    """Raise an OSError where a judgement cannot be written: asked before the work, not after.

    Raises:
        IsADirectoryError: a folder has the name of one of its files.
        PermissionError: the run's folder is not writable.
    """
    for name in (JUDGED, JUDGED_IMAGES):
        if (folder / name).is_dir():
            raise IsADirectoryError(f"judge: {folder / name} is a folder, must be a file or absent")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(
            f"judge: {folder} is not writable, and the figures are kept in it; judge a copy of it"
        )


def read_judgement(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what `judge_run` has written into a run's folder.

    Raises:
        FileNotFoundError: it has not been judged.
        ValueError: the file is damaged, or made by a newer version.
    """
    path = Path(folder) / JUDGED
    try:
        known: dict[str, Any] = read_json(path)
        with reading(path):
            newer = known["format"] > FORMAT
            if not newer:
                _check(known)
    except ValueError as error:
        raise ValueError(f"{error}; judge the run --again") from error
    if newer:
        raise ValueError(
            f"{path} has format {known['format']}, this version reads up to {FORMAT}; update "
            "infodisent, or judge the run --again"
        )
    return known


def _check(known: Mapping[str, Any]) -> None:
    """Raise KeyError or TypeError unless it has the form that `judge_run` writes."""
    for key, kind in {
        "made_from": Mapping, "title": str, "unit": str, "rows": list, "notes": list,
        "judged_images": Mapping,
    }.items():  # fmt: skip
        _check_kind(key, known[key], kind)
    _check_kind("recipe", known.get("recipe"), Mapping | None)
    _check_kind("run_seed", known.get("run_seed"), int | None)
    for key in ("held out", "pictures"):
        _check_kind(key, known["judged_images"][key], int)
    for note in known["notes"]:
        _check_kind("notes", note, str)
    for row in known["rows"]:
        _check_kind("measure", row["measure"], str)
        _check_kind("of", row["of"], str)
        _check_kind("images", row["images"], int)
        for key in _NUMBERS if row["measure"] in MEASURES else ():
            _check_kind(key, row[key], Real | None)


def _check_kind(name: str, value: object, kind: Any) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name}: {type(value).__name__}")
