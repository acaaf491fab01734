"""What an explanation says: the evidence of single units, and the sum that is the score."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from infodisent.backbones.geometry import Box as Box
from infodisent.backbones.geometry import CropGeometry
from infodisent.explanations import drawing
from infodisent.explanations.placing import on_photograph

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOLERANCE = 1e-3
"""How far the contributions may be from the model's score."""


@dataclass(frozen=True, eq=False)
class ChannelEvidence:
    """What one unit of the head, such as a channel, adds to the explained class.

    Attributes:
        channel: its index.
        weight: how much it counts for the class, from `Head.class_weights`.
        pos, neg: largest positive value and magnitude of the largest negative one, both >= 0.
        pooled: ``pos - neg``.
        contribution: what it adds to the score; of a linear classifier ``weight * pooled``.
        pos_box, neg_box: the feature cell of `pos` and `neg`, ``(x0, y0, x1, y1)`` in pixels of the
            picture; None where the value is 0.
        pos_box_in_image, neg_box_in_image: the same cells in pixels of the upright photograph; None
            also where the cell lies on a border that was added.
        pos_heat, neg_heat: ReLU(±value) of the unit over its maximum, in [0, 1], ``[gh, gw]``.
    """

    channel: int
    weight: float
    pos: float
    neg: float
    pooled: float
    contribution: float
    pos_box: Box | None
    neg_box: Box | None
    pos_heat: Tensor = field(repr=False)
    neg_heat: Tensor = field(repr=False)
    pos_box_in_image: Box | None = None
    neg_box_in_image: Box | None = None

    @property
    def linear(self) -> bool:
        """Whether the contribution is ``weight * pooled``, which not every head has."""
        product = self.weight * self.pooled
        return math.isclose(self.contribution, product, rel_tol=1e-3, abs_tol=1e-6)

    @property
    def sign(self) -> int:
        """1 where the unit supports the class, -1 where it opposes it."""
        return 1 if self.contribution >= 0 else -1

    @property
    def side(self) -> int:
        """The side of the unit that decides: 1 for `pos`, -1 for `neg`.

        The same as `sign` unless the unit's weight for the class is negative.
        """
        return 1 if self.pooled > 0 or (self.pooled == 0 and self.sign == 1) else -1

    @property
    def box(self) -> Box | None:
        """The cell of the side that decides."""
        return self.pos_box if self.side == 1 else self.neg_box

    @property
    def box_in_image(self) -> Box | None:
        """`box` in pixels of the upright photograph, see `Explanation.image_size`."""
        return self.pos_box_in_image if self.side == 1 else self.neg_box_in_image

    @property
    def heat(self) -> Tensor:
        """The heat map of the side that decides, ``[gh, gw]``."""
        return self.pos_heat if self.side == 1 else self.neg_heat

    def to_dict(self, *, heat: bool = False) -> dict[str, Any]:
        """Everything as JSON-able values; heat maps, as nested lists, only if asked for."""
        names = ("channel", "weight", "pos", "neg", "pooled", "contribution", "sign", "side")
        values: dict[str, Any] = {name: getattr(self, name) for name in names}
        for name in ("box", "pos_box", "neg_box"):
            for key in (name, f"{name}_in_image"):
                box = getattr(self, key)
                values[key] = None if box is None else list(box)
        if heat:
            values |= {"pos_heat": self.pos_heat.tolist(), "neg_heat": self.neg_heat.tolist()}
        return values


