"""How a head is trained: what it may know of the training, and the stages it asks for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from infodisent import ranks

Objective = Callable[[Tensor, Tensor], Tensor]
"""Logits ``[n, K]`` and labels to the mean loss of the images, see
`infodisent.training.objective.Objective`."""

Batches = Callable[[], Iterator[tuple[Tensor, Tensor, Tensor]]]
"""Starts one pass over the training images: maps ``[n, P, C]``, labels ``[n]``, positions ``[n]``,
on the head's device. Of several processes each passes over all of them; what can be merged is
divided by `part_of`."""


def part_of(batches: Batches) -> Batches:
    """Passes over this process's part of the images alone; together all are seen once.

    What such a pass finds has to be merged with what the other processes find, by
    `infodisent.ranks`, so that every process goes on with the same.
    """
    part: Batches | None = getattr(batches, "part", None)
    if part is not None:
        return part
    if ranks.world() == 1:
        return batches
    return lambda: itertools.islice(batches(), ranks.rank(), None, ranks.world())


@dataclass(frozen=True)
class TrainingStatistics:
    """What a head may know of the training images.

    Attributes:
        feature_scale: mean of the max-pooled map over channels and images.
        class_pull: how strongly the loss pulls on each class's weights, ``[K]`` float32: K times
            the class's share of the images (or of their weights), so 1 where classes are balanced;
            less where frequencies are built into the loss; multi-label: the share of the images
            that have the label.
    """

    feature_scale: float
    class_pull: Tensor


class TrainingOptions(Protocol):
    """What a head may read of `infodisent.training.config.FitConfig`."""

    @property
    def lr(self) -> float:
        """Peak learning rate of what classifies."""

    @property
    def rotation_lr(self) -> float:
        """Peak learning rate of what the pool depends on."""

    @property
    def l1(self) -> float:
        """Strength of the penalty on the class weights."""

    @property
    def statistics(self) -> TrainingStatistics | None:
        """Of the training images; None where nobody has looked."""


@dataclass(frozen=True)
class LoopOptions:
    """`TrainingOptions` of a training loop of one's own, see `Head.param_groups`."""

    lr: float = 1e-2
    rotation_lr: float = 3e-3
    l1: float = 0.1
    statistics: TrainingStatistics | None = None


@dataclass(frozen=True)
class TrainingBatch:
    """One step's images, as a head sees them.

    Attributes:
        labels: classes ``[n]`` int64; multi-label ``[n, K]`` float32. In a stage with two views
            ``n`` counts views: rows i and i + n / 2 are two views of one image.
        pooled: the units ``[n, M]``, with gradients where the stage trains what they depend on;
            None where a fused operator went from the map to the logits.
        extra: what `Head.training_pool` gave besides; empty where the pool is fixed.
        stage: name of the stage.
        progress: part of the stage that is done, in [0, 1).
        positions: of the images, ``[n]`` int64, as `Batches` gives them.
    """

    labels: Tensor
    pooled: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    stage: str = ""
    progress: float = 0.0
    positions: Tensor | None = None


def cosine(progress: float) -> float:
    """From 1 to 0 by half a cosine."""
    return 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Stage:
    """A part of the training with an optimiser of its own.

    Attributes:
        name: shown while it runs and kept in the training state.
        groups: parameter groups as `torch.optim` takes them (``{"params": [...], "lr": ...}``); the
            rate is the peak of `rate`, or of the group's own ``"rate"``, if it has one. Parameters
            in no group do not train. Where the backbone trains too, it is one more group.
        epochs: passes over the training images; None for the number that the configuration says,
            which a method's only stage takes in any case, where it says one.
        pool_is_fixed: nothing that the pool depends on trains (nor does `Head.after_step` change
            it), so that the pooled units are computed once for the whole stage.
        rate: of the part of the stage that is done, in [0, 1), the part of a group's peak that its
            learning rate is; a cosine to zero by default.
        views: maps of every image in a step: 1, or 2 for losses that compare two views. Then maps
            and labels of a step have 2n rows, see `TrainingBatch`.
        stops_early: whether `FitConfig.patience` ends it, where the validation loss, which is of
            the objective, no longer falls; False for a stage that minimises something else, None
            for the last stage only.
    """

    name: str
    groups: Sequence[dict[str, Any]] = field(repr=False)
    epochs: int | None = None
    pool_is_fixed: bool = False
    rate: Callable[[float], float] = cosine
    views: int = 1
    stops_early: bool | None = None

    def parameters(self) -> list[nn.Parameter]:
        """All parameters that train."""
        return [parameter for group in self.groups for parameter in group["params"]]
