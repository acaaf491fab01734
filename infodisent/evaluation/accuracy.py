"""Accuracy and explanation size of a head, and the two yardsticks beside it.

Nothing here holds a table of all images and channels in memory: figures are gathered batch by
batch, and what has to be read again and again lies in `infodisent.data.rows`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from infodisent import ranks
from infodisent.backbones.torchvision_import import ensure_torchvision
from infodisent.checks import check_strength
from infodisent.data.rows import empty_rows, row_blocks
from infodisent.data.store import FeatureStore
from infodisent.evaluation.arguments import check_labels, check_tensor
from infodisent.evaluation.logistic import fit_logistic, standardise
from infodisent.evaluation.multilabel import (
    MultilabelEvaluation,
    MultilabelFigures,
    finite_logits,
    whole_figures,
)
from infodisent.evaluation.original import Mapped, original_columns
from infodisent.evaluation.original import match_classes as match_classes
from infodisent.evaluation.size_figures import Sizes
from infodisent.explanations.sparsity import explanation_sizes as explanation_sizes
from infodisent.methods import Head


@dataclass(frozen=True)
class Evaluation:
    """Figures on one set of images.

    Attributes:
        images: how many.
        accuracy, balanced_accuracy, f1: top-1, its mean over the classes that have images, and the
            mean of their F1; all in [0, 1].
        loss: mean cross-entropy, nats.
        explanation_size: median number of units, largest contributions first, that carry 95 % of
            the predicted class's score (its logit without bias, see `Head.scores`); None where it
            is not defined.
        explained: part of the images whose contributions add up to more than 0, where that number
            exists.
        magnitude_size: median number of units, largest magnitudes first, that carry 95 % of the sum
            of all magnitudes; None where no unit contributes.
        units_used: units that count for any class, see `Head.used_units`.
        abstained: part of the images of which the head says no class, see `Head.abstains`; None for
            one that always answers. They count as the first class in the other figures.
        recall: part of every class's images that is right, K numbers; None where it has none.
        counts: images of every class.
    """

    images: int
    accuracy: float
    balanced_accuracy: float
    f1: float
    loss: float
    explanation_size: float | None = None
    explained: float | None = None
    magnitude_size: float | None = None
    units_used: int | None = None
    recall: tuple[float | None, ...] = ()
    counts: tuple[int, ...] = ()
    abstained: float | None = None

    def as_dict(self) -> dict[str, float | int | None]:
        """The figures, JSON-able; without those of single classes."""
        figures = whole_figures(self)
        if self.abstained is None:
            del figures["abstained"]
        return figures


class Figures:
    """Gathers the figures of an `Evaluation` from batches.

    Args:
        classes: K, of the labels.
        columns: the column of the logits that each class has; default: its own number. Other
            columns are answers that are always wrong.
        units_used: of the head, where there is one.
    """

    def __init__(
        self,
        classes: int,
        columns: Sequence[int] | None = None,
        *,
        units_used: int | None = None,
    ) -> None:
        ensure_torchvision()  # torchmetrics imports torchvision where it is installed
        from torchmetrics import MeanMetric, MetricCollection
        from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

        self._classes = classes
        self._columns = torch.arange(classes) if columns is None else torch.tensor(columns)
        # All answers that no class has count as one: the metrics' tables are classes x classes.
        # Every process is told of every image, see `evaluate_head`: there is nothing to add up.
        alone: dict[str, Any] = {"sync_on_compute": False}
        options: dict[str, Any] = {"num_classes": classes + 1, "average": None, **alone}
        self._by_class = MetricCollection(
            {"accuracy": MulticlassAccuracy(**options), "f1": MulticlassF1Score(**options)}
        )
        self._right, self._loss = MeanMetric(**alone), MeanMetric(**alone)
        self._labelled = torch.zeros(classes, dtype=torch.int64)
        self._sizes = Sizes(units_used)

    def update(
        self,
        logits: Tensor,  # [n, K or more]
        labels: Tensor,  # [n] int64
        contributions: Tensor | None = None,  # [n, M]
    ) -> None:
        """Add a batch: logits of any device and dtype, labels, and what units contribute if any.

        Raises:
            TypeError: a table is no tensor, or of another dtype.
            ValueError: shapes differ, a label is no class, or a logit is NaN or Inf.
        """
        check_tensor("evaluate", "logits", logits, "images", "classes")
        check_labels("evaluate", "labels", labels, len(logits), self._classes)
        if int(self._columns.max()) >= logits.shape[1]:
            raise ValueError(
                f"evaluate: logits have {logits.shape[1]} columns, the classes need "
                f"{int(self._columns.max()) + 1}"
            )
        logits = finite_logits(logits)
        wanted, answers = self._columns[labels], logits.argmax(1)
        class_of = torch.full((logits.shape[1],), self._classes)
        class_of[self._columns] = torch.arange(self._classes)
        self._by_class.update(class_of[answers], labels)
        self._right.update((answers == wanted).float())
        self._loss.update(nn.functional.cross_entropy(logits, wanted, reduction="none"))
        self._labelled += labels.bincount(minlength=self._classes)
        self._sizes.update(contributions)

    def evaluation(self) -> Evaluation:
        """The figures of everything added.

        Raises:
            ValueError: nothing was.
        """
        images = int(self._labelled.sum())
        if not images:
            raise ValueError("evaluate: there are no images to score")
        by_class, present = self._by_class.compute(), self._labelled > 0
        return Evaluation(
            images=images,
            accuracy=self._right.compute().item(),
            balanced_accuracy=by_class["accuracy"][:-1][present].mean().item(),
            f1=by_class["f1"][:-1][present].mean().item(),
            loss=self._loss.compute().item(),
            **self._sizes.figures(),
            recall=tuple(
                value if there else None
                for value, there in zip(
                    by_class["accuracy"][:-1].tolist(), present.tolist(), strict=True
                )
            ),
            counts=tuple(self._labelled.tolist()),
        )


def figures_of(store: FeatureStore, head: Head | None = None) -> Figures | MultilabelFigures:
    """What gathers figures of the store's kind of labels, and of a head if there is one."""
    classes = len(store.classes)
    used = None if head is None else int(head.used_units().sum())
    if store.task == "multilabel":
        return MultilabelFigures(classes, units_used=used)
    return Figures(classes, units_used=used)


