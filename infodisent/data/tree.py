"""A folder of images as it lies on the disk: what is an image, and what is not and why."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from infodisent.data.items import counted, listed
from infodisent.data.pictures import HINTS

# What Pillow registers and is no raster picture of its own: pages, films, and formats it only knows
# by name, for which it needs a program that is not there.
_NO_PICTURES = {"PDF", "EPS", "MPEG", "FLI", "WMF", "BUFR", "GRIB", "HDF5", "IPTC"}
_DROPPINGS = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin"}


def extensions() -> tuple[str, ...]:
    """The file names' endings of all raster formats that Pillow opens here, plugins included."""
    Image.init()
    readable = (set(Image.OPEN) | {"MPO"}) - _NO_PICTURES  # MPO is opened by the JPEG plugin
    known = (end for end, form in Image.registered_extensions().items() if form in readable)
    return tuple(sorted({end.lower() for end in known}))


@dataclass
class LeftOut:
    """Files that are not taken, by reason, each once; paths are relative to `base`."""

    base: Path
    hidden: dict[str, None] = field(default_factory=dict)
    broken: dict[str, None] = field(default_factory=dict)
    unknown: dict[str, None] = field(default_factory=dict)
    unreadable: dict[str, None] = field(default_factory=dict)
    empty: dict[str, None] = field(default_factory=dict)
    loose: dict[str, None] = field(default_factory=dict)
    beside: dict[str, None] = field(default_factory=dict)

    def add(self, reason: str, path: Path) -> None:
        """Note one file or folder under the name of one of the lists."""
        names: dict[str, None] = getattr(self, reason)
        names[os.path.relpath(path, self.base)] = None

    def notices(self) -> list[str]:
        """One sentence for each reason, with count and examples."""
        said = [
            (self.broken, "broken link", "nothing is behind"),
            (self.unreadable, "folder", "not allowed to be read"),
            (self.hidden, "hidden or system entry", "not looked at"),
            (self.empty, "class folder", "without any image"),
            (self.loose, "image", "not in a class folder"),
            (self.beside, "folder", "beside the splits, in none of them"),
        ]
        lines = [
            f"left out: {counted(len(names), noun)}, {why} ({listed(names)})"
            for names, noun, why in said
            if names
        ]
        if self.unknown:
            lines.append(self._unknown())
        return lines

    def _unknown(self) -> str:
        endings = Counter(Path(name).suffix.lower() or "without ending" for name in self.unknown)
        kinds = listed((f"{n} {end}" for end, n in endings.most_common()), 6)
        line = f"left out: {counted(len(self.unknown), 'file')} of no image format that Pillow "
        line += f"opens here: {kinds} ({listed(self.unknown)})"
        hints = [HINTS[end] for end, _ in endings.most_common() if end in HINTS]
        return line + "".join(f"; {hint}" for hint in hints[:2])


@dataclass
class Folder:
    """One folder and all below it.

    Attributes:
        path: where it lies.
        images: the image files directly in it, sorted.
        folders: its sub-folders that hold an image somewhere below, by name, sorted.
        empty: names of its sub-folders that hold none.
    """

    path: Path
    images: list[str] = field(default_factory=list)
    folders: dict[str, Folder] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Its own name."""
        return self.path.name

    def every(self) -> Iterator[str]:
        """All image files in it and below."""
        yield from self.images
        for folder in self.folders.values():
            yield from folder.every()

    def found(self) -> str:
        """What it holds, for a message."""
        parts = [f"{name}/" for name in self.folders]
        said = listed(parts, 6) if parts else ""
        if self.images:
            said += (" and " if said else "") + counted(len(self.images), "image")
        return said or "no image"


def read_tree(path: Path, left_out: LeftOut) -> Folder:
    """Everything in a folder, through links but never in a circle.

    Raises:
        FileNotFoundError: `path` is not a folder.
    """
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path} is not a folder; expected a folder of class folders, a .csv of "
            "image,label[,split][,group], .tar files, or hfds/, wds/ or tfds/ and a name"
        )
    folder = _read(path, frozenset(extensions()), left_out, frozenset())
    return folder if folder is not None else Folder(path)


def _read(
    path: Path, endings: frozenset[str], left_out: LeftOut, above: frozenset[str]
) -> Folder | None:
    """A folder, or None where it is one of those above it: links may go in a circle."""
    real = os.path.realpath(path)
    if real in above:
        return None
    folder = Folder(path)
    try:
        with os.scandir(path) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
    except PermissionError:
        left_out.add("unreadable", path)
        return folder
    for entry in ordered:
        place = path / entry.name
        if entry.name.startswith(".") or entry.name.lower() in _DROPPINGS:
            left_out.add("hidden", place)
        elif entry.is_dir():
            below = _read(place, endings, left_out, above | {real})
            if below is None:
                continue
            if below.images or below.folders:
                folder.folders[entry.name] = below
            else:
                folder.empty.append(entry.name)
        elif not entry.is_file():
            left_out.add("broken" if entry.is_symlink() else "unknown", place)
        elif place.suffix.lower() in endings:
            folder.images.append(str(place))
        else:
            left_out.add("unknown", place)
    return folder
