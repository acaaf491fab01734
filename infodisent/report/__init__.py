"""Explanations to look at: `figure` makes PNG figures, `page` one self-contained HTML page.

Here is what the two share: colours, heat-map overlays, prototype pictures, the sum of the logit.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from infodisent.backbones.preprocess import to_picture, transform_from
from infodisent.data.images import load_image
from infodisent.explanations.local import Box, Explanation, cell_box
from infodisent.explanations.prototypes import Prototype, Prototypes

# Okabe and Ito's blue and vermilion: apart for every kind of colour vision, and in grey (5.2 and
# 3.9 to 1 on white). Neither is ever the only sign: opposing boxes are dashed, values are signed.
SUPPORTS, OPPOSES = "#0072B2", "#D55E00"
_RAMPS = {1: ((0, 114, 178), (186, 234, 255)), -1: ((213, 94, 0), (255, 232, 158))}


class Term(NamedTuple):
    """One addend of a logit: what it is, its value, and "supports", "opposes", "rest", "bias"."""

    label: str
    value: float
    kind: str


class Segment(NamedTuple):
    """A term as a piece of a bar from `start` to `end`, in `lane` 0 (adds) or 1 (takes away)."""

    term: Term
    start: float
    end: float
    lane: int


class Mark(NamedTuple):
    """A numbered box in the picture: its frame and the centre of its number, in pixels."""

    number: int
    kind: str
    box: tuple[float, float, float, float]
    center: tuple[float, float]


def marks(explanation: Explanation, radius: float) -> list[Mark]:
    """The boxes of all channels shown, none hidden by another.

    Several channels often find the same cell: numbers, discs of `radius` pixels, then stand side by
    side, and a box of the other kind is drawn inside the first.
    """
    width, height = explanation.picture.size
    found: list[Mark] = []
    kinds: dict[Box, list[str]] = {}
    for number, evidence in enumerate(explanation.shown, 1):
        box = evidence.box
        if box is None:
            continue
        kind = "supports" if evidence.sign == 1 else "opposes"
        before = kinds.setdefault(box, [])
        inset = 0.35 * radius if before and kind not in before else 0.0
        before.append(kind)
        x = min(max(float(box[0]), radius), width - radius)
        y = min(max(float(box[1]), radius), height - radius)
        # To the right, and down a line at the edge; the picture has room for many more numbers.
        for _ in range(100):
            if all(max(abs(x - a), abs(y - b)) >= 1.95 * radius for *_, (a, b) in found):
                break
            x += 2 * radius
            if x > width - radius:
                x, y = radius, min(y + 2 * radius, height - radius)
        frame = (box[0] + inset, box[1] + inset, box[2] - inset, box[3] - inset)
        found.append(Mark(number, kind, frame, (x, y)))
    return found


def terms(explanation: Explanation) -> list[Term]:
    """The addends of the logit in the order the figures number them, then rest and bias."""
    found = [
        Term(str(i), e.contribution, "supports" if e.sign == 1 else "opposes")
        for i, e in enumerate(explanation.shown, 1)
    ]
    count = explanation.rest_count
    label = f"rest of {count:,} channel{'' if count == 1 else 's'}"
    return [*found, Term(label, explanation.rest, "rest"), Term("bias", explanation.bias, "bias")]


def segments(explanation: Explanation) -> list[Segment]:
    """The sum in two lanes: what adds goes right from 0, what takes away comes back from there."""
    result, at = [], 0.0
    everything = terms(explanation)
    for lane, sign in ((0, 1), (1, -1)):
        for term in everything:
            if term.value * sign > 0:
                result.append(Segment(term, at, at + term.value, lane))
                at += term.value
    return result


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign, a true minus, and no negative zero."""
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return ("+" if value > 0 else "\N{MINUS SIGN}") + text


def short_name(path: str) -> str:
    """The last folder and the file name, enough to find an image and no more."""
    return "/".join(PurePath(path).parts[-2:]) if path else "picture"


