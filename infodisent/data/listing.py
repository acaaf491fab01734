"""A table of images and labels (CSV) -> `ImageSet`."""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from infodisent.data.archives import is_there
from infodisent.data.contents import with_notices
from infodisent.data.items import TASKS, ImageItem, ImageSet, counted, listed
from infodisent.data.splits import check_fraction, hold_out, label_indices, split_name
from infodisent.data.tree import extensions

LISTINGS = (".csv", ".tsv")

COLUMNS = {
    "image": "image filename file_name filepath file_path path image_path img_path file image_id "
    "image_index img",
    "label": "label labels class target class_name category finding_labels",
    "split": "split set subset fold",
    "group": "group group_id patient patient_id subject subject_id",
}
"""Names of the columns, in any case, with spaces or dashes for underscores; the first counts."""

_ONE = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
_UNSURE = {"-1", "-1.0", ""}


@dataclass
class _Row:
    """One line: its number, the image as written, and the text of the other columns."""

    line: int
    image: str
    labels: tuple[str, ...] | None  # None where the line has no label
    split: str = ""
    group: str = ""


@dataclass
class _Table:
    path: Path
    names: list[str]
    lines: list[tuple[int, list[str]]]
    roles: dict[str, int] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)

    def column(self, number: int) -> list[str]:
        return [cells[number] for _, cells in self.lines]


def read_csv(
    path: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    val_fraction: float | None = None,
    seed: int = 0,
    task: str = "multiclass",
    classes: Sequence[str] | None = None,
) -> ImageSet:
    """Labelled images from a table with a line of column names; comma, semicolon or tab between.

    Columns, see `COLUMNS`: the image; the label, or a column of 0 and 1 for each class; and, if
    they are there, the split (names as `scan_folder` knows them; otherwise a part of every class is
    held out) and the group that a split must not divide, such as the patient.

    Args:
        path: the table.
        root: folder that the images' paths are relative to; default: the table's folder.
        val_fraction: part of every class held out, in (0, 1); default 0.25.
        seed: of the split.
        task: "multiclass"; or "multilabel": several labels with ``|`` or ``;`` between them, or any
            number of ones in the columns of 0 and 1.
        classes: of a model whose images are to be scored: all of them become "val" items.

    Raises:
        FileNotFoundError: no such table, or none of its images is there.
        ValueError: a column is missing, or values that cannot be understood; names table and line.
    """
    place = Path(os.path.abspath(path))
    if task not in TASKS:
        raise ValueError(f"read_csv: task is {task!r}, allowed are {', '.join(TASKS)}")
    check_fraction(val_fraction)
    table = _read(place)
    base = place.parent if root is None else Path(os.path.abspath(root))
    rows = _present(table, _unique(table, _rows(table, task), task), base)
    names = tuple(classes) if classes is not None else _class_names(table, rows)
    if len(names) < (1 if task == "multilabel" else 2):
        raise ValueError(
            f"{place} has {counted(len(names), 'class')} ({listed(names)}), at least 2 are needed"
        )
    rows = _split(table, rows, testing=classes is not None)
    index = {name: y for y, name in enumerate(names)}
    unknown = sorted({name for row in rows for name in row.labels or ()} - set(names))
    if unknown:
        raise ValueError(
            f"{place} has classes the model lacks: {listed(unknown, 6)}; the model knows "
            f"{', '.join(names)}"
        )
    items = []
    for row in rows:
        labels = tuple(sorted(index[name] for name in row.labels or ()))
        split = "val" if classes is not None else row.split or "train"
        items.append(
            ImageItem(row.image, labels if task == "multilabel" else labels[0], split, row.group)
        )
    images = ImageSet(str(base), names, tuple(items), task)
    if classes is None and "split" not in table.roles:
        return with_notices(hold_out(images, val_fraction, seed), *table.notices)
    if classes is None:
        _check_splits(table, images)
        if val_fraction is not None:
            table.notices.append(
                f"val_fraction {val_fraction} has no effect: {place.name} has a split column"
            )
    return with_notices(images, *table.notices)


