"""Where a method loses accuracy against the linear probe, on divisions of the training images.

    python -m benchmarks.method_losses runs/methods/flowers17 protopool --splits 2
    python -m benchmarks.method_losses runs/methods/flowers17 protopool --best-pixel-alone
    python -m benchmarks.method_losses runs/methods/elpv prototree --option depth=8

The store is one that `benchmarks.methods_report` made. A quarter of its *training* images is held
out, of every class the same part; the store's own held-out images are never looked at, so that
options may be chosen by these figures. Printed are, of the images that train and of those held out:
logistic regressions on the map itself, averaged, its best pixels, and their difference; the head
before and after what each stage begins with (a projection, for one); the trained head; and a
logistic regression on its pooled units. If that is as good as one on the map, the pool has lost
nothing and the classifier has; if it is no better than the head, no classifier could be.

``--best-pixel-alone`` leaves out the mean pixel that ProtoPool subtracts. Of PIP-Net the regression
is also on the best pixels of its scores before the softmax, and on the presences that count; the
head is told once more with every presence counting, and how many count in an image.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.methods_report import needs_views, parsed, views_of
from infodisent import ops
from infodisent.data.store import FeatureStore
from infodisent.evaluation.accuracy import pool_features
from infodisent.evaluation.logistic import fit_logistic, standardise
from infodisent.methods import METHODS, Head
from infodisent.methods.pipnet import PIPNetHead, found
from infodisent.methods.protopool import ProtoPoolHead
from infodisent.methods.stages import Batches, Stage
from infodisent.training.fit import FitConfig, fit_head, new_head
from infodisent.training.validation import split_validation

HELD_OUT = 0.25
FIRST_SPLIT = 100
"""Seed of the first division; another than those of weights."""
WEIGHT_DECAY = 0.1
"""Of the regressions, as `linear_probe` has it."""


class Division:
    """A store's training images, divided into those that train and those that are held out."""

    def __init__(self, store: FeatureStore, number: int) -> None:
        self.store = store
        images = store.indices("train")
        self.parts = split_validation(store, images, HELD_OUT, FIRST_SPLIT + number)

    def regression(self, train: Tensor, held: Tensor) -> str:
        """Accuracy of a logistic regression on rows ``[n, M]`` and ``[m, M]`` of the two parts."""
        rows = torch.cat([train, held]).float()
        labels = self.store.labels[torch.cat(self.parts)]
        standardise(rows, len(train))
        count, classes = len(train), len(self.store.classes)
        layer = fit_logistic(rows[:count], labels[:count], classes, WEIGHT_DECAY)
        with torch.no_grad():
            right = layer(rows).argmax(1) == labels
        return _told(right[: len(train)], right[len(train) :])

    def of_the_map(self) -> dict[str, str]:
        """Regressions on the map's average, its best pixels, and how far these are above it."""
        best, mean = [], []
        for part in self.parts:
            pixels = [maps.float() for maps, _, _ in self.store.batches(part, 256, dtype=None)]
            mean.append(torch.cat([maps.mean(1) for maps in pixels]))
            best.append(torch.cat([maps.amax(1) for maps in pixels]))
        above = [b - m for b, m in zip(best, mean, strict=True)]
        rows = {"average": mean, "best pixels": best, "best less average": above}
        return {f"regression, {name}": self.regression(*two) for name, two in rows.items()}

    @torch.no_grad()
    def accuracy(self, head: Head) -> str:
        """A head's, in its state of evaluation."""
        head.eval()
        dtype = next(head.parameters()).dtype
        right = [
            head.classify(pool_features(head, self.store, part).to(dtype)).argmax(1)
            == self.store.labels[part]
            for part in self.parts
        ]
        return _told(*right)

    def trained(self, head: Head, config: FitConfig) -> dict[str, str]:
        """Train a head; its accuracy around the beginnings of its stages, and in the end."""
        told: dict[str, str] = {}
        begin = head.start_stage

        def watched(stage: Stage, batches: Batches) -> None:
            told[f"before {stage.name}"] = self.accuracy(head)
            begin(stage, batches)
            told[f"{stage.name} begins"] = self.accuracy(head)

        head.start_stage = watched  # type: ignore[method-assign]
        views = views_of(self.store.path) if needs_views(head.method) else None
        fit_head(head, self.store, config, train=self.parts[0], views=views, progress=False)
        told["trained"] = self.accuracy(head)
        pooled = [pool_features(head, self.store, part) for part in self.parts]
        told["regression, its units"] = self.regression(pooled[0], pooled[1])
        return told | (self.of_presences(head, pooled) if isinstance(head, PIPNetHead) else {})

    @torch.no_grad()
    def of_presences(self, head: PIPNetHead, pooled: Sequence[Tensor]) -> dict[str, str]:
        """What PIP-Net's softmax, and its leaving out of presences below 0.1, make of an image.

        Args:
            head: trained.
            pooled: presences ``[n, M]`` and ``[m, M]`` of the two parts.
        """
        scores, right = [], []
        weights = head.class_weights()
        for part, presences in zip(self.parts, pooled, strict=True):
            maps = self.store.batches(part, 128, dtype=weights.dtype)
            scores.append(torch.cat([head.prototype_scores(m, "NLC").amax(1) for m, _, _ in maps]))
            classes = (presences.to(weights.dtype) @ weights.mT).argmax(1)
            right.append(classes == self.store.labels[part])
        kept = [found(presences) for presences in pooled]
        one, other = ((rows > 0).sum(1).float().mean() for rows in kept)
        return {
            "regression, scores before the softmax": self.regression(scores[0], scores[1]),
            "regression, presences that count": self.regression(kept[0], kept[1]),
            "trained, every presence counts": _told(*right),
            "presences that count, an image": f"{one:.1f} | {other:.1f}",
        }


