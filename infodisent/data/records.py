"""What readers of data sets find, tar shards and tables of images -> `ImageSet`.

A reader (`infodisent.data.readers`) lists every image with its label as text and the name of its
split as the data set writes it; which splits are trained on and held out is decided here.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from infodisent.data.items import ImageItem, ImageSet, counted, listed
from infodisent.data.splits import hold_out, split_name


@dataclass(frozen=True)
class Reading:
    """How a data set with splits and columns is read; what is "" is found out.

    Attributes:
        train, val: names of the splits to train on and to hold out.
        split: the only split to look at.
        image, label: names of the columns, or, in tar files, the ending of the image's file, and
            the ending or the key in ``.json`` of its label.
        names: a text file that names the classes of numbered labels, one a line.
    """

    train: str = ""
    val: str = ""
    split: str = ""
    image: str = ""
    label: str = ""
    names: str = ""

    def given(self) -> bool:
        """Whether anything is not left to be found out."""
        return any(getattr(self, each.name) for each in fields(self))

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Reading:
        """From ``name=value`` options.

        Raises:
            ValueError: a name that is none of the attributes.
        """
        known = [each.name for each in fields(cls)]
        unknown = next((name for name in values if name not in known), None)
        if unknown is not None:
            raise ValueError(f"--read is {unknown!r}=…, allowed here: {', '.join(known)}")
        return cls(**{name: str(value) for name, value in values.items()})


class Record(NamedTuple):
    """One image: split, "" for none; label, None for none, several of them a tuple; path."""

    split: str
    label: str | tuple[str, ...] | None
    path: str


@dataclass
class Records:
    """The images of a data set.

    Attributes:
        what: the data set, for messages.
        root: folder the paths lie in.
        read_from: how many files of what kind were read.
        rows: the images.
        names: of the classes that numbered labels count, from 0; None where there are none.
        named_by: who says so.
        left_out: why images are not taken, to count.
    """

    what: str
    root: str
    read_from: str = ""
    rows: list[Record] = field(default_factory=list)
    names: tuple[str, ...] | None = None
    named_by: str = ""
    left_out: Counter[str] = field(default_factory=Counter)

    def said(self) -> tuple[str, ...]:
        """All notices."""
        lines = (
            f"left out: {counted(count, 'sample')} {why}"
            for why, count in self.left_out.most_common()
            if count
        )
        return (f"read from {self.read_from}; nothing is unpacked", *lines)


def divided(
    records: Records, reading: Reading, val_fraction: float | None = None, seed: int = 0
) -> ImageSet:
    """The images that are trained on and held out; a part of every class where no split is.

    Raises:
        ValueError: no labelled image, fewer than two classes, held-out classes that no image to
            train on is of, a label that the list of names does not reach, or no such split.
    """
    rows = _of_split(records, reading.split)
    roles = _roles(records, {row.split for row in rows}, reading)
    rows = _labelled(records, _chosen(records, rows, roles))
    classes, index = _classes(records, rows)
    of = {row.label: _indices(row.label, index) for row in rows}
    present = {y for label in of.values() for y in label}
    if len(present) < 2:
        one = listed(classes[y] for y in present)
        raise ValueError(f"{records.what} has images of one class only, {one}; 2 are needed")
    trained = {y for row in rows if roles[row.split] == "train" for y in of[row.label]}
    if unknown := sorted(present - trained):
        raise ValueError(
            f"{records.what}: no image to train on is of "
            f"{listed((classes[n] for n in unknown), 6)}, which held-out images are of; the data "
            "set, or an archive's name or folder, says of which split it is"
        )
    several = any(isinstance(row.label, tuple) for row in rows)
    items = tuple(
        ImageItem(row.path, of[row.label] if several else of[row.label][0], roles[row.split])
        for row in sorted(rows, key=lambda row: (roles[row.split], str(row.label), row.path))
    )
    task = "multilabel" if several else "multiclass"
    images = ImageSet(records.root, classes, items, task)
    said = records.said()
    if not any(item.split == "val" for item in items):
        images = hold_out(images, val_fraction, seed)
    elif val_fraction is not None:
        said += (f"val_fraction {val_fraction} has no effect: the images are split already",)
    return ImageSet(images.root, classes, images.items, task, (*said, *images.notices))


def joined(train: Records, val: Records, reading: Reading) -> Records:
    """Two data sets, one to train on and one to hold out, as one.

    Of each the split that `reading` names is taken, or its own of that kind, or all of it where it
    has none.

    Raises:
        ValueError: they count their classes by different names, or have no such split.
    """
    if reading.split:
        raise ValueError("--read split is of one data set; of --train and --val say train, val")
    if train.names != val.names:
        raise ValueError(
            f"{train.what} and {val.what} name their classes differently: "
            f"{listed(train.names or ('not at all',))}; {listed(val.names or ('not at all',))}"
        )
    first, second = (
        _of_split(records, split) if split else _of_role(records, role)
        for records, role, split in ((train, "train", reading.train), (val, "val", reading.val))
    )
    rows = [row._replace(split="train") for row in first]
    rows += [row._replace(split="val") for row in second]
    return Records(
        f"{train.what} with {val.what}",
        root_of([train.root, val.root]),
        " and ".join(dict.fromkeys((train.read_from, val.read_from))),
        rows,
        train.names,
        train.named_by,
        train.left_out + val.left_out,
    )


def for_scoring(
    records: Records,
    classes: Sequence[str],
    task: str = "multiclass",
    reading: Reading | None = None,
) -> ImageSet:
    """The held-out images, all where none are, as "val" items labelled as a model's `classes`.

    Raises:
        ValueError: no labelled images, an image of a class that the model lacks, or labels of
            another task.
    """
    asked = reading or Reading()
    only = asked.split or asked.val
    rows = _of_split(records, only) if only else _of_role(records, "val")
    rows = _labelled(records, rows)
    several = any(isinstance(row.label, tuple) for row in rows)
    if several != (task == "multilabel"):
        have = "several labels an image" if several else "one label an image"
        raise ValueError(f"{records.what} has {have}, but the model's task is {task}")
    names, index = _classes(records, rows)
    of = {row.label: tuple(names[y] for y in _indices(row.label, index)) for row in rows}
    unknown = sorted({name for every in of.values() for name in every} - set(classes))
    if unknown:
        raise ValueError(
            f"{records.what} has classes the model lacks: {listed(unknown, 6)}; the model knows "
            f"{listed(classes, 6)}"
        )
    number = {name: place for place, name in enumerate(classes)}
    items = []
    for row in _ordered(rows):
        label = tuple(sorted(number[name] for name in of[row.label]))
        items.append(ImageItem(row.path, label if several else label[0], "val"))
    return ImageSet(records.root, tuple(classes), tuple(items), task, records.said())


def named_rows(records: Records, reading: Reading | None = None) -> list[tuple[str, str | None]]:
    """Path and class's name, None where it has no single one, of the images of all splits."""
    rows = _of_split(records, (reading or Reading()).split)
    single = [row for row in rows if isinstance(row.label, str)]
    names, index = _classes(records, single)
    return [
        (row.path, names[index[row.label]] if isinstance(row.label, str) else None) for row in rows
    ]


