"""What figures and page show of an explanation: colours, numbered boxes, the sum, the path."""

from __future__ import annotations

import functools
import math
import unicodedata
from pathlib import PurePath
from typing import NamedTuple

from infodisent.data.archives import without_place
from infodisent.explanations.evidence import Box, DecisionEvidence, Explanation, cell_box
from infodisent.explanations.prototypes import Prototype, Prototypes

# Okabe and Ito's blue and vermilion: apart for every kind of colour vision, and in grey (5.2 and
# 3.9 to 1 on white). Neither is ever the only sign: opposing boxes are dashed, values are signed.
SUPPORTS, OPPOSES = "#0072B2", "#D55E00"


class Term(NamedTuple):
    """One addend of a score: what it is, its value, and "supports", "opposes", "rest", "bias"."""

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

    Several channels often point at the same cell: a number, a disc of `radius` pixels, then stands
    at the free place nearest to its box, and a box of the other kind is drawn inside the first.
    """
    width, height = explanation.picture.size
    placed: list[Mark] = []
    first: dict[Box, str] = {}
    for number, evidence in enumerate(explanation.shown, 1):
        box = evidence.box
        if box is None:
            continue
        kind = "supports" if evidence.sign == 1 else "opposes"
        inset = 0.0 if first.setdefault(box, kind) == kind else 0.35 * radius
        x = min(max(float(box[0]), radius), width - radius)
        y = min(max(float(box[1]), radius), height - radius)
        for right, down in _steps():
            a, b = x + 2 * radius * right, y + 2 * radius * down
            if not (radius <= a <= width - radius and radius <= b <= height - radius):
                continue
            if all(max(abs(a - c), abs(b - d)) >= 1.95 * radius for *_, (c, d) in placed):
                x, y = a, b
                break
        frame = (box[0] + inset, box[1] + inset, box[2] - inset, box[3] - inset)
        placed.append(Mark(number, kind, frame, (x, y)))
    return placed


@functools.cache
def _steps(reach: int = 12) -> tuple[tuple[int, int], ...]:
    """Steps right and down, short ways first; of equal ones those to the right, then those down."""
    way = range(-reach, reach + 1)
    every = [(right, down) for right in way for down in way]
    return tuple(sorted(every, key=lambda s: (s[0] ** 2 + s[1] ** 2, -s[0], -s[1])))


def terms(explanation: Explanation) -> list[Term]:
    """The addends of the score in the order the figures number them, then rest and bias."""
    shown = [
        Term(str(i), e.contribution, "supports" if e.sign == 1 else "opposes")
        for i, e in enumerate(explanation.shown, 1)
    ]
    label = f"rest of {counted(explanation.rest_count, explanation.unit)}"
    bias = Term(explanation.offset, explanation.bias, "bias")
    return [*shown, Term(label, explanation.rest, "rest"), bias]


def segments(explanation: Explanation) -> list[Segment]:
    """The sum in two lanes: what adds goes right from 0, what takes away comes back from there."""
    pieces, end = [], 0.0
    addends = terms(explanation)
    for lane, sign in ((0, 1), (1, -1)):
        for term in addends:
            if term.value * sign > 0:
                pieces.append(Segment(term, end, end + term.value, lane))
                end += term.value
    return pieces


def size_text(e: Explanation) -> str:
    """How many units the explanation needs; "" where none contributes."""
    if e.size95 is not None:
        return f"{e.size95:,} of {counted(e.channels, e.unit)} reach 95 % of the {e.score}"
    if e.magnitude_size:
        of = f"{e.magnitude_size:,} of {counted(e.channels, e.unit)}"
        return f"{of} carry 95 % of all evidence, for or against"
    return ""


def path_title(e: Explanation) -> str:
    """What the path of a head that is a tree is, in a line."""
    chance = math.prod(step.probability for step in e.decisions)
    title = f"The path: {counted(len(e.decisions), 'decision')}"
    # a soft tree goes every way, each with a probability
    return title if chance == 1 else f"{title}, taken with probability {chance:.0%}"


def answer_text(step: DecisionEvidence) -> str:
    """The question of a decision and its answer: "0.83 > 0.50: yes"."""
    value, limit = (
        f"{x:.2f}" if abs(x) < 100 else f"{x:.0f}" for x in (step.value, step.threshold)
    )
    relation = ">" if step.value > step.threshold else "≤"
    answer = f"{value} {relation} {limit}: {'yes' if step.yes else 'no'}"
    return answer.replace("-", "\N{MINUS SIGN}")


def change_text(e: Explanation, step: DecisionEvidence) -> str:
    """What a decision does to the explained class: "rose 12 % → 45 %"."""
    name = cut(e.class_name, 14)
    return f"{name} {step.before:.0%} → {step.after:.0%}"


def counted(count: int, unit: str) -> str:
    """So many units: "1 channel", "2,047 channels"."""
    return f"{count:,} {unit}{'' if count == 1 else 's'}"


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign, a true minus, and no negative zero."""
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return ("+" if value > 0 else "\N{MINUS SIGN}") + text