class BestPixelPool(ProtoPoolHead):
    """ProtoPool whose prototypes count by their best pixel alone."""

    def compare(self, embedded: Tensor, units: Tensor | None = None, **options: Any) -> ops.Pool:
        """The mean is said to be 0."""
        best = super().compare(embedded, units, **options)
        return best._replace(mean=torch.zeros_like(best.value))


def _told(train: Tensor, held: Tensor) -> str:
    return f"{train.float().mean():.1%} | {held.float().mean():.1%}"


def main() -> None:
    """Print a table a division."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("method", choices=tuple(METHODS))
    parser.add_argument("--splits", type=int, default=1)
    parser.add_argument("--option", metavar="KEY=VALUE", help="several: KEY=VALUE,KEY=VALUE")
    parser.add_argument("--best-pixel-alone", action="store_true")
    arguments = parser.parse_args()
    if arguments.best_pixel_alone and arguments.method != "protopool":
        parser.error("--best-pixel-alone: only protopool subtracts a mean pixel")
    given = arguments.option
    options = parsed(f"{arguments.method}.{given}")[1] if given else {}
    names = METHODS[arguments.method].option_names()
    of_head = {key: value for key, value in options.items() if key in names}
    of_fit = {key: value for key, value in options.items() if key not in names}
    store = FeatureStore(arguments.store)
    for number in range(arguments.splits):
        division = Division(store, number)
        head = new_head(
            store.channels, len(store.classes), number, method=arguments.method, **of_head
        )
        if arguments.best_pixel_alone:
            head.__class__ = BestPixelPool
        rows = division.of_the_map() | division.trained(head, FitConfig(seed=number, **of_fit))
        print(f"{store.path.name}, {arguments.method} {json.dumps(options)}, division {number}")
        print("| | training | held out |\n|---|---|---|")
        print("\n".join(f"| {name} | {figures} |" for name, figures in rows.items()), flush=True)


if __name__ == "__main__":
    main()
