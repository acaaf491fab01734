"""Names of data sets, as timm writes them, and folders that are one -> `Records`.

``hfds/NAME`` is a Hugging Face data set, ``wds/PATTERN`` are WebDataset's tar shards,
``tfds/NAME`` is a data set that TensorFlow Datasets has prepared. Behind each prefix a folder may
stand; a path that exists is that path, whatever it begins with.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

from infodisent.data.arrow import arrow_records, is_saved
from infodisent.data.records import Reading, Records, class_names
from infodisent.data.tars import tar_files, tar_records
from infodisent.data.tfrecords import is_prepared, tfrecord_records
from infodisent.data.tree import extensions

PREFIXES = ("hfds", "wds", "tfds")
_STREAMED = ("hfids",)


def reader_of(name: str | os.PathLike[str]) -> tuple[str, str] | None:
    """The prefix of the reader of a data set and what it is to read; None for ordinary folders.

    Raises:
        ValueError: a prefix of timm's whose images cannot be found again.
    """
    text = os.fspath(name)
    prefix, slash, rest = text.replace(os.sep, "/").partition("/")
    if slash and rest and not os.path.exists(text):
        if prefix.lower() in _STREAMED:
            raise ValueError(
                f"{text}: images of a stream cannot be found again for prototypes and pages; "
                f"pass hfds/{rest}"
            )
        if prefix.lower() in PREFIXES:
            return prefix.lower(), rest
    base = Path(os.path.abspath(text))
    if is_saved(base):
        return "hfds", str(base)
    if is_prepared(base):
        return "tfds", str(base)
    if _is_of_tars(base):
        return "wds", str(base)
    return None


def read_records(
    name: str | os.PathLike[str],
    reading: Reading | None = None,
    *,
    index: Path | None = None,
    progress: bool = True,
) -> Records | None:
    """The images of a data set by name; None where the name is of an ordinary folder or file.

    Args:
        name: see the module.
        reading: how it is read.
        index: of tar files, see `infodisent.data.tar_index.read_archives`.
        progress: show a progress bar.

    Raises:
        FileNotFoundError: a pattern that matches nothing, or a list of names that is not there.
        ModuleNotFoundError: a package that this kind of data set needs.
        ValueError: it cannot be read; says why.
    """
    known = reader_of(name)
    asked = reading or Reading()
    if known is None:
        if asked.given() and os.path.exists(name):
            raise ValueError(
                f"--read is of tar files and of data sets ({', '.join(PREFIXES)}); {name} is none"
            )
        return None
    read: dict[str, Callable[[str], Records]] = {
        "hfds": lambda rest: arrow_records(rest, asked),
        "wds": lambda rest: tar_records(rest, asked, index=index, progress=progress),
        "tfds": lambda rest: tfrecord_records(rest, asked),
    }
    records = read[known[0]](known[1])
    if asked.names:
        records = dataclasses.replace(
            records, names=class_names(Path(asked.names)), named_by=asked.names
        )
    return records


def _is_of_tars(base: Path) -> bool:
    """A tar file, or a folder of some without any picture in its folders."""
    if base.is_file() or not tar_files(base):
        return base.suffix.lower() == ".tar" and base.is_file()
    known = extensions()
    return not any(path.suffix.lower() in known for path in base.glob("*/**/*"))
