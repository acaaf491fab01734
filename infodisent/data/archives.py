"""Images in files that hold many, read where they lie: nothing is unpacked.

Such an image has a path like any other, ``train-000.tar!1536+104223!n01440764/0001.jpg``: the
archive, where the image begins in it and its size in bytes, and its name. Tar files, the Arrow
files of Hugging Face data sets and TFRecord files are such archives. `infodisent.data.readers`
finds the images; everything that reads images understands their paths, and needs no other package.
"""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import BinaryIO, NamedTuple

# the first such place counts: what follows is the member's name, which may hold anything
_MEMBER = re.compile(
    r"(?P<archive>.+?\.(?:tar|arrow|tfrecord(?:-\d+-of-\d+)?))"
    r"!(?P<offset>\d+)\+(?P<size>\d+)!(?P<name>.+)",
    re.DOTALL | re.IGNORECASE,
)


class Member(NamedTuple):
    """A file whose bytes lie together in another one, the archive.

    Attributes:
        archive: path of the archive.
        offset, size: its bytes there.
        name: its own path.
    """

    archive: str
    offset: int
    size: int
    name: str

    def __str__(self) -> str:
        return f"{self.archive}!{self.offset}+{self.size}!{self.name}"


def member_of(path: str | os.PathLike[str]) -> Member | None:
    """The member that a path names, or None where it is a path of a file."""
    match = _MEMBER.fullmatch(os.fspath(path))
    if match is None:
        return None
    return Member(match["archive"], int(match["offset"]), int(match["size"]), match["name"])


def without_place(path: str | os.PathLike[str]) -> str:
    """A path for people: an archive as a folder, ``train-000.tar/n01440764/0001.jpg``."""
    member = member_of(path)
    return os.fspath(path) if member is None else f"{member.archive}/{member.name}"


def is_there(path: str | os.PathLike[str]) -> bool:
    """Whether there is a file of this path, or its archive."""
    member = member_of(path)
    return Path(path if member is None else member.archive).is_file()


def size_and_change(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Bytes of an image, and when its file, or its archive, was changed, in ns.

    Raises:
        OSError: it is not there.
    """
    member = member_of(path)
    status = os.stat(path if member is None else member.archive)
    return status.st_size if member is None else member.size, status.st_mtime_ns


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """An image's bytes as a file opened for reading.

    Raises:
        OSError: it is not there, or its archive ends before it does.
    """
    member = member_of(path)
    if member is None:
        return Path(path).open("rb")
    with Path(member.archive).open("rb") as archive:
        archive.seek(member.offset)
        content = archive.read(member.size)
    if len(content) < member.size:
        raise OSError(f"{member.archive} ends before {member.name} does")
    return io.BytesIO(content)
