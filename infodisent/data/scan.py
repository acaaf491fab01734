"""Folders of labelled images -> `ImageSet`."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from infodisent.data.contents import with_notices
from infodisent.data.items import ImageItem, ImageSet, listed
from infodisent.data.layouts import ClassFiles, Layout, read_layout, read_two
from infodisent.data.listing import LISTINGS, read_csv
from infodisent.data.readers import read_records
from infodisent.data.records import Reading, divided, for_scoring, joined
from infodisent.data.splits import check_fraction, hold_out

_TWO = "train and val go together: the folders of class folders to train on and to hold out"


def scan_folder(
    root: str | os.PathLike[str] | None = None,
    *,
    train: str | os.PathLike[str] | None = None,
    val: str | os.PathLike[str] | None = None,
    val_fraction: float | None = None,
    seed: int = 0,
    reading: Reading | None = None,
    index: Path | None = None,
) -> ImageSet:
    """Find the images of a folder of class folders, or of a data set.

    A folder that holds splits (``train`` and ``val`` or ``test``, under the names that public data
    sets give them) is taken as split, and so are class folders that hold them; otherwise every
    class is split with the same fraction, chosen by `seed`. All formats that Pillow opens count.
    How the folder was understood, and all that was left out, is in ``notices``.

    Args:
        root: ``root/<class>/*.jpg`` or ``root/{train,val}/<class>/*.jpg``, searched recursively;
            or a CSV, see `infodisent.data.listing.read_csv`; or tar files, such as WebDataset's
            shards, see `infodisent.data.tars.tar_records`; or ``hfds/NAME``, ``wds/PATTERN``,
            ``tfds/NAME``, see `infodisent.data.readers`.
        train, val: instead of `root`, two folders of class folders, or two data sets.
        val_fraction: part of every class held out, in (0, 1); default 0.25. Without effect, and
            said so, on images that are split already.
        seed: of the split.
        reading: splits and columns of a data set.
        index: a file that keeps where the images of tar files lie, see
            `infodisent.data.tar_index.read_archives`.

    Raises:
        FileNotFoundError: not a folder.
        ModuleNotFoundError: a package that a data set needs.
        ValueError: fewer than two classes with images, classes that only the held-out split has,
            nothing to hold out, or splits that cannot be understood; says what was seen and what
            to pass.
        TypeError: neither `root` nor `train` and `val` are given, or both.
    """
    check_fraction(val_fraction)
    if root is None:
        if train is None or val is None:
            raise TypeError(f"scan_folder: {_TWO}; got train={train!r}, val={val!r}")
        both = [read_records(one, reading, index=index) for one in (train, val)]
        if both[0] is not None and both[1] is not None:
            pair = joined(both[0], both[1], reading or Reading())
            return with_notices(divided(pair, Reading(), val_fraction, seed))
        if both[0] is not None or both[1] is not None:
            raise ValueError(f"scan_folder: train {train} and val {val} must both be data sets")
        layout = read_two(Path(os.path.abspath(train)), Path(os.path.abspath(val)))
        base = _common(train, val)
    else:
        if train is not None or val is not None:
            raise TypeError("scan_folder: pass root, or train and val, not both")
        base = Path(os.path.abspath(root))
        if base.is_file() and base.suffix.lower() in LISTINGS:
            return read_csv(base, val_fraction=val_fraction, seed=seed)
        records = read_records(root, reading, index=index)
        if records is not None:
            return with_notices(divided(records, reading or Reading(), val_fraction, seed))
        layout = read_layout(base)
    if "all" in layout.splits:
        return _divide(base, layout, val_fraction, seed)
    ignored = []
    if val_fraction is not None:
        ignored.append(f"val_fraction {val_fraction} has no effect: the images are split already")
    return with_notices(_as_split(base, layout), *ignored)


def _divide(base: Path, layout: Layout, val_fraction: float | None, seed: int) -> ImageSet:
    by_class = layout.splits["all"]
    classes = _checked(base, layout, by_class)
    undivided = ImageSet(str(base), classes, _items(by_class, classes, "train"))
    return with_notices(hold_out(undivided, val_fraction, seed), *layout.notices)


def _as_split(base: Path, layout: Layout) -> ImageSet:
    classes = _checked(base, layout, layout.splits["train"])
    unknown = sorted(set(layout.splits["val"]) - set(classes))
    if unknown:
        raise ValueError(
            f"{layout.places['val']} has classes that {layout.places['train']} lacks: "
            f"{listed(unknown, 6)}; the latter has {listed(classes, 6)}"
        )
    if not layout.splits["val"]:
        raise ValueError(f"{layout.places['val']} has no class folder with images")
    items = [i for split, files in layout.splits.items() for i in _items(files, classes, split)]
    return ImageSet(str(base), classes, tuple(items), notices=tuple(layout.notices))


def _items(by_class: ClassFiles, classes: Sequence[str], split: str) -> tuple[ImageItem, ...]:
    index = {name: y for y, name in enumerate(classes)}
    return tuple(
        ImageItem(path, index[name], split) for name in sorted(by_class) for path in by_class[name]
    )


def _checked(base: Path, layout: Layout, by_class: Collection[str]) -> tuple[str, ...]:
    classes = tuple(sorted(by_class))
    if len(classes) < 2:
        where = layout.places.get("train", layout.root)
        said = "".join(f"; {line}" for line in layout.notices if line.startswith("left out"))
        raise ValueError(
            f"{where} has {len(classes)} class folder(s) with images, at least 2 are needed: "
            f"{base}/<class>/<image>{said}"
        )
    return classes


def _common(*paths: str | os.PathLike[str]) -> Path:
    absolute = [os.path.abspath(path) for path in paths]
    try:
        return Path(os.path.commonpath(absolute))
    except ValueError:  # on different drives
        return Path(absolute[0])


def all_for_testing(
    root: str | os.PathLike[str],
    classes: Sequence[str],
    task: str = "multiclass",
    *,
    reading: Reading | None = None,
    index: Path | None = None,
) -> ImageSet:
    """Every image of a folder of class folders as a "val" item, labelled as a model's `classes`.

    The folder is understood as `scan_folder` does. Of a folder of splits the held-out one is taken.
    A CSV is taken too, see `infodisent.data.listing.read_csv`; all its images count. Of a data set,
    see `infodisent.data.readers`, the held-out split is taken, or that which `reading` names.

    Raises:
        FileNotFoundError: `root` is not a folder.
        ValueError: no images, or a class folder that is none of `classes`.
    """
    base = Path(os.path.abspath(root))
    if base.is_file() and base.suffix.lower() in LISTINGS:
        return read_csv(base, task=task, classes=classes)
    records = read_records(root, reading, index=index)
    if records is not None:
        return with_notices(for_scoring(records, classes, task, reading))
    if task != "multiclass":
        raise ValueError(f"{base}: a {task} model is scored on a CSV of images and labels")
    layout = read_layout(base, classes)
    by_class = layout.splits["val"]
    unknown = sorted(set(by_class) - set(classes))
    if unknown or not by_class:
        said = "" if by_class else "".join(f"; {line}" for line in layout.notices)
        raise ValueError(
            f"{base} has "
            + (f"classes the model lacks: {', '.join(unknown)}" if unknown else "no images")
            + f"; the model knows {', '.join(classes)}{said}"
        )
    items = _items(by_class, classes, "val")
    return with_notices(ImageSet(str(base), tuple(classes), items), *layout.notices)
