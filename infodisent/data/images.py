"""Labelled images: finding, splitting and decoding them, under one name.

Folders are read by `infodisent.data.scan`, tables by `infodisent.data.listing`, data sets in memory
by `infodisent.data.memory`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from infodisent.backbones.geometry import crop_geometry
from infodisent.data.items import TASKS, ImageItem, ImageSet
from infodisent.data.listing import read_csv
from infodisent.data.memory import as_image_set
from infodisent.data.notes import crop_note
from infodisent.data.pictures import ImageSource, load_picture, reading_options
from infodisent.data.records import Reading
from infodisent.data.scan import all_for_testing, scan_folder
from infodisent.data.splits import TRAIN_NAMES, VAL_NAMES, split_items
from infodisent.data.tree import extensions

__all__ = [
    "TASKS",
    "TRAIN_NAMES",
    "VAL_NAMES",
    "ImageDataset",
    "ImageItem",
    "ImageSet",
    "Reading",
    "all_for_testing",
    "as_image_set",
    "collate",
    "extensions",
    "load_image",
    "read_csv",
    "scan_folder",
    "split_items",
]


def __getattr__(name: str) -> Any:
    """``EXTENSIONS``, which is found out when asked for: plugins of Pillow add to it."""
    if name == "EXTENSIONS":
        return extensions()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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
        paths: the images, as `load_picture` takes them.
        transform: RGB picture to tensor.
        config: of the transform, which also says how files are read; what its crop cuts away is
            noted.
    """

    def __init__(
        self,
        paths: Sequence[ImageSource],
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