@dataclass(frozen=True, eq=False)
class DecisionEvidence:
    """A step of a head that is a tree, from the root to a leaf, see `Decision`.

    Attributes:
        evidence: of the unit that is asked for; its contribution is what the step adds to the
            explained class's probability: ``after - before``.
        value: of the unit in the image.
        threshold: above it the answer is yes.
        yes: the answer.
        probability: with which the image goes there; 1 where a decision is hard.
        before, after: probability of the explained class, with nothing known of later decisions.
        likeliest, likeliest_probability: the most probable class after it.
    """

    evidence: ChannelEvidence
    value: float
    threshold: float
    yes: bool
    probability: float
    before: float
    after: float
    likeliest: str
    likeliest_probability: float

    @property
    def unit(self) -> int:
        """Index of the unit that is asked for."""
        return self.evidence.channel

    def to_dict(self) -> dict[str, Any]:
        """Everything but heat maps as JSON-able values."""
        names = (
            *("unit", "value", "threshold", "yes", "probability", "before", "after"),
            *("likeliest", "likeliest_probability"),
        )
        values: dict[str, Any] = {name: getattr(self, name) for name in names}
        for name in ("box", "box_in_image"):
            box = getattr(self.evidence, name)
            values[name] = None if box is None else list(box)
        return values


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why one image got the score of one class.

    ``sum(contributions shown) + rest + bias = score_value``, see `total`.

    Attributes:
        path: of the image; "" where it came from memory.
        picture: exactly what the network sees.
        class_index, class_name: the explained class.
        true_name: the image's own class, or None where it is not known.
        classes: all K class names.
        logits, probabilities: ``[K]`` float32, on the CPU. Probabilities are a softmax, or a
            sigmoid each where `task` is "multilabel" or K is 1.
        logit: of the explained class.
        score_value: what contributions add up to: the logit, or of some heads the probability.
        bias: what is in it besides them, 0 where the head has none.
        supporting, opposing: units shown, strongest first.
        rest, rest_count: sum and number of all contributions that are not shown.
        size95: how many units, largest contributions first, carry 95 % of the score (without
            bias); None where the score is not positive.
        magnitude_size: how many units, largest magnitudes first, carry 95 % of the sum of all
            magnitudes; 0 where no unit contributes.
        decisions: the path from the root of a head that is a tree; else empty.
        unit: what the head calls its units, singular.
        score, offset: what it calls what they add up to ("logit", "probability"), and `bias`.
        task: "multiclass" or "multilabel".
        image_size: ``(width, height)`` of the upright photograph; None where it is not known.
        crop_in_image: the part of it that the network saw, in its pixels.
        notes: what was done to the image that its owner may not expect, such as a crop; and that
            the model abstains.
        abstained: the model says no class, see `Head.abstains`; the explained one is then only the
            first of equal ones, unless it was asked for.
        cells: what every feature cell adds to the score, ``[gh, gw]``: the contributions of all
            units, shown or not, where they come from. Its sum is ``score_value - bias``.
        geometry: where the network's picture lies in the photograph; None where it is not known.
        read_photograph: reads the photograph again; None where there is none.
    """

    path: str
    picture: Image.Image = field(repr=False)
    class_index: int
    class_name: str
    true_name: str | None
    classes: tuple[str, ...] = field(repr=False)
    logits: Tensor = field(repr=False)
    probabilities: Tensor = field(repr=False)
    logit: float
    score_value: float
    bias: float
    supporting: tuple[ChannelEvidence, ...] = field(repr=False)
    opposing: tuple[ChannelEvidence, ...] = field(repr=False)
    rest: float
    rest_count: int
    size95: int | None
    magnitude_size: int = 0
    decisions: tuple[DecisionEvidence, ...] = field(default=(), repr=False)
    unit: str = "channel"
    score: str = "logit"
    offset: str = "bias"
    task: str = "multiclass"
    image_size: tuple[int, int] | None = None
    crop_in_image: Box | None = None
    notes: tuple[str, ...] = ()
    abstained: bool = False
    cells: Tensor | None = field(default=None, repr=False)
    geometry: CropGeometry | None = field(default=None, repr=False)
    read_photograph: Callable[[], Image.Image] | None = field(default=None, repr=False)

    @property
    def shown(self) -> tuple[ChannelEvidence, ...]:
        """Supporting, then opposing units, in the order the figures number them."""
        return self.supporting + self.opposing

    @property
    def channels(self) -> int:
        """M, all units of the head."""
        return len(self.shown) + self.rest_count

    @property
    def total(self) -> float:
        """Contributions shown + rest + bias: the score, within `TOLERANCE`."""
        return sum(e.contribution for e in self.shown) + self.rest + self.bias

    @property
    def predicted_name(self) -> str:
        """The class with the largest logit, explained or not."""
        return self.classes[int(self.logits.argmax())]

    @property
    def predicted_names(self) -> tuple[str, ...]:
        """The predicted class; where every class has a probability of its own, all from 0.5 up."""
        if not self.independent:
            return (self.predicted_name,)
        likely = (self.probabilities >= 0.5).tolist()
        return tuple(name for name, yes in zip(self.classes, likely, strict=True) if yes)

    @property
    def independent(self) -> bool:
        """Every class is decided by itself: several labels an image, or one output."""
        return self.task == "multilabel" or len(self.classes) == 1

    @property
    def correct(self) -> bool | None:
        """Whether the prediction is the image's own class; None where that is not known.

        With several labels an image one true name does not tell, so None. None also where the model
        abstains: no class is neither right nor wrong.
        """
        if self.true_name is None or self.task == "multilabel" or self.abstained:
            return None
        if self.independent:
            return (self.class_name in self.predicted_names) == (self.true_name == self.class_name)
        return self.predicted_name == self.true_name

    def to_dict(self, *, heat: bool = False) -> dict[str, Any]:
        """Everything but the picture as JSON-able values, for a file or a table.

        Args:
            heat: also the heat maps, as nested lists.
        """
        names = (
            "path", "task", "class_index", "class_name", "true_name", "predicted_name", "correct",
            "logit", "score", "score_value", "offset", "total", "bias", "rest", "rest_count",
            "size95", "magnitude_size", "unit", "abstained",
        )  # fmt: skip
        values: dict[str, Any] = {name: getattr(self, name) for name in names}
        for name in ("predicted_names", "classes", "image_size", "crop_in_image", "notes"):
            value = getattr(self, name)
            values[name] = None if value is None else list(value)
        values["input_size"] = list(self.picture.size)
        values["logits"] = self.logits.tolist()
        values["probabilities"] = self.probabilities.tolist()
        for name in ("supporting", "opposing"):
            values[name] = [e.to_dict(heat=heat) for e in getattr(self, name)]
        values["decisions"] = [step.to_dict() for step in self.decisions]
        return values

    def plot(self) -> Figure:
        """A matplotlib figure: the picture with numbered boxes, the sum as bars, heat maps."""
        return drawing.figure(self)

    def photograph(self) -> Image.Image:
        """The upright photograph, read again from where it came; else what the network sees.

        Raises:
            FileNotFoundError: its file is no longer there.
            ValueError: it cannot be read, or is of another size than the one explained.
        """
        if self.read_photograph is None:
            return self.picture
        photograph = self.read_photograph()
        if self.image_size is not None and photograph.size != self.image_size:
            now, then = (f"{width} x {height}" for width, height in (photograph.size, self._size))
            raise ValueError(
                f"photograph: {self.path or 'the image'} is {now} now, the one explained was {then}"
            )
        return photograph

    def heat_map(self, channel: int | None = None) -> NDArray[np.float32]:
        """Where a unit shown looks, at the photograph's size: ``[H, W]`` float32 in 0 … 1.

        0 outside of what the network saw.

        Args:
            channel: index of one of the units shown; default: the first of them.

        Raises:
            ValueError: it is not shown, or none is.
        """
        return on_photograph(self._shown("heat_map", channel).heat, self.geometry, self._size)

    def class_map(self) -> NDArray[np.float32]:
        """Where the score comes from, all units together: ``[H, W]`` float32 in 0 … 1.

        The positive part of `cells` over its maximum, at the photograph's size; what
        pytorch-grad-cam calls the grayscale cam. 0 where nothing supports the class.

        Raises:
            ValueError: the cells are not known.
        """
        if self.cells is None:
            raise ValueError("class_map: this explanation does not have its cells")
        heat = self.cells.clamp_min(0)
        heat = heat / heat.max().clamp_min(torch.finfo(heat.dtype).tiny)
        return on_photograph(heat, self.geometry, self._size)

    def overlay(self, channel: int | None = None) -> NDArray[np.uint8]:
        """A heat map over the photograph, in its size: ``[H, W, 3]`` uint8, RGB.

        Blue where it supports the class, orange where it opposes it; the photograph is grey.

        Args:
            channel: index of one of the units shown, see `heat_map`; default: `class_map`.

        Raises:
            FileNotFoundError: the photograph's file is no longer there.
            ValueError: the unit is not shown, or as in `photograph`.
        """
        sign = 1
        if channel is None:
            heat = self.class_map()
        else:
            evidence = self._shown("overlay", channel)
            heat, sign = self.heat_map(channel), evidence.sign
        drawn = drawing.heat_overlay(self.photograph(), torch.from_numpy(heat), sign)
        return np.asarray(drawn)

    def tile(self, channel: int | None = None) -> Image.Image:
        """The heat map of a unit over what the network sees, with its box, as the figures have it.

        `channel` and errors as in `heat_map`.
        """
        return drawing.overlay(self.picture, self._shown("tile", channel))

    @property
    def _size(self) -> tuple[int, int]:
        return self.image_size or self.picture.size

    def _shown(self, what: str, channel: int | None) -> ChannelEvidence:
        for evidence in self.shown:
            if channel is None or evidence.channel == channel:
                return evidence
        there = ", ".join(str(e.channel) for e in self.shown) or "none"
        raise ValueError(f"{what}: {self.unit} is {channel!r}, shown are {there}")

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return drawing.as_html(self)


def cell_box(index: int, grid: tuple[int, int], size: tuple[int, int]) -> Box:
    """The feature cell at flat pixel `index` of `grid` (rows, columns), scaled to a picture.

    `size` is (width, height), as PIL gives it. The box ``(x0, y0, x1, y1)`` is never empty nor
    outside the picture.
    """
    (rows, columns), (width, height) = grid, size
    row, column = divmod(index, columns)
    x0 = min(round(column * width / columns), width - 1)
    y0 = min(round(row * height / rows), height - 1)
    x1 = min(max(round((column + 1) * width / columns), x0 + 1), width)
    y1 = min(max(round((row + 1) * height / rows), y0 + 1), height)
    return x0, y0, x1, y1
