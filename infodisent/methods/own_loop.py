"""What a head offers to a training loop that is not this package's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from infodisent.methods.stages import (
    LoopOptions,
    Stage,
    TrainingBatch,
    TrainingOptions,
    TrainingStatistics,
)


class _Head(Protocol):
    """What is asked of the head."""

    num_classes: int
    loss_needs_pool: ClassVar[bool]

    @property
    def device(self) -> torch.device:
        """See `Head.device`."""

    def stages(self, config: TrainingOptions) -> tuple[Stage, ...]:
        """See `Head.stages`."""

    def penalty(self, config: TrainingOptions, batch: TrainingBatch) -> Tensor | None:
        """See `Head.penalty`."""


class OwnLoop:
    """Parameter groups and the term to add to the loss; a base of `infodisent.methods.base.Head`.

    The rest of such a loop: after every ``optimizer.step()`` call `Head.after_step`.
    """

    def param_groups(
        self: _Head,
        lr: float = LoopOptions.lr,
        rotation_lr: float = LoopOptions.rotation_lr,
    ) -> list[dict[str, Any]]:
        """Parameter groups for an optimiser of one's own, as `fit_head` has them.

        After every ``optimizer.step()`` call `after_step`; the loss is cross-entropy and
        `penalty_term`.

        Args:
            lr, rotation_lr: peak rates of what classifies and of what the pool depends on. `lr` is
                for features whose `feature_scale` is 0.5 or more; for smaller ones raise it by that
                factor.

        Raises:
            ValueError: the method trains in several stages, each with groups of its own (`stages`).
        """
        stages = self.stages(LoopOptions(lr, rotation_lr))
        if len(stages) > 1:
            names = ", ".join(stage.name for stage in stages)
            raise ValueError(
                f"{type(self).__name__}.param_groups: this method trains in stages ({names}), take "
                "the groups of each from stages()"
            )
        return [dict(group) for group in stages[0].groups]

    def penalty_term(
        self: _Head,
        l1: float = LoopOptions.l1,
        *,
        feature_scale: float = 1.0,
        class_counts: Sequence[float] | Tensor | None = None,
        pooled: Tensor | None = None,  # [n, M]
        labels: Tensor | None = None,  # [n] int64
    ) -> Tensor:
        """What a training loop of one's own adds to its loss, a scalar; 0 where there is nothing.

        Args:
            l1: strength, see `FitConfig.l1`.
            feature_scale: mean of the max-pooled map, such as ``head.pool(x).pos.mean().item()`` of
                one batch before training; default: 1.
            class_counts: training images of each class, K numbers; default: classes are balanced.
            pooled, labels: of the batch, for methods with `loss_needs_pool`.

        Raises:
            ValueError: `class_counts` are not K numbers, or the method needs `pooled` or `labels`.
        """
        if self.loss_needs_pool and (pooled is None or labels is None):
            raise ValueError(
                f"{type(self).__name__}.penalty_term: this method needs pooled, labels"
            )
        statistics = _statistics(self, feature_scale, class_counts)
        options = LoopOptions(l1=l1, statistics=statistics)
        if labels is None:
            labels = torch.empty(0, dtype=torch.int64, device=self.device)
        term = self.penalty(options, TrainingBatch(labels, pooled))
        return torch.zeros((), device=self.device) if term is None else term


def _statistics(
    head: _Head, feature_scale: float, class_counts: Sequence[float] | Tensor | None
) -> TrainingStatistics:
    """Of a training loop of one's own."""
    pull = torch.ones(head.num_classes)
    if class_counts is not None:
        count = torch.as_tensor(class_counts, dtype=torch.float32).cpu()
        if count.shape != pull.shape or not (count >= 0).all() or not count.sum() > 0:
            raise ValueError(
                f"{type(head).__name__}: class_counts is {class_counts}, must be "
                f"{head.num_classes} numbers >= 0"
            )
        pull = count * head.num_classes / count.sum()
    return TrainingStatistics(feature_scale, pull)
