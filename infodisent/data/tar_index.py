"""Where the images of tar files lie: their headers, read once and kept."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from infodisent.data.records import Reading
from infodisent.data.tree import extensions
from infodisent.files import read_json, write_text
from infodisent.progress import bar

INDEX = "archives.json"
"""File of a run with what was found in archives."""
_FORMAT = 1
_KEYS = ("label", "cls", "class", "target")
"""Of a sample's ``.json``, where it has no ``.cls``."""
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
"""What files of gzip, bzip2, xz and zstd begin with."""
_MOST = 1 << 20
"""Bytes of a label's file; more is none."""


@dataclass
class Contents:
    """What an archive holds.

    Attributes:
        images: name, label (None where no file beside it says one), offset and bytes of each.
        left_out: why samples are not taken, to count.
    """

    images: list[tuple[str, str | None, int, int]] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)

    def leave_out(self, why: str) -> None:
        """Count one sample."""
        self.left_out[why] = self.left_out.get(why, 0) + 1


def read_archives(
    archives: Sequence[Path],
    reading: Reading,
    index: Path | None = None,
    progress: bool = True,
) -> list[Contents]:
    """The contents of each archive.

    Args:
        archives: uncompressed tar files.
        reading: which file of a sample is the image, and what its label.
        index: a file that keeps what was found; an archive of the same size and time of change is
            not read again. It is replaced whole, so never torn.
        progress: show a progress bar.

    Raises:
        ValueError: an archive that is compressed or damaged.
    """
    asked = [_FORMAT, reading.image, reading.label, list(extensions())]
    known = _known(index, asked)
    found: dict[str, Any] = {}
    with bar(progress and len(archives) > 1) as display:
        task = display.add_task("read archives", total=len(archives), note="")
        for archive in archives:
            status = archive.stat()
            state = [status.st_size, status.st_mtime_ns]
            entry = known.get(str(archive))
            if entry is None or entry["state"] != state:
                contents = _read(archive, reading)
                entry = {"state": state, "images": contents.images, "left": contents.left_out}
            found[str(archive)] = entry
            display.advance(task)
    if index is not None and any(known.get(name) is not entry for name, entry in found.items()):
        kept = {"asked": asked, "archives": {**known, **found}}
        write_text(index, json.dumps(kept, separators=(",", ":")))
    return [
        Contents([tuple(image) for image in entry["images"]], entry["left"])
        for entry in found.values()
    ]


def _known(index: Path | None, asked: list[Any]) -> dict[str, Any]:
    """What an index holds; nothing where it is absent, damaged, or of another question."""
    if index is None or not index.is_file():
        return {}
    try:
        kept = read_json(index)
        archives: dict[str, Any] = kept["archives"] if kept["asked"] == asked else {}
        return archives
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _read(archive: Path, reading: Reading) -> Contents:
    """The samples of one archive: consecutive files that are called the same up to the dot."""
    found = Contents()
    try:
        with tarfile.open(archive, "r:") as tar:
            sample: dict[str, tarfile.TarInfo] = {}
            before = None
            for info in tar:
                place = PurePosixPath(info.name)
                if info.isdir() or place.name.startswith("."):
                    continue
                if not info.isfile() or info.issparse():
                    found.leave_out("behind a link, or in no plain file")
                    continue
                stem, _, ending = place.name.partition(".")
                key = place.parent / stem
                if key != before:
                    _take(sample, tar, reading, found)
                    sample, before = {}, key
                sample[ending.lower()] = info
            _take(sample, tar, reading, found)
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
    return found


def _take(
    sample: dict[str, tarfile.TarInfo], tar: tarfile.TarFile, reading: Reading, found: Contents
) -> None:
    """Note a sample's image with its label; where nothing labels it, all its images."""
    known = extensions()
    every = [i for end, i in sample.items() if f".{end.rpartition('.')[2]}" in known]
    if reading.image:
        asked = sample.get(reading.image.lower().removeprefix("."))
        every = [] if asked is None else [asked]
    if not every:
        if sample:
            found.leave_out("without an image")
        return
    label = _label(sample, tar, reading.label)
    if label is not None and len(every) > 1:
        found.leave_out("with several images, but for its first")
    # cat.1.jpg, cat.2.jpg in a folder that is their class are no parts of one sample
    for image in every if label is None else every[:1]:
        found.images.append((image.name, label, image.offset_data, image.size))


def _label(sample: dict[str, tarfile.TarInfo], tar: tarfile.TarFile, wanted: str) -> str | None:
    """What the files beside an image say that it is."""

    def text(ending: str) -> str:
        info = sample[ending]
        file = tar.extractfile(info) if info.size <= _MOST else None
        return "" if file is None else file.read().decode("utf-8", "replace").strip()

    ending = wanted.lower() or "cls"
    if ending in sample and ending != "json":
        return text(ending) or None
    if "json" not in sample:
        return None
    try:
        values = json.loads(text("json"))
    except (ValueError, RecursionError):  # the latter of thousands of brackets
        return None
    if not isinstance(values, dict):
        return None
    keys = (wanted,) if wanted else _KEYS
    value = next((values[key] for key in keys if values.get(key) is not None), None)
    unfit = isinstance(value, (dict, list)) or value is None
    return None if unfit else str(value).strip() or None
