"""Which column of the original head's logits is which class: known for certain, or not at all."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import Tensor

from infodisent.backbones.backbone import Backbone
from infodisent.backbones.linear_head import linear_classifier
from infodisent.backbones.torchvision_import import ensure_torchvision
from infodisent.data.store import FeatureStore
from infodisent.explanations.request import listed

_SUBSETS = {
    1000: "imagenet-1k",
    11221: "imagenet-21k-miil",
    11821: "imagenet-12k",
    21841: "imagenet-22k",
    21843: "imagenet-21k-goog",
}
"""timm's lists of ImageNet classes by their length."""

_WORDNET = r"n\d{8}(?=$|\W|_)"
"""A WordNet id at the beginning of a name."""

Mapped = Mapping[str, int | str]
"""For every class name the original's column, the name of its class there, or its WordNet id."""


def original_columns(store: FeatureStore, mapping: Mapped | None = None) -> list[int] | None:
    """The column of every class of a store in its ``original_logits``, or None.

    None where the original has no classifier or random weights, where the store is multi-label, and
    where one of the classes is not certainly known, see `match_classes`.

    Raises:
        ValueError: `mapping` says what does not exist, names no or another class.
    """
    original = store.meta.get("original", {})  # stores of version 0.1 don't say
    if store.original_logits is None or store.task != "multiclass":
        return None
    if not original.get("trained", True):
        return None
    width = store.original_logits.shape[1]
    return match_classes(store.classes, width, original.get("class_names"), mapping)


def original_classifier(
    backbone: Backbone, store: FeatureStore, mapping: Mapped | None = None
) -> tuple[Tensor, Tensor] | None:
    """Weights ``[K, C]`` and bias ``[K]`` of the original's classifier for the store's classes.

    None where it has no columns for them, see `original_columns`, or is not linear in the mean
    pixel, see `linear_classifier`.
    """
    columns = original_columns(store, mapping)
    linear = None if columns is None else linear_classifier(backbone)
    return None if linear is None else (linear[0][columns], linear[1][columns])


def match_classes(
    classes: Sequence[str],
    width: int,
    names: Sequence[str] | None = None,
    mapping: Mapped | None = None,
) -> list[int] | None:
    """The column of every class in an original head of `width` columns; None if one is unknown.

    A class is known by its name, whatever its case and with blanks, "_" or "-" between its words,
    if only one column has that name; by a WordNet id that its name starts with ("n02086240",
    "n02086240_shih_tzu"); or by `mapping`. Never by its place or by how many classes there are.

    Args:
        classes: K names.
        width: columns of the original's logits.
        names: the original's class names, `width` of them, each perhaps several with commas
            between; default: those of ImageNet where the width is that of one of timm's lists.
        mapping: the classes that their names do not tell.

    Raises:
        TypeError: names that are no texts, or `mapping` is none.
        ValueError: `mapping` has a key that is no class, or a value that is no column.
    """
    if mapping is not None and not isinstance(mapping, Mapping):
        raise TypeError(
            f"original_classes: {type(mapping).__name__} is no mapping from class names to columns"
        )
    for what, given in (("classes", classes), ("names", names or ())):
        if isinstance(given, str) or not all(isinstance(name, str) for name in given):
            raise TypeError(f"match_classes: {what} is {given!r:.80}, must be names in a sequence")
    ids, spoken = _columns_by_name(width, names)
    columns = []
    for name in classes:
        found: set[int] = set()
        if mapping is not None and name in mapping:
            found = {_mapped(name, mapping[name], width, ids, spoken)}
        elif wordnet := re.match(_WORDNET, name):
            found = ids.get(wordnet.group(0), set())
        else:
            found = spoken.get(_plain(name), set())
        columns.append(found)
    if mapping is not None and (strange := [key for key in mapping if key not in classes]):
        raise ValueError(
            f"original_classes: {strange[0]!r} is none of the classes {listed(classes)}"
        )
    if any(len(found) != 1 for found in columns):
        return None
    answer = [next(iter(found)) for found in columns]
    return answer if len(set(answer)) == len(answer) else None


def _mapped(
    name: str,
    value: int | str,
    width: int,
    ids: Mapping[str, set[int]],
    spoken: Mapping[str, set[int]],
) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        if 0 <= value < width:
            return value
        raise ValueError(f"original_classes: {name!r} is {value}, allowed are 0 … {width - 1}")
    found = ids.get(str(value)) or spoken.get(_plain(str(value)), set())
    if len(found) == 1:
        return next(iter(found))
    how = (
        f"{len(found)} of the original's classes have" if found else "the original has no class of"
    )
    raise ValueError(f"original_classes: {name!r} is {value!r}, and {how} that name")


def _columns_by_name(
    width: int, names: Sequence[str] | None
) -> tuple[dict[str, set[int]], dict[str, set[int]]]:
    """Columns by WordNet id, and by name."""
    if names is not None and len(names) != width:
        return {}, {}
    imagenet = _imagenet(width)
    if names is None:
        return imagenet
    found = (re.match(_WORDNET, name) for name in names)
    ids = _gathered((n, match.group(0)) for n, match in enumerate(found) if match)
    if not ids and _are_imagenet(names, imagenet[1]):
        # its other names too: one that two classes share is sure of neither
        ids, spoken = imagenet
        return ids, _gathered([*_spoken(names), *((n, w) for w, ns in spoken.items() for n in ns)])
    return ids, _gathered(_spoken(names))


def _imagenet(width: int) -> tuple[dict[str, set[int]], dict[str, set[int]]]:
    """The same of timm's list of so many classes; nothing where it has none."""
    if width not in _SUBSETS:
        return {}, {}
    ensure_torchvision()
    from timm.data import ImageNetInfo

    info = ImageNetInfo(_SUBSETS[width])
    return _gathered(enumerate(info.label_names())), _gathered(_spoken(info.label_descriptions()))


def _spoken(names: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Every column with each name that it has."""
    for column, name in enumerate(names):
        yield from ((column, _plain(one)) for one in (name, *name.split(",")))


def _gathered(pairs: Iterable[tuple[int, str]]) -> dict[str, set[int]]:
    columns: dict[str, set[int]] = {}
    for column, name in pairs:
        columns.setdefault(name, set()).add(column)
    return columns


def _are_imagenet(names: Sequence[str], spoken: Mapping[str, set[int]]) -> bool:
    """Whether names are ImageNet's, in its order: torchvision's and the hub's differ a little."""
    same = sum(
        any(column in spoken.get(_plain(part), ()) for part in name.split(","))
        for column, name in enumerate(names)
    )
    return bool(spoken) and same > 0.9 * len(names)


def _plain(name: str) -> str:
    # folders of some systems spell é as e and an accent
    same = unicodedata.normalize("NFC", name).casefold()
    return " ".join(re.split(r"[\s_-]+", same.strip(" _-")))
