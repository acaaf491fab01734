"""What is known of photographs besides their class: parts, boxes, masks.

`infodisent.data.annotation_formats` reads CUB-200-2011, FunnyBirds, COCO files such as
PartImageNet's, scenes, and plain folders of masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from infodisent.backbones.geometry import CropGeometry
from infodisent.data.items import ImageItem, ImageSet

MASKS = ("segmentation", "parts", "box")
"""What an object's mask may come from, best first."""


@dataclass(frozen=True)
class Annotations:
    """What is known of N photographs, in pixels of the photographs as they are stored.

    Attributes:
        kind: of the format.
        folder: below which the images lie.
        files: N paths relative to it, with "/".
        classes: K names; labels: ``[N]`` int64.
        splits: "train" or "val" for every image, N.
        parts: J names, none where parts are not annotated.
        groups: a number for every part; those of left and right are equal.
        boxes: ``[N, 4]`` float32, x0, y0, x1, y1 around the object; NaN where it is not known.
        keypoints: ``[N, J, 2]`` float32, x and y, and NaN where a part is not visible; None where
            only masks are known, whose centres `keypoints_of` takes.
        part_mask, object_mask: read the masks of image i, ``[J, H, W]`` and ``[H, W]`` bool; None
            where there are none.
    """

    kind: str
    folder: Path
    files: tuple[str, ...] = field(repr=False)
    classes: tuple[str, ...]
    labels: Tensor = field(repr=False)
    splits: tuple[str, ...] = field(repr=False)
    parts: tuple[str, ...] = ()
    groups: tuple[int, ...] = ()
    boxes: Tensor | None = field(default=None, repr=False)
    keypoints: Tensor | None = field(default=None, repr=False)
    part_mask: Callable[[int], Tensor] | None = field(default=None, repr=False)
    object_mask: Callable[[int], Tensor | None] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.files)

    def find(self, path: str) -> int | None:
        """The image at a path, wherever its folder is now; None where it is not annotated.

        Its name without the ending and the two folders above are looked for, then with one folder,
        then alone, of what only one image has.
        """
        flavour = PureWindowsPath if "\\" in path and "/" not in path else PurePosixPath
        tails = (_tail(flavour(path), length) for length in (3, 2, 1))
        return next((self._tails[tail] for tail in tails if tail in self._tails), None)

    @cached_property
    def _tails(self) -> dict[tuple[str, ...], int]:
        places: dict[tuple[str, ...], int] = {}
        twice = set()
        for i, file in enumerate(self.files):
            for length in (3, 2, 1):
                tail = _tail(PurePosixPath(file), length)
                if places.setdefault(tail, i) != i:
                    twice.add(tail)
        return {tail: i for tail, i in places.items() if tail not in twice}

    def keypoints_of(self, index: int) -> Tensor | None:
        """Places of the parts of one image, ``[J, 2]``; NaN where one is not visible.

        Of a part of which only the mask is known, the mask's pixel nearest to its centre of mass.
        """
        if self.keypoints is not None:
            return self.keypoints[index]
        if self.part_mask is None:
            return None
        return torch.stack([_middle(mask) for mask in self.part_mask(index)])

    def mask_of(self, index: int) -> tuple[Tensor, str] | None:
        """The object's pixels ``[H, W]`` bool and what they are known from, see `MASKS`.

        Of an object without a mask of its own, those of all its parts, or else its box, which is
        cut off at the last whole pixel; None where nothing is known.
        """
        mask = self.object_mask(index) if self.object_mask is not None else None
        if mask is not None:
            return mask, "segmentation"
        if self.part_mask is not None:
            return self.part_mask(index).any(0), "parts"
        if self.boxes is None or bool(self.boxes[index].isnan().any()):
            return None
        x0, y0, x1, y1 = (round(v) for v in self.boxes[index].tolist())
        with Image.open(self.folder / self.files[index]) as picture:
            mask = torch.zeros(picture.height, picture.width, dtype=torch.bool)
        mask[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = True
        return mask, "box"

    def image_set(self) -> ImageSet:
        """The photographs as a set to train on, with their published split."""
        items = [
            ImageItem(str(self.folder / file), label, split)
            for file, label, split in zip(
                self.files, self.labels.tolist(), self.splits, strict=True
            )
        ]
        return ImageSet(root=str(self.folder), classes=self.classes, items=tuple(items))


def points_in_input(points: Tensor, geometry: CropGeometry) -> Tensor:
    """Points of a photograph, ``[..., 2]``, in pixels of what the network sees of it."""
    scale = [new / old for new, old in zip(geometry.resized, geometry.image_size, strict=True)]
    return points * torch.tensor(scale) - torch.tensor(geometry.offset, dtype=torch.float32)


def mask_in_input(mask: Tensor, geometry: CropGeometry) -> Tensor:
    """A mask ``[H, W]`` bool of a photograph, as the network sees it; False on added borders.

    Raises:
        ValueError: it is of a photograph of another size.
    """
    if (mask.shape[1], mask.shape[0]) != geometry.image_size:
        raise ValueError(
            f"a mask is {mask.shape[1]} x {mask.shape[0]}, its photograph "
            f"{geometry.image_size[0]} x {geometry.image_size[1]}: it is of another version of it"
        )
    x, y = geometry.offset
    width, height = geometry.input_size
    picture = Image.fromarray(mask.to(torch.uint8).numpy() * 255)
    picture = picture.resize(geometry.resized, Image.Resampling.NEAREST)
    cut = picture.crop((x, y, x + width, y + height))  # black where it is outside
    return torch.from_numpy(np.array(cut)) > 127


def merged(parts: Sequence[str]) -> tuple[int, ...]:
    """A number for every part, the same for its left and right, first and second, ones."""
    plain = [
        " ".join(w for w in part.lower().split() if w not in ("left", "right")).rstrip("0123456789")
        for part in parts
    ]
    names = list(dict.fromkeys(plain))
    return tuple(names.index(name) for name in plain)


def _tail(path: PurePath, length: int) -> tuple[str, ...]:
    return (*path.parts[-length:-1], path.stem)


def _middle(mask: Tensor) -> Tensor:
    """The pixel of a mask ``[H, W]`` nearest to its centre of mass, its middle, x and y."""
    pixels = mask.nonzero().float()  # [n, 2], y and x
    if not len(pixels):
        return torch.full((2,), torch.nan)
    nearest = (pixels - pixels.mean(0)).norm(dim=1).argmin()
    return pixels[nearest].flip(0) + 0.5
