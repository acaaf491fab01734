"""One explanation as a matplotlib figure: picture, evidence with prototypes, and the sum.

Figures are made without pyplot: nothing global is read or changed, and any thread may draw.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from PIL import Image

from infodisent.explanations.evidence import ChannelEvidence, Explanation
from infodisent.explanations.prototypes import Prototype, Prototypes
from infodisent.files import replacing
from infodisent.report.pictures import Pictures, heat_overlay
from infodisent.report.view import (
    OPPOSES,
    SUPPORTS,
    check_fits,
    counted,
    marks,
    prototype_box,
    segments,
    short_name,
    signed,
    terms,
    top_classes,
)

INK, MUTED, LINE, REST, WRONG = "#1b1f27", "#5b6270", "#d9dce2", "#8a909c", "#a3195b"
_COLORS = {"supports": SUPPORTS, "opposes": OPPOSES, "rest": REST, "bias": "#3f4450"}
# Inches.
_MARGIN, _LEFT, _GAP, _TEXT, _TILE, _PAD = 0.4, 4.4, 0.5, 2.0, 1.22, 0.12
_ROW, _HEADING, _SUM, _TITLE, _HINTS = 1.55, 0.42, 1.6, 0.9, 0.24


class _Canvas:
    """A figure measured in inches from its upper left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.figure = Figure(figsize=(width, height), facecolor="white")
        self.width, self.height = width, height

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        ax = self.figure.add_axes(
            (x / self.width, 1 - (y + height) / self.height, width / self.width,
             height / self.height)
        )  # fmt: skip
        ax.set_axis_off()
        return ax

    def text(self, x: float, y: float, text: str, size: float = 9, **style: Any) -> None:
        # parse_math: a class called "$x" is a name, not a formula.
        self.figure.text(
            x / self.width, 1 - y / self.height, text, fontsize=size, parse_math=False,
            **{"color": INK, "va": "top", **style},
        )  # fmt: skip

    def line(self, y: float, x0: float, x1: float) -> None:
        ax = self.axes(x0, y, x1 - x0, 0.01)
        ax.axhline(0.5, color=LINE, linewidth=1)

    def picture(self, x: float, y: float, width: float, height: float, image: Image.Image) -> Axes:
        """The image, centred in the space with its own aspect, in pixel coordinates."""
        ax = self.axes(x, y, width, height)
        ax.imshow(image, extent=(0, image.width, image.height, 0), interpolation="lanczos")
        return ax

    def badge(self, x: float, y: float, number: int, color: str) -> None:
        ax = self.axes(x, y, 0.24, 0.24)
        ax.set_xlim(-1.15, 1.15)
        ax.set_ylim(-1.15, 1.15)
        ax.add_patch(Circle((0, 0), 1, color=color))
        ax.text(0, -0.05, str(number), color="white", ha="center", va="center", fontsize=9,
                fontweight="bold")  # fmt: skip


