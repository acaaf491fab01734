"""Hugging Face data sets -> `Records`: images are read where they lie in their Arrow files.

`datasets` finds, downloads and prepares a data set. Its Arrow files keep the encoded image files
one behind the other, as they were, so an image is known by its file, its first byte and its length:
every process reads it by itself, in any order, without `datasets`. (timm's reader gives bytes
without a place, knows no list of splits, and does not open what ``save_to_disk`` wrote.)
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from infodisent.data.archives import Member, member_of
from infodisent.data.items import counted, listed
from infodisent.data.records import Reading, Record, Records, root_of

IMAGE_KEYS = ("image", "img", "picture", "pixel_values")
LABEL_KEYS = ("label", "labels", "fine_label", "class", "target")
SAVED = (("dataset_dict.json",), ("state.json", "dataset_info.json"))
"""Files of a folder that ``save_to_disk`` wrote: of several splits, of one."""

Label = str | tuple[str, ...] | None


def is_saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` of a Hugging Face data set wrote this folder."""
    return any(all((folder / name).is_file() for name in names) for names in SAVED)


def arrow_records(name: str, reading: Reading) -> Records:
    """The images of a Hugging Face data set, all splits.

    Args:
        name: of a data set on the hub, in the cache or as a folder; or a folder that
            ``save_to_disk`` wrote.
        reading: its columns.

    Raises:
        ModuleNotFoundError: `datasets` is not installed.
        ValueError: there is no such data set, or it has no column of images or of labels, or other
            rows than its files.
    """
    parts = _load(name, reading.split)
    what = f"hfds/{name}"
    first = next(iter(parts.values()))
    image, label = _columns(what, first.features, reading)
    records = Records(what, "")
    records.names = _class_names(first.features[label])
    records.named_by = f"{what}, column {label!r},"
    files = 0
    folders: set[str] = set()
    for split, part in parts.items():
        rows, before = 0, len(records.rows)
        for file in (os.path.abspath(entry["filename"]) for entry in part.cache_files):
            rows += _read(file, split, image, label, rows, records)
            files += 1
            folders.add(os.path.dirname(file))
        if rows != len(part):
            raise ValueError(
                f"{what}: the split {split!r} has {len(part)} images, its files {rows}; "
                "save_to_disk writes a selection as a data set of its own"
            )
        folders.update(
            os.path.dirname(row.path)
            for row in records.rows[before:]
            if member_of(row.path) is None
        )
    records.root = root_of(sorted(folders)) if folders else os.curdir
    records.read_from = f"{counted(files, 'Arrow file')} of {what}"
    return records


def _load(name: str, split: str) -> dict[str, Any]:
    """The splits of a data set; a single one where it is asked for by the name it has."""
    try:
        import datasets
    except ModuleNotFoundError as error:
        if error.name != "datasets":
            raise
        raise ModuleNotFoundError(
            f"hfds/{name} needs datasets: pip install 'infodisent[datasets]', or pip install "
            "datasets",
            name="datasets",
        ) from error
    folder = os.path.expanduser(name)
    try:
        if is_saved(Path(folder)):
            loaded = datasets.load_from_disk(folder)
        else:
            there = os.path.exists(folder)
            loaded = datasets.load_dataset(os.path.abspath(folder) if there else name)
    # whatever its loader for that format runs into; a name without a data set, no network …
    except Exception as error:
        raise ValueError(f"hfds/{name} cannot be loaded: {error}") from error
    if isinstance(loaded, Mapping):
        return {str(key): part for key, part in loaded.items()}
    return {str(loaded.split or split): loaded}


def _columns(what: str, features: Mapping[str, Any], reading: Reading) -> tuple[str, str]:
    """The names of the columns of images and labels."""
    images = [name for name, kind in features.items() if type(kind).__name__ == "Image"]
    if not images:
        raise ValueError(f"{what} has no column of images; its columns are {listed(features, 12)}")
    image = _column(what, reading.image, images, IMAGE_KEYS, "image")
    others = [name for name in features if name not in images]
    named = [name for name in others if _class_names(features[name])]
    usual = [name for name in LABEL_KEYS if name in others]
    label = _column(
        what, reading.label, others if reading.label else usual[:1] or named, (), "label"
    )
    return image, label


