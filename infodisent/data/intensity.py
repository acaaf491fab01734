"""Pixels of more than 8 bits, and floating-point ones, as the 0 … 255 that networks were shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infodisent.data.notes import Note

Range = tuple[float, float]
_DARK = 13
"""5 % of white: a picture whose 99th percentile is below it looks black."""


def check_range(owner: str, value: Any) -> Range:
    """``(low, high)`` as floats; `owner` opens the message.

    Raises:
        ValueError: not two finite numbers, the first below the second.
    """
    text = (
        f"{owner}: intensity_range is {value!r}, must be two finite numbers (low, high), low < high"
    )
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise ValueError(text)
    if any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in value):
        raise ValueError(text)
    low, high = float(value[0]), float(value[1])
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(text)
    return low, high


def in_unit(low: float, high: float) -> bool:
    """Whether values are those of a picture in [0, 1], but for the rounding of a resize."""
    return low >= -1e-3 and high <= 1 + 1e-3


def eight_bits(
    values: NDArray[Any],  # [H, W] or [H, W, 3]
    intensity_range: Range | None,
    *,
    in_memory: bool = False,
) -> tuple[NDArray[np.uint8], list[Note]]:
    """Pixels as ``uint8`` of the same shape, and what was done to them.

    8-bit values and booleans stay. Of all others `intensity_range` becomes 0 … 255. Without it

    - floats in [0, 1] of an array are those of a picture (`in_memory`);
    - other integers of an array are 8-bit values if they are wider than 16 bits and all in
      0 … 255, as arithmetic leaves them (`in_memory`);
    - 16-bit colour that reaches the upper three quarters of its range is what it says;
    - everything else (12-bit data in 16 bits, floating-point files …) is stretched from the
      picture's own smallest to its largest value, which is noted.

    Raises:
        ValueError: NaN or infinite values, no numbers, or colour beyond every usual range.
    """
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255), []
    if values.dtype == np.uint8:
        return values, []
    if values.dtype.kind not in "uif":
        raise ValueError(
            f"its values are {values.dtype}, expected uint8, uint16 or float in [0, 1]"
        )
    is_float = values.dtype.kind == "f"
    if is_float and not np.isfinite(values).all():
        raise ValueError("it has NaN or infinite values")
    low, high = float(values.min()), float(values.max())
    if intensity_range is not None:
        return _given(values, intensity_range, (low, high))
    if is_float and in_memory and in_unit(low, high):
        return _scaled(values, (0.0, 1.0)), []
    if not is_float and in_memory and values.itemsize > 2 and low >= 0 and high <= 255:
        return values.astype(np.uint8), []
    if values.ndim == 3:
        if values.dtype == np.uint16 and high > 16383:
            return _scaled(values, (0.0, 65535.0)), []
        if values.dtype != np.uint16:
            raise ValueError(
                f"its values are {values.dtype} from {low:g} to {high:g}, expected uint8, uint16 "
                "or float in [0, 1]: if it is normalised, undo that; if it is 0 … 255, pass "
                "intensity_range=(0, 255)"
            )
    return _stretched(values, (low, high))


def _given(values: NDArray[Any], given: Range, own: Range) -> tuple[NDArray[np.uint8], list[Note]]:
    notes = []
    if own[0] != own[1] and (own[1] <= given[0] or own[0] >= given[1]):
        kind = "all pixels are outside intensity_range: the picture is one flat grey"
        text = f"its values {_span(own)} are all outside intensity_range {_span(given)}"
        notes.append(Note(kind, text))
    return _scaled(values, given), notes


def _stretched(values: NDArray[Any], own: Range) -> tuple[NDArray[np.uint8], list[Note]]:
    bits = f"{8 * values.itemsize}-bit{' float' if values.dtype.kind == 'f' else ''}"
    if own[0] == own[1]:
        full = float(np.iinfo(np.uint16).max) if values.dtype.kind != "f" else 1.0
        text = f"{bits} pixels that all have the value {own[0]:g}"
        kind = "pixels of more than 8 bits that all have one value"
        return _scaled(values, (0.0, full)), [Note(kind, text)]
    pixels = _scaled(values, own)
    kind = (
        "pixels of more than 8 bits, stretched from each picture's own smallest to its largest "
        "value (intensity_range fixes the range)"
    )
    text = f"{bits} values {_span(own)} were stretched to 0 … 255 (intensity_range fixes the range)"
    notes = [Note(kind, text)]
    if np.percentile(pixels, 99) < _DARK:
        text = "nearly all of it is black: a few bright pixels set its range, pass intensity_range"
        notes.append(Note(text, text))
    return pixels, notes


def _scaled(values: NDArray[Any], span: Range) -> NDArray[np.uint8]:
    wide = values.astype(np.float64)
    part = (wide - span[0]) / (span[1] - span[0])
    pixels: NDArray[np.uint8] = np.rint(part.clip(0, 1) * 255).astype(np.uint8)
    return pixels


def _span(span: Range) -> str:
    return f"{span[0]:g} … {span[1]:g}"
