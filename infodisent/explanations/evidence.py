"""What an explanation says: the evidence of single units, and the sum that is the logit."""

from __future__ import annotations

from dataclasses import dataclass, field

from PIL import Image
from torch import Tensor

TOLERANCE = 1e-3
"""How far the contributions may be from the model's logit."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class ChannelEvidence:
    """What one unit of the head, such as a channel, adds to the explained class.

    Attributes:
        channel: its index.
        weight: how much it counts for the class, from `Head.class_weights`.
        pos, neg: largest positive value and magnitude of the largest negative one, both >= 0.
        pooled: ``pos - neg``.
        contribution: what it adds to the logit; of a linear classifier ``weight * pooled``.
        pos_box, neg_box: the feature cell of `pos` and `neg`, ``(x0, y0, x1, y1)`` in pixels of the
            picture; None where the value is 0.
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
    def heat(self) -> Tensor:
        """The heat map of the side that decides, ``[gh, gw]``."""
        return self.pos_heat if self.side == 1 else self.neg_heat


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why one image got the logit of one class.

    ``sum(contributions shown) + rest + bias = logit``, see `total`.

    Attributes:
        path: of the image; "" where it came from memory.
        picture: exactly what the network sees.
        class_index, class_name: the explained class.
        true_name: the image's own class, or None where it is not known.
        classes: all K class names.
        logits, probabilities: ``[K]`` float32, on the CPU.
        logit, bias: of the explained class; bias is 0 where the head has none.
        supporting, opposing: units shown, strongest first.
        rest, rest_count: sum and number of all contributions that are not shown.
        size95: how many units, largest contributions first, carry 95 % of the logit (without
            bias); None where the logit is not positive.
        unit: what the head calls its units, singular.
        task: "multiclass" (probabilities are a softmax) or "multilabel" (a sigmoid each).
        notes: what was done to the image that its owner may not expect, such as a crop.
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
    bias: float
    supporting: tuple[ChannelEvidence, ...] = field(repr=False)
    opposing: tuple[ChannelEvidence, ...] = field(repr=False)
    rest: float
    rest_count: int
    size95: int | None
    unit: str = "channel"
    task: str = "multiclass"
    notes: tuple[str, ...] = ()

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
        """Contributions shown + rest + bias: the logit, within `TOLERANCE`."""
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
        """Whether the prediction is the image's own class; None where that is not known."""
        return None if self.true_name is None else self.predicted_name == self.true_name


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
