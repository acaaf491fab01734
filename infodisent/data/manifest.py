"""``store.json``, the manifest of a feature store, read and checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from infodisent.backbones.preprocess import transform_problem
from infodisent.data.items import TASKS
from infodisent.files import read_json

MANIFEST = "store.json"
AGAIN = "the `infodisent fit` that made it makes again what is missing"
"""What helps where a file of a store is not there or not as it was."""
LABELS = "labels_digest"
"""Key of the manifest: `labels_digest` of what it says; absent before version 0.2."""


def read_manifest(path: Path) -> dict[str, Any]:
    """What a manifest says.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is truncated or does not hold what it should; says what helps.
    """
    try:
        meta = read_json(path)
        problem = _problem(meta)
    except ValueError as error:  # cut off, or bytes that are no text
        meta, problem = {}, str(error).removeprefix(f"{path} is ")
    if problem is not None:
        raise ValueError(
            f"{path} does not hold what it should ({problem}): delete it, and the `infodisent fit` "
            "that made it writes it anew and uses the maps that are there"
        )
    found: dict[str, Any] = meta
    return found


def labels_digest(meta: Mapping[str, Any]) -> str:
    """A digest of what is learned from: classes, and of every image label, split and group.

    Not of paths, which change when images are moved.
    """
    about = [meta["classes"], meta.get("task", TASKS[0])]
    about += [[item[at] if at < len(item) else "" for item in meta["items"]] for at in (1, 2, 3)]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def _problem(meta: Any) -> str | None:
    """What is wrong with a manifest, or None."""
    if not isinstance(meta, Mapping):
        return f"a {type(meta).__name__} where an object should be"
    for key, (allowed, right) in _ALLOWED.items():
        if key not in meta:
            return f"it lacks {key}"
        if not right(meta[key]):
            return f"{key} is no {allowed}"
    if meta.get("task", TASKS[0]) not in TASKS:
        return f"task is {meta['task']!r}"
    if meta["grid"][0] * meta["grid"][1] != meta["pixels"]:
        return f"grid {meta['grid']} has not {meta['pixels']} pixels"
    wrong = _wrong_items(meta["items"], meta.get("task") == TASKS[1], len(meta["classes"]))
    if wrong is not None:
        return wrong
    if LABELS in meta and meta[LABELS] != labels_digest(meta):
        return "classes, labels or splits are others than it was written with"
    return transform_problem(meta["transform"])


def _wrong_items(items: list[Any], several: bool, classes: int) -> str | None:
    """What is wrong with the images, or None; by columns, as there may be millions."""
    if not set(map(type, items)) <= {list} or not set(map(len, items)) <= {3, 4}:
        return "items are no lists of path, label, split and group"
    paths, labels, splits = ([item[at] for item in items] for at in range(3))
    texts = chain(paths, splits, (item[3] for item in items if len(item) == 4))
    if not set(map(type, texts)) <= {str}:
        return "items have paths, splits or groups that are no text"
    if several and not set(map(type, labels)) <= {list}:
        return "items have labels that are no lists"
    numbers = list(chain.from_iterable(labels)) if several else labels
    if not set(map(type, numbers)) <= {int} or min(numbers, default=0) < 0:
        return "items have labels that are no numbers of classes"
    if numbers and max(numbers) >= classes:
        return f"items have label {max(numbers)}, of {classes} classes"
    return None


def _count(value: Any, least: int = 0) -> bool:
    return type(value) is int and value >= least


def _positive(value: Any) -> bool:
    return _count(value, 1)


def _listed(value: Any, right: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(right, value))


_ALLOWED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "made_from": ("object", lambda value: isinstance(value, Mapping)),
    "channels": ("number > 0", _positive),
    "pixels": ("number > 0", _positive),
    "shard_size": ("number > 0", _positive),
    "grid": ("pair of numbers", lambda value: _listed(value, _positive) and len(value) == 2),
    "classes": ("list of names", lambda value: _listed(value, lambda one: isinstance(one, str))),
    "items": ("list of images", lambda value: isinstance(value, list)),
    "transform": ("object", lambda value: isinstance(value, Mapping)),
}
"""Keys that a store is read by, with what they hold, in words and as a check."""
