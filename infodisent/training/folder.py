"""The folder of a run: the names of its files, and reading it back."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from infodisent.data.store import FeatureStore
from infodisent.explanations.prototypes import Prototypes
from infodisent.files import read_json, read_tensors, reading
from infodisent.training import checkpoint

MODEL, STATE, METRICS, PROTOTYPES, FEATURES, VIEWS, TRAINED_FEATURES = (
    "model.safetensors",
    "training.safetensors",
    "metrics.json",
    "prototypes.safetensors",
    "features",
    "views",
    "features-trained",
)
JUDGED, JUDGED_IMAGES = "judge.json", "judge-images.safetensors"
PROFILE = "profile"
TABLE = "training.csv"
WRITTEN = (STATE, MODEL, PROTOTYPES, METRICS, JUDGED, JUDGED_IMAGES, TABLE)
DRAWN = ("report.html", "curve.png", "prototypes*.png", "figures/*.png")
"""What is drawn of a run, as patterns: of another model it would lie."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: holds ``model.safetensors``, ``metrics.json``, ``features/`` and the rest.
        metrics: what ``metrics.json`` holds; ``metrics["rows"]`` is the comparison table.
    """

    folder: Path
    metrics: dict[str, Any] = field(repr=False)

    @property
    def store(self) -> FeatureStore:
        """The run's features: its own, or those it shares with others."""
        places = [self.folder / place for place in self.metrics.get("features_folder", [FEATURES])]
        return FeatureStore(next((place for place in places if place.is_dir()), places[0]))

    def trained_store(self) -> FeatureStore:
        """`store`, if it is the one that the model was trained on.

        Raises:
            ValueError: its features are of something else now.
        """
        store = self.store
        if store.meta["made_from"] != self.metrics["features"]:
            raise ValueError(
                f"{self.folder}: its features are not those its model was trained on; run fit again"
            )
        return store


def open_run(
    folder: str | os.PathLike[str], *, module: checkpoint.Architecture | None = None
) -> tuple[checkpoint.Checkpoint, Prototypes, Run]:
    """Read back a folder that `fit` has written.

    Args:
        folder: of the run.
        module: the original classifier's architecture, where the run does not say what builds it,
            see `infodisent.load`.

    Raises:
        FileNotFoundError: a file of the run is missing; the message names it.
        ValueError: one is damaged.
    """
    base = Path(folder)
    if not base.is_dir():
        raise FileNotFoundError(f"{base} is not a run: no such folder (made by `infodisent fit`)")
    for name in (MODEL, PROTOTYPES, METRICS):
        if not (base / name).is_file():
            raise FileNotFoundError(
                f"{base} is not a finished run: {name} does not exist; the `infodisent fit` that "
                "began it goes on where it ended"
            )
        try:
            read_json(base / name) if name == METRICS else read_tensors(base / name)
        except ValueError as error:
            raise ValueError(f"{error}; the same `infodisent fit` writes it again") from error
    loaded = checkpoint.load(base / MODEL, module=module)
    # as an extraction leaves it: faster, and what is asked of it rounds as the stored maps do
    loaded.model.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with reading(base / PROTOTYPES):
        prototypes = Prototypes.load(base / PROTOTYPES)
    # what a file lacks of the preprocessing is the model's
    whole = {**loaded.transform, **prototypes.transform}
    prototypes = dataclasses.replace(prototypes, transform=whole)
    metrics = read_json(base / METRICS)
    with reading(base / METRICS):
        _check(metrics)
    return loaded, prototypes, Run(base, metrics)


def _check(metrics: Any) -> None:
    """Raise KeyError or TypeError unless what is read of a run has the form it is written in."""
    rows, images = metrics["rows"], metrics["images"]
    for name, values in {
        "images": [images],
        "rows": rows if isinstance(rows, list) else [rows],
        "features": [metrics["features"]],
        "config": [metrics.get("config", {})],
    }.items():
        for value in values:
            if not isinstance(value, Mapping):
                raise TypeError(f"{name}: {type(value).__name__}")
    for name, text in {"backbone": metrics["backbone"], "root": images.get("root", "")}.items():
        if not isinstance(text, str | None):
            raise TypeError(f"{name}: {type(text).__name__}")
