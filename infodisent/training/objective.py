"""What training minimises besides the head's penalty, and what it knows of the training images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from infodisent import ops
from infodisent.data.store import FeatureStore
from infodisent.training.config import IMBALANCED, FitConfig
from infodisent.training.sources import shuffled

ADJUSTED = 0.4
"""See `class_pull`. From 0.3 down, separable classes of 94 and 6 images lose the frequent one; at
1, photographs of solar cells (120 and 6) lose the rare one."""


@dataclass(frozen=True)
class Objective:
    """Cross-entropy of logits and labels; multi-label, binary cross-entropy of every label.

    Attributes:
        multilabel: labels are ``[n, K]`` float32 zeros and ones, not ``[n]`` int64.
        weights: of the classes, ``[K]``; multi-label of the labels' positives. None for none.
        adjustment: added to the logits, ``[K]``, see `FitConfig.logit_adjustment`; None for none.
        label_smoothing: see `FitConfig`.
    """

    multilabel: bool
    weights: Tensor | None = None
    adjustment: Tensor | None = None
    label_smoothing: float = 0.0

    @property
    def name(self) -> str:
        """For people."""
        return "binary cross-entropy" if self.multilabel else "cross-entropy"

    @property
    def is_mean(self) -> bool:
        """Whether it is a mean over the images: weights of classes are divided by their sum."""
        return self.multilabel or self.weights is None

    def to(self, device: torch.device) -> Objective:
        """The same with its numbers on `device`, where a step need not wait for them."""
        weights, adjustment = (
            None if part is None else part.to(device) for part in (self.weights, self.adjustment)
        )
        return dataclasses.replace(self, weights=weights, adjustment=adjustment)

    def __call__(
        self,
        logits: Tensor,  # [n, K]
        labels: Tensor,  # [n] int64, or [n, K] float32
    ) -> Tensor:
        """The mean over the images, and over the labels of a multi-label set: a scalar."""
        weights = None if self.weights is None else self.weights.to(logits)
        if self.multilabel:
            labels = labels.to(logits)
            if self.label_smoothing:
                labels = labels * (1 - self.label_smoothing) + self.label_smoothing / 2
            return nn.functional.binary_cross_entropy_with_logits(
                logits, labels, pos_weight=weights
            )
        if self.adjustment is not None:
            logits = logits + self.adjustment.to(logits)
        smoothing = self.label_smoothing
        if weights is None:
            return nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
        total = nn.functional.cross_entropy(
            logits, labels, weight=weights, label_smoothing=smoothing, reduction="sum"
        )
        # a batch whose classes all have weight 0 counts for nothing, and is not 0 / 0
        return total / weights[labels].sum().clamp_min(torch.finfo(total.dtype).tiny)

    def right(
        self,
        logits: Tensor,  # [n, K]
        labels: Tensor,  # [n] int64, or [n, K] float32
    ) -> Tensor:
        """How many images are right, a scalar on their device; multi-label: the part of each
        image's labels that is."""
        if self.multilabel:
            return ((logits > 0) == (labels > 0.5)).float().mean(1).sum()
        return (logits.argmax(1) == labels).sum()


def class_counts(
    store: FeatureStore,
    train: Tensor,  # [n] int64
) -> Tensor:
    """Training images of every class, ``[K]`` int64; multi-label: of every label."""
    labels = store.labels[train]
    if labels.ndim == 2:
        return labels.sum(0).round().long()
    return labels.bincount(minlength=len(store.classes))


