"""Data sets in memory -> `ImageSet`: torch data sets, tensors and arrays, Hugging Face data sets.

Their pictures are written once, without loss, as PNG files beside the results: prototypes, pages
and every later command need pictures that stay where they are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from infodisent.data.archives import is_there
from infodisent.data.arrow import IMAGE_KEYS, LABEL_KEYS
from infodisent.data.contents import with_notices
from infodisent.data.items import ImageItem, ImageSet, counted, listed
from infodisent.data.labels import Labels
from infodisent.data.notes import Note, note_lines
from infodisent.data.notices import print_notices
from infodisent.data.pictures import load_picture
from infodisent.data.png import PngFolder
from infodisent.data.scan import scan_folder
from infodisent.data.splits import check_fraction, hold_out, split_name
from infodisent.data.tar_index import INDEX
from infodisent.progress import bar

_WANTED = (
    "expected an ImageSet, a folder, a CSV, a data set that gives (picture, label) by position, "
    "(images, labels), or a pair (train, val) of those"
)


def as_image_set(
    data: Any,
    folder: str | os.PathLike[str],
    *,
    classes: Sequence[str] | None = None,
    val_fraction: float | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = False,
) -> ImageSet:
    """Any labelled images as an `ImageSet`; pictures in memory become files in ``folder/images``.

    A picture is a PIL image, an array ``[H, W]`` or ``[H, W, C]``, a tensor ``[C, H, W]`` (uint8,
    or float in [0, 1], rounded to 8 bits) or a path, whose file stays where it is. Files that are
    there already and hold the same picture are kept, so an interrupted call goes on.

    Args:
        data: an `ImageSet`, which is returned as it is; a folder, CSV or a data set by
            name, such as ``hfds/NAME``, see `scan_folder`; anything with ``__len__``
            and ``__getitem__`` that gives ``(picture, label)`` or a dict of them; ``(images,
            labels)``; a pair ``(train, val)`` of those, or a dict with the splits' names.
        folder: for ``images/000000.png`` …
        classes: names of the classes; default: the data set's own, or its labels as text.
        val_fraction: part of every class held out, in (0, 1), where `data` is no pair; default
            0.25.
        seed: of the split.
        overwrite: replace the pictures of another data set.
        progress: show a progress bar, and print the notices.

    A label is an int, text, or a vector of zeros and ones (a multi-label set).

    Raises:
        TypeError: `data` is none of the above.
        ValueError: a picture or label that cannot be used, named by its position; pictures that are
            normalised or change from one access to the next; `folder` holds others.
    """
    if isinstance(data, ImageSet):
        return data
    check_fraction(val_fraction)
    if isinstance(data, (str, os.PathLike)):
        index = Path(folder) / INDEX
        return scan_folder(data, val_fraction=val_fraction, seed=seed, index=index)
    parts, left_out = _parts(data)
    labels = Labels(classes if classes is not None else _names(next(iter(parts.values()))))
    files = PngFolder(Path(os.path.abspath(folder)) / "images", overwrite)
    kinds: dict[str, int] = {}
    rows: list[tuple[str, str]] = []
    with bar(progress) as display:
        task = display.add_task("write pictures", total=sum(map(len, parts.values())), note="")
        for split, part in parts.items():
            _check_repeatable(part)
            for position, (picture, label) in _pairs(part):
                where = f"picture {position} of the data set"
                labels.add(label, f"{where}: its label")
                path, notes = _file(picture, where, files, len(rows))
                for note in notes:
                    kinds[note.kind] = kinds.get(note.kind, 0) + 1
                rows.append((path, split))
                display.update(task, advance=1)
    names, indices, multilabel = labels.finish()
    items = tuple(
        ImageItem(path, label, split) for (path, split), label in zip(rows, indices, strict=True)
    )
    task_name = "multilabel" if multilabel else "multiclass"
    images = ImageSet(str(files.path), names, items, task_name, (*labels.notices,))
    said = [*left_out, *note_lines(kinds)]
    if "val" not in parts:
        images = hold_out(images, val_fraction, seed)
    else:
        _check_classes(images)
        if val_fraction is not None:
            said.append(f"val_fraction {val_fraction} has no effect: train and val are given")
    images = with_notices(images, *said)
    if progress:
        print_notices(images)
    return images


def _parts(data: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The data set as ``{"train": …}`` or ``{"train": …, "val": …}``, and what is left out."""
    if isinstance(data, Mapping):
        found = {name: split_name(str(name)) for name in data}
        roles = {role.role: name for name, role in found.items() if role is not None}
        held = roles.get("val", roles.get("test"))
        if "train" not in roles or held is None:
            raise TypeError(f"the data set's splits are {listed(map(str, data))}; {_WANTED}")
        parts = {"train": _labelled(data[roles["train"]]), "val": _labelled(data[held])}
        others = [str(name) for name in data if name not in (roles["train"], held)]
        said = f"left out: the splits {listed(others)}; {held} is held out"
        return parts, (said,) if others else ()
    if isinstance(data, (tuple, list)) and len(data) == 2 and _is_two_sets(*data):
        return {"train": _labelled(data[0]), "val": _labelled(data[1])}, ()
    return {"train": _labelled(data)}, ()


