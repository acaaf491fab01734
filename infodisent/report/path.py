"""The decisions of a head that is a tree, in the figure: a card each, in order."""

from __future__ import annotations

from infodisent.explanations.evidence import DecisionEvidence, Explanation
from infodisent.explanations.prototypes import Prototypes
from infodisent.report.canvas import COLORS, LINE, MARGIN, MUTED, PAD, TILE, Canvas
from infodisent.report.pictures import Pictures, heat_overlay
from infodisent.report.view import answer_text, change_text, path_title, prototype_box

# Inches.
_CARD, _HEADING, _TOP, _BOTTOM = TILE + 0.42, 0.62, 0.28, 0.78
_ROW = _TOP + 2 * TILE + PAD + _BOTTOM


def path_height(e: Explanation, width: float) -> float:
    """Inches that the path needs in a figure so wide; 0 where there is none."""
    if not e.decisions:
        return 0.0
    return _HEADING + _ROW * -(-len(e.decisions) // _per_row(width))


def draw_path(
    canvas: Canvas, e: Explanation, prototypes: Prototypes, pictures: Pictures, y: float
) -> None:
    """Every decision: the patch in this image, the unit's own patch, the answer, the change."""
    if not e.decisions:
        return
    end = canvas.width - MARGIN
    canvas.line(MARGIN, y + 0.08, end, y + 0.08, LINE, 1)
    canvas.text(MARGIN, y + 0.22, path_title(e), 11, weight="bold")
    hint = f"above: where in this image · below: the training image where the {e.unit} is strongest"
    canvas.text(end, y + 0.24, hint, 8.5, color=MUTED, ha="right")
    per_row = _per_row(canvas.width)
    for i, step in enumerate(e.decisions):
        row, column = divmod(i, per_row)
        at = (MARGIN + column * _CARD, y + _HEADING + row * _ROW)
        _card(canvas, e, step, i + 1, prototypes, pictures, at)


def _per_row(width: float) -> int:
    return max(1, int((width - 2 * MARGIN + _CARD - TILE) // _CARD))


def _card(
    canvas: Canvas,
    e: Explanation,
    step: DecisionEvidence,
    number: int,
    prototypes: Prototypes,
    pictures: Pictures,
    at: tuple[float, float],
) -> None:
    (x, y), evidence = at, step.evidence
    color = COLORS["supports" if evidence.sign == 1 else "opposes"]
    canvas.text(x, y, f"{number}. {e.unit} {step.unit}", 9, room=TILE, weight="bold")
    y += _TOP
    overlay = heat_overlay(e.picture, evidence.heat, evidence.sign)
    place = canvas.picture(x, y, TILE, TILE, overlay)
    if evidence.box is not None:
        canvas.frame(place.box(evidence.box), color, dashed=evidence.sign < 0, width=1.6)
    y += TILE + PAD
    kept = prototypes.of(step.unit, evidence.side)
    if kept:
        thumbnail = pictures.get(kept[0].file)
        place = canvas.picture(x, y, TILE, TILE, thumbnail.image)
        if not thumbnail.missing:
            box = prototype_box(kept[0], prototypes.grid, thumbnail.image.size)
            canvas.frame(place.box(box), color, dashed=False, width=1.3)
    else:
        canvas.text(x, y + 0.5, "no training image", 8.5, color=MUTED)
    y += TILE + 0.07
    canvas.text(x, y, answer_text(step), 9.5, room=_CARD - 0.1, weight="bold")
    canvas.text(x, y + 0.2, change_text(e, step), 8.5, room=_CARD - 0.1, color=color)
    likeliest = f"{step.likeliest} {step.likeliest_probability:.0%}"
    canvas.text(x, y + 0.37, likeliest, 8.5, length=24, room=_CARD - 0.1, color=MUTED)