def _read(path: Path) -> _Table:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; expected a CSV of images and labels")
    try:
        text = path.read_text(encoding="utf-8-sig")
        first = text.lstrip("\r\n").split("\n", 1)[0]
        comma = max(",;\t", key=first.count)
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=comma))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8: {error}") from error
    except csv.Error as error:
        raise ValueError(f"{path} is not a CSV: {error}") from error
    filled = [(n, [c.strip() for c in cells]) for n, cells in enumerate(lines, 1) if any(cells)]
    if len(filled) < 2:
        raise ValueError(f"{path} has {len(filled)} line(s): column names and images are expected")
    names = filled[0][1]
    for line, cells in filled[1:]:
        if len(cells) != len(names):
            raise ValueError(
                f"{path}, line {line}: {counted(len(cells), 'column')}, {len(names)} are named"
            )
    table = _Table(path, names, filled[1:])
    plain = [re.sub(r"[\s-]+", "_", name.casefold()) for name in names]
    for role, known in COLUMNS.items():
        number = next((plain.index(name) for name in known.split() if name in plain), None)
        if number is not None:
            table.roles[role] = number
    if "image" not in table.roles:
        raise ValueError(
            f"{path} has no column for the image: its first line is {listed(names, 8)}; "
            f"allowed are {COLUMNS['image'].replace(' ', ', ')}"
        )
    return table


def _rows(table: _Table, task: str) -> list[_Row]:
    roles, unlabelled = table.roles, []
    several = _label_columns(table) if "label" not in roles else []
    used = {*roles.values(), *several}
    unused = [name for n, name in enumerate(table.names) if n not in used and name]
    if unused:
        table.notices.append(f"columns not used: {listed(unused, 8)}")
    rows = []
    for line, cells in table.lines:
        labels: tuple[str, ...] | None
        if several:
            labels = tuple(table.names[n] for n in several if _ONE[cells[n].casefold()])
            if task == "multiclass" and len(labels) != 1:
                raise ValueError(
                    f"{table.path}, line {line}: {len(labels)} of the columns "
                    f"{listed(table.names[n] for n in several)} are 1, one is expected: pass "
                    "task='multilabel' / --multilabel for any number of labels"
                )
        elif task == "multilabel":
            parts = (part.strip() for part in re.split(r"[|;]", cells[roles["label"]]))
            labels = tuple(dict.fromkeys(part for part in parts if part))
        else:
            text = cells[roles["label"]]
            labels = (text,) if text else None
        if labels is None:
            unlabelled.append(cells[roles["image"]])
            continue
        split, group = (cells[roles[r]] if r in roles else "" for r in ("split", "group"))
        rows.append(_Row(line, cells[roles["image"]], labels, split, group))
    if unlabelled:
        number = counted(len(unlabelled), "line")
        table.notices.append(f"left out: {number} without a label ({listed(unlabelled)})")
    joined = [row for row in rows if task == "multiclass" and "|" in (row.labels or ("",))[0]]
    if joined:
        table.notices.append(
            f"labels such as {(joined[0].labels or ('',))[0]!r} are taken for one class each: "
            "task='multilabel' / --multilabel takes them apart"
        )
    return rows


def _label_columns(table: _Table) -> list[int]:
    """The columns of 0 and 1."""
    free = [n for n in range(len(table.names)) if n not in table.roles.values() and table.names[n]]
    found = []
    for n in free:
        values = {value.casefold() for value in table.column(n)}
        if values <= set(_ONE):
            found.append(n)
        elif values <= {*_ONE, *_UNSURE} and values & set(_ONE):
            odd = sorted(values - set(_ONE))[0]
            line = next(line for line, cells in table.lines if cells[n].casefold() == odd)
            raise ValueError(
                f"{table.path}, line {line}: column {table.names[n]} holds {odd!r}, allowed are "
                "0 and 1"
            )
    if not found:
        raise ValueError(
            f"{table.path} has no column for the label: its columns are {listed(table.names, 8)}; "
            f"allowed are {COLUMNS['label'].replace(' ', ', ')}, or a column of 0 and 1 for each "
            "class"
        )
    table.notices.append(f"labels from the columns {listed((table.names[n] for n in found), 8)}")
    return found


