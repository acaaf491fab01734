"""Which column of the original head's logits is which class: known for certain, or not at all."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from infodisent.backbones.torchvision_import import ensure_torchvision
from infodisent.data.store import FeatureStore

_SUBSETS = {
    1000: "imagenet-1k",
    11221: "imagenet-21k-miil",
    11821: "imagenet-12k",
    21841: "imagenet-22k",
    21843: "imagenet-21k-goog",
}
"""timm's lists of ImageNet classes by their length."""

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
        ValueError: `mapping` has a key that is no class, or a value that is no column.
    """
    ids, spoken = _columns_by_name(width, names)
    columns = []
    for name in classes:
        found: set[int] = set()
        if mapping is not None and name in mapping:
            found = {_mapped(name, mapping[name], width, ids, spoken)}
        elif wordnet := re.match(r"n\d{8}(?=$|\W|_)", name):
            found = ids.get(wordnet.group(0), set())
        else:
            found = spoken.get(_plain(name), set())
        columns.append(found)
    if mapping is not None and (strange := [key for key in mapping if key not in classes]):
        raise ValueError(
            f"original_classes: {strange[0]!r} is none of the classes {', '.join(classes)}"
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
    ids: dict[str, set[int]] = {}
    if names is None and width in _SUBSETS:
        ensure_torchvision()
        from timm.data import ImageNetInfo

        info = ImageNetInfo(_SUBSETS[width])
        names = info.label_descriptions()
        for column, wordnet in enumerate(info.label_names()):
            ids.setdefault(wordnet, set()).add(column)
    if names is None or len(names) != width:
        return ids, {}
    if not ids:
        for column, name in enumerate(names):
            if wordnet_id := re.match(r"n\d{8}(?=$|\W|_)", name):
                ids.setdefault(wordnet_id.group(0), set()).add(column)
    spoken: dict[str, set[int]] = {}
    if not ids and width in _SUBSETS and _are_imagenet(names, width):
        # its other names too: one that two classes share is sure of neither
        ids, spoken = _columns_by_name(width, None)
    for column, name in enumerate(names):
        for one in {_plain(name), *(_plain(part) for part in name.split(","))}:
            spoken.setdefault(one, set()).add(column)
    return ids, spoken


def _are_imagenet(names: Iterable[str], width: int) -> bool:
    """Whether names are ImageNet's, in its order: torchvision's and the hub's differ a little."""
    spoken = _columns_by_name(width, None)[1]
    same = sum(
        any(column in spoken.get(_plain(part), ()) for part in name.split(","))
        for column, name in enumerate(names)
    )
    return same > 0.9 * width


def _plain(name: str) -> str:
    return " ".join(re.split(r"[\s_-]+", name.casefold().strip(" _-")))
