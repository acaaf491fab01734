"""Methods beside each other as a figure, and as a piece of HTML for notebooks."""

from __future__ import annotations

import base64
import html
import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from infodisent.explanations.drawing import heat_overlay

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from infodisent.evaluation.beside import Beside, MethodResult

_COLUMNS = 5
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8B6914", "#4B3F92")
_CONTROL = "#9aa0ad"


def figure(beside: Beside) -> Figure:
    """The picture, every method's map over it with its figures, and the curves of all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as NewFigure

    tiles = len(beside.methods) + 1
    columns = min(_COLUMNS, tiles)
    rows = math.ceil(tiles / columns)
    with_mask = beside.mask is not None
    height = (2.95 if with_mask else 2.75) * rows
    drawn = NewFigure(figsize=(12.5, height + 3.2), facecolor="white", layout="constrained")
    FigureCanvasAgg(drawn)
    parts: Any = drawn.subfigures(2, 1, height_ratios=[height, 3.0])
    above, below = parts
    panels = above.subplots(rows, columns, squeeze=False).flatten()
    for panel in panels[tiles:]:
        panel.set_axis_off()
    title = f"{' '.join(beside.class_name.split())[:60]} ({beside.probability:.1%})"
    above.suptitle(f"Why {title}, by every method", fontsize=12, parse_math=False)
    _outlined(panels[0], beside, beside.picture)
    panels[0].set_title("what the network sees", fontsize=9)
    best = {
        "deletion": min((m.deletion for m in beside.methods), default=0.0),
        "insertion": max((m.insertion for m in beside.methods), default=0.0),
    }
    for panel, method, color in zip(panels[1:], beside.methods, _colors(beside)):
        heat = method.saliency.clamp_min(0)
        if float(method.saliency.max()) <= 0:  # nothing speaks for the class
            heat = method.saliency - method.saliency.min()
        heat = heat / heat.max().clamp_min(1e-12)
        _outlined(panel, beside, heat_overlay(beside.picture, heat, 1))
        panel.set_title(method.title, fontsize=9, color=color, fontweight="bold")
        panel.set_xlabel(_words(method, best), fontsize=8, loc="left", linespacing=1.35)
    for chart, curve, way in zip(
        below.subplots(1, 2), ("deletion", "insertion"), ("lower is better", "higher is better")
    ):
        _curves(chart, beside, curve, way)
    return drawn


def _outlined(panel: Any, beside: Beside, picture: Any) -> None:
    """A picture with the object's outline, where it is known."""
    panel.imshow(picture)
    panel.set_xticks([])
    panel.set_yticks([])
    for side in panel.spines.values():
        side.set_visible(False)
    if beside.mask is not None and bool(beside.mask.any()) and not bool(beside.mask.all()):
        panel.contour(beside.mask.numpy().astype(float), levels=[0.5], colors="white",
                      linewidths=1.2)  # fmt: skip


def _words(method: MethodResult, best: dict[str, float]) -> str:
    """The figures of a method; a star stands at the best of all."""
    stars = {
        key: "*" if math.isclose(getattr(method, key), value, abs_tol=5e-4) else ""
        for key, value in best.items()
    }
    lines = [
        f"deletion {method.deletion:.3f}{stars['deletion']}   "
        f"insertion {method.insertion:.3f}{stars['insertion']}"
    ]
    if method.localisation:
        hit = {1.0: "hit", 0.0: "miss"}.get(method.localisation.get("pointing", -1.0), "")
        rest = (f"{k} {method.localisation[k]:.2f}" for k in ("mass", "rank"))
        lines.append("   ".join((hit, *rest)))
    lines.append(f"{method.seconds:.2f} s" if method.seconds >= 0.01 else "< 0.01 s")
    return "\n".join(lines)


def _curves(chart: Any, beside: Beside, curve: str, way: str) -> None:
    for method, color in zip(beside.methods, _colors(beside), strict=True):
        values = getattr(method, f"{curve}_curve").numpy()
        dashed = "--" if method.name == "random" else "-"
        chart.plot(np.linspace(0, 1, len(values)), values, dashed, color=color, linewidth=1.5,
                   label=f"{method.title}: {getattr(method, curve):.3f}")  # fmt: skip
    chart.set_title(f"{curve}: {way}", fontsize=9, loc="left")
    chart.set_xlabel("part of the pixels", fontsize=8)
    chart.set_ylabel("probability of the class", fontsize=8)
    chart.tick_params(labelsize=8)
    chart.set_ylim(-0.02, 1.02)
    chart.grid(alpha=0.3)
    chart.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    for side in ("top", "right"):
        chart.spines[side].set_visible(False)


def _colors(beside: Beside) -> list[str]:
    named = iter(_COLORS * (1 + len(beside.methods) // len(_COLORS)))
    return [_CONTROL if m.name == "random" else next(named) for m in beside.methods]


def as_html(beside: Beside) -> str:
    """The figure and a table of the figures, with nothing to load."""
    buffer = io.BytesIO()
    figure(beside).savefig(buffer, dpi=80, format="png")
    data = base64.b64encode(buffer.getvalue()).decode()
    where = [key for key in ("pointing", "mass", "rank") if beside.mask is not None]
    head = "".join(f"<th>{name}</th>" for name in ("method", "deletion", "insertion", *where, "s"))
    lines = []
    for method in beside.methods:
        figures = [f"{method.deletion:.3f}", f"{method.insertion:.3f}"]
        figures += [f"{method.localisation[key]:.3f}" if key in method.localisation else "–"
                    for key in where]  # fmt: skip
        cells = "".join(f"<td>{cell}</td>" for cell in (*figures, f"{method.seconds:.2f}"))
        lines.append(f"<tr><td>{html.escape(method.title)}</td>{cells}</tr>")
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in beside.notes)
    image = f'<img style="max-width:100%" src="data:image/png;base64,{data}">'
    return f"<div>{image}<table><tr>{head}</tr>{''.join(lines)}</table>{notes}</div>"