def short_name(path: str) -> str:
    """The last folder and the file name, enough to find an image and no more.

    Bytes of a name that are no text are written as ``\\udcff``.
    """
    name = "/".join(PurePath(without_place(path)).parts[-2:]) if path else "picture"
    return name.encode("utf-8", "backslashreplace").decode()


def cut(text: str, length: int) -> str:
    """A text on one line, with an ellipsis where it is longer; wide letters count as two."""
    text = " ".join(text.split())
    room = length
    for at, letter in enumerate(text):
        room -= 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        if room < 0:
            return text[: max(1, at - 1)] + "…"
    return text


def explains_prediction(explanation: Explanation) -> bool:
    """Whether the explained class is a predicted one."""
    if explanation.abstained:
        return False
    if explanation.independent:
        return explanation.class_name in explanation.predicted_names
    return explanation.class_index == int(explanation.logits.argmax())


def headline(explanation: Explanation) -> str:
    """What is explained, in one line."""
    if explanation.abstained:
        return f"Abstains; shown is {explanation.class_name}"
    if explanation.independent:
        chance = float(explanation.probabilities[explanation.class_index])
        return f"{explanation.class_name}: {chance:.1%}"
    verb = "Predicted" if explains_prediction(explanation) else "Explained class"
    return f"{verb}: {explanation.class_name}"


def predicted_text(explanation: Explanation) -> str:
    """What the model predicts, for where that is not in the headline."""
    if explanation.abstained:
        return "predicted: no class"
    if explanation.independent:
        return f"labels of 50 % or more: {', '.join(explanation.predicted_names) or 'none'}"
    return f"predicted: {explanation.predicted_name}"


def check_fits(explanation: Explanation, prototypes: Prototypes) -> None:
    """Raise ValueError unless the prototypes have as many units as the explained head."""
    if explanation.channels != prototypes.channels:
        raise ValueError(
            f"the prototypes are of a head with {prototypes.channels} {explanation.unit}s, the "
            f"explanation of one with {explanation.channels}: make them with the same head"
        )


def prototype_box(prototype: Prototype, grid: tuple[int, int], size: tuple[int, int]) -> Box:
    """The patch of a prototype in its picture of `size` (width, height)."""
    row, column = prototype.pixel
    return cell_box(row * grid[1] + column, grid, size)


def top_classes(explanation: Explanation, count: int | None = None) -> list[tuple[str, float]]:
    """The most probable classes with their probabilities: `count`, by default 3 or 6 labels."""
    if count is None:
        count = 6 if explanation.independent else 3
    chances = explanation.probabilities
    # equal ones in their own order, as the prediction is the first of them
    best = chances.argsort(descending=True, stable=True)[:count].tolist()
    return [(explanation.classes[i], float(chances[i])) for i in best]
