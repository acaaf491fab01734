"""The epochs of one stage: batches, steps, figures."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from infodisent import ranks
from infodisent.data.store import FeatureStore
from infodisent.devices import seed_generators
from infodisent.evaluation.accuracy import pool_features
from infodisent.methods import Head, Stage
from infodisent.methods.stages import TrainingBatch, TrainingOptions
from infodisent.training.config import FitConfig
from infodisent.training.maps import Maps
from infodisent.training.objective import Objective, draw_epoch
from infodisent.training.state import SavedState
from infodisent.training.validation import stopped, validate

History = list[dict[str, float]]


@dataclass(frozen=True)
class Training:
    """What the stages of one run share.

    Attributes:
        head, train: as in `infodisent.training.fit.fit_head`.
        maps: where maps come from.
        config: as in `fit_head`.
        options: the same for the head, `FitConfig.knowing` the training images.
        objective: the loss, without the head's penalty.
        validation: positions of the images that score every epoch, ``[m]``; may be empty.
        history: of the epochs done; grows.
        advance: told after every step the stage's name, the loss and the penalty in it.
        keep: called after every epoch with the optimiser.
    """

    head: Head
    maps: Maps
    train: Tensor
    config: FitConfig
    options: TrainingOptions
    objective: Objective
    validation: Tensor
    history: History
    advance: Callable[[str, float, float], None]
    keep: Callable[[torch.optim.Optimizer], None]

    def stage(
        self,
        stage: Stage,
        first: int,
        epochs: int,
        saved: SavedState | None,
        *,
        more: bool = False,
        patience: int | None = None,
        since: int = 0,
    ) -> None:
        """Run the epochs of a stage that are left.

        Args:
            stage: what trains.
            first: number of its first epoch.
            epochs: how many it has; the rate's cosine is over these.
            saved: where an interrupted run stopped.
            more: these epochs go on with a stage that had ended, from its weights.
            patience: end where the validation loss does not fall for so long.
            since: the first epoch that counts for patience.
        """
        head, begun = self.head, len(self.history) - first
        groups = self._groups(stage)
        rates = [(group["lr"], group.pop("rate", stage.rate)) for group in groups]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        if begun and saved is not None:
            saved.restore_optimizer(optimizer)
        elif not begun and not more:
            self._seed(first)
            head.eval()
            with torch.no_grad():
                head.start_stage(stage, self._batches)
        fixed, store = stage.pool_is_fixed, self.maps.store
        pooled = _PooledRows(head, store, self.train) if fixed else None
        scored = self.validation
        held = pool_features(head, store, scored) if fixed and len(scored) else None
        steps = math.ceil(len(self.train) / self.config.batch_size)
        with _training_only(head, stage.parameters()):
            for epoch in range(begun, epochs):
                if stopped(self.history[since:], patience):
                    break
                # every epoch has its own seed, so that a resumed run needs no generator's state
                self._seed(first + epoch)
                order = draw_epoch(store, self.train, self.config.sampler)
                head.eval()
                with torch.no_grad():
                    head.start_epoch(stage, epoch, epochs, self._batches)
                head.train()
                total = correct = 0.0
                batches = self._epoch(stage, first + epoch, order)
                for step, (batch, own) in enumerate(batches):
                    done = (epoch * steps + step) / (epochs * steps)
                    for group, (peak, rate) in zip(optimizer.param_groups, rates, strict=True):
                        group["lr"] = peak * rate(done)
                    units = None if pooled is None else pooled[batch].to(head.device)
                    loss, right, penalty = self._step(stage, done, batch, own, units, optimizer)
                    total += loss * len(batch)
                    correct += right
                    self.advance(stage.name, loss, penalty)
                if not math.isfinite(total):
                    raise ValueError(
                        f"fit_head: the loss is {total} in epoch {first + epoch + 1}; lower lr "
                        f"({self.options.lr}) or rotation_lr ({self.config.rotation_lr})"
                    )
                count = len(self.train)
                figures = {"loss": total / count, "accuracy": correct / count}
                if len(scored):
                    figures |= validate(head, store, scored, self.objective, held)
                # a last digit that differs on another processor must not make one stop earlier
                self.history.append(ranks.told(figures))
                self.keep(optimizer)

    def _groups(self, stage: Stage) -> list[dict[str, Any]]:
        """Parameter groups of a stage: the head's, and the backbone's where maps have gradients."""
        # the optimiser adds entries of its own to the groups
        groups = [dict(group) for group in stage.groups]
        if self.maps.module is not None and not stage.pool_is_fixed:
            trained = [p for p in self.maps.module.parameters() if p.requires_grad]
            groups.append({"params": trained, "lr": self.config.backbone_lr, "rate": stage.rate})
        return groups

    def _epoch(
        self,
        stage: Stage,
        number: int,
        order: Tensor,  # [n] int64
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Positions of every step's images, and this process's maps unless the pool is fixed."""
        size = self.config.batch_size
        if stage.pool_is_fixed:
            return ((positions, None) for positions in order.split(size))
        return self.maps.epoch(order, size, stage.views, number, self.head.device)

    def _step(
        self,
        stage: Stage,
        done: float,
        positions: Tensor,  # [n] int64
        maps: Tensor | None,  # of this process's part of the positions, [m, P, C] or [2m, P, C]
        units: Tensor | None,  # [n, M], where the pool is fixed
        optimizer: torch.optim.Optimizer,
    ) -> tuple[float, float, float]:
        """One step; the mean loss of its images, how many were right before it, the penalty."""
        head, views = self.head, 1 if maps is None else stage.views
        labels = self.maps.store.labels[positions].to(head.device)
        labels = labels.repeat(views, *(1,) * (labels.ndim - 1))
        extra: Mapping[str, Tensor] = {}
        if maps is None:
            assert units is not None
            logits = head.classify(units)
        elif head.loss_needs_pool or ranks.world() > 1:
            units, extra = head.training_pool(maps, input_fmt="NLC")
            units = _everyones(units, views)
            extra = {name: _everyones(value, views) for name, value in extra.items()}
            logits = head.classify(units)
        else:
            logits = head(maps, input_fmt="NLC")
        where = positions.to(head.device)
        batch = TrainingBatch(labels, units, extra, stage.name, done, where)
        loss = head.loss(self.objective, logits, batch)
        penalty = head.penalty(self.options, batch)
        if penalty is not None:
            loss = loss + penalty
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if maps is not None:
            ranks.average_gradients([p for g in optimizer.param_groups for p in g["params"]])
        optimizer.step()
        head.after_step()
        with torch.no_grad():
            head.learn(logits.detach(), batch)
        added = 0.0 if penalty is None else penalty.item()
        return loss.item(), self.objective.right(logits, labels) / views, added

    def _seed(self, epoch: int) -> None:
        seed_generators(self.config.seed * 100_003 + epoch, self.head.device)

    def finish(self) -> None:
        """What the head does after the last epoch."""
        self.head.eval()
        with torch.no_grad():
            self.head.finish(self._batches)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        device = self.head.device
        batches = self.maps.store.batches(self.train, self.config.batch_size, dtype=None)
        for maps, labels, positions in batches:
            yield maps.to(device), labels.to(device), positions.to(device)