def root_of(paths: Sequence[str]) -> str:
    """The folder that all folders lie in; the first where they are on different drives."""
    try:
        return os.path.commonpath(paths)
    except ValueError:
        return paths[0]


def class_names(listing: Path) -> tuple[str, ...]:
    """The lines of a text file; ValueError where one is blank or it is no text."""
    try:
        text = listing.read_text(encoding="utf-8-sig").rstrip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{listing} is not a text file in UTF-8: {error}") from error
    names = [line.strip() for line in text.splitlines()]
    if not all(names):  # to leave it out would shift all names behind it
        raise ValueError(f"{listing}, line {names.index('') + 1}, is blank: a class without a name")
    return tuple(names)


def _ordered(rows: Sequence[Record]) -> list[Record]:
    return sorted(rows, key=lambda row: (row.split, str(row.label), row.path))


def _of_split(records: Records, split: str) -> list[Record]:
    """The rows of one split; all of them for ""."""
    if not split:
        return records.rows
    name = _match(records, split, {row.split for row in records.rows}, "split")
    return [row for row in records.rows if row.split == name]


def _match(records: Records, given: str, splits: set[str], option: str) -> str:
    """The split that is called so, or is of the same kind: ``validation`` for ``val``."""
    if given in splits:
        return given
    asked = split_name(given)
    alike = [name for name in splits if asked is not None and split_name(name) == asked]
    if len(alike) != 1:
        known = listed(sorted(name for name in splits if name), 8) or "none"
        raise ValueError(f"{records.what} has no split {given!r} ({option}); it has: {known}")
    return alike[0]


