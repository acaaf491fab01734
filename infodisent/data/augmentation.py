"""Augmented copies of training images, the same whenever the same copy is asked for.

A copy is drawn from a seed of its own, that of its image and number, so that it depends neither on
the order of a batch nor on the process that makes it. Two views of an image share the geometry and
differ in colours and in a crop of a few pixels.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from infodisent.backbones.preprocess import transform_from
from infodisent.backbones.torchvision_import import ensure_torchvision
from infodisent.data.pictures import load_picture, reading_options

VIEWS = 2
"""Views of one image in a pair."""


@dataclass(frozen=True)
class Augmentation:
    """How far a copy may be from its image.

    Attributes:
        rotate: degrees, to either side.
        translate: part of the width and of the height, to either side.
        zoom: part by which a copy may be larger or smaller.
        shear: degrees, to either side.
        flip: whether half of the copies are mirrored left to right.
        colour: strength of the changes of brightness, contrast and saturation (parts of 1), and, an
            eighth of it, of the hue; also how often a copy is sharpened or its histogram
            stretched. 0 leaves colours alone.
        shift: part of the side by which the crop of a view moves, drawn for every view by itself.

    Raises:
        TypeError, ValueError: a number that is not allowed, named.
    """

    rotate: float = 10.0
    translate: float = 0.05
    zoom: float = 0.1
    shear: float = 5.0
    flip: bool = True
    colour: float = 0.4
    shift: float = 0.035

    def __post_init__(self) -> None:
        if not isinstance(self.flip, bool):
            raise TypeError(f"Augmentation: flip is {self.flip!r}, must be True or False")
        for name, most in _MOST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"Augmentation: {name} is {value!r}, must be a number")
            if not 0 <= value <= most:
                raise ValueError(f"Augmentation: {name} is {value}, must be in [0, {most}]")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Augmentation:
        """From options by name; TypeError names one that does not exist, and those that do."""
        names = cls.__dataclass_fields__
        for name in options:
            if name not in names:
                raise TypeError(f"Augmentation has no option {name}, it has {', '.join(names)}")
        return cls(**options)

    def as_dict(self) -> dict[str, Any]:
        """All options, JSON-able."""
        return dataclasses.asdict(self)


_MOST = {"rotate": 180, "translate": 1, "zoom": 0.9, "shear": 45, "colour": 1, "shift": 0.25}


class Augmenter:
    """Makes copies of pictures for a network.

    Args:
        config: of the network's evaluation transform: size, interpolation, crop, mean and std.
        augmentation: how far copies go.
    """

    def __init__(self, config: Mapping[str, Any], augmentation: Augmentation) -> None:
        ensure_torchvision()
        from torchvision.transforms import v2

        channels, *size = (3, *config["input_size"])[-3:]
        self._size = (int(size[0]), int(size[1]))
        self._margin = math.ceil(min(self._size) * augmentation.shift)
        larger = tuple(side + 2 * self._margin for side in self._size)
        grown = {
            "input_size": (channels, *larger),
            "crop_pct": min(1.0, config.get("crop_pct", 1.0) * min(larger) / min(self._size)),
            "mean": (0.0,) * channels,
            "std": (1.0,) * channels,
        }
        self._to_pixels: Callable[[Image.Image], Tensor] = transform_from({**config, **grown})
        self._mean, self._std = (
            torch.tensor(config[name], dtype=torch.float32).view(-1, 1, 1)
            for name in ("mean", "std")
        )
        given = augmentation
        moves: list[Any] = [v2.RandomHorizontalFlip()] if given.flip else []
        if given.rotate or given.translate or given.zoom or given.shear:
            moves.append(
                v2.RandomAffine(
                    given.rotate,
                    translate=(given.translate,) * 2,
                    scale=(1 - given.zoom, 1 + given.zoom),
                    shear=given.shear,
                    interpolation=v2.InterpolationMode.BILINEAR,
                    fill=[float(value) for value in config["mean"]],
                )
            )
        c = given.colour
        colours = [
            v2.ColorJitter(c, c, c, c / 8),
            v2.RandomAdjustSharpness(2.0, p=c),
            v2.RandomAutocontrast(p=c / 2),
        ]
        self._geometry = v2.Compose(moves or [v2.Identity()])
        self._colours = v2.Compose(colours if c else [v2.Identity()])

    def move(
        self,
        picture: Image.Image,
        seed: Sequence[int],
    ) -> Tensor:
        """A copy before its views differ, in [0, 1] and a margin larger than the network's input.

        Args:
            picture: as `load_picture` gives it.
            seed: numbers that tell this copy from all others.
        """
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(_number(*seed))
            moved: Tensor = self._geometry(self._to_pixels(picture))
        return moved

    def view(
        self,
        moved: Tensor,  # [C, H + 2 margin, W + 2 margin], of `move`
        seed: Sequence[int],
        number: int = 0,
    ) -> Tensor:
        """View `number` of the copy, ``[C, H, W]`` float32 as the network takes it."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(_number(*seed, 1 + number))
            top, left = torch.randint(0, 2 * self._margin + 1, (2,)).tolist()
            height, width = self._size
            crop = moved[:, top : top + height, left : left + width]
            made: Tensor = (self._colours(crop).clamp(0, 1) - self._mean) / self._std
        return made


def _number(*parts: int) -> int:
    """One seed of several numbers; neighbours have nothing in common."""
    text = ",".join(str(int(part)) for part in parts).encode()
    return zlib.crc32(text) << 32 | zlib.crc32(text[::-1] + b"/")


@dataclass(frozen=True)
class Copy:
    """One view of one copy of an image.

    Attributes:
        path: of the image.
        seed: of the copy, see `Augmenter`; empty for the image itself, as it is evaluated.
        view: number of the view.
    """

    path: str
    seed: tuple[int, ...] = ()
    view: int = 0


class CopyDataset(Dataset[tuple[int, "Tensor | str", tuple[str, ...]]]):
    """Copies of images as `infodisent.data.images.collate` takes them.

    Args:
        copies: what is wanted, in order.
        config: of the evaluation transform.
        augmenter: makes the copies; None where all are the images themselves.

    An image that cannot be read yields its error message.
    """

    def __init__(
        self,
        copies: Sequence[Copy],
        config: Mapping[str, Any],
        augmenter: Augmenter | None = None,
    ) -> None:
        self.copies, self._config, self._augmenter = copies, config, augmenter
        self._plain = transform_from(config)
        self._last: tuple[Any, Tensor] | None = None  # a copy, whose next view comes next

    def __len__(self) -> int:
        return len(self.copies)

    def __getitem__(self, index: int) -> tuple[int, Tensor | str, tuple[str, ...]]:
        copy = self.copies[index]
        key = copy.path, copy.seed
        try:
            if self._augmenter is not None and copy.seed:
                if self._last is None or self._last[0] != key:
                    self._last = key, self._augmenter.move(self._read(copy.path), copy.seed)
                return index, self._augmenter.view(self._last[1], copy.seed, copy.view), ()
            return index, self._plain(self._read(copy.path)), ()
        except (FileNotFoundError, ValueError) as error:
            return index, str(error), ()

    def _read(self, path: str) -> Image.Image:
        return load_picture(path, **reading_options(self._config)).image
