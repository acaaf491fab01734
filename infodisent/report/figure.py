"""One explanation as a matplotlib figure: picture, evidence with prototypes, and the sum.

Figures are made without pyplot: nothing global is read or changed, and any thread may draw.
"""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from infodisent.data.archives import without_place
from infodisent.explanations.evidence import ChannelEvidence, Explanation
from infodisent.explanations.prototypes import Prototype, Prototypes
from infodisent.files import replacing
from infodisent.report.canvas import (
    COLORS,
    INK,
    LINE,
    MARGIN,
    MUTED,
    PAD,
    TILE,
    WRONG,
    Canvas,
)
from infodisent.report.fonts import lettering
from infodisent.report.path import draw_path, path_height
from infodisent.report.pictures import Pictures, heat_overlay
from infodisent.report.view import (
    OPPOSES,
    SUPPORTS,
    check_fits,
    cut,
    explains_prediction,
    headline,
    marks,
    predicted_text,
    prototype_box,
    segments,
    short_name,
    signed,
    size_text,
    terms,
    top_classes,
)

# Inches.
_LEFT, _GAP, _TEXT = 4.4, 0.5, 2.0
_ROW, _HEADING, _SUM, _TITLE, _HINTS = 1.55, 0.42, 1.6, 0.9, 0.24


def explanation_figure(
    explanation: Explanation, prototypes: Prototypes, *, pictures: Pictures | None = None
) -> Figure:
    """Draw an explanation.

    Left the picture with numbered boxes (solid: supports, dashed: opposes); right one row a
    channel: contribution, heat map, prototypes with their patch; below the path of a head that is a
    tree, and the sum of the logit (or what else contributions add up to).

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
    name = cut(lettering(explanation.class_name)[0], 40)
    sections = [
        (text, color, group)
        for text, color, group in (
            (f"Supports “{name}”", SUPPORTS, explanation.supporting),
            (f"Opposes “{name}”", OPPOSES, explanation.opposing),
        )
        if group
    ]
    right = _HINTS + sum(_HEADING + _ROW * len(group) for _, _, group in sections)
    picture_height = _LEFT * explanation.picture.height / explanation.picture.width
    below = 0.85 + 0.3 * len(top_classes(explanation)) + 0.2 * len(_notes(explanation))
    body = max(right, picture_height + below)
    x0 = MARGIN + _LEFT + _GAP
    width = x0 + _TEXT + (TILE + PAD) * (count + 1) + 0.15 + MARGIN
    path = path_height(explanation, width)
    canvas = Canvas(width, MARGIN + _TITLE + body + path + _SUM + MARGIN)
    y = MARGIN
    _title(canvas, explanation, y)
    y += _TITLE
    _left(canvas, explanation, y, picture_height)
    xh, xp = x0 + _TEXT, x0 + _TEXT + TILE + PAD + 0.15
    if sections:
        canvas.text(xh, y, "where in this image", 8.5, color=MUTED)
        canvas.text(
            xp, y, f"training images where the {explanation.unit} is strongest", 8.5, color=MUTED
        )
    at, number = y + _HINTS, 0
    for text, color, group in sections:
        canvas.text(x0, at, text, 11, color=color, weight="bold")
        at += _HEADING
        for evidence in group:
            number += 1
            _row(canvas, explanation, evidence, number, color, (x0, at))
            kept = prototypes.of(evidence.channel, evidence.side)
            _prototypes(canvas, kept, pictures, prototypes.grid, color, (xp, at))
            at += _ROW
    if not sections:
        canvas.text(x0, y, f"No {explanation.unit} contributes to this class.", 11, color=MUTED)
    draw_path(canvas, explanation, prototypes, pictures, MARGIN + _TITLE + body)
    _sum(canvas, explanation, MARGIN + _TITLE + body + path)
    return canvas.figure


def prototypes_figure(
    prototypes: Prototypes,
    channels: Sequence[int],
    *,
    k: int | None = None,
    unit: str = "channel",
    pictures: Pictures | None = None,
    captions: Sequence[str] | None = None,
) -> Figure:
    """Draw what channels mean: one row a channel, positive side left, negative side right.

    Args:
        prototypes: from `infodisent.explanations.prototypes.find_prototypes`.
        channels: channels to draw, at least one.
        k: images per side; default: all that were kept.
        unit: what the head calls its channels.
        pictures: decoded pictures, to share between figures.
        captions: a few lines for each channel, such as the class it counts for and its weight.

    Raises:
        ValueError: no channels, an unknown one, k below 1, or another number of captions.
    """
    if not len(channels):
        raise ValueError("prototypes_figure: channels is empty, at least one is needed")
    if k is not None and k < 1:
        raise ValueError(f"prototypes_figure: k is {k}, must be >= 1")
    if captions is not None and len(captions) != len(channels):
        raise ValueError(
            f"prototypes_figure: {len(captions)} captions were given for {len(channels)} channels"
        )
    for channel in channels:
        prototypes.check_channel(channel)
    pictures = pictures or Pictures(prototypes.transform)
    count = min(k or prototypes.k, prototypes.k)
    side = count * (TILE + PAD) + 0.3
    label = 0.85 if captions is None else 1.45
    canvas = Canvas(2 * MARGIN + label + 2 * side, 2 * MARGIN + 0.45 + _ROW * len(channels))
    for sign, name, color in ((1, "positive side", SUPPORTS), (-1, "negative side", OPPOSES)):
        x = MARGIN + label + (0 if sign == 1 else side)
        canvas.text(x, MARGIN, f"strongest on the {name}", 10, color=color, weight="bold")
        for i, channel in enumerate(channels):
            y = MARGIN + 0.45 + i * _ROW
            if sign == 1:
                canvas.text(MARGIN, y + 0.4, f"{channel}", 13, weight="bold")
                canvas.text(MARGIN, y + 0.68, unit, 8, color=MUTED)
                lines = captions[i].splitlines() if captions is not None else []
                for n, line in enumerate(lines):
                    at = y + 0.86 + 0.17 * n
                    canvas.text(MARGIN, at, line, 8, color=MUTED, length=24, room=label - 0.1)
            kept = prototypes.of(channel, sign)[:count]
            _prototypes(canvas, kept, pictures, prototypes.grid, color, (x, y))
    return canvas.figure


def figure_name(number: int, path: str) -> str:
    """The file of an image's figure: its number, and its own name in plain letters."""
    stem = Path(without_place(path)).stem
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", stem)[:60] or "image"
    return f"{number:03d}-{plain}.png"