def explanation_figure(
    explanation: Explanation, prototypes: Prototypes, *, pictures: Pictures | None = None
) -> Figure:
    """Draw an explanation.

    Left the picture with numbered boxes (solid: supports, dashed: opposes); right one row a
    channel: contribution, heat map, prototypes with their patch; below the sum of the logit.

    Args:
        explanation: from `infodisent.explain`.
        prototypes: of the same head.
        pictures: decoded prototype pictures, to share between figures.

    Raises:
        ValueError: the prototypes are of a head with another number of channels.
    """
    check_fits(explanation, prototypes)
    pictures = pictures or Pictures(prototypes.transform)
    count = max(1, prototypes.k)
    sections = [
        (text, color, group)
        for text, color, group in (
            (f"Supports “{_cut(explanation.class_name, 40)}”", SUPPORTS, explanation.supporting),
            (f"Opposes “{_cut(explanation.class_name, 40)}”", OPPOSES, explanation.opposing),
        )
        if group
    ]
    right = _HINTS + sum(_HEADING + _ROW * len(group) for _, _, group in sections)
    picture_height = _LEFT * explanation.picture.height / explanation.picture.width
    body = max(right, picture_height + 1.75)
    x0 = _MARGIN + _LEFT + _GAP
    width = x0 + _TEXT + (_TILE + _PAD) * (count + 1) + 0.15 + _MARGIN
    canvas = _Canvas(width, _MARGIN + _TITLE + body + _SUM + _MARGIN)
    y = _MARGIN
    _title(canvas, explanation, y)
    y += _TITLE
    _left(canvas, explanation, y, picture_height)
    xh, xp = x0 + _TEXT, x0 + _TEXT + _TILE + _PAD + 0.15
    if sections:
        canvas.text(xh, y, "where in this image", 8.5, color=MUTED)
        canvas.text(
            xp, y, f"training images where the {explanation.unit} is strongest", 8.5, color=MUTED
        )
    at, number = y + _HINTS, 0
    for text, color, group in sections:
        canvas.text(x0, at, text, 11, color=color, fontweight="bold")
        at += _HEADING
        for evidence in group:
            number += 1
            _row(canvas, explanation, evidence, number, color, (x0, at))
            kept = prototypes.of(evidence.channel, evidence.side)
            _prototypes(canvas, kept, pictures, prototypes.grid, color, (xp, at))
            at += _ROW
    if not sections:
        canvas.text(x0, y, f"No {explanation.unit} contributes to this class.", 11, color=MUTED)
    _sum(canvas, explanation, _MARGIN + _TITLE + body)
    return canvas.figure


def prototypes_figure(
    prototypes: Prototypes,
    channels: Sequence[int],
    *,
    k: int | None = None,
    unit: str = "channel",
    pictures: Pictures | None = None,
) -> Figure:
    """Draw what channels mean: one row a channel, positive side left, negative side right.

    Args:
        prototypes: from `infodisent.explanations.prototypes.find_prototypes`.
        channels: channels to draw, at least one.
        k: images per side; default: all that were kept.
        unit: what the head calls its channels.
        pictures: decoded pictures, to share between figures.

    Raises:
        ValueError: no channels, an unknown one, or k below 1.
    """
    if not len(channels):
        raise ValueError("prototypes_figure: channels is empty, at least one is needed")
    if k is not None and k < 1:
        raise ValueError(f"prototypes_figure: k is {k}, must be >= 1")
    for channel in channels:
        prototypes.check_channel(channel)
    pictures = pictures or Pictures(prototypes.transform)
    count = min(k or prototypes.k, prototypes.k)
    side = count * (_TILE + _PAD) + 0.3
    label = 0.85
    canvas = _Canvas(2 * _MARGIN + label + 2 * side, 2 * _MARGIN + 0.45 + _ROW * len(channels))
    for sign, name, color in ((1, "positive side", SUPPORTS), (-1, "negative side", OPPOSES)):
        x = _MARGIN + label + (0 if sign == 1 else side)
        canvas.text(x, _MARGIN, f"strongest on the {name}", 10, color=color, fontweight="bold")
        for i, channel in enumerate(channels):
            y = _MARGIN + 0.45 + i * _ROW
            if sign == 1:
                canvas.text(_MARGIN, y + 0.4, f"{channel}", 13, fontweight="bold")
                canvas.text(_MARGIN, y + 0.68, unit, 8, color=MUTED)
            kept = prototypes.of(channel, sign)[:count]
            _prototypes(canvas, kept, pictures, prototypes.grid, color, (x, y))
    return canvas.figure


