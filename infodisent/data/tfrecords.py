"""Data sets that TensorFlow Datasets has prepared -> `Records`, without TensorFlow.

Its TFRecord files are uncompressed and keep the encoded image files as they were, so an image is
known by its file, its first byte and its length, as in `infodisent.data.arrow`. A record is its
length (8 bytes), 4 bytes of checksum, that many bytes of an Example in Protocol Buffers' format,
and 4 bytes of checksum; the checksums are not looked at: decoding finds damaged images.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infodisent.data.archives import Member
from infodisent.data.items import counted, listed
from infodisent.data.records import Reading, Record, Records, class_names
from infodisent.files import read_json

_FILE = re.compile(r"[^-]+-(?P<split>.+?)\.tfrecord(?:-\d+-of-\d+)?")
_ABOUT = "dataset_info.json"
_COLUMNS = "features.json"
Span = tuple[int, int]


def is_prepared(folder: Path) -> bool:
    """Whether this is the folder of one version of a prepared data set."""
    return (folder / _ABOUT).is_file() and (folder / _COLUMNS).is_file()


def tfrecord_records(name: str, reading: Reading) -> Records:
    """The images of a prepared data set, all splits.

    Args:
        name: in ``TFDS_DATA_DIR`` (default ``~/tensorflow_datasets``), with ``/CONFIG`` and
            ``:VERSION`` where it has several, of which the newest is taken otherwise; or a folder.
        reading: its columns.

    Raises:
        FileNotFoundError: it has not been prepared.
        ValueError: it has no column of images or of labels, or its files are of another format,
            damaged, or fewer than there should be.
    """
    folder = _folder(name)
    what = f"tfds/{name}"
    image, label = _columns(what, folder, reading)
    records = Records(what, str(folder))
    listing = folder / f"{label}.labels.txt"
    if listing.is_file():
        records.names, records.named_by = class_names(listing), str(listing)
    about = read_json(folder / _ABOUT)
    found: dict[str, int] = {}
    files = sorted(file for file in folder.iterdir() if _FILE.fullmatch(file.name))
    for file in files:
        match = _FILE.fullmatch(file.name)
        split = match["split"] if match else ""
        found[split] = found.get(split, 0) + _read(file, split, (image, label), records)
    for split in about.get("splits", []):
        count = sum(int(length) for length in split.get("shardLengths", []))
        if found.get(split["name"], 0) != count:
            raise ValueError(
                f"{what}: the split {split['name']!r} has {count} images, its TFRecord files in "
                f"{folder} {found.get(split['name'], 0)} (format: "
                f"{about.get('fileFormat', 'tfrecord')}, which must be tfrecord)"
            )
    records.read_from = f"{counted(len(files), 'TFRecord file')} of {what}"
    return records


def _folder(name: str) -> Path:
    """The folder of a version of a data set."""
    text, _, version = name.partition(":")
    places = [Path(os.path.abspath(os.path.expanduser(name)))]
    data = os.environ.get("TFDS_DATA_DIR") or os.path.join("~", "tensorflow_datasets")
    places += [Path(os.path.abspath(os.path.expanduser(data))) / text / version]
    for place in places:
        if is_prepared(place):
            return place
        versions = [path for path in place.glob("*") if is_prepared(path)]
        versions += [path for path in place.glob("*/*") if is_prepared(path)]
        configs = {path.parent for path in versions}
        if len(configs) > 1:
            known = listed(sorted(path.name for path in configs), 8)
            raise ValueError(f"tfds/{name} has several configurations: {known}; add /CONFIG")
        if versions:
            return max(versions, key=_version)
    raise FileNotFoundError(
        f"tfds/{name} is not prepared in {places[1]}; with tensorflow-datasets and tensorflow "
        f"installed (pip install tensorflow-datasets tensorflow), run: tfds build {text}"
    )


def _version(folder: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", folder.name))


def _columns(what: str, folder: Path, reading: Reading) -> tuple[str, str]:
    """The names of the columns of images and labels."""
    features = read_json(folder / _COLUMNS).get("featuresDict", {}).get("features", {})
    kinds = {
        name: str(about.get("pythonClassName", "")).rpartition(".")[2]
        for name, about in features.items()
    }
    names = []
    for option, kind, asked in (
        ("image", "Image", reading.image),
        ("label", "ClassLabel", reading.label),
    ):
        possible = [name for name, its in kinds.items() if its == kind]
        usual = asked or (
            option if option in possible else possible[0] if len(possible) == 1 else ""
        )
        if usual not in kinds or (kind == "Image" and usual not in possible):
            raise ValueError(
                f"{what}: the column of {option}s is {asked or 'not known'}; it has "
                f"{listed(possible, 8) or 'none'} of the kind {kind}, of others "
                f"{listed((n for n in kinds if n not in possible), 8)}; pass --read {option}=NAME"
            )
        names.append(usual)
    return names[0], names[1]


def _read(file: Path, split: str, columns: tuple[str, str], records: Records) -> int:
    """Note the records of one file; returns how many."""
    count = 0
    if not file.stat().st_size:
        return 0
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for span in _records(data, file):
            try:
                values = _example(data, span)
                image, label = (values.get(name) for name in columns)
            except (IndexError, struct.error) as error:
                raise ValueError(f"{file}: the record at byte {span[0]} is damaged") from error
            if isinstance(image, tuple) and image[0] < image[1]:
                name = f"{split}/{count:06d}"
                path = str(Member(str(file), image[0], image[1] - image[0], name))
                records.rows.append(Record(split, _text(data, label), path))
            else:
                records.left_out["without an image"] += 1
            count += 1
    return count


def _text(data: mmap.mmap, label: int | Span | None) -> str | None:
    if isinstance(label, tuple):
        return data[label[0] : label[1]].decode("utf-8", "replace") or None
    return None if label is None or label < 0 else str(label)


def _records(data: mmap.mmap, file: Path) -> Iterator[Span]:
    """Where the content of every record lies."""
    at = 0
    while at < len(data):
        length = struct.unpack_from("<Q", data, at)[0] if at + 12 <= len(data) else len(data)
        if at + length + 16 > len(data):
            raise ValueError(f"{file} is damaged or no TFRecord file: see byte {at}")
        yield at + 12, at + 12 + length
        at += length + 16


def _example(data: mmap.mmap, span: Span) -> dict[str, int | Span]:
    """The first value of every column of an Example: a number, or where its bytes lie.

    An Example is ``{1: {1: [{1: name, 2: {1: bytes, 2: floats, 3: int64s}}, …]}}`` with lists
    ``{1: [value, …]}``.
    """
    values: dict[str, int | Span] = {}
    for features in _spans(data, span, 1):
        for entry in _spans(data, features, 1):
            name = next(_spans(data, entry, 1), (0, 0))
            for feature in _spans(data, entry, 2):
                for number, kind, found in _fields(data, feature):
                    value = _first(data, found, number) if kind == 2 else None
                    if value is not None:
                        values[data[name[0] : name[1]].decode("utf-8", "replace")] = value
    return values


def _first(data: mmap.mmap, span: Any, kind: int) -> int | Span | None:
    """The first value of a list of bytes (kind 1) or of int64s (kind 3)."""
    for number, wire, found in _fields(data, span):
        if number != 1:
            continue
        if kind == 1 and wire == 2:
            lies: Span = found
            return lies
        if kind == 3:
            packed = wire == 2 and found[0] < found[1]
            value: int = _varint(data, found[0])[0] if packed else found if wire == 0 else 0
            return value - (1 << 64) if value >> 63 else value
    return None


def _spans(data: mmap.mmap, span: Span, wanted: int) -> Iterator[Span]:
    for number, wire, found in _fields(data, span):
        if number == wanted and wire == 2:
            yield found


def _fields(data: mmap.mmap, span: Span) -> Iterator[tuple[int, int, Any]]:
    """Number, wire type and value (where it lies, for wire type 2) of a message's fields."""
    at, end = span
    while at < end:
        key, at = _varint(data, at)
        wire = key & 7
        value: Any = None
        if wire == 0:
            value, at = _varint(data, at)
        elif wire == 2:
            length, at = _varint(data, at)
            value, at = (at, at + length), at + length
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        if wire not in (0, 1, 2, 5) or at > end:
            raise IndexError(at)
        yield key >> 3, wire, value


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, the lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise IndexError(at)
