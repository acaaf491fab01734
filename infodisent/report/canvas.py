"""What figures are drawn on: one axes, measured in inches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from PIL import Image

from infodisent.report.fonts import font_options, lettering
from infodisent.report.view import OPPOSES, SUPPORTS, cut

INK, MUTED, LINE, REST, WRONG = "#1b1f27", "#5b6270", "#d9dce2", "#8a909c", "#a3195b"
COLORS = {"supports": SUPPORTS, "opposes": OPPOSES, "rest": REST, "bias": "#3f4450"}
# Inches.
MARGIN, TILE, PAD = 0.4, 1.22, 0.12


class Place(NamedTuple):
    """A picture on the canvas: its upper left corner and inches per pixel."""

    x: float
    y: float
    scale: float

    def box(self, box: Sequence[float]) -> tuple[float, float, float, float]:
        """A box in pixels of the picture, in inches of the canvas."""
        x0, y0, x1, y1 = (value * self.scale for value in box)
        return self.x + x0, self.y + y0, self.x + x1, self.y + y1


class Canvas:
    """A figure measured in inches from its upper left corner.

    It has one axes: each costs as much as all the rest of a figure.
    """

    def __init__(self, width: float, height: float) -> None:
        self.figure = Figure(figsize=(width, height), facecolor="white")
        self.width, self.height = width, height
        self._axes = self.figure.add_axes((0, 0, 1, 1))
        self._axes.set_axis_off()
        self._axes.set_autoscale_on(False)
        self._axes.set_xlim(0, width)
        self._axes.set_ylim(height, 0)
        self._renderer = FigureCanvasAgg(self.figure).get_renderer()  # measures texts

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float = 9,
        *,
        length: int | None = None,
        room: float | None = None,
        weight: str = "normal",
        **style: Any,
    ) -> None:
        """Write at most `length` letters, shrunk until they are at most `room` inches wide."""
        spelt, families = lettering(text)
        # parse_math: a class called "$x" is a name, not a formula.
        written = self.figure.text(
            x / self.width, 1 - y / self.height, spelt if length is None else cut(spelt, length),
            fontsize=size, parse_math=False,
            **{"color": INK, "va": "top", **style, **font_options(families, weight)},
        )  # fmt: skip
        if room is not None:
            width = written.get_window_extent(self._renderer).width / self.figure.dpi
            written.set_fontsize(size * min(1, room / max(width, 1e-6)))

    def line(self, x0: float, y0: float, x1: float, y1: float, color: str, width: float) -> None:
        """Draw a line of so many points."""
        self._axes.plot([x0, x1], [y0, y1], color=color, linewidth=width, solid_capstyle="butt")

    def bar(self, x0: float, y0: float, x1: float, y1: float, color: str, edge: float = 0) -> None:
        """A filled rectangle, with a white edge of so many points."""
        place: dict[str, Any] = {"xy": (x0, y0), "width": x1 - x0, "height": y1 - y0}
        self._axes.add_patch(Rectangle(**place, facecolor=color, edgecolor="white", linewidth=edge))

    def picture(self, x: float, y: float, width: float, height: float, image: Image.Image) -> Place:
        """The image, centred in the space with its own aspect."""
        scale = min(width / image.width, height / image.height)
        x += (width - scale * image.width) / 2
        y += (height - scale * image.height) / 2
        extent = (x, x + scale * image.width, y + scale * image.height, y)
        self._axes.imshow(image, extent=extent, aspect="auto", interpolation="lanczos")
        return Place(x, y, scale)

    def frame(self, box: Sequence[float], color: str, *, dashed: bool, width: float) -> None:
        """A rectangle's outline on a white one."""
        x0, y0, x1, y1 = box
        place: dict[str, Any] = {"xy": (x0, y0), "width": x1 - x0, "height": y1 - y0, "fill": False}
        self._axes.add_patch(Rectangle(**place, edgecolor="white", linewidth=width + 1.5))
        style = "dashed" if dashed else "solid"
        self._axes.add_patch(Rectangle(**place, edgecolor=color, linewidth=width, linestyle=style))

    def disc(self, x: float, y: float, number: int, color: str, *, edge: bool) -> None:
        """A number on a disc around a point."""
        radius = 0.115 if edge else 0.105
        self._axes.add_patch(
            Circle((x, y), radius, facecolor=color, edgecolor="white" if edge else "none")
        )
        self.text(x, y, str(number), 8 if edge else 9, color="white", ha="center",
                  va="center_baseline", weight="bold")  # fmt: skip
