"""What is wrong with an image set though every file of it is fine: the same image twice, classes
that only one split has, names that differ in a capital letter.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence

from infodisent.data.archives import open_file, size_and_change
from infodisent.data.items import ImageItem, ImageSet, counted, listed
from infodisent.data.splits import label_indices

_HEAD = 16384
"""Bytes of a file that are compared before it is read whole."""


def with_notices(images: ImageSet, *more: str) -> ImageSet:
    """The set with what was found out about its contents.

    Args:
        images: a finished set.
        more: notices to put before those that it has.
    """
    found = (*more, *images.notices, *_class_notices(images), *_duplicate_notices(images))
    return ImageSet(images.root, images.classes, images.items, images.task, found)


def similar_names(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Names that differ only in case, spaces, dashes or the way an accent is written."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in names:
        folded = unicodedata.normalize("NFKC", name).casefold()
        alike["".join("" if c in " _-" else c for c in folded)].append(name)
    return [tuple(group) for group in alike.values() if len(group) > 1]


def _class_notices(images: ImageSet) -> list[str]:
    lines = [
        f"classes with nearly the same name: {' and '.join(map(repr, group))} are kept apart"
        for group in similar_names(images.classes)
    ]
    trained, tested = (
        {y for i in images.items if i.split == split for y in label_indices(i.label)}
        for split in ("train", "val")
    )
    untested = [images.classes[y] for y in sorted(trained - tested)]
    said = any(line.startswith("trained on but not tested") for line in images.notices)
    if untested and tested and not said:
        lines.append(
            f"trained on but not tested: {counted(len(untested), 'class')} without a held-out "
            f"image ({listed(untested)})"
        )
    nowhere = [name for y, name in enumerate(images.classes) if y not in trained | tested]
    if nowhere and tested and trained:
        lines.append(f"{counted(len(nowhere), 'class')} without any image ({listed(nowhere)})")
    return lines


def _duplicate_notices(images: ImageSet) -> list[str]:
    shared: list[tuple[str, str]] = []
    contrary: list[tuple[str, str]] = []
    for group in _same_content(images.items):
        train = [item for item in group if item.split == "train"]
        val = [item for item in group if item.split == "val"]
        if train:
            shared += [(item.path, train[0].path) for item in val]
        other = next((item for item in group if item.label != group[0].label), None)
        if other is not None:
            contrary.append((group[0].path, other.path))
    lines = []
    if shared:
        number = counted(len(shared), "held-out image")
        lines.append(
            f"{number} {'is' if len(shared) == 1 else 'are'} also among the training images, so "
            f"the figures flatter ({_pair(shared[0], images.root)})"
        )
    if contrary:
        lines.append(
            f"the same image under different labels, {counted(len(contrary), 'time')} "
            f"({_pair(contrary[0], images.root)})"
        )
    return lines


def _pair(paths: tuple[str, str], root: str) -> str:
    names = (os.path.relpath(p, root) if p.startswith(root + os.sep) else p for p in paths)
    return " is ".join(names)


def _same_content(items: Sequence[ImageItem]) -> list[list[ImageItem]]:
    """Items whose files hold the same bytes: same size, then same beginning, then same SHA-256."""
    groups = [list(items)]
    for key in (_size, _digest_of_head, _digest):
        groups = [part for group in groups for part in _divided(group, key)]
    return groups


def _divided(items: Sequence[ImageItem], key: Callable[[str], Hashable]) -> list[list[ImageItem]]:
    by_key: dict[Hashable, list[ImageItem]] = defaultdict(list)
    for item in items:
        try:
            by_key[key(item.path)].append(item)
        except OSError:  # said when it is decoded
            continue
    return [group for group in by_key.values() if len(group) > 1]


def _size(path: str) -> int | str:
    return size_and_change(path)[0] or path  # empty files are no images, let alone the same one


def _digest_of_head(path: str) -> bytes:
    with open_file(path) as file:
        return hashlib.sha256(file.read(_HEAD)).digest()


def _digest(path: str) -> bytes:
    if size_and_change(path)[0] <= _HEAD:
        return b""  # compared whole already
    with open_file(path) as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.digest()