def save_figure(figure: Figure, path: str | os.PathLike[str], *, dpi: int = 130) -> None:
    """Write a figure as PNG, at once or not at all."""
    with replacing(path) as temporary:
        # three quarters of the default level's time for a tenth more bytes
        figure.savefig(temporary, format="png", dpi=dpi, pil_kwargs={"compress_level": 3})


def _title(canvas: Canvas, e: Explanation, y: float) -> None:
    end = canvas.width - MARGIN
    right = end - MARGIN
    explained = explains_prediction(e)
    if e.true_name is not None:
        correct = e.correct is not False
        text = f"it is {e.true_name}" if e.abstained else "✓ prediction is correct"
        text = text if correct else f"✗ wrong: it is {e.true_name}"
        canvas.text(end, y, text, 12, length=56, ha="right", room=0.4 * right,
                    color=MUTED if correct else WRONG,
                    weight="normal" if correct else "bold")  # fmt: skip
    canvas.text(MARGIN, y - 0.05, headline(e), 17, length=64, weight="bold",
                room=(0.58 if e.true_name is not None else 0.98) * right)  # fmt: skip
    facts = f"probability {float(e.probabilities[e.class_index]):.1%}   ·   logit {e.logit:.3f}"
    size = size_text(e)
    facts += f"   ·   {size}" if size else ""
    canvas.text(MARGIN, y + 0.36, facts, 10, color=MUTED, room=0.6 * right)
    if not explained or e.independent:
        canvas.text(end, y + 0.36, predicted_text(e), 10, color=MUTED, length=64, ha="right",
                    room=0.38 * right)  # fmt: skip
    canvas.line(MARGIN, y + 0.68, end, y + 0.68, LINE, 1)


def _left(canvas: Canvas, e: Explanation, y: float, height: float) -> None:
    place = canvas.picture(MARGIN, y, _LEFT, height, e.picture)
    boxes = marks(e, 0.115 / place.scale)
    for mark in boxes:
        canvas.frame(place.box(mark.box), COLORS[mark.kind], dashed=mark.kind == "opposes",
                     width=2.4)  # fmt: skip
    for mark in boxes:
        x, y0, _, _ = place.box((*mark.center, *mark.center))
        canvas.disc(x, y0, mark.number, COLORS[mark.kind], edge=True)
    y += height + 0.1
    canvas.text(MARGIN, y, short_name(e.path), 8, color=MUTED, length=60, room=_LEFT)
    for line in _notes(e):
        y += 0.2
        canvas.text(MARGIN, y, line, 8, color=MUTED, room=_LEFT)
    y += 0.32
    for name, probability in top_classes(e):
        canvas.bar(MARGIN, y, MARGIN + _LEFT, y + 0.24, "#f0f1f4")
        canvas.bar(MARGIN, y, MARGIN + _LEFT * probability, y + 0.24, "#c9ced8")
        middle: dict[str, Any] = {"va": "center_baseline", "color": INK}
        room = _LEFT - 0.8
        if e.score == "logit":  # the probability is of all of them
            room -= 0.5
            logit = signed(float(e.logits[list(e.classes).index(name)]), 2)
            canvas.text(MARGIN + _LEFT - 0.68, y + 0.12, logit, 7.5, ha="right",
                        va="center_baseline", color=MUTED)  # fmt: skip
        canvas.text(MARGIN + 0.09, y + 0.12, name, 8.5, length=44, room=room, **middle)
        canvas.text(MARGIN + _LEFT - 0.09, y + 0.12, f"{probability:.1%}", 8.5, ha="right",
                    **middle)  # fmt: skip
        y += 0.3