def _is_two_sets(first: Any, second: Any) -> bool:
    """Whether two things are ``(train, val)``; not ``(images, labels)``, nor two labelled pictures:
    ``[(picture, 0), (picture, 1)]``.
    """
    if _is_two_columns(first, second):
        return False
    return all(_is_columns(data) or _is_set(data) for data in (first, second))


def _is_columns(data: Any) -> bool:
    return isinstance(data, tuple) and len(data) == 2 and _is_two_columns(*data)


def _is_set(data: Any) -> bool:
    if isinstance(data, (list, tuple)):
        return bool(data) and all(isinstance(row, (list, tuple, Mapping)) for row in data)
    plain = (str, bytes, os.PathLike, Mapping, Tensor, np.ndarray, Image.Image)
    return hasattr(data, "__getitem__") and not isinstance(data, plain)


def _labelled(data: Any) -> Any:
    """A data set that gives ``(picture, label)`` by position."""
    if _is_columns(data):
        return _Columns(*data)
    kind = type(data).__name__
    if hasattr(data, "dataset") and not hasattr(data, "__getitem__"):
        raise TypeError(f"got a {kind}: pass the data set it loads from (its .dataset)")
    if isinstance(data, (Tensor, np.ndarray, Image.Image, bytes, str)):
        raise TypeError(f"got a {kind} without labels; {_WANTED}")
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise TypeError(f"got a {kind}, which has no length and positions; {_WANTED}")
    if not len(data):
        raise ValueError(f"the {kind} is empty")
    return data


def _is_two_columns(images: Any, labels: Any) -> bool:
    """Whether a pair is ``(images, labels)``, not ``(train, val)``."""
    if isinstance(labels, (Tensor, np.ndarray)):
        return True
    if not isinstance(labels, (list, tuple)) or not hasattr(images, "__getitem__"):
        return False
    first = labels[0] if labels else None
    number = (int, float, np.integer, np.floating)
    vector = isinstance(first, (Tensor, np.ndarray)) and first.ndim < 2
    if vector or isinstance(first, (*number, str)):
        return not _is_columns(images)
    return isinstance(first, (list, tuple)) and all(isinstance(x, number) for x in first)


class _Columns:
    """``(images, labels)`` as a data set."""

    def __init__(self, images: Any, labels: Any) -> None:
        if len(images) != len(labels):
            raise ValueError(f"there are {len(images)} images and {len(labels)} labels")
        if not len(images):
            raise ValueError("there are 0 images")
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> tuple[Any, Any]:
        picture = self.images[position]
        if isinstance(picture, Tensor) and picture.ndim == 2:
            picture = picture[None]
        return picture, self.labels[position]


