"""Pictures of one explanation: a heat map with its box, a figure, a piece of HTML.

The report's figures (`infodisent.report`) also show what the units mean, which takes prototypes.
"""

from __future__ import annotations

import base64
import html
import io
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from infodisent.explanations.evidence import ChannelEvidence, Explanation

# Okabe and Ito's blue and vermilion; the sign and the dashes say the same without colour.
COLORS = {1: "#0072B2", -1: "#D55E00"}
_GREY = "#8a90a0"
# The darkest and the lightest colour of a side's heat.
_RAMPS = {1: ((0, 114, 178), (186, 234, 255)), -1: ((213, 94, 0), (255, 232, 158))}


def heat_overlay(picture: Image.Image, heat: Tensor, sign: int) -> Image.Image:
    """A heat map ``[gh, gw]`` in [0, 1] over a greyed picture: blue supports, orange opposes."""
    small = Image.fromarray(heat.float().cpu().numpy())
    smooth = np.asarray(small.resize(picture.size, Image.Resampling.BICUBIC)).clip(0, 1)[..., None]
    grey = np.asarray(picture.convert("L"), dtype=np.float32)[..., None]
    dark, light = (np.array(colour, dtype=np.float32) for colour in _RAMPS[sign])
    # Where the heat is 0 the picture stays visible but dim, so that the ramp's light end shows.
    alpha = 0.9 * smooth**0.75
    mixed = (grey * 0.55 + 40) * (1 - alpha) + (dark + (light - dark) * smooth**1.5) * alpha
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


def overlay(picture: Image.Image, evidence: ChannelEvidence, side: int = 256) -> Image.Image:
    """The heat map of a unit over the picture, with the box of the side that decides.

    Enlarged by a whole number to at least `side` pixels, so that thin frames show.
    """
    factor = -(-side // max(picture.size))
    size = (picture.width * factor, picture.height * factor)
    image = heat_overlay(picture.resize(size), evidence.heat, evidence.sign)
    if evidence.box is not None:
        x0, y0, x1, y1 = (v * factor for v in evidence.box)
        draw = ImageDraw.Draw(image)
        frame = 4 if min(x1 - x0, y1 - y0) > 12 else 1
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=COLORS[evidence.sign], width=frame)
        if frame > 1:
            inner = (x0 + frame, y0 + frame, x1 - 1 - frame, y1 - 1 - frame)
            draw.rectangle(inner, outline="white")
    return image


