"""Tar files of labelled images -> `ImageSet`: WebDataset shards, and folders that were archived."""

from __future__ import annotations

import functools
import glob
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from infodisent.data.archives import Member
from infodisent.data.items import counted
from infodisent.data.records import Reading, Record, Records, class_names, root_of
from infodisent.data.splits import split_name
from infodisent.data.tar_index import read_archives
from infodisent.files import read_json

NAMES = ("classnames.txt", "classes.txt", "class_names.txt")
"""Files beside the archives that name the classes of numbered labels, one a line."""
INFO = ("_info.json", "info.json")
"""Files beside the archives that say which of them a split has, as timm writes them."""
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


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


def tars_of_pattern(pattern: str) -> list[Path]:
    """The archives that ``shards/train-{0000..0031}.tar`` or ``shards/*.tar`` means, sorted.

    Raises:
        FileNotFoundError: one that braces name is not there, or nothing matches.
    """
    found: list[Path] = []
    for name in _expanded(os.path.expanduser(pattern)):
        if glob.has_magic(name):
            matches = sorted(Path(os.path.abspath(match)) for match in glob.glob(name))
            found += [path for path in matches if path.is_file()]
        elif Path(name).is_file():
            found.append(Path(os.path.abspath(name)))
        else:
            raise FileNotFoundError(f"wds/{pattern}: {name} is not a file")
    if not found:
        raise FileNotFoundError(f"wds/{pattern}: no file matches")
    return sorted(dict.fromkeys(found))


def tar_records(
    root: str | os.PathLike[str],
    reading: Reading | None = None,
    *,
    index: Path | None = None,
    progress: bool = True,
) -> Records:
    """The images of a tar file, of a folder of them, or of a pattern that names some.

    In a WebDataset shard a sample's files have one name and several endings: ``0001.jpg`` and
    ``0001.cls`` (a number or a name) or ``0001.json`` (with "label", "cls", "class" or "target").
    Without those an image's class is its folder in the archive, and where it lies in none the
    archive's own name, as ImageNet comes. Numbers are named by ``classnames.txt`` beside the
    archives. The split is a folder's (in the archive, or of the archives), what ``_info.json``
    beside the archives says, or the beginning of an archive's name: ``train-000.tar``,
    ``val-000.tar``.

    Args:
        root: the archive, folder or pattern, see `tars_of_pattern`.
        reading: how samples are read.
        index: see `infodisent.data.tar_index.read_archives`.
        progress: show a progress bar.

    Raises:
        FileNotFoundError: a pattern that matches nothing.
        ValueError: an archive that is compressed or damaged, or a list of names that is none.
    """
    asked = reading or Reading()
    base = Path(os.path.abspath(root))
    if base.exists():
        archives = tar_files(base)
    else:
        archives = tars_of_pattern(os.fspath(root))
        base = Path(root_of([str(path.parent) for path in archives]))
    folder = base if base.is_dir() else base.parent
    records = Records(str(base), str(folder), counted(len(archives), "tar file"))
    split_of = _splits_of_info(folder)
    for archive, found in zip(
        archives, read_archives(archives, asked, index, progress), strict=True
    ):
        records.left_out.update(found.left_out)
        role, own = _role_of(archive, base)
        for name, label, offset, size in found.images:
            inner, place = _place(PurePosixPath(name).parent)
            path = str(Member(str(archive), offset, size, name))
            split = inner or split_of.get(archive.name) or role
            label = label or place or (None if own else archive.stem)
            records.rows.append(Record(split, label, path))
    listing = next((folder / name for name in NAMES if (folder / name).is_file()), None)
    if listing is not None:
        records.names, records.named_by = class_names(listing), str(listing)
    return records


@functools.lru_cache(maxsize=1 << 16)  # most images have their folder's name in common
def _place(folder: PurePosixPath) -> tuple[str, str]:
    """The split and the class that a member's folders speak of, "" for none."""
    folders = [part for part in folder.parts if part != "."]
    roles = [split_name(part) for part in folders]
    split = next((role.role for role in roles if role is not None), "")
    classes = [part for part, role in zip(folders, roles, strict=True) if role is None]
    return split, classes[-1] if classes else ""


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


def _splits_of_info(folder: Path) -> dict[str, str]:
    """The split of every archive that an info file speaks of, by the archive's name."""
    for file in (folder / name for name in INFO if (folder / name).is_file()):
        try:
            splits = read_json(file).get("splits", {})
            return {
                PurePosixPath(name).name: str(split)
                for split, about in splits.items()
                for name in about["filenames"]
            }
        except (ValueError, AttributeError, KeyError, TypeError):
            continue  # of another kind: names of archives say it
    return {}


def _expanded(pattern: str) -> Iterator[str]:
    """All names that braces mean: ``{000..031}`` keeps its zeros, ``{train,val}`` is either."""
    match = _BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    for choice in _choices(match[1]):
        yield from _expanded(pattern[: match.start()] + choice + pattern[match.end() :])


def _choices(inside: str) -> Iterable[str]:
    span = _RANGE.fullmatch(inside)
    if span is None:
        return inside.split(",")
    first, last = span[1], span[2]
    width = len(first) if first.startswith("0") or last.startswith("0") else 0
    return (f"{number:0{width}d}" for number in range(int(first), int(last) + 1))
