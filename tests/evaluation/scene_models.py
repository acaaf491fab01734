"""Models of scenes whose right figures are known, and explainers that are wrong on purpose."""

from __future__ import annotations

from infodisent.evaluation.known_truth import (
    CELL,
    WRONG,
    Distracted,
    Elsewhere,
    inverted,
    scene_classifier,
    shifted,
)

__all__ = ["CELL", "WRONG", "Distracted", "Elsewhere", "inverted", "scene_model", "shifted"]
scene_model = scene_classifier