def figure(e: Explanation) -> Figure:
    """Picture with numbered boxes, the sum as bars, and a heat map for each unit shown."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as NewFigure
    from matplotlib.patches import Rectangle

    shown = e.shown
    columns = max(len(shown), 4)
    fig = NewFigure(figsize=(10, 6.2 if shown else 4.2), layout="constrained")
    FigureCanvasAgg(fig)
    rows = fig.add_gridspec(2 if shown else 1, 1, height_ratios=[2, 1][: 2 if shown else 1])
    top = rows[0].subgridspec(1, 2, width_ratios=[1, 1.35])
    fig.suptitle(_title(e, 56), fontsize=13, fontweight="bold", parse_math=False)
    ax = fig.add_subplot(top[0])
    ax.imshow(e.picture)
    for evidence in shown:
        if evidence.box is None:
            continue
        x0, y0, x1, y1 = evidence.box
        color, dashed = COLORS[evidence.sign], "--" if evidence.sign < 0 else "-"
        place: dict[str, Any] = {"width": x1 - x0, "height": y1 - y0, "fill": False}
        corner = (x0 - 0.5, y0 - 0.5)
        ax.add_patch(Rectangle(corner, **place, edgecolor="white", linewidth=3.5))
        ax.add_patch(Rectangle(corner, **place, edgecolor=color, linewidth=2, linestyle=dashed))
    for box, numbers in _numbers(e).items():
        ax.text(box[0], box[1], numbers, fontsize=8, color="white", va="top",
                bbox={"facecolor": "#30343c", "pad": 1.5, "edgecolor": "none"})  # fmt: skip
    ax.set_axis_off()
    _bars(fig.add_subplot(top[1]), e)
    if shown:
        tiles = rows[1].subgridspec(1, columns)
        for number, evidence in enumerate(shown, 1):
            ax = fig.add_subplot(tiles[number - 1])
            ax.imshow(overlay(e.picture, evidence))
            text = f"{number}: {e.unit} {evidence.channel}"
            ax.set_title(text, fontsize=9, color=COLORS[evidence.sign])
            ax.set_axis_off()
    return fig


def as_html(e: Explanation) -> str:
    """A heading, the picture and a row for each term of the sum, with nothing to load."""
    lines = [f"<div><h4>{html.escape(_title(e))}</h4>", _image(e.picture, 200)]
    lines.append("<table><tr><th></th><th>unit</th><th>contribution</th><th>where</th></tr>")
    for number, evidence in enumerate(e.shown, 1):
        where = "" if evidence.box is None else f"box {evidence.box}"
        if evidence.box_in_image is not None:
            where += f"<br>in the image {evidence.box_in_image}"
        lines.append(
            f"<tr><td>{_image(overlay(e.picture, evidence), 110)}</td>"
            f"<td>{number}: {html.escape(e.unit)} {evidence.channel}</td>"
            f'<td style="color:{COLORS[evidence.sign]}">{evidence.contribution:+.3f}</td>'
            f"<td>{where}</td></tr>"
        )
    for name, value in (("rest", e.rest), (e.offset, e.bias), (e.score, e.score_value)):
        name = html.escape(name)
        lines.append(f"<tr><td></td><td>{name}</td><td>{value:+.3f}</td><td></td></tr>")
    lines.append("</table>")
    if e.decisions:
        steps = (f"<li>{html.escape(text)}</li>" for text in decision_lines(e))
        lines.append(f"<p>The path of decisions:</p><ol>{''.join(steps)}</ol>")
    lines += [f"<p>{html.escape(note)}</p>" for note in e.notes]
    return "".join(lines) + "</div>"


def decision_lines(e: Explanation) -> list[str]:
    """The path of a head that is a tree, a line a decision: what is asked, answered, changed."""
    return [
        f"{e.unit} {step.unit}: {step.value:.3f} {'>' if step.value > step.threshold else '≤'} "
        f"{step.threshold:.3f}, {'yes' if step.yes else 'no'} ({step.probability:.0%}); "
        f"{e.class_name} {step.before:.1%} → {step.after:.1%}"
        for step in e.decisions
    ]


def _title(e: Explanation, length: int | None = None) -> str:
    verb = "Explained" if e.class_name not in e.predicted_names else "Predicted"
    probability = float(e.probabilities[e.class_index])
    name = " ".join(e.class_name.split())
    if length is not None and len(name) > length:
        name = name[: length - 1] + "…"
    return f"{verb}: {name} ({probability:.1%}, logit {e.logit:.3f})"


def _numbers(e: Explanation) -> dict[tuple[int, int, int, int], str]:
    """The numbers of the units that point at each box."""
    numbers: dict[tuple[int, int, int, int], str] = {}
    for number, evidence in enumerate(e.shown, 1):
        if evidence.box is not None:
            before = numbers.get(evidence.box)
            numbers[evidence.box] = f"{before}, {number}" if before else str(number)
    return numbers


def _bars(ax: Any, e: Explanation) -> None:
    terms = [
        (f"{number}: {e.unit} {evidence.channel}", evidence.contribution, COLORS[evidence.sign])
        for number, evidence in enumerate(e.shown, 1)
    ]
    terms += [(f"rest of {e.rest_count:,}", e.rest, _GREY), (e.offset, e.bias, _GREY)]
    terms += [(e.score, e.score_value, "#20242c")]
    labels, values, colors = zip(*terms, strict=True)
    places = list(range(len(terms)))
    ax.barh(places, values, color=colors)
    for place, value in zip(places, values, strict=True):
        ax.annotate(f"{value:+.3f}", (max(value, 0), place), xytext=(4, 0), fontsize=8,
                    textcoords="offset points", va="center")  # fmt: skip
    ax.set_yticks(places, labels, fontsize=9)
    ax.invert_yaxis()
    ax.axvline(0, color="#20242c", linewidth=0.8)
    ax.margins(x=0.15)
    ax.tick_params(axis="x", labelsize=8)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def _image(picture: Image.Image, height: int) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img height="{height}" src="data:image/png;base64,{data}">'