def save_figure(figure: Figure, path: str | os.PathLike[str], *, dpi: int = 130) -> None:
    """Write a figure as PNG, at once or not at all."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi)


def _title(canvas: _Canvas, e: Explanation, y: float) -> None:
    probability = float(e.probabilities[e.class_index])
    explained = e.class_name == e.predicted_name
    verb = "Predicted" if explained else "Explained class"
    canvas.text(_MARGIN, y - 0.05, f"{verb}: {_cut(e.class_name, 48)}", 17, fontweight="bold")
    facts = f"probability {probability:.1%}   ·   logit {e.logit:.3f}"
    if e.size95 is not None:
        facts += f"   ·   {e.size95:,} of {counted(e.channels, e.unit)} reach 95 % of the logit"
    canvas.text(_MARGIN, y + 0.36, facts, 10, color=MUTED)
    end = canvas.width - _MARGIN
    if not explained:
        canvas.text(end, y + 0.36, f"predicted: {_cut(e.predicted_name, 32)}", 10, color=MUTED,
                    ha="right")  # fmt: skip
    if e.true_name is not None:
        right = e.correct
        text = "✓ prediction is correct" if right else f"✗ wrong: it is {_cut(e.true_name, 40)}"
        canvas.text(end, y, text, 12, ha="right", color=MUTED if right else WRONG,
                    fontweight="normal" if right else "bold")  # fmt: skip
    canvas.line(y + 0.68, _MARGIN, end)


def _left(canvas: _Canvas, e: Explanation, y: float, height: float) -> None:
    ax = canvas.picture(_MARGIN, y, _LEFT, height, e.picture)
    unit = e.picture.width / _LEFT  # pixels of the picture per inch
    boxes = marks(e, 0.115 * unit)
    for mark in boxes:
        _frame(ax, mark.box, _COLORS[mark.kind], dashed=mark.kind == "opposes", width=2.4)
    for mark in boxes:
        disc = Circle(mark.center, 0.115 * unit, facecolor=_COLORS[mark.kind], edgecolor="white")
        ax.add_patch(disc)
        ax.text(*mark.center, str(mark.number), color="white", ha="center", va="center",
                fontsize=8, fontweight="bold")  # fmt: skip
    y += height + 0.1
    canvas.text(_MARGIN, y, _cut(short_name(e.path), 52), 8, color=MUTED)
    y += 0.32
    for name, probability in top_classes(e):
        ax = canvas.axes(_MARGIN, y, _LEFT, 0.24)
        ax.set_xlim(0, 1)
        ax.set_ylim(0, 1)
        ax.barh(0.5, 1, 1, color="#f0f1f4")
        ax.barh(0.5, probability, 1, color="#c9ced8")
        ax.text(0.02, 0.48, _cut(name, 34), va="center", fontsize=8.5, color=INK, parse_math=False)
        ax.text(0.98, 0.48, f"{probability:.1%}", va="center", ha="right", fontsize=8.5, color=INK)
        y += 0.3


def _row(
    canvas: _Canvas,
    e: Explanation,
    evidence: ChannelEvidence,
    number: int,
    color: str,
    at: tuple[float, float],
) -> None:
    x, y = at
    canvas.badge(x, y + 0.02, number, color)
    canvas.text(x + 0.34, y, signed(evidence.contribution), 14, color=color, fontweight="bold")
    canvas.text(x + 0.34, y + 0.3, f"{e.unit} {evidence.channel}", 9)
    largest = max(abs(other.contribution) for other in e.shown)
    ax = canvas.axes(x + 0.34, y + 0.55, _TEXT - 0.6, 0.08)
    ax.set_xlim(0, 1)
    ax.barh(0, 1, 1, color="#eceef2")
    ax.barh(0, abs(evidence.contribution) / largest, 1, color=color)
    ax.set_ylim(-0.5, 0.5)
    minus = "\N{MINUS SIGN}"
    canvas.text(x + 0.34, y + 0.72, f"weight {evidence.weight:.3f} ×", 8, color=MUTED)
    canvas.text(x + 0.34, y + 0.88, f"({evidence.pos:.3f} {minus} {evidence.neg:.3f})", 8,
                color=MUTED)  # fmt: skip
    overlay = heat_overlay(e.picture, evidence.heat, evidence.sign)
    ax = canvas.picture(x + _TEXT, y, _TILE, _TILE, overlay)
    if evidence.box is not None:
        _frame(ax, evidence.box, color, dashed=evidence.sign < 0, width=1.6)


def _prototypes(
    canvas: _Canvas,
    kept: Sequence[Prototype],
    pictures: Pictures,
    grid: tuple[int, int],
    color: str,
    at: tuple[float, float],
) -> None:
    x, y = at
    if not kept:
        canvas.text(x, y + 0.5, "no training image excites this side", 8.5, color=MUTED)
    for prototype in kept:
        thumbnail = pictures.get(prototype.file)
        ax = canvas.picture(x, y, _TILE, _TILE, thumbnail.image)
        if not thumbnail.missing:
            box = prototype_box(prototype, grid, thumbnail.image.size)
            _frame(ax, box, color, dashed=False, width=1.3)
        canvas.text(x, y + _TILE + 0.04, _cut(prototype.label_name, 19), 7, color=MUTED)
        x += _TILE + _PAD


def _frame(ax: Axes, box: Sequence[float], color: str, *, dashed: bool, width: float) -> None:
    x0, y0, x1, y1 = box
    place: dict[str, Any] = {"xy": (x0, y0), "width": x1 - x0, "height": y1 - y0, "fill": False}
    ax.add_patch(Rectangle(**place, edgecolor="white", linewidth=width + 1.5))
    style = "dashed" if dashed else "solid"
    ax.add_patch(Rectangle(**place, edgecolor=color, linewidth=width, linestyle=style))


def _sum(canvas: _Canvas, e: Explanation, y: float) -> None:
    canvas.line(y + 0.08, _MARGIN, canvas.width - _MARGIN)
    canvas.text(_MARGIN, y + 0.22, "The sum", 11, fontweight="bold")
    parts = []
    for i, term in enumerate(terms(e)):
        value = f"{abs(term.value):.3f}"
        lead = "\N{MINUS SIGN} " if term.value < 0 else "+ " if i else ""
        parts.append(f"{lead}{value}" + ("" if term.label.isdigit() else f" ({term.label})"))
    text = f"{'  '.join(parts)}  =  {e.logit:.3f} (logit)"
    room = 12.2 * (canvas.width - 2 * _MARGIN - 0.9)  # characters of 10 points
    canvas.text(_MARGIN + 0.9, y + 0.235, text, 10 * min(1, room / len(text)))
    pieces = segments(e)
    ends = [0.0, e.logit, *(s.start for s in pieces), *(s.end for s in pieces)]
    low, high = min(ends), max(ends)
    span = (high - low) or 1.0
    width = canvas.width - 2 * _MARGIN
    ax = canvas.axes(_MARGIN, y + 0.58, width, 0.95)
    ax.set_xlim(low - 0.01 * span, high + 0.06 * span)
    ax.set_ylim(2.6, -0.1)
    for term, start, end, lane in pieces:
        ax.barh(lane + 0.5, end - start, 0.84, left=start, color=_COLORS[term.kind],
                edgecolor="white", linewidth=1.2)  # fmt: skip
        # Numbers only where they fit: a digit needs about 0.2 inch, the label of the rest more.
        if abs(end - start) / span * width > (0.2 if term.label.isdigit() else 1.7):
            ax.text((start + end) / 2, lane + 0.5, term.label, color="white", fontsize=8.5,
                    ha="center", va="center", fontweight="bold")  # fmt: skip
    ax.plot([0, 0], [0, 2], color=INK, linewidth=1)
    ax.plot([e.logit, e.logit], [0, 2.12], color=INK, linewidth=1.6)
    ax.text(e.logit, 2.2, f"logit {e.logit:.3f}", fontsize=9, ha="center", va="top",
            fontweight="bold", color=INK)  # fmt: skip
    if e.logit - low > 0.1 * span:
        ax.text(0, 2.2, "0", fontsize=9, ha="center", va="top", color=MUTED)


def _cut(text: str, length: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"
