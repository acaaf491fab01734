"""How good the model is on its held-out images: what the page says before it explains any."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from infodisent.backbones.backbone import evaluating
from infodisent.data.store import FeatureStore
from infodisent.methods import Head


@dataclass(frozen=True, eq=False)
class Standing:
    """Figures of one set of images of one class each.

    Attributes:
        classes: K names.
        confusion: ``[K, K]`` int64: images of class row that are predicted as class column.
        abstained: images on which the model abstains; they count as the first of equal classes.
    """

    classes: tuple[str, ...]
    confusion: Tensor
    abstained: int = 0

    @property
    def images(self) -> int:
        """All of them."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Part that is right."""
        return float(self.confusion.diagonal().sum() / max(1, self.images))

    @property
    def error(self) -> float:
        """Standard error of `accuracy`: of a part p of n independent images √(p (1 - p) / n)."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / max(1, self.images))

    @property
    def recall(self) -> list[float | None]:
        """Part of every class's images that is right; None where it has none."""
        return _parts(self.confusion.diagonal(), self.confusion.sum(1))

    @property
    def precision(self) -> list[float | None]:
        """Part of what is predicted as a class that is of it; None where nothing is."""
        return _parts(self.confusion.diagonal(), self.confusion.sum(0))

    def mistakes(self, most: int = 20) -> list[tuple[str, str, int]]:
        """The commonest mistakes: true class, predicted class, images."""
        wrong = self.confusion.clone()
        wrong.fill_diagonal_(0)
        best = wrong.flatten().topk(min(most, wrong.numel()))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        names, size = self.classes, len(self.classes)
        return [(names[i // size], names[i % size], n) for i, n in pairs if n]


def _parts(right: Tensor, of: Tensor) -> list[float | None]:
    pairs = zip(right.tolist(), of.tolist(), strict=True)
    return [n / total if total else None for n, total in pairs]


@torch.no_grad()
def held_out_standing(head: Head, store: FeatureStore) -> Standing | None:
    """Figures of the held-out images; None for several labels an image, or without any image."""
    indices = store.indices("val")
    if store.labels.ndim != 1 or not len(indices):
        return None
    size = len(store.classes)
    counts, abstained = torch.zeros(size * size, dtype=torch.int64), 0
    with evaluating(head):
        for maps, labels, _ in store.batches(indices, 256, dtype=None):
            units = head.pool(maps.to(head.device), input_fmt="NLC").pooled
            best, silent = head.classify(units).argmax(1).cpu(), head.abstains(units)
            abstained += 0 if silent is None else int(silent.sum())
            counts += torch.bincount(labels.cpu() * size + best, minlength=size * size)
    return Standing(tuple(store.classes), counts.view(size, size), abstained)
