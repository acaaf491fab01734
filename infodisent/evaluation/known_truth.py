"""What the metrics say where the right answer is known: detectors and explainers of scenes.

Of a picture that `infodisent.testing.scenes` has drawn it is known which cells decide. A detector
that is right by construction, two that are wrong in a known way, and explainers that are wrong on
purpose must get the figures that follow from that; no image, weight or training is needed.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from infodisent.classifier import InfoDisentClassifier, attach
from infodisent.evaluation.faithfulness import cell_curves
from infodisent.evaluation.images import maps_of
from infodisent.evaluation.localisation import LOCALISATION
from infodisent.evaluation.misalignment import misalignment
from infodisent.evaluation.parts import part_consistency, part_purity, part_stability
from infodisent.evaluation.sizes import global_size
from infodisent.explanations.posthoc import (
    Explainer,
    evidence,
    gradcam,
    random_cells,
    shapley_cells,
)
from infodisent.methods import Head
from infodisent.testing.scenes import SceneBatch, SceneDetector, Scenes

CELL = 8
"""Stride of the detectors; pictures of 64 pixels have 8 x 8 cells."""
_HALF = 0.08
"""Half a box of 10 pixels in 64: a cell and a little, less than the distance of two parts."""
_FAINT = 0.1
"""Epsilon of an attack that is too little to fake a part's colour."""


class Elsewhere(SceneDetector):
    """Sees every part three cells from where it is."""

    def forward(self, x: Tensor) -> Tensor:
        """The map of `SceneDetector`, moved."""
        return super().forward(x).roll((3, 3), (2, 3))


class Distracted(SceneDetector):
    """Sees parts where they are, but the less, the brighter the picture's other pixels."""

    def forward(self, x: Tensor) -> Tensor:
        """The map of `SceneDetector`, dimmed."""
        return super().forward(x) * (2 - x.mean((1, 2, 3), keepdim=True)).clamp_min(0)


DETECTORS: dict[str, type[SceneDetector]] = {
    "right": SceneDetector,
    "looks elsewhere": Elsewhere,
    "distracted": Distracted,
}
"""Every detector by its name in tables."""


def scene_classifier(
    scenes: Scenes, kind: type[SceneDetector] = SceneDetector, **options: Any
) -> InfoDisentClassifier:
    """The detector with weights 1 for the variants that a class has, 0 for the others.

    Args:
        scenes: whose variants are its channels.
        kind: of detector.
        options: of the detector.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "attach: what builds")
        model = attach(
            kind(scenes, **({"cell": CELL} | options)),
            len(scenes.classes),
            features="",
            rotate=False,
            input_size=scenes.size,
            mean=0.0,
            std=1.0,
            crop_pct=1.0,
        )
    with torch.no_grad():
        model.head.get_parameter("fc.weight").copy_(scenes.class_variants())
    return model.eval()


def inverted(head: Head, maps: Tensor, classes: Tensor) -> Tensor:
    """Calls least what counts most, ``[B, P]``."""
    return -evidence(head, maps, classes)


def shifted(head: Head, maps: Tensor, classes: Tensor) -> Tensor:
    """Right, but three rows and columns of a square map away, ``[B, P]``."""
    side = round(maps.shape[1] ** 0.5)
    cells = evidence(head, maps, classes).unflatten(1, (side, side))
    moved: Tensor = cells.roll((3, 3), (1, 2)).flatten(1)
    return moved


RIGHT: dict[str, Explainer] = {
    "evidence": evidence, "shapley": shapley_cells, "gradcam": gradcam
}  # fmt: skip
WRONG: dict[str, Explainer] = {"shifted": shifted, "random": random_cells, "inverted": inverted}
"""Explainers that are right here, and those that are wrong on purpose."""


@dataclass(frozen=True)
class Known:
    """A figure and what it must be.

    Attributes:
        measure: title of the metric.
        of: the detector or explainer it is of.
        value: found.
        low, high: what it must lie in, ends included.
    """

    measure: str
    of: str
    value: float
    low: float
    high: float

    @property
    def right(self) -> bool:
        """Whether it lies there."""
        return self.low <= self.value <= self.high

    @property
    def truth(self) -> str:
        """What it must be, for people."""
        middle = round((self.low + self.high) / 2, 3)
        if self.high - self.low < 1e-2:
            return f"{middle:g}"
        if middle == 0:
            return f"0 ± {self.high:g}"
        return f"≤ {self.high:g}" if self.low == 0 else f"{self.low:g} … {self.high:.3g}"


@dataclass(frozen=True)
class Contest:
    """Explainers of the right detector, judged.

    Attributes:
        figures: mean over pictures by explainer and metric: "deletion" is better low, the others
            ("insertion", "pointing", "mass", "rank") high.
        saliency: by explainer, ``[n, 8, 8]``.
        ranked: by metric, whether every wrong explainer is behind every right one.
    """

    figures: Mapping[str, Mapping[str, float]]
    saliency: Mapping[str, Tensor] = field(repr=False)
    ranked: Mapping[str, bool]


@dataclass(frozen=True)
class KnownTruth:
    """All that is known.

    Attributes:
        rows: figures of the detectors, and of the right explainers.
        contest: of right and wrong explainers.
        scenes: the pictures it was found on.
    """

    rows: tuple[Known, ...]
    contest: Contest
    scenes: SceneBatch = field(repr=False)

    @property
    def right(self) -> bool:
        """Whether every figure is what it must be, and wrong explainers rank last."""
        return all(row.right for row in self.rows) and all(self.contest.ranked.values())


def known_truth(count: int = 24, seed: int = 0) -> KnownTruth:
    """Judge detectors and explainers of `count` scenes, all of which is known beforehand.

    Args:
        count: scenes, at least 8, one of each class.
        seed: of the scenes.

    Raises:
        ValueError: `count` is below 8.
    """
    if count < 8:
        raise ValueError(f"known_truth: count is {count}, must be >= 8, one of each class")
    scenes = Scenes(count, cell=CELL, seed=seed)
    batch = scenes.batch()
    models = {name: scene_classifier(scenes, kind) for name, kind in DETECTORS.items()}
    rows = [row for name, model in models.items() for row in _of_detector(name, model, batch)]
    contest, of_explainers = _contest(models["right"], batch)
    return KnownTruth((*rows, *of_explainers), contest, batch)


@torch.no_grad()
def _of_detector(name: str, model: InfoDisentClassifier, batch: SceneBatch) -> list[Known]:
    """Parts, misalignment and sizes; bounds are those that the detector's making gives it."""
    truths = (batch.images, batch.labels, batch.keypoints, batch.visible)
    own = batch.keypoints.shape[1]
    parts = {
        "consistency of parts": part_consistency(model, *truths, own=own, half=_HALF),
        "stability of parts": part_stability(model, *truths, own=own, half=_HALF, std=0.02),
        "purity of parts": part_purity(
            model, batch.images, batch.keypoints, batch.visible, count=3
        ),
    }
    away = name == "looks elsewhere"
    rows = [
        Known("accuracy", name, _mean(model(batch.images).argmax(1) == batch.labels), 1, 1),
        Known("units with some weight", name, global_size(model.head)[0], 2 * own, 2 * own),
    ]
    for title, values in parts.items():
        low, high = (0.0, 0.4) if away and "stability" not in title else (1.0, 1.0)
        rows.append(Known(title, name, float(values.nanmean()), low, high))
    for attack in ("pgd", "noise"):
        found = misalignment(
            model, batch.images, batch.labels, own=own,
            attack=attack, epsilon=_FAINT, step=_FAINT / 8, iterations=8,
        )  # fmt: skip
        for title, values in (("PAC", found.pac), ("PLC", found.plc)):
            bounds = _misaligned(name, title, attack)
            if bounds is not None:
                title = f"misalignment {title}, {attack}"
                rows.append(Known(title, name, float(values.nanmean()), *bounds))
    return rows


