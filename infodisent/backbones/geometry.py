"""Where the pixels that the network sees lie in the photograph: the evaluation transform undone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Box = tuple[int, int, int, int]
"""``(x0, y0, x1, y1)``, the last column and row excluded, in pixels."""


@dataclass(frozen=True)
class CropGeometry:
    """How a photograph was resized and cut, see `crop_geometry`.

    Attributes:
        image_size: ``(width, height)`` of the upright photograph.
        resized: ``(width, height)`` it was resized to.
        offset: ``(x, y)`` of the network's first pixel in the resized photograph; negative where
            a border was added.
        input_size: ``(width, height)`` of what the network sees.
    """

    image_size: tuple[int, int]
    resized: tuple[int, int]
    offset: tuple[int, int]
    input_size: tuple[int, int]

    def in_image(self, box: Box) -> Box | None:
        """A box of the network's picture in the photograph's pixels, all that it touches.

        Never empty nor outside; None where it lies on an added border.
        """
        (x0, x1), (y0, y1) = (self._span(axis, box[axis], box[axis + 2]) for axis in (0, 1))
        return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None

    @classmethod
    def identity(cls, size: tuple[int, int]) -> CropGeometry:
        """Of a picture ``(width, height)`` that is fed to the network as it is."""
        return cls(size, size, (0, 0), size)

    @property
    def window(self) -> Box:
        """The part of the photograph that the network sees."""
        box = self.in_image((0, 0, *self.input_size))
        assert box is not None  # the centre is never on a border
        return box

    @property
    def lost(self) -> float:
        """Part of the photograph's area that was cut away, in [0, 1]."""
        x0, y0, x1, y1 = self.window
        return 1 - (x1 - x0) * (y1 - y0) / (self.image_size[0] * self.image_size[1])

    def _span(self, axis: int, start: int, stop: int) -> tuple[int, int]:
        size, resized, offset = self.image_size[axis], self.resized[axis], self.offset[axis]
        start, stop = max(start + offset, 0), min(stop + offset, resized)
        if start >= stop:
            return 0, 0
        # in integers: 160 * (1600 / 284) must not round a pixel away
        return start * size // resized, min(-(-stop * size // resized), size)


def crop_geometry(config: Mapping[str, Any], image_size: tuple[int, int]) -> CropGeometry:
    """The geometry of a transform configuration for a photograph of ``(width, height)``.

    The same arithmetic as timm's evaluation transform: crop modes "center", "squash" and "border".
    """
    width, height = image_size
    target_h, target_w = config["input_size"][-2:]
    crop_pct = config.get("crop_pct") or 0.875
    scale_h, scale_w = (math.floor(side / crop_pct) for side in (target_h, target_w))
    mode = config.get("crop_mode") or "center"
    if mode == "squash":
        resized = scale_w, scale_h
    elif mode == "border":
        resized = _keeping_ratio(image_size, (scale_w, scale_h), max)
    elif scale_h == scale_w and width <= height:
        resized = scale_w, int(scale_w * height / width)
    elif scale_h == scale_w:
        resized = int(scale_w * width / height), scale_w
    else:
        resized = _keeping_ratio(image_size, (scale_w, scale_h), min)
    offset = _offset(resized[0], target_w), _offset(resized[1], target_h)
    return CropGeometry(image_size, resized, offset, (target_w, target_h))


def _keeping_ratio(size: tuple[int, int], target: tuple[int, int], choose: Any) -> tuple[int, int]:
    ratio = choose(size[1] / target[1], size[0] / target[0])
    return round(size[0] / ratio), round(size[1] / ratio)


def _offset(resized: int, target: int) -> int:
    if target > resized:
        return -((target - resized) // 2)
    return round((resized - target) / 2)