def check_fits(explanation: Explanation, prototypes: Prototypes) -> None:
    """Raise ValueError unless the prototypes have as many channels as the explained head."""
    if explanation.channels != prototypes.channels:
        raise ValueError(
            f"the prototypes are of a head with {prototypes.channels} channels, the explanation of "
            f"one with {explanation.channels}: make them with the same head"
        )


def prototype_box(prototype: Prototype, grid: tuple[int, int], size: tuple[int, int]) -> Box:
    """The patch of a prototype in its picture of `size` (width, height)."""
    row, column = prototype.pixel
    return cell_box(row * grid[1] + column, grid, size)


def heat_overlay(picture: Image.Image, heat: Tensor, sign: int) -> Image.Image:
    """A heat map ``[gh, gw]`` in [0, 1] over a greyed picture: blue supports, orange opposes."""
    small = Image.fromarray(heat.float().cpu().numpy())
    smooth = np.asarray(small.resize(picture.size, Image.Resampling.BICUBIC)).clip(0, 1)[..., None]
    grey = np.asarray(picture.convert("L"), dtype=np.float32)[..., None]
    dark, light = (np.array(colour, dtype=np.float32) for colour in _RAMPS[sign])
    # Where nothing is found the picture stays visible but dim, so that the ramp's light end shows.
    alpha = 0.9 * smooth**0.75
    mixed = (grey * 0.55 + 40) * (1 - alpha) + (dark + (light - dark) * smooth**1.5) * alpha
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


class Thumbnail(NamedTuple):
    """A picture, and why it is only a placeholder ("" where it is not)."""

    image: Image.Image
    missing: str


class Pictures:
    """Pictures as the network sees them, decoded once each; a grey placeholder for lost files.

    Args:
        transform: configuration of the evaluation transform.
        side: longest side of the pictures kept.
    """

    def __init__(self, transform: Mapping[str, Any], side: int = 160) -> None:
        self._config, self._side = dict(transform), side
        self._transform = transform_from(self._config)
        self._cache: dict[str, Thumbnail] = {}

    def get(self, path: str | os.PathLike[str]) -> Thumbnail:
        """The picture of a file; never raises for a file that is lost or cannot be decoded."""
        key = os.fspath(path)
        if key not in self._cache:
            self._cache[key] = self._make(key)
        return self._cache[key]

    def _make(self, path: str) -> Thumbnail:
        try:
            picture = to_picture(self._transform(load_image(path)), self._config)
        except FileNotFoundError:
            return Thumbnail(self._placeholder(path), "file is missing")
        except ValueError:
            return Thumbnail(self._placeholder(path), "file cannot be read")
        return Thumbnail(shrink(picture, self._side), "")

    def _placeholder(self, path: str) -> Image.Image:
        height, width = self._config["input_size"][1:]
        image = shrink(Image.new("RGB", (width, height), (206, 208, 212)), self._side)
        draw = ImageDraw.Draw(image)
        # Pillow's own font may have Latin letters only; a name must not be able to break a report.
        name = PurePath(path).name.encode("ascii", "replace").decode()
        lines = [name[i : i + 14] for i in range(0, len(name), 14)][:4]
        draw.multiline_text(
            (image.width / 2, image.height / 2),
            "\n".join(["missing:", *lines]),
            fill=(70, 74, 82),
            font=ImageFont.load_default(size=max(9, image.width // 10)),
            anchor="mm",
            align="center",
        )
        return image


def shrink(picture: Image.Image, side: int) -> Image.Image:
    """The picture with its longest side at most `side`."""
    factor = side / max(picture.size)
    if factor >= 1:
        return picture
    width, height = (max(1, round(n * factor)) for n in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def top_classes(explanation: Explanation, count: int = 3) -> list[tuple[str, float]]:
    """The most probable classes with their probabilities."""
    best = torch.topk(explanation.probabilities, min(count, len(explanation.classes)))
    return [
        (explanation.classes[i], p)
        for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
