"""What a feature store was made from, by contents: a copied or touched folder is the same.

A file is known by its size and its contents, of large ones both ends. As long as size and time of
change are those of the last look it is not read again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from infodisent.data.archives import open_file, size_and_change
from infodisent.data.images import ImageSet
from infodisent.files import read_tensors, write_tensors

LOOKS = "looks.safetensors"
"""File of a store with what the last look at every image has found."""

ENDS = 1 << 19
"""Bytes read at each end of a file, 512 KiB; a file of twice that is read whole."""

_CONTENT = "content:"
"""Begins a listing by contents; version 0.1 had one by path and time of change."""


def listing(images: ImageSet, folder: Path | None = None) -> str:
    """A digest over names (below the root), labels, splits, groups and contents of all images.

    Args:
        images: the images; one that can't be read counts as empty.
        folder: of a store, where the looks are kept from one time to the next.
    """
    known = {} if folder is None else _looks(folder / LOOKS)
    digest, looks = hashlib.sha256(), []
    names = _names(images.root, (item.path for item in images.items))
    for item, name in zip(images.items, names, strict=True):
        key = _number(name.encode(errors="surrogateescape"))
        look = _look(item.path, known.get(key))
        looks.append((key, *look))
        about = [item.label, item.split, *([item.group] if item.group else [])]
        digest.update(json.dumps([name, *about, look[0], look[2]]).encode())
    if folder is not None and folder.is_dir() and any(known.get(k) != look for k, *look in looks):
        write_tensors(folder / LOOKS, {"looks": torch.tensor(looks, dtype=torch.int64)})
    return _CONTENT + digest.hexdigest()


def is_by_content(made_from: str) -> bool:
    """Whether a listing is by contents, not that of version 0.1."""
    return made_from.startswith(_CONTENT)


def listing_by_path(images: ImageSet) -> str:
    """Version 0.1's digest: paths, labels, splits, sizes and times of change."""
    digest = hashlib.sha256()
    for item in images.items:
        try:
            status = os.stat(item.path)
            state = [status.st_size, status.st_mtime_ns]
        except OSError:
            state = []
        digest.update(json.dumps([item.path, item.label, item.split, *state]).encode())
    return digest.hexdigest()


def changed(folder: Path, root: str, paths: Iterable[str], now: Sequence[str]) -> list[str]:
    """Which images of a store have other contents than at the last look.

    Those that are lost, or that nobody has looked at, are not among them.

    Args:
        folder: of the store.
        root, paths: of the images when it was made.
        now: where they are now, in the same order.

    Returns:
        The ones of `now`.
    """
    known, found = _looks(folder / LOOKS), []
    for name, path in zip(_names(root, paths), now, strict=True):
        before = known.get(_number(name.encode(errors="surrogateescape")))
        if before is None or before[0] < 0:
            continue
        size, _, content = _look(path, before)
        if size >= 0 and (size, content) != (before[0], before[2]):
            found.append(path)
    return found


def _names(root: str, paths: Iterable[str]) -> Iterator[str]:
    """Paths below the root, with forward slashes; whole where they are elsewhere."""
    root = os.path.join(root, "")
    for path in paths:
        yield path.removeprefix(root).replace(os.sep, "/")


def _look(path: str, known: list[int] | None) -> list[int]:
    """Size, time of change in ns, and a number made of the contents."""
    try:
        size, changed = size_and_change(path)
        if known is not None and known[:2] == [size, changed]:
            return known
        with open_file(path) as file:
            ends = file.read(ENDS)
            if size > ENDS:
                file.seek(max(ENDS, size - ENDS))
                ends += file.read(ENDS)
    except OSError:
        return [-1, -1, 0]
    return [size, changed, _number(ends)]


def _number(content: bytes) -> int:
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big", signed=True)


def _looks(path: Path) -> dict[int, list[int]]:
    """Size, time of change and number of every image of the last look, by its name's number."""
    try:
        rows = read_tensors(path)[0]["looks"].tolist()
        return {key: look for key, *look in rows}
    except (OSError, ValueError, KeyError, TypeError):  # absent or damaged: all is read again
        return {}
