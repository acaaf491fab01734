"""A feature store of tensors, for tests that need labels of their own making."""

from __future__ import annotations

from pathlib import Path

import torch

from infodisent.data.store import FeatureStore


class MemoryStore(FeatureStore):
    """Maps ``[N, P, C]`` and labels ``[N]`` or ``[N, K]``; all images are training images."""

    def __init__(self, maps, labels, classes):
        self.path = Path("memory")
        self.meta = {"made_from": {"test": "memory"}}
        self.task = "multilabel" if labels.ndim == 2 else "multiclass"
        self.classes, self.labels = tuple(classes), labels
        self.files = [f"{i}.png" for i in range(len(labels))]
        self.groups, self.splits = [""] * len(labels), ["train"] * len(labels)
        self.original_logits, self.skipped = None, []
        self.pixels, self.channels = maps.shape[1:]
        self.grid = (1, self.pixels)
        self._shards, self._starts = [maps], torch.tensor([0, len(maps)])