def _names(data: Any) -> Sequence[str] | None:
    """The class names a data set brings, also one inside others (Subset, ConcatDataset)."""
    for _ in range(16):
        features = getattr(data, "features", None)
        if isinstance(features, Mapping):
            for key in LABEL_KEYS:
                if names := getattr(features.get(key), "names", None):
                    return [str(name) for name in names]
        names = getattr(data, "classes", None)
        if isinstance(names, (list, tuple)) and names:
            return [str(name[0] if isinstance(name, tuple) else name) for name in names]
        inner = getattr(data, "dataset", None)
        several = getattr(data, "datasets", None)
        data = several[0] if isinstance(several, (list, tuple)) and several else inner
        if data is None:
            return None
    return None


def _pair(data: Any, position: int) -> tuple[Any, Any]:
    item = data[position]
    if isinstance(item, Mapping):
        picture = next((item[key] for key in IMAGE_KEYS if key in item), None)
        label = next((item[key] for key in LABEL_KEYS if key in item), None)
        if picture is None or label is None:
            raise ValueError(
                f"picture {position} of the data set is a dict of {listed(item, 8)}; expected "
                f"one of {', '.join(IMAGE_KEYS)} and one of {', '.join(LABEL_KEYS)}"
            )
        return picture, label
    if isinstance(item, (tuple, list)) and len(item) >= 2:
        return item[0], item[1]
    raise TypeError(
        f"picture {position} of the data set is a {type(item).__name__}, expected (picture, label)"
    )


def _pairs(data: Any) -> Iterator[tuple[int, tuple[Any, Any]]]:
    for position in range(len(data)):
        yield position, _pair(data, position)


def _check_repeatable(data: Any) -> None:
    """Refuse a data set whose transform is random: no picture of it could be found again."""
    for position in range(min(8, len(data))):
        first, second = (_pair(data, position)[0] for _ in range(2))
        if isinstance(first, (str, os.PathLike)):
            return
        where = f"picture {position} of the data set"
        if _decoded(first, where)[0].tobytes() != _decoded(second, where)[0].tobytes():
            raise ValueError(
                f"{where} is another one at every access: drop its random transform; the model's "
                "own preprocessing is applied"
            )


def _file(picture: Any, where: str, files: PngFolder, number: int) -> tuple[str, tuple[Note, ...]]:
    if isinstance(picture, (str, os.PathLike)):
        path = os.path.abspath(os.fsdecode(picture))
        if not is_there(path):
            raise FileNotFoundError(f"{where}: {path} is not a file")
        return path, ()
    image, notes = _decoded(picture, where)
    return files.keep(number, image, where), notes


def _decoded(picture: Any, where: str) -> tuple[Image.Image, tuple[Note, ...]]:
    """A picture that PNG holds without loss: 16-bit grey as it is, others as the model sees them.

    How 16 bits become 8 is the model's choice, and so is made when the file is read.
    """
    if isinstance(picture, Image.Image) and picture.mode == "I;16" and not picture.getexif():
        return picture, ()
    if isinstance(picture, np.ndarray) and picture.dtype == np.uint16 and picture.ndim == 2:
        return Image.fromarray(picture), ()
    try:
        found = load_picture(picture)
    except (TypeError, ValueError) as error:
        why = str(error).rpartition("cannot be read as an image: ")[2]
        if "[0, 1]" in why:
            why = why.partition(": it looks")[0]
            why += "; drop the transform: the model's own preprocessing is applied"
        raise type(error)(f"{where}: {why}") from error
    grey = isinstance(picture, Image.Image) and picture.mode in ("1", "L")
    return found.image.convert("L") if grey else found.image, found.notes


def _check_classes(images: ImageSet) -> None:
    of: dict[str, set[int]] = {"train": set(), "val": set()}
    for item in images.items:
        of[item.split].update(item.label if isinstance(item.label, tuple) else (item.label,))
    lacking = [images.classes[y] for y in sorted(of["val"] - of["train"])]
    if lacking:
        raise ValueError(
            f"val has {counted(len(lacking), 'class')} that train lacks: {listed(lacking, 6)}"
        )
