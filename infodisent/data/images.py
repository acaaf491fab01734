"""Folders of labelled images: finding, splitting and decoding them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from infodisent.backbones.geometry import crop_geometry
from infodisent.data.notes import crop_note
from infodisent.data.pictures import ImageSource, load_picture, reading_options

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".gif")
TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "valid", "validation", "test")


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
    """

    root: str
    classes: tuple[str, ...]
    items: tuple[ImageItem, ...] = field(repr=False)
    task: str = "multiclass"


def scan_folder(
    root: str | os.PathLike[str], *, val_fraction: float = 0.25, seed: int = 0
) -> ImageSet:
    """Find the images of a folder of class folders.

    A folder with ``train/`` and ``val/`` (or ``test/``) is taken as split; otherwise every class is
    split with the same fraction, chosen by `seed`.

    Args:
        root: ``root/<class>/*.jpg`` or ``root/{train,val}/<class>/*.jpg``, searched recursively.
        val_fraction: part of every class held out, in (0, 1).
        seed: of the split.

    Raises:
        FileNotFoundError: `root` is not a folder.
        ValueError: fewer than two classes with images, classes that differ between the splits, or
            a class too small to split.
    """
    base = Path(os.path.abspath(root))
    if not base.is_dir():
        raise FileNotFoundError(f"{base} is not a folder; expected a folder of class folders")
    train = _subfolder(base, TRAIN_NAMES)
    val = _subfolder(base, VAL_NAMES)
    if train is not None and val is not None:
        splits = {"train": _classes(train), "val": _classes(val)}
        if set(splits["val"]) - set(splits["train"]):
            unknown = ", ".join(sorted(set(splits["val"]) - set(splits["train"])))
            raise ValueError(f"{val} has classes that {train} lacks: {unknown}")
        classes = tuple(sorted(splits["train"]))
        _check_classes(base, classes)
        items = [
            ImageItem(path, classes.index(name), split)
            for split, by_class in splits.items()
            for name in sorted(by_class)
            for path in by_class[name]
        ]
        return ImageSet(str(base), classes, tuple(items))
    by_class = _classes(base)
    classes = tuple(sorted(by_class))
    _check_classes(base, classes)
    labelled = [(path, i) for i, name in enumerate(classes) for path in by_class[name]]
    return split_items(
        base, classes, [p for p, _ in labelled], [y for _, y in labelled], val_fraction, seed
    )


def all_for_testing(root: str | os.PathLike[str], classes: Sequence[str]) -> ImageSet:
    """Every image of a folder of class folders as a "val" item, labelled as a model's `classes`.

    Raises:
        FileNotFoundError: `root` is not a folder.
        ValueError: no images, or a class folder that is none of `classes`.
    """
    base = Path(os.path.abspath(root))
    if not base.is_dir():
        raise FileNotFoundError(f"{base} is not a folder; expected a folder of class folders")
    held_out = _subfolder(base, [name for name in VAL_NAMES if name not in classes])
    by_class = _classes(held_out or base)
    unknown = sorted(set(by_class) - set(classes))
    if unknown or not by_class:
        raise ValueError(
            f"{base} has "
            + (f"classes the model lacks: {', '.join(unknown)}" if unknown else "no images")
            + f"; the model knows {', '.join(classes)}"
        )
    items = tuple(
        ImageItem(path, list(classes).index(name), "val")
        for name, paths in by_class.items()
        for path in paths
    )
    return ImageSet(str(base), tuple(classes), items)


def split_items(
    root: str | os.PathLike[str],
    classes: Sequence[str],
    paths: Sequence[str],
    labels: Sequence[int],
    val_fraction: float = 0.25,
    seed: int = 0,
) -> ImageSet:
    """Hold out the same fraction of every class, at least one image and never all of them.

    Raises:
        ValueError: `val_fraction` outside (0, 1), or a class with fewer than two images.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction is {val_fraction}, must be between 0 and 1")
    generator = torch.Generator().manual_seed(seed)
    held_out: set[int] = set()
    for label, name in enumerate(classes):
        members = [i for i, y in enumerate(labels) if y == label]
        if len(members) < 2:
            raise ValueError(
                f"class {name!r} has {len(members)} image(s), at least 2 are needed to split it"
            )
        count = min(max(1, round(len(members) * val_fraction)), len(members) - 1)
        order = torch.randperm(len(members), generator=generator)[:count]
        held_out.update(members[i] for i in order.tolist())
    items = tuple(
        ImageItem(path, label, "val" if i in held_out else "train")
        for i, (path, label) in enumerate(zip(paths, labels, strict=True))
    )
    return ImageSet(str(root), tuple(classes), items)


def _subfolder(base: Path, names: Sequence[str]) -> Path | None:
    return next((base / name for name in names if (base / name).is_dir()), None)


def _classes(folder: Path) -> dict[str, list[str]]:
    """Image files by class folder, both sorted."""
    files_of: dict[str, list[str]] = {}
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.name.startswith("."):
            files = sorted(
                str(p) for p in _below(entry) if p.suffix.lower() in EXTENSIONS and p.is_file()
            )
            if files:
                files_of[entry.name] = files
    return files_of


def _below(folder: Path) -> Iterator[Path]:
    """Every file under a folder, through links but never in a circle; hidden names are left out."""
    seen: set[str] = set()
    for parent, names, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        names[:] = [] if real in seen else [n for n in names if not n.startswith(".")]
        if real not in seen:
            yield from (Path(parent, name) for name in files if not name.startswith("."))
        seen.add(real)


def _check_classes(base: Path, classes: Sequence[str]) -> None:
    if len(classes) < 2:
        raise ValueError(
            f"{base} has {len(classes)} class folder(s) with images ({', '.join(EXTENSIONS)}), "
            f"at least 2 are needed: {base}/<class>/<image>"
        )


def load_image(path: ImageSource) -> Image.Image:
    """Decode an image completely, upright, as RGB: `load_picture`, whose notes become warnings."""
    picture = load_picture(path)
    for note in picture.notes:
        warnings.warn(f"{picture.path or 'image'}: {note.text}", stacklevel=2)
    return picture.image


Sample = tuple[int, "Tensor | str", tuple[str, ...]]
"""Position, the transformed image or why it cannot be read, and the kinds of its notes."""


class ImageDataset(Dataset[Sample]):
    """Decoded and transformed images; one that cannot be read yields its error message instead.

    Args:
        paths: the images.
        transform: RGB picture to tensor.
        config: of the transform, which also says how files are read; what its crop cuts away is
            noted.
    """

    def __init__(
        self,
        paths: Sequence[str],
        transform: Callable[[Image.Image], Any],
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.paths, self.transform, self.config = paths, transform, config

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        try:
            picture = load_picture(self.paths[index], **reading_options(self.config or {}))
            notes = picture.notes
            if self.config is not None:
                notes += crop_note(crop_geometry(self.config, picture.image.size))
            return index, self.transform(picture.image), tuple(note.kind for note in notes)
        except (FileNotFoundError, ValueError) as error:
            return index, str(error), ()


def collate(
    samples: Sequence[Sample],
) -> tuple[list[int], Tensor | None, list[tuple[int, str]], list[str]]:
    """Positions and batch ``[n, C, H, W]`` of the good images, the failures with reasons, notes."""
    good = [(i, x) for i, x, _ in samples if isinstance(x, Tensor)]
    bad = [(i, x) for i, x, _ in samples if isinstance(x, str)]
    batch = torch.stack([x for _, x in good]) if good else None
    notes = [kind for _, _, kinds in samples for kind in kinds]
    return [i for i, _ in good], batch, bad, notes
