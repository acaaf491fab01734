"""What the folder of a run says in ``metrics.json``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from infodisent.classifier import InfoDisentClassifier
from infodisent.data.images import ImageSet
from infodisent.data.store import FeatureStore
from infodisent.evaluation.accuracy import Evaluation
from infodisent.evaluation.multilabel import MultilabelEvaluation
from infodisent.training.objective import class_counts
from infodisent.version import __version__

Rows = list[tuple[str, Evaluation | MultilabelEvaluation]]
"""The comparison: a head's title and its figures."""
WORST = 5
"""Classes of lowest recall that are named."""


def described(
    model: InfoDisentClassifier,
    images: ImageSet,
    store: FeatureStore,
    rows: Rows,
) -> dict[str, Any]:
    """What ``metrics.json`` says of a model, its images and their figures."""
    train = store.indices("train")
    return {
        "version": __version__,
        "torch": torch.__version__,
        "backbone": model.spec["name"] or type(model.backbone.model).__name__,
        "method": model.head.method,
        "unit": model.head.unit,
        "score": model.head.score,
        "task": store.task,
        "channels": store.channels,
        "features": store.meta["made_from"],
        "images": {
            "root": images.root,
            "classes": list(images.classes),
            "train": store.splits.count("train"),
            "val": store.splits.count("val"),
            "train_per_class": class_counts(store, train).tolist(),
            "skipped": [list(s) for s in store.skipped],
            "notices": list(images.notices),
        },
        "rows": [{"head": name, **result.as_dict()} for name, result in rows],
        "worst_classes": {name: worst_classes(result, images.classes) for name, result in rows},
    }


def worst_classes(
    result: Evaluation | MultilabelEvaluation, classes: Sequence[str]
) -> list[dict[str, Any]]:
    """The classes of lowest recall, worst first, with their images (labels: their positives)."""
    scored: list[dict[str, Any]] = [
        {"class": name, "recall": recall, "images": count}
        for name, recall, count in zip(classes, result.recall, result.counts, strict=True)
        if recall is not None
    ]
    return sorted(scored, key=lambda entry: entry["recall"])[:WORST]