def score(
    logits: Tensor,  # [n, K]
    labels: Tensor,  # [n] int64
) -> Evaluation:
    """Figures of given logits.

    Raises:
        ValueError: no images, or a logit that is NaN or Inf.
    """
    check_tensor("score", "logits", logits, "images", "classes")
    check_labels("score", "labels", labels, len(logits), logits.shape[1])
    figures = Figures(logits.shape[1])
    if len(labels):
        figures.update(logits, labels)
    return figures.evaluation()


@torch.no_grad()
def pool_features(
    head: Head,
    store: FeatureStore,
    indices: Tensor,  # [n] int64
    batch_size: int = 256,
) -> Tensor:
    """The pooled units of stored images, ``[n, M]`` float32, in the order of `indices`.

    In memory, or beside the store where that is too much, see `empty_rows`.
    """
    head.eval()
    rows = empty_rows(len(indices), head.num_features, store.path)
    at = 0
    for part, maps in _own_maps(store, indices, batch_size, head.device):
        pooled = ranks.gathered(head.pool(maps, input_fmt="NLC").pooled, len(part))
        rows[at : at + len(pooled)] = pooled
        at += len(pooled)
    return rows


def _own_maps(
    store: FeatureStore,
    indices: Tensor,  # [n] int64
    batch_size: int,
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Positions of one batch of all processes after the other, and this process's maps of them."""
    parts = [part for part in indices.split(batch_size * ranks.world()) if len(part)]
    return zip(parts, store.read([ranks.piece(p) for p in parts], device), strict=True)


@torch.no_grad()
def evaluate_head(
    head: Head,
    store: FeatureStore,
    indices: Tensor,  # [n] int64
    batch_size: int = 256,
) -> Evaluation | MultilabelEvaluation:
    """Figures of a head on stored images, whatever layout the head has in its model."""
    head.eval()
    figures, silent, answers = figures_of(store, head), 0, True
    for part, maps in _own_maps(store, indices, batch_size, head.device):
        pooled = ranks.gathered(head.pool(maps, input_fmt="NLC").pooled, len(part))
        logits = head.classify(pooled)
        unanswered = head.abstains(pooled)
        answers = unanswered is None
        figures.update(logits, store.labels[part], head.contributions(pooled, logits.argmax(1)))
        silent += 0 if unanswered is None else int(unanswered.sum())
    result = figures.evaluation()
    if answers or not isinstance(result, Evaluation):
        return result
    return dataclasses.replace(result, abstained=silent / result.images)


def linear_probe(
    store: FeatureStore,
    train: Tensor,  # [n] int64
    test: Tensor,  # [m] int64
    *,
    weight_decay: float = 0.1,
) -> Evaluation | MultilabelEvaluation:
    """Logistic regression on the average-pooled map, the usual uninterpretable head.

    Standardised features, L2 penalty ``weight_decay / 2 · |W|^2``, full-batch L-BFGS. Multi-label:
    one regression a label. Several processes (`infodisent.ranks`) read and sum over a part of the
    images each; all return the same.

    Raises:
        ValueError: fewer than two training images, no others, `weight_decay` below 0, or features
            that are NaN or Inf.
    """
    if len(train) < 2:
        raise ValueError(f"linear_probe: {len(train)} training image(s), at least 2 are needed")
    if not len(test):
        raise ValueError("linear_probe: test has no images, at least 1 is needed")
    check_strength("linear_probe", "weight_decay", weight_decay)
    sample, parts = ranks.piece(train), [p for p in test.split(4096 * ranks.world()) if len(p)]
    scored = [ranks.piece(part) for part in parts]
    rows = store.average(torch.cat([sample, *scored]))  # ours to change
    blocks = row_blocks(len(rows), rows.shape[1])
    finite = all(bool(rows[block].isfinite().all()) for block in blocks)
    if not all(ranks.everyones(finite)):  # the processes would wait for one that has ended
        raise ValueError(f"linear_probe: features in {store.path} hold NaN or Inf, must be finite")
    standardise(rows, len(sample))
    classes = len(store.classes)
    layer = fit_logistic(rows[: len(sample)], store.labels[sample], classes, weight_decay)
    figures, at = figures_of(store), len(sample)
    with torch.no_grad():
        for part, own in zip(parts, scored, strict=True):
            logits = ranks.gathered(layer(rows[at : at + len(own)]), len(part))
            figures.update(logits, store.labels[part])
            at += len(own)
    return figures.evaluation()


def original_head(
    store: FeatureStore,
    indices: Tensor,  # [n] int64
    mapping: Mapped | None = None,
) -> Evaluation | None:
    """The original head's figures, or None where it does not know these classes.

    It answers with the largest of its logits for the classes of the store: what else it knows does
    not count. `mapping` and None as in `infodisent.evaluation.original.original_columns`.
    """
    columns = original_columns(store, mapping)
    if columns is None or store.original_logits is None:
        return None
    figures = Figures(len(columns))
    for part in indices.split(4096):
        if len(part):
            figures.update(store.original_logits[part][:, columns], store.labels[part])
    return figures.evaluation()
