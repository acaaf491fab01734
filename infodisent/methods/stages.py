"""How a head is trained: what it may know of the training, and the stages it asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

Batches = Callable[[], Iterator[tuple[Tensor, Tensor, Tensor]]]
"""Starts one pass over the training images: maps ``[n, P, C]``, labels ``[n]``, positions ``[n]``,
on the head's device."""


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
class Stage:
    """A part of the training with an optimiser of its own.

    Attributes:
        name: shown while it runs and kept in the training state.
        groups: parameter groups as `torch.optim` takes them (``{"params": [...], "lr": ...}``); the
            rate is the peak of a cosine that ends at zero with the stage. Parameters in no group
            do not train.
        epochs: passes over the training images; None for the number that the configuration says.
        pool_is_fixed: nothing that the pool depends on trains (nor does `Head.after_step` change
            it), so that the pooled units are computed once for the whole stage.
    """

    name: str
    groups: Sequence[dict[str, Any]] = field(repr=False)
    epochs: int | None = None
    pool_is_fixed: bool = False

    def parameters(self) -> list[nn.Parameter]:
        """All parameters that train."""
        return [parameter for group in self.groups for parameter in group["params"]]
