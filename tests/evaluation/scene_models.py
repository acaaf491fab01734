"""Models of scenes whose right figures are known, and explainers that are wrong on purpose."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from infodisent import attach
from infodisent.explanations.posthoc import evidence, random_cells
from infodisent.testing.scenes import SceneDetector, Scenes

CELL = 8
"""Stride of the detector; pictures of 64 pixels have 8 x 8 cells."""


class Elsewhere(SceneDetector):
    """Sees every part three cells from where it is."""

    def forward(self, x):
        return super().forward(x).roll((3, 3), (2, 3))


class Distracted(SceneDetector):
    """Sees parts where they are, but the less, the brighter the picture's other pixels."""

    def forward(self, x):
        return super().forward(x) * (2 - x.mean((1, 2, 3), keepdim=True)).clamp_min(0)


def scene_model(scenes: Scenes, kind=SceneDetector, **options) -> nn.Module:
    """The detector with weights 1 for the variants that a class has, 0 for the others."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "attach: what builds")
        model = attach(
            kind(scenes, CELL, **options),
            len(scenes.classes),
            features="",
            rotate=False,
            input_size=scenes.size,
            mean=0.0,
            std=1.0,
            crop_pct=1.0,
        )
    with torch.no_grad():
        model.head.fc.weight.copy_(scenes.class_variants())
    return model.eval()


def inverted(head, maps, classes):
    """Calls least what counts most."""
    return -evidence(head, maps, classes)


def shifted(head, maps, classes):
    """Right, but three rows and columns of 8 x 8 cells away."""
    cells = evidence(head, maps, classes).unflatten(1, (8, 8))
    return cells.roll((3, 3), (1, 2)).flatten(1)


WRONG = {"random": random_cells, "inverted": inverted, "shifted": shifted}