def _misaligned(name: str, figure: str, attack: str) -> tuple[float, float] | None:
    """What an attack outside the box can do: 0 where nothing outside is looked at."""
    if name == "looks elsewhere":  # what it sees lies outside the box, and is washed out
        return (10.0, 100.0) if (figure, attack) == ("PAC", "pgd") else None
    if name == "distracted" and (figure, attack) == ("PAC", "pgd"):
        return 1.0, 100 * _FAINT / (2 - 0.5)  # all pixels brighter, of a mean below a half
    slack = 0.2 if name == "distracted" else 1e-3  # noise has a mean of about 0
    return -slack, slack


@torch.no_grad()
def _contest(model: InfoDisentClassifier, batch: SceneBatch) -> tuple[Contest, list[Known]]:
    maps = maps_of(model, batch.images)
    cells = nn.functional.max_pool2d(batch.figure[:, None].float(), CELL)[:, 0] > 0  # [n, 8, 8]
    figures: dict[str, dict[str, float]] = {}
    saliency = {}
    for name, explainer in (RIGHT | WRONG).items():
        shown = explainer(model.head, maps, batch.labels)
        curves = cell_curves(model.head, maps, shown, batch.labels)
        saliency[name] = shown.unflatten(1, (cells.shape[1], cells.shape[2])).float()
        figures[name] = {
            "deletion": _mean(curves.deletion),
            "insertion": _mean(curves.insertion),
            **{key: _mean(of(saliency[name], cells)) for key, of in LOCALISATION.items()},
        }
    ranked = {}
    for key in figures["evidence"]:
        sign = -1 if key == "deletion" else 1
        worst = min(sign * figures[name][key] for name in RIGHT)
        ranked[key] = worst > max(sign * figures[name][key] for name in WRONG)
    rows = [
        Known({"pointing": "pointing game"}.get(key, f"{key} accuracy"), name,
              figures[name][key], low, high)
        for names, low, high in ((RIGHT, 1 - 1e-6, 1.0), (WRONG, 0.0, 0.25))
        for name in names
        for key in LOCALISATION
    ]  # fmt: skip
    return Contest(figures, saliency, ranked), rows


def _mean(values: Tensor) -> float:
    return float(values.float().mean())
