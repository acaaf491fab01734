"""Tar files of labelled images -> `ImageSet`: WebDataset shards, and folders that were archived."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from infodisent.data.archives import Member
from infodisent.data.items import ImageItem, ImageSet, counted, listed
from infodisent.data.splits import hold_out, split_name
from infodisent.data.tree import extensions
from infodisent.progress import bar

NAMES = ("classnames.txt", "classes.txt", "class_names.txt")
"""Files beside the archives that name the classes of numbered labels, one a line."""
_KEYS = ("label", "cls", "class", "target")
"""Of a sample's ``.json``, where it has no ``.cls``."""
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
"""What files of gzip, bzip2, xz and zstd begin with."""
_MOST = 1 << 20
"""Bytes of a label's file; more is none."""


@dataclass
class _Found:
    """What the archives hold.

    Attributes:
        rows: split ("" for none), label as text, path.
        left_out: why images are not taken, to count.
    """

    rows: list[tuple[str, str, str]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def tar_files(folder: Path) -> list[Path]:
    """The archives directly in a folder and in its folders of splits, sorted."""
    if folder.is_file():
        return [folder] if folder.suffix.lower() == ".tar" else []
    return sorted(
        path
        for pattern in ("*.[tT][aA][rR]", "*/*.[tT][aA][rR]")
        for path in folder.glob(pattern)
        if not path.name.startswith(".") and path.is_file()
    )


def scan_tars(
    root: str | os.PathLike[str],
    *,
    val_fraction: float | None = None,
    seed: int = 0,
    progress: bool = True,
) -> ImageSet:
    """Find the images of a tar file, or of a folder of them.

    In a WebDataset shard a sample's files have one name and several endings: ``0001.jpg`` and
    ``0001.cls`` (a number or a name) or ``0001.json`` (with "label", "cls", "class" or "target").
    Without those an image's class is its folder in the archive, and where it lies in none the
    archive's own name, as ImageNet comes. Numbers are named by ``classnames.txt`` beside the
    archives. The split is a folder's (in the archive, or of the archives) or the beginning of an
    archive's name: ``train-000.tar``, ``val-000.tar``.

    Args:
        root: the archive, or the folder.
        val_fraction: part of every class held out where there are no splits; default 0.25.
        seed: of that.
        progress: show a progress bar.

    Raises:
        ValueError: no labelled images, fewer than two classes, a label that the list of names does
            not reach, or an archive that is compressed or damaged.
    """
    base, rows, notices = _look(root, progress)
    labels = {label for _, label, _ in rows}
    classes, index = _classes(_folder(base), labels)
    if len({index[label] for label in labels}) < 2:
        raise ValueError(f"{base} has images of one class only, {listed(labels)}; 2 are needed")
    trained = {index[label] for split, label, _ in rows if split != "val"}
    unknown = sorted({index[label] for label in labels} - trained)
    if unknown:
        raise ValueError(
            f"{base}: no image to train on is of {listed((classes[n] for n in unknown), 6)}, which "
            "held-out images are of; an archive's name or folder says of which split it is"
        )
    items = tuple(
        ImageItem(path, index[label], split or "train") for split, label, path in sorted(rows)
    )
    images = ImageSet(str(_folder(base)), classes, items)
    if not any(item.split == "val" for item in items):
        images = hold_out(images, val_fraction, seed)
    elif val_fraction is not None:
        notices.append(f"val_fraction {val_fraction} has no effect: the images are split already")
    said = (*notices, *images.notices)
    return ImageSet(images.root, classes, images.items, images.task, said)


def score_tars(
    root: str | os.PathLike[str], classes: Sequence[str], *, progress: bool = True
) -> ImageSet:
    """The held-out images of `scan_tars`, all where there are no splits, as a model's "val" items.

    Args:
        root: the archive, or the folder.
        classes: of the model, by name.
        progress: show a progress bar.

    Raises:
        ValueError: as of `scan_tars`, or an image of a class that the model lacks.
    """
    base, rows, notices = _look(root, progress)
    rows = [row for row in rows if row[0] == "val"] or rows
    names, index = _classes(_folder(base), {label for _, label, _ in rows})
    of = {label: names[place] for label, place in index.items()}
    unknown = sorted(set(of.values()) - set(classes))
    if unknown:
        raise ValueError(
            f"{base} has classes the model lacks: {listed(unknown, 6)}; the model knows "
            f"{listed(classes, 6)}"
        )
    number = {name: place for place, name in enumerate(classes)}
    items = (ImageItem(path, number[of[label]], "val") for _, label, path in sorted(rows))
    return ImageSet(str(_folder(base)), tuple(classes), tuple(items), notices=tuple(notices))


def _folder(base: Path) -> Path:
    return base if base.is_dir() else base.parent


def _look(
    root: str | os.PathLike[str], progress: bool
) -> tuple[Path, list[tuple[str, str, str]], list[str]]:
    """The archive or folder, the rows of its images (split, label, path), and notices."""
    base = Path(os.path.abspath(root))
    archives = tar_files(base)
    found = _Found()
    with bar(progress and len(archives) > 1) as display:
        task = display.add_task("read archives", total=len(archives), note="")
        for archive in archives:
            _read(archive, base, found)
            display.advance(task)
    rows, left_out = _with_splits(found), _left_out(found)
    if not rows:
        why = "".join(f"; {line}" for line in left_out)
        raise ValueError(f"{base} has no labelled images in {len(archives)} tar file(s){why}")
    said = f"read from {counted(len(archives), 'tar file')}; nothing is unpacked"
    return base, rows, [said, *left_out]


def _read(archive: Path, base: Path, found: _Found) -> None:
    """The samples of one archive: consecutive files that are called the same up to the dot."""
    try:
        with tarfile.open(archive, "r:") as tar:
            sample: dict[str, tarfile.TarInfo] = {}
            before = None
            for info in tar:
                place = PurePosixPath(info.name)
                if info.isdir() or place.name.startswith("."):
                    continue
                if not info.isfile() or info.issparse():
                    found.left_out["behind a link, or in no plain file"] += 1
                    continue
                stem, _, ending = place.name.partition(".")
                key = place.parent / stem
                if key != before:
                    _take(sample, tar, archive, base, found)
                    sample, before = {}, key
                sample[ending.lower()] = info
            _take(sample, tar, archive, base, found)
        with archive.open("rb") as file:  # tarfile takes a damaged header for the end
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError(f"a damaged header at byte {tar.offset}")
    except tarfile.ReadError as error:
        with archive.open("rb") as file:
            compressed = file.read(6).startswith(_COMPRESSED)
        why = str(error)
        if compressed:
            why = "it is compressed and has to be decompressed: images are read from its middle"
        raise ValueError(f"{archive} cannot be read: {why}") from error


def _take(
    sample: dict[str, tarfile.TarInfo],
    tar: tarfile.TarFile,
    archive: Path,
    base: Path,
    found: _Found,
) -> None:
    """Note a sample's image with its label and split; where nothing labels it, all its images."""
    known = extensions()
    every = [i for end, i in sample.items() if f".{end.rpartition('.')[2]}" in known]
    if not every:
        found.left_out["without an image"] += bool(sample)
        return
    label = _label(sample, tar)
    if label is not None and len(every) > 1:
        found.left_out["with several images, but for its first"] += 1
    # cat.1.jpg, cat.2.jpg in a folder that is their class are no parts of one sample
    for image in every if label is None else every[:1]:
        _note(image, label, archive, base, found)


def _note(
    image: tarfile.TarInfo, label: str | None, archive: Path, base: Path, found: _Found
) -> None:
    folders = [part for part in PurePosixPath(image.name).parent.parts if part != "."]
    roles = [split_name(part) for part in folders]
    inner = next((role.role for role in roles if role is not None), "")
    role, own = _role_of(archive, base)
    if label is None:
        places = [part for part, role in zip(folders, roles, strict=True) if role is None]
        label = places[-1] if places else None if own else archive.stem
    if label is None:
        found.left_out["without a label"] += 1
        return
    path = str(Member(str(archive), image.offset_data, image.size, image.name))
    found.rows.append((inner or role, label, path))


def _label(sample: dict[str, tarfile.TarInfo], tar: tarfile.TarFile) -> str | None:
    """What the files beside an image say that it is."""

    def text(ending: str) -> str:
        info = sample[ending]
        file = tar.extractfile(info) if info.size <= _MOST else None
        return "" if file is None else file.read().decode("utf-8", "replace").strip()

    if "cls" in sample:
        return text("cls") or None
    if "json" in sample:
        try:
            values = json.loads(text("json"))
        except (ValueError, RecursionError):  # the latter of thousands of brackets
            return None
        if isinstance(values, dict):
            value = next((values[key] for key in _KEYS if values.get(key) is not None), None)
            unfit = isinstance(value, (dict, list)) or value is None
            return None if unfit else str(value).strip() or None
    return None


def _role_of(archive: Path, base: Path) -> tuple[str, bool]:
    """The split that an archive's name, or its folder, speaks of, "" for none; and whether the name
    says nothing but that: ``imagenet1k-train-0001``, too, but not ``steam_train``, a class."""
    word = re.match(r"[A-Za-z]+", archive.stem)
    role = (split_name(word[0]) if word else None) or split_name(archive.stem)
    if role is not None:
        return role.role, not role.of or archive.stem[-1].isdecimal()
    inside = archive.parent != base and base.is_dir()
    role = split_name(archive.parent.name) if inside else None
    return "" if role is None else role.role, False


def _with_splits(found: _Found) -> list[tuple[str, str, str]]:
    """The rows with splits "train", "val" or ""; where both are there, "test" is left out."""
    roles = {split for split, _, _ in found.rows}
    held = "val" if "val" in roles else "test"
    rows = []
    for split, label, path in found.rows:
        if split in ("", "train", held):
            rows.append(("val" if split == held else split, label, path))
        else:
            found.left_out[f"of the split {split}"] += 1
    return rows


def _classes(folder: Path, labels: set[str]) -> tuple[tuple[str, ...], dict[str, int]]:
    """Class names, and the number of every label."""
    numbers = all(label.isdecimal() for label in labels)
    listing = next((folder / name for name in NAMES if (folder / name).is_file()), None)
    if not numbers:
        order = sorted(labels)
        return tuple(order), {label: number for number, label in enumerate(order)}
    if listing is None:  # 01 and 1 are the same number
        named = {int(label): label for label in sorted(labels, reverse=True)}
        places = {number: place for place, number in enumerate(sorted(named))}
        order = [named[number] for number in sorted(named)]
        return tuple(order), {label: places[int(label)] for label in labels}
    try:
        text = listing.read_text(encoding="utf-8-sig").rstrip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{listing} is not a text file in UTF-8: {error}") from error
    names = [line.strip() for line in text.splitlines()]
    if not all(names):  # to leave it out would shift all names behind it
        raise ValueError(f"{listing}, line {names.index('') + 1}, is blank: a class without a name")
    largest = max(map(int, labels))
    if largest >= len(names) or len(set(names)) < len(names):
        raise ValueError(
            f"{listing} names {len(set(names))} classes in {len(names)} lines, but the largest "
            f"label, counted from 0, is {largest}"
        )
    return tuple(names), {label: int(label) for label in labels}


def _left_out(found: _Found) -> list[str]:
    return [
        f"left out: {counted(count, 'sample')} {why}"
        for why, count in found.left_out.most_common()
        if count
    ]
