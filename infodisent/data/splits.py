"""Splits: their names as public data sets write them, and holding images out where there are none.

``train``, ``Training``, ``train_images``, ``imagesTrain``, ``trainset``, ``train2017``,
``seg_train``, ``val``, ``test``, ``fold_0`` … are recognised by `split_name`; whether a folder of
such a name is a split or a class is decided by what it holds, in `infodisent.data.scan`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from infodisent.data.items import ImageItem, ImageSet, counted, listed

TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "valid", "validation", "test")
DEFAULT_FRACTION = 0.25

_ROLES = {
    "train": ("train", "training", "trainval", "trn", "tr"),
    "val": ("validation", "validate", "valid", "val", "dev"),
    "test": (
        *("testing", "tests", "test", "tst", "ts", "te"),
        *("evaluation", "eval", "holdout", "hold_out", "heldout", "held_out"),
    ),
}
_ROLE_OF = {word: role for role, words in _ROLES.items() for word in words}
_ROLE = "|".join(sorted(_ROLE_OF, key=len, reverse=True))
# What may stand around the word and says nothing of its own.
_NEUTRAL = r"(?:images?|imgs?|sets?|datasets?|data|splits?|subset|folder|photos?|pictures?|pics?"
_NEUTRAL += r"|jpe?gs?|pngs?|files?|samples?|[\W_\d])*"
_PLAIN = re.compile(rf"{_NEUTRAL}({_ROLE}){_NEUTRAL}")
_PREFIXED = re.compile(rf"(.+?)[_.]+({_ROLE}){_NEUTRAL}")
_SUFFIXED = re.compile(rf"{_NEUTRAL}({_ROLE})[_.]+(.+?)")
_FOLD = re.compile(
    r"(?:k?folds?|splits?|cv|partition)[\W_]*(?:\d+|[a-e])|\d+(?:st|nd|rd|th)?[\W_]*fold"
)
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")


class SplitName(NamedTuple):
    """What a name says of a split.

    Attributes:
        role: "train", "val", "test" or "fold".
        of: what it is a split of, where the name says it (``seg_train``: "seg"); splits belong
            together where this is equal.
    """

    role: str
    of: str = ""


def split_name(name: str) -> SplitName | None:
    """The split that a folder's or a row's name speaks of, or None."""
    text = re.sub(r"[ -]", "_", _HUMP.sub("_", name.strip()).casefold())
    if _FOLD.fullmatch(text):
        return SplitName("fold")
    if match := _PLAIN.fullmatch(text):
        return SplitName(_ROLE_OF[match[1]])
    if match := _PREFIXED.fullmatch(text):
        return SplitName(_ROLE_OF[match[2]], match[1])
    if match := _SUFFIXED.fullmatch(text):
        return SplitName(_ROLE_OF[match[1]], match[2])
    return None


def check_fraction(val_fraction: float | None) -> float:
    """The fraction itself, or the default; ValueError outside (0, 1)."""
    if val_fraction is None:
        return DEFAULT_FRACTION
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction is {val_fraction}, must be between 0 and 1")
    return val_fraction


def split_items(
    root: str | os.PathLike[str],
    classes: Sequence[str],
    paths: Sequence[str],
    labels: Sequence[int],
    val_fraction: float = DEFAULT_FRACTION,
    seed: int = 0,
) -> ImageSet:
    """Hold out the same fraction of every class, at least one image and never all of them.

    The only image of a class is trained on, which is noted.

    Raises:
        ValueError: `val_fraction` outside (0, 1), a class without images, or no class with two.
    """
    missing = [name for y, name in enumerate(classes) if y not in set(labels)]
    if missing:
        raise ValueError(f"class {missing[0]!r} has 0 images, at least 1 is needed")
    items = [ImageItem(path, label, "train") for path, label in zip(paths, labels, strict=True)]
    return hold_out(ImageSet(str(root), tuple(classes), tuple(items)), val_fraction, seed)


def hold_out(images: ImageSet, val_fraction: float | None = None, seed: int = 0) -> ImageSet:
    """The set with a part of its images in "val", and notices on classes that gave none.

    Every class gives the same fraction. Groups are never divided; then, and where images have
    several labels, the fractions are kept as nearly as whole groups allow.

    Raises:
        ValueError: `val_fraction` outside (0, 1), or nothing can be held out.
    """
    fraction = check_fraction(val_fraction)
    generator = torch.Generator().manual_seed(seed)
    grouped = any(item.group for item in images.items)
    if grouped or images.task == "multilabel":
        held_out = _whole_groups(images, fraction, generator)
    else:
        held_out = _by_class(images, fraction, generator)
    if not held_out:
        what = "groups" if grouped else "images"
        raise ValueError(
            f"no class of {images.root} has two {what}: nothing can be held out for testing"
        )
    items = tuple(
        ImageItem(item.path, item.label, "val" if i in held_out else "train", item.group)
        for i, item in enumerate(images.items)
    )
    alone = _never_held_out(images.classes, items)
    notices = images.notices
    if alone:
        one = "group" if grouped else "image"
        notices += (
            f"trained on but not tested: {counted(len(alone), 'class')} with only one {one} "
            f"({listed(alone)})",
        )
    return ImageSet(images.root, images.classes, items, images.task, notices)


def label_indices(label: int | tuple[int, ...]) -> tuple[int, ...]:
    """The classes of an image, one or several."""
    return label if isinstance(label, tuple) else (label,)


def _never_held_out(classes: Sequence[str], items: Sequence[ImageItem]) -> list[str]:
    of = {"train": set[int](), "val": set[int]()}
    for item in items:
        of[item.split].update(label_indices(item.label))
    return [classes[y] for y in sorted(of["train"] - of["val"])]


def _by_class(images: ImageSet, fraction: float, generator: torch.Generator) -> set[int]:
    members_of: list[list[int]] = [[] for _ in images.classes]
    for i, item in enumerate(images.items):
        members_of[label_indices(item.label)[0]].append(i)
    held_out: set[int] = set()
    for members in members_of:
        if len(members) < 2:
            continue
        count = min(max(1, round(len(members) * fraction)), len(members) - 1)
        order = torch.randperm(len(members), generator=generator)[:count]
        held_out.update(members[i] for i in order.tolist())
    return held_out


def _whole_groups(images: ImageSet, fraction: float, generator: torch.Generator) -> set[int]:
    """Groups are taken in a random order while they bring the classes nearer to the fraction."""
    members: dict[object, list[int]] = {}
    for i, item in enumerate(images.items):
        members.setdefault(item.group or i, []).append(i)
    groups = list(members.values())
    counts = np.zeros((len(groups), len(images.classes) + 1))  # the last: images without a label
    for row, group in zip(counts, groups, strict=True):
        for i in group:
            row[list(label_indices(images.items[i].label)) or [-1]] += 1
    total = counts.sum(0)
    several = (counts > 0).sum(0) > 1  # classes that more than one group holds
    target = np.where(several, np.clip(np.round(total * fraction), 1, None), 0)
    order = torch.randperm(len(groups), generator=generator).tolist()
    held: NDArray[np.float64] = np.zeros_like(total)
    chosen: set[int] = set()

    def take(g: int) -> None:
        nonlocal held
        held = held + counts[g]
        chosen.add(g)

    def allowed(g: int) -> bool:  # every class keeps something to train on
        return bool((held + counts[g] < total)[counts[g] > 0].all())

    for g in order:
        if allowed(g) and abs(held + counts[g] - target).sum() < abs(held - target).sum():
            take(g)
    for y in np.flatnonzero(several):  # one group at least of every class, if that can be
        if held[y] == 0:
            able = [g for g in order if counts[g, y] and g not in chosen and allowed(g)]
            if able:
                take(min(able, key=lambda g: counts[g].sum()))
    return {i for g in chosen for i in groups[g]}
