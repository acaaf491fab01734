"""What people name on a command line as images with their classes: files, folders, data sets."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from infodisent.data.archives import member_of
from infodisent.data.images import EXTENSIONS
from infodisent.data.readers import read_records, reader_of
from infodisent.data.records import Reading, named_rows


class Source(NamedTuple):
    """An image file, and the class that its folder says it has; None where none does."""

    path: str
    true_name: str | None


@dataclass
class Sources:
    """Images found.

    Attributes:
        items: the images, each once, in the order they were named; folders sorted.
        left_out: files of folders that are no images by their ending, ending to count; hidden files
            and folders are counted as "hidden".
        strangers: folders of images that name no class of the model, to count; empty unless
            others do.
    """

    items: list[Source] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    strangers: Counter[str] = field(default_factory=Counter)

    @property
    def paths(self) -> list[str]:
        """Of the images."""
        return [item.path for item in self.items]

    @property
    def known(self) -> int:
        """How many images have a true class."""
        return sum(item.true_name is not None for item in self.items)

    def notices(self) -> list[str]:
        """What a person should be told about the search, a line each."""
        lines = []
        if self.left_out:
            kinds = ", ".join(f"{count} {kind}" for kind, count in self.left_out.most_common(5))
            lines.append(f"{sum(self.left_out.values())} other file(s) were left out: {kinds}")
        if self.strangers:
            names = ", ".join(f"{name} ({n})" for name, n in self.strangers.most_common(5))
            more = " …" if len(self.strangers) > 5 else ""
            lines.append(f"no class of the model, so without a true class: {names}{more}")
        return lines


def find_sources(
    names: Sequence[str | os.PathLike[str]],
    classes: Sequence[str] = (),
    *,
    command: str,
    reading: Reading | None = None,
    index: Path | None = None,
) -> Sources:
    """The images behind files, folders (recursively) and patterns such as ``photos/**/*.jpg``.

    Of data sets, see `infodisent.data.readers`, all splits are taken unless `reading` names one.

    A file that is named is taken whatever its ending, and even if it is missing: whoever reads it
    says so. The true class of an image is the folder above it that is called as a class: any folder
    below the one that was named, that one itself, or the folder of a file that was named. Two
    different classes on one path are no answer.

    Args:
        names: files, folders, patterns.
        classes: of the model.
        command: whose arguments they are, for messages.
        reading, index: of data sets, see `infodisent.data.readers.read_records`.

    Raises:
        ValueError: an address of the network, a pattern that nothing matches, or no image at all.
    """
    result = Sources()
    seen: set[str] = set()
    wanted = set(classes)
    unclassed: list[str] = []
    for name in [os.fspath(name) for name in names]:
        for path, above, below in _expand(name, result.left_out, command, reading, index):
            # a folder that is linked is the same folder; a linked file may be in another class
            key = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
            if key in seen:
                continue
            seen.add(key)
            named = wanted.intersection(below) or wanted.intersection((above,))
            result.items.append(Source(path, named.pop() if len(named) == 1 else None))
            if result.items[-1].true_name is None:
                unclassed.append(below[-1] if below else above)
    if not result.items:
        seen_instead = ", ".join(f"{n} {kind}" for kind, n in result.left_out.most_common(5))
        raise ValueError(
            f"{command}: no image in {', '.join(map(str, names))} (found: "
            f"{seen_instead or 'nothing'}; image files end in .jpg, .png, .tif, .webp or "
            f"{len(EXTENSIONS) - 4} others that Pillow opens)"
        )
    if result.known:
        result.strangers = Counter(name for name in unclassed if name)
    return result


def _expand(
    name: str,
    left_out: Counter[str],
    command: str,
    reading: Reading | None,
    index: Path | None,
) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Files behind one argument: path, the folder that was named, the folders below that one."""
    if "://" in name:
        raise ValueError(
            f"{command}: {name!r} is an address; nothing is fetched, save the picture to a file"
        )
    records = read_records(name, reading, index=index)
    if records is not None:
        left_out.update({why: count for why, count in records.left_out.items() if count})
        for path, label in named_rows(records, reading):
            yield path, "", () if label is None else (label,)
    elif os.path.isdir(name):
        yield from _below(name, left_out)
    elif os.path.exists(name) or member_of(name) or not glob.has_magic(name):
        yield name, _folder_of(name), ()
    else:
        matches = sorted(glob.glob(os.path.expanduser(name), recursive=True))
        if not matches:
            raise ValueError(f"{command}: no file matches {name!r}")
        for match in matches:
            if os.path.isdir(match) or reader_of(match) is not None:
                yield from _expand(match, left_out, command, reading, index)
            elif _is_image(match):
                yield match, _folder_of(match), ()
            else:
                left_out[_kind(match)] += 1


def _below(root: str, left_out: Counter[str]) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Image files under a folder, sorted, through links but never in a circle; as `_expand`."""
    base = os.path.basename(os.path.abspath(root))
    walked: set[str] = set()
    for parent, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(parent)
        if real in walked:
            folders.clear()
            continue
        walked.add(real)
        inner = os.path.relpath(parent, root)
        below = () if inner == os.curdir else Path(inner).parts
        hidden = sum(n.startswith(".") for n in (*folders, *files))
        left_out.update({"hidden": hidden} if hidden else {})
        folders[:] = sorted(n for n in folders if not n.startswith("."))
        for file in sorted(n for n in files if not n.startswith(".")):
            if _is_image(file):
                yield os.path.join(parent, file), base, below
            else:
                left_out[_kind(file)] += 1


def _folder_of(path: str) -> str:
    return os.path.basename(os.path.dirname(os.path.abspath(path)))


def _kind(path: str) -> str:
    return Path(path).suffix.lower() or "without an ending"


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in EXTENSIONS


def limited(sources: Sources, limit: int) -> list[Source]:
    """At most `limit` of the images: the first of each class in turn, so that all classes show."""
    if len(sources.items) <= limit:
        return list(sources.items)
    turns: Counter[str | None] = Counter()
    keyed = []
    for position, item in enumerate(sources.items):
        turns[item.true_name] += 1
        keyed.append((turns[item.true_name], position, item))
    chosen = sorted(sorted(keyed, key=lambda k: k[:2])[:limit], key=lambda k: k[1])
    return [item for _, _, item in chosen]
