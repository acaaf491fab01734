"""What metrics say of scenes whose truth is known, as a picture."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from infodisent.evaluation.known_truth import RIGHT, KnownTruth

_RIGHT, _WRONG = "#0072B2", "#D55E00"
_TITLES = {
    "deletion": "deletion AUC, lower is better",
    "insertion": "insertion AUC",
    "pointing": "pointing game",
    "mass": "mass accuracy",
    "rank": "rank accuracy",
}


def known_truth_figure(known: KnownTruth, scenes: int = 3) -> Figure:
    """Scenes with every explainer's map over them, and each metric's figures as bars.

    Args:
        known: from `infodisent.evaluation.known_truth.known_truth`.
        scenes: how many to show.
    """
    names = list(known.contest.figures)
    figure = Figure(figsize=(11, 1.75 * scenes + 2.9), facecolor="white", layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=[1.75 * scenes, 2.6])
    above, below = parts
    panels = above.subplots(scenes, len(names) + 1, squeeze=False)
    for row, line in enumerate(panels):
        picture = known.scenes.images[row].permute(1, 2, 0).numpy()
        _show(line[0], picture, known.scenes.figure[row].numpy())
        for panel, name in zip(line[1:], names, strict=True):
            _show(panel, picture, known.scenes.figure[row].numpy())
            heat = known.contest.saliency[name][row].numpy()
            panel.imshow(
                np.clip(heat, heat.min() if name == "inverted" else 0, None),
                cmap="magma", alpha=0.6, extent=(0, picture.shape[1], picture.shape[0], 0),
            )  # fmt: skip
    for panel, title in zip(panels[0], ["the truth", *names], strict=True):
        color = "#20242c" if title == "the truth" else _color(title)
        panel.set_title(title, fontsize=10, color=color)
    charts = below.subplots(1, len(_TITLES))
    for chart, (key, title) in zip(charts, _TITLES.items(), strict=True):
        _bars(chart, known, names, key, title, chart is charts[0])
    figure.suptitle(
        "Scenes of known truth: right explainers (blue), wrong on purpose (orange)", fontsize=11
    )
    return figure


def _show(panel: Any, picture: Any, figure: Any) -> None:
    panel.imshow(picture, extent=(0, picture.shape[1], picture.shape[0], 0))
    panel.contour(
        np.arange(picture.shape[1]) + 0.5, np.arange(picture.shape[0]) + 0.5,
        figure.astype(float), levels=[0.5], colors="white", linewidths=0.8,
    )  # fmt: skip
    panel.set_axis_off()


def _bars(
    chart: Any, known: KnownTruth, names: list[str], key: str, title: str, named: bool
) -> None:
    values = [known.contest.figures[name][key] for name in names]
    chart.barh(range(len(names)), values, color=[_color(name) for name in names])
    for place, value in enumerate(values):
        chart.text(value, place, f" {value:.2f}", va="center", fontsize=8)
    chart.set_yticks(range(len(names)), names if named else [""] * len(names), fontsize=8)
    chart.invert_yaxis()
    chart.set_xlim(0, 1.25 * max(values))
    chart.tick_params(axis="x", labelsize=7)
    last = "wrong ones last ✓" if known.contest.ranked[key] else "NOT ranked last"
    chart.set_title(f"{title}\n{last}", fontsize=8, loc="left")
    for side in ("top", "right"):
        chart.spines[side].set_visible(False)


def _color(name: str) -> str:
    return _RIGHT if name in RIGHT else _WRONG