def _unique(table: _Table, rows: Sequence[_Row], task: str) -> list[_Row]:
    """A row for each image; several rows of one image are its labels, or refused."""
    first: dict[str, _Row] = {}
    again = 0
    for row in rows:
        known = first.setdefault(row.image, row)
        if known is row:
            continue
        again += 1
        where = f"{table.path}, lines {known.line} and {row.line}: {row.image}"
        if (known.split, known.group) != (row.split, row.group):
            raise ValueError(f"{where} is in two splits or groups")
        if known.labels != row.labels and task == "multiclass":
            raise ValueError(
                f"{where} has the labels {(known.labels or ('',))[0]} and "
                f"{(row.labels or ('',))[0]}: pass task='multilabel' / --multilabel for several"
            )
        known.labels = tuple(dict.fromkeys((*(known.labels or ()), *(row.labels or ()))))
    if again:
        table.notices.append(f"{counted(again, 'line')} of an image named before, taken as one")
    return list(first.values())


def _present(table: _Table, rows: Sequence[_Row], base: Path) -> list[_Row]:
    """The rows whose files are there, with their paths."""
    endings = extensions()
    present, missing = [], []
    for row in rows:
        if re.match(r"[a-z][a-z0-9+.-]+://", row.image, re.IGNORECASE):
            raise ValueError(
                f"{table.path}, line {row.line}: {row.image} is an address: download it first"
            )
        file = _file(base, row.image, endings)
        if file is None:
            missing.append(row.image)
        else:
            row.image = file
            present.append(row)
    if not present:
        raise FileNotFoundError(
            f"{table.path}: none of its {counted(len(rows), 'image')} is there, such as "
            f"{listed(missing, 1)} in {base}; root=… says where they lie"
        )
    if missing:
        number = counted(len(missing), "image")
        table.notices.append(f"left out: {number}, no such file ({listed(missing)})")
    return present


def _file(base: Path, name: str, endings: Sequence[str]) -> str | None:
    """The file of a name, which may be written with backslashes or without its ending."""
    for text in dict.fromkeys((name, name.replace("\\", "/"))):
        place = os.path.abspath(base / text)
        if is_there(place):
            return place
        if Path(text).suffix.lower() not in endings:
            usual = (".jpg", ".jpeg", ".png", *endings)
            found = next((place + end for end in usual if os.path.isfile(place + end)), None)
            if found:
                return found
    return None


def _class_names(table: _Table, rows: Sequence[_Row]) -> tuple[str, ...]:
    """All labels: in the columns' order, by number where they are numbers, else by name."""
    found = {name for row in rows for name in row.labels or ()}
    if "label" not in table.roles:
        return tuple(name for name in table.names if name in found)
    if all(re.fullmatch(r"-?\d+", name) for name in found):
        return tuple(sorted(found, key=int))
    return tuple(sorted(found))


def _split(table: _Table, rows: Sequence[_Row], *, testing: bool) -> list[_Row]:
    """The rows of the splits that count, their split written as "train" or "val"."""
    if "split" not in table.roles:
        return list(rows)
    column = table.names[table.roles["split"]]
    roles: dict[str, str] = {}
    for value, count in Counter(row.split for row in rows).items():
        found = split_name(value)
        if found is None or found.role == "fold" or found.of:
            line = next(row.line for row in rows if row.split == value)
            raise ValueError(
                f"{table.path}, line {line}: {column} is {value!r} ({counted(count, 'line')}), "
                "allowed are train and val or test"
            )
        roles[value] = found.role
    kinds = set(roles.values())
    held = "val" if "val" in kinds else "test"
    if kinds == {"val", "test"} or kinds == {"train", "val", "test"}:
        number = counted(sum(roles[row.split] == "test" for row in rows), "image")
        table.notices.append(f"left out: {number} of the test split, val is held out")
    wanted = {held: "val"} if testing and held in kinds else {"train": "train", held: "val"}
    kept = [row for row in rows if roles[row.split] in wanted]
    for row in kept:
        row.split = wanted[roles[row.split]]
    return kept


def _check_splits(table: _Table, images: ImageSet) -> None:
    trained, tested = (
        {
            images.classes[y]
            for item in images.items
            if item.split == split
            for y in label_indices(item.label)
        }
        for split in ("train", "val")
    )
    splits = {item.split for item in images.items}
    for split, what in (("train", "to train on"), ("val", "to hold out")):
        if split not in splits:
            raise ValueError(
                f"{table.path} has no images {what} that are there; its split column must hold "
                "train and val (or test), or be left out"
            )
    if tested - trained:
        raise ValueError(
            f"{table.path}: val has classes that train lacks: {listed(sorted(tested - trained), 6)}"
            f"; train has {listed(sorted(trained), 6)}"
        )
