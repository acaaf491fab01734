"""`ImageSet`: labelled images, as every scan and listing gives them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

TASKS = ("multiclass", "multilabel")


@dataclass(frozen=True)
class ImageItem:
    """One image.

    Attributes:
        path: its file.
        label: index of its class; in a multi-label set the indices of all its labels, rising.
        split: "train" or "val".
        group: what must not be divided between splits (a patient, a site …); "" for none.
    """

    path: str
    label: int | tuple[int, ...]
    split: str
    group: str = ""


@dataclass(frozen=True)
class ImageSet:
    """Labelled images of K classes.

    Attributes:
        root: folder the images come from.
        classes: K class names; a label is an index into them.
        items: the images.
        task: "multiclass", one class an image, or "multilabel", any number of them.
        notices: what their owner should know: how the folders were understood, what was left out,
            images found in both splits. One sentence each.
    """

    root: str
    classes: tuple[str, ...]
    items: tuple[ImageItem, ...] = field(repr=False)
    task: str = "multiclass"
    notices: tuple[str, ...] = ()


def listed(names: Iterable[str], limit: int = 3) -> str:
    """The first few of some names, for a message: ``a, b, c …``."""
    every = list(names)
    return ", ".join(every[:limit]) + (" …" if len(every) > limit else "")


def counted(count: int, noun: str) -> str:
    """``1 image``, ``2 images``; a noun that ends in -ss or -x takes -es, -y becomes -ies."""
    if count == 1:
        return f"1 {noun}"
    if noun.endswith("y"):
        return f"{count:,} {noun[:-1]}ies"
    return f"{count:,} {noun}{'es' if noun.endswith(('ss', 'x')) else 's'}"