def _roles(records: Records, splits: set[str], reading: Reading) -> dict[str, str]:
    """ "train" or "val" for the splits that are taken."""
    roles: dict[str, str] = {}
    if reading.val:
        roles[_match(records, reading.val, splits, "val")] = "val"
    if reading.train:
        name = _match(records, reading.train, splits, "train")
        if name in roles:
            raise ValueError(f"{records.what}: train and val are both the split {name!r}")
        return {**roles, name: "train"} | ({} if reading.val else _held(splits - {name}))
    rest = splits - set(roles)
    trained = _of_kind(rest, "train") | (rest & {""})
    held = {} if reading.val else _held(rest)
    if not trained:  # one that is called otherwise is all there is
        trained = rest if len(rest) == 1 else {n for n in rest - set(held) if not split_name(n)}
        held = {name: role for name, role in held.items() if name not in trained}
    if len(trained - {""}) > 1 or not trained:
        raise ValueError(
            f"{records.what}: which of its splits is to train on cannot be told: "
            f"{listed(sorted(splits), 8)}; pass --read train=NAME, and val=NAME"
        )
    return {**roles, **held, **dict.fromkeys(trained, "train")}


def _held(splits: set[str]) -> dict[str, str]:
    for kind in ("val", "test"):
        if found := _of_kind(splits, kind):
            return {min(found): "val"}
    return {}


def _of_kind(splits: set[str], kind: str) -> set[str]:
    """Splits of a kind: those called only that, or else those that say more."""
    known = {name: split_name(name) for name in splits}
    found = {name for name, role in known.items() if role is not None and role.role == kind}
    plain = {name for name in found if not (role := known[name]) or not role.of}
    return plain or found


def _of_role(records: Records, role: str) -> list[Record]:
    """The rows of the split that is trained on ("train") or held out; all where there is none."""
    splits = {row.split for row in records.rows}
    taken = _of_kind(splits, "train") if role == "train" else set(_held(splits))
    return [row for row in records.rows if row.split in taken] or records.rows


def _chosen(records: Records, rows: list[Record], roles: Mapping[str, str]) -> list[Record]:
    for split, count in Counter(row.split for row in rows).items():
        if split not in roles:
            records.left_out[f"of the split {split}" if split else "of no split"] += count
    return [row for row in rows if row.split in roles]


def _labelled(records: Records, rows: list[Record]) -> list[Record]:
    found = [row for row in rows if row.label is not None]
    records.left_out["without a label"] += len(rows) - len(found)
    if not found:
        why = "".join(f"; {line}" for line in records.said() if line.startswith("left out"))
        where = records.read_from and f" in {records.read_from}"
        raise ValueError(f"{records.what} has no labelled images{where}{why}")
    return found


def _indices(label: str | tuple[str, ...] | None, index: Mapping[str, int]) -> tuple[int, ...]:
    labels = label if isinstance(label, tuple) else (str(label),)
    return tuple(sorted(index[one] for one in labels))


def _classes(records: Records, rows: Sequence[Record]) -> tuple[tuple[str, ...], dict[str, int]]:
    """Class names, and the number of every label."""
    labels: set[str] = set()
    for row in rows:
        labels.update(row.label if isinstance(row.label, tuple) else (str(row.label),))
    names = records.names
    if not all(label.isdecimal() for label in labels):
        order = sorted(labels)
        return tuple(order), {label: number for number, label in enumerate(order)}
    if names is None:  # 01 and 1 are the same number
        named = {int(label): label for label in sorted(labels, reverse=True)}
        places = {number: place for place, number in enumerate(sorted(named))}
        order = [named[number] for number in sorted(named)]
        return tuple(order), {label: places[int(label)] for label in labels}
    largest = max(map(int, labels), default=0)
    if largest >= len(names) or len(set(names)) < len(names):
        raise ValueError(
            f"{records.named_by} names {len(set(names))} classes in {len(names)} lines, but the "
            f"largest label, counted from 0, is {largest}"
        )
    return names, {label: int(label) for label in labels}