def _column(what: str, asked: str, possible: list[str], usual: tuple[str, ...], option: str) -> str:
    if asked:
        if asked not in possible:
            raise ValueError(
                f"{what}: {option} is {asked!r}, which is none of {listed(possible, 12) or '–'}"
            )
        return asked
    chosen = next((name for name in usual if name in possible), None)
    if chosen is None and len(possible) == 1:
        chosen = possible[0]
    if chosen is None:
        has = f"could be {listed(possible, 12)}" if possible else "has no usual name"
        raise ValueError(f"{what}: the column of {option}s {has}; pass --read {option}=NAME")
    return chosen


def _class_names(feature: Any) -> tuple[str, ...] | None:
    """Of a column of classes, or of lists of them."""
    # a list is a type of its own, or, before datasets 4, Python's list of one type
    one = feature[0] if isinstance(feature, list) and feature else feature
    names = getattr(getattr(one, "feature", one), "names", None)
    return tuple(map(str, names)) if names else None


def _read(file: str, split: str, image: str, label: str, row: int, records: Records) -> int:
    """Note the rows of one Arrow file, the first of which is number `row`; returns how many."""
    import pyarrow as pa

    rows = 0
    with pa.memory_map(file) as source:
        mapped = source.read_buffer(source.size())
        for batch in pa.ipc.open_stream(mapped):
            column, labels = batch.column(image), batch.column(label).to_pylist()
            paths = column.field("path").to_pylist()
            places = _places(column, mapped, file)
            for place, path, value in zip(places, paths, labels, strict=True):
                found = _path(place, path, file, f"{split or 'all'}/{row + rows:06d}")
                if found is None:
                    records.left_out["without an image"] += 1
                else:
                    where = f"hfds: {file}, row {rows}, column {label!r}"
                    records.rows.append(Record(split, label_text(value, where), found))
                rows += 1
    return rows


def _places(column: Any, mapped: Any, file: str) -> Iterator[tuple[int, int] | None]:
    """First byte in the file and length of every image of a column; None where it has no bytes."""
    if not len(column):
        return
    content = column.field("bytes")
    kinds = {"binary": np.int32, "large_binary": np.int64}
    _, offsets, data = content.buffers() if str(content.type) in kinds else (None, None, None)
    if offsets is None:
        raise ValueError(f"{file} keeps images as {content.type}, which is none of {list(kinds)}")
    size = np.dtype(kinds[str(content.type)])
    ends = np.frombuffer(offsets, size, len(content) + 1, content.offset * size.itemsize)
    start = 0
    if data is not None and data.size:
        start = data.address - mapped.address
    if data is not None and not 0 <= start <= mapped.size - data.size:
        raise ValueError(f"{file} is compressed; images are read from its middle")
    for i, lost in enumerate(content.is_null().to_pylist()):
        length = int(ends[i + 1] - ends[i])
        yield None if lost or not length else (start + int(ends[i]), length)


def _path(place: tuple[int, int] | None, path: str | None, file: str, name: str) -> str | None:
    """Of an image, which is in the Arrow file or, where it has no bytes, a file of its own."""
    if place is not None:
        own = (path or "").replace("\\", "/").rpartition("/")[2]
        return str(Member(file, *place, f"{name}-{own}" if own else name))
    return path if path and "://" not in path and "::" not in path else None


def label_text(value: Any, where: str) -> Label:
    """A label as text; None for none, also for the -1 of images whose class is kept secret.

    Raises:
        ValueError: it is no class, nor a list of them.
    """
    if value is None or value == "" or (isinstance(value, int) and value < 0):
        return None
    if isinstance(value, (list, tuple)):
        parts = [label_text(part, where) for part in value]
        return tuple(sorted({part for part in parts if isinstance(part, str)}))
    if isinstance(value, (int, str)):
        return str(value)
    raise ValueError(f"{where} is a {type(value).__name__}, expected a class")