class _PooledRows:
    """Pooled units of the training images, computed once, by the images' positions."""

    def __init__(
        self,
        head: Head,
        store: FeatureStore,
        train: Tensor,  # [n] int64
    ) -> None:
        self._rows = pool_features(head, store, train)
        self._row_of = torch.full((len(store),), -1, dtype=torch.int64)
        self._row_of[train] = torch.arange(len(train))

    def __getitem__(
        self,
        positions: Tensor,  # [n] int64
    ) -> Tensor:
        return self._rows[self._row_of[positions]]


def _everyones(
    value: Tensor,  # [views · m, ...]
    views: int,
) -> Tensor:
    """The rows of all processes, ``[views · n, ...]``, the views still behind each other."""
    if ranks.world() == 1:
        return value
    return torch.cat([ranks.gathered(view) for view in value.tensor_split(views)])


@contextlib.contextmanager
def _training_only(head: Head, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """No other parameter of the head asks for a gradient in the block."""
    wanted = {id(parameter) for parameter in parameters}
    asked = [(parameter, parameter.requires_grad) for parameter in head.parameters()]
    try:
        for parameter, asks in asked:
            parameter.requires_grad_(asks and id(parameter) in wanted)
        yield
    finally:
        for parameter, asks in asked:
            parameter.requires_grad_(asks)