def _notes(e: Explanation) -> list[str]:
    """What was done to the image, in lines that fit below it."""
    return [line for note in e.notes for line in textwrap.wrap(note, 68)]


def _row(
    canvas: Canvas,
    e: Explanation,
    evidence: ChannelEvidence,
    number: int,
    color: str,
    at: tuple[float, float],
) -> None:
    x, y = at
    canvas.disc(x + 0.12, y + 0.14, number, color, edge=False)
    canvas.text(x + 0.34, y, signed(evidence.contribution), 14, color=color, weight="bold")
    canvas.text(x + 0.34, y + 0.3, f"{e.unit} {evidence.channel}", 9)
    largest = max(abs(other.contribution) for other in e.shown)
    left, full = x + 0.34, _TEXT - 0.6
    part = full * abs(evidence.contribution) / largest
    canvas.bar(left, y + 0.55, left + full, y + 0.63, "#eceef2")
    canvas.bar(left, y + 0.55, left + part, y + 0.63, color)
    minus = "\N{MINUS SIGN}"
    first = f"weight {evidence.weight:.3f} ×" if evidence.linear else "its value here"
    canvas.text(left, y + 0.72, first, 8, color=MUTED)
    two = f"({evidence.pos:.3f} {minus} {evidence.neg:.3f})"
    canvas.text(left, y + 0.88, two if evidence.neg else f"{evidence.pos:.3f}", 8, color=MUTED)
    overlay = heat_overlay(e.picture, evidence.heat, evidence.sign)
    place = canvas.picture(x + _TEXT, y, TILE, TILE, overlay)
    if evidence.box is not None:
        canvas.frame(place.box(evidence.box), color, dashed=evidence.sign < 0, width=1.6)


def _prototypes(
    canvas: Canvas,
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
        place = canvas.picture(x, y, TILE, TILE, thumbnail.image)
        if not thumbnail.missing:
            box = prototype_box(prototype, grid, thumbnail.image.size)
            canvas.frame(place.box(box), color, dashed=False, width=1.3)
        canvas.text(x, y + TILE + 0.04, prototype.label_name, 7, color=MUTED, length=22,
                    room=TILE + 0.5 * PAD)  # fmt: skip
        x += TILE + PAD


def _sum(canvas: Canvas, e: Explanation, y: float) -> None:
    right = canvas.width - MARGIN
    canvas.line(MARGIN, y + 0.08, right, y + 0.08, LINE, 1)
    canvas.text(MARGIN, y + 0.22, "The sum", 11, weight="bold")
    parts = []
    for i, term in enumerate(terms(e)):
        value = f"{abs(term.value):.3f}"
        lead = "\N{MINUS SIGN} " if term.value < 0 else "+ " if i else ""
        parts.append(f"{lead}{value}" + ("" if term.label.isdigit() else f" ({term.label})"))
    text = f"{'  '.join(parts)}  =  {e.score_value:.3f} ({e.score})"
    canvas.text(MARGIN + 0.9, y + 0.235, text, room=right - MARGIN - 0.9, size=10)
    pieces = segments(e)
    ends = [0.0, e.score_value, *(s.start for s in pieces), *(s.end for s in pieces)]
    low, high = min(ends), max(ends)
    span = (high - low) or 1.0
    inches = (right - MARGIN) / (1.07 * span)

    def at(value: float) -> float:
        return MARGIN + (value - low + 0.01 * span) * inches

    top, lane_height = y + 0.61, 0.35
    for term, start, end, lane in pieces:
        y0 = top + (lane + 0.08) * lane_height
        x0, x1 = sorted((at(start), at(end)))
        canvas.bar(x0, y0, x1, y0 + 0.84 * lane_height, COLORS[term.kind], edge=1.2)
        # Numbers only where they fit: a digit needs about 0.2 inch, the label of the rest more.
        if x1 - x0 > (0.2 if term.label.isdigit() else 1.7):
            canvas.text((x0 + x1) / 2, y0 + 0.42 * lane_height, term.label, 8.5, color="white",
                        ha="center", va="center_baseline", weight="bold")  # fmt: skip
    bottom = top + 2 * lane_height
    canvas.line(at(0), top, at(0), bottom, INK, 1)
    canvas.line(at(e.score_value), top, at(e.score_value), bottom + 0.04, INK, 1.6)
    canvas.text(at(e.score_value), bottom + 0.07, f"{e.score} {e.score_value:.3f}", ha="center",
                weight="bold")  # fmt: skip
    if e.score_value - low > 0.1 * span:
        canvas.text(at(0), bottom + 0.07, "0", ha="center", color=MUTED)