def objective(
    store: FeatureStore,
    train: Tensor,  # [n] int64
    config: FitConfig,
) -> Objective:
    """The loss that `config` asks for.

    Raises:
        ValueError: class weights of another number of classes, or options that a multi-label set
            does not have.
    """
    multilabel = store.task == "multilabel"
    count, images = class_counts(store, train).float(), len(train)
    if multilabel:
        for name, value, default in (
            ("sampler", config.sampler, "shuffle"),
            ("logit_adjustment", config.logit_adjustment or 0.0, 0.0),
        ):
            if value != default:
                raise ValueError(
                    f"fit_head: {name} is {value!r}, which is for one class an image; for rare "
                    "labels of a multi-label set there is class_weights='balanced'"
                )
    weights = adjustment = None
    if not isinstance(config.class_weights, str):
        if len(config.class_weights) != len(store.classes):
            raise ValueError(
                f"fit_head: class_weights has {len(config.class_weights)} numbers, the store "
                f"{len(store.classes)} classes"
            )
        weights = torch.tensor(config.class_weights)
        if not multilabel and not weights[count > 0].any():
            raise ValueError("fit_head: class_weights is 0 for every class with training images")
    elif config.class_weights == "balanced":
        if multilabel:
            weights = torch.where(count > 0, (images - count) / count.clamp_min(1), 1.0)
            # all positives: a weight of 0 would leave nothing to learn from
            weights = torch.where(weights > 0, weights, torch.ones_like(weights))
        else:
            present = count > 0
            weights = torch.where(present, images / (present.sum() * count.clamp_min(1)), 0.0)
    tau = 0.0 if multilabel else _adjustment(count, config)
    if tau and (count != count[0]).any():
        # a class without images counts as half a one: its share has a logarithm
        adjustment = tau * (count.clamp_min(0.5) / images).log()
    return Objective(multilabel, weights, adjustment, config.label_smoothing)


def imbalanced(counts: Sequence[float]) -> bool:
    """Whether the classes that have images differ much in how many, see `FitConfig`."""
    present = [count for count in counts if count > 0]
    return bool(present) and max(present) > IMBALANCED * min(present)


def _adjustment(count: Tensor, config: FitConfig) -> float:
    """tau of the logit adjustment, see `FitConfig`."""
    if config.logit_adjustment is not None:
        return config.logit_adjustment
    plain = config.class_weights == "none" and config.sampler == "shuffle"
    return float(plain and imbalanced(count.tolist()))


def class_pull(
    store: FeatureStore,
    train: Tensor,  # [n] int64
    config: FitConfig,
    loss: Objective,
) -> Tensor:
    """How strongly the loss pulls on each class's weights, ``[K]``, see `TrainingStatistics`.

    The gradient of equal logits asks for more of class k in proportion to its share of the images
    (or of their weights) and to 1 - q_k, q being the probabilities that the loss sees: 1/K, or with
    a logit adjustment the classes' frequencies, where a frequent and a rare class pull less, and
    alike. A penalty by the first alone would then take the frequent class's weights, one by both
    favours it on new images; so the adjustment counts to the power `ADJUSTED`.
    """
    count, classes = class_counts(store, train).float(), len(store.classes)
    weights = torch.ones(classes) if loss.weights is None else loss.weights
    if loss.multilabel:
        # the mean over labels: each positive pulls on its own label's weights alone
        return count / len(train) * weights
    if config.sampler == "balanced":
        count = (count > 0).float()
    count = count * weights
    pull = count * classes / count.sum()  # exactly 1 where all are alike
    if loss.adjustment is not None:
        pull = pull * ((1 - loss.adjustment.softmax(0)) * classes / (classes - 1)) ** ADJUSTED
    return pull


@torch.no_grad()
def feature_scale(
    store: FeatureStore,
    train: Tensor,  # [n] int64
    sample: int = 2048,
) -> float:
    """Mean over channels and images (evenly spaced ones) of the max-pooled map."""
    some = train[:: max(1, len(train) // sample)]
    pos = [ops.mx_pool(x, input_fmt="NLC").pos for x, _, _ in store.batches(some, 256, dtype=None)]
    return torch.cat(pos).mean().item()


def draw_epoch(
    store: FeatureStore,
    train: Tensor,  # [n] int64
    sampler: str,
) -> Tensor:
    """Positions of one epoch's images in order, ``[n]`` int64, from torch's global generator."""
    if sampler == "shuffle":
        return shuffled(store, train)
    labels = store.labels[train]
    present, which = labels.unique(return_inverse=True)
    counts = which.bincount()
    starts = counts.cumsum(0) - counts
    by_class = which.argsort(stable=True)
    classes = torch.randperm(len(train)) % len(present)  # every class equally often
    offset = (torch.rand(len(train)) * counts[classes]).long().clamp_max(counts[classes] - 1)
    return train[by_class[starts[classes] + offset]]
