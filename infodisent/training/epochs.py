"""The epochs of one stage: batches, steps, figures."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from infodisent import ranks
from infodisent.data.store import FeatureStore
from infodisent.devices import seed_generators, sent
from infodisent.evaluation.accuracy import pool_features
from infodisent.methods import Head, Stage
from infodisent.methods.stages import TrainingOptions
from infodisent.training.averaging import Average
from infodisent.training.config import FitConfig
from infodisent.training.maps import Maps
from infodisent.training.meter import Meter, Report
from infodisent.training.objective import Objective, draw_epoch
from infodisent.training.schedule import scheduler
from infodisent.training.state import SavedState
from infodisent.training.steps import Step, Tools, adamw, grad_scaler
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
        advance: told of every few steps, see `Report`.
        keep: called after every epoch with what moves the weights.
        tick: called after every step.
    """

    head: Head
    maps: Maps
    train: Tensor
    config: FitConfig
    options: TrainingOptions
    objective: Objective
    validation: Tensor
    history: History
    advance: Report
    keep: Callable[[Tools], None]
    tick: Callable[[], object] = field(default=lambda: None)

    def stage(
        self,
        stage: Stage,
        first: int,
        epochs: int,
        saved: SavedState | None,
        *,
        more: bool = False,
        patience: int | None = None,
    ) -> None:
        """Run the epochs of a stage that are left.

        Args:
            stage: what trains.
            first: number of its first epoch.
            epochs: how many it has; the rate's schedule is over these.
            saved: where an interrupted run stopped.
            more: these epochs go on with a stage that had ended, from its weights.
            patience: end where the validation loss does not fall for so many of these epochs.
        """
        head, begun = self.head, len(self.history) - first
        steps = math.ceil(len(self.train) / self.config.batch_size)
        goes_on = saved if begun else None
        tools = self._tools(stage, begun * steps, epochs * steps, goes_on)
        if goes_on is None and not more:
            self._seed(first)
            head.eval()
            with torch.no_grad():
                head.start_stage(stage, self.batches)
        if self.config.ema:  # of what the stage starts from
            trained = [p for group in tools.optimizer.param_groups for p in group["params"]]
            at = begun * steps
            tools.average = Average(head, trained, self.config.ema, at, goes_on)
        fixed, store, scored = stage.pool_is_fixed, self.maps.store, self.validation
        pooled = _PooledRows(head, store, self.train) if fixed else None
        held = pool_features(head, store, scored) if fixed and len(scored) else None
        with _training_only(head, stage.parameters()):
            for epoch in range(begun, epochs):
                if stopped(self.history[first:], patience):
                    break
                figures = self._run_epoch(stage, first, epoch, epochs, pooled, tools)
                if len(scored):
                    with tools.averaged():
                        figures |= validate(head, store, scored, self.objective, held)
                # a last digit that differs on another processor must not make one stop earlier
                self.history.append(ranks.told(figures))
                if epoch + 1 == epochs or stopped(self.history[first:], patience):
                    tools.settle()
                self.keep(tools)

    def _tools(self, stage: Stage, done: int, steps: int, saved: SavedState | None) -> Tools:
        """What moves the weights of a stage of so many steps, some of which may be done."""
        groups = self._groups(stage)
        rates = [group.pop("rate", stage.rate) for group in groups]
        scaler = grad_scaler(self.config, self.head.device)
        optimizer = adamw(groups, self.head.device, scaler.is_enabled())
        if saved is not None:
            saved.restore_optimizer(optimizer)
            saved.restore_scaler(scaler)
        return Tools(optimizer, scheduler(optimizer, rates, self.config, steps, done), scaler)

    def _run_epoch(
        self,
        stage: Stage,
        first: int,
        epoch: int,
        epochs: int,
        pooled: _PooledRows | None,
        tools: Tools,
    ) -> dict[str, float]:
        """The steps of an epoch of a stage; loss and accuracy over them."""
        head, count = self.head, len(self.train)
        # every epoch has its own seed, so that a resumed run needs no generator's state
        self._seed(first + epoch)
        order = draw_epoch(self.maps.store, self.train, self.config.sampler)
        if type(head).start_epoch is not Head.start_epoch:  # to enter evaluation costs a rotation
            head.eval()
            with torch.no_grad():
                head.start_epoch(stage, epoch, epochs, self.batches)
        head.train()
        of_epoch = math.ceil(count / self.config.batch_size)
        total = epochs * of_epoch
        advice = f"lower lr ({self.options.lr}) or rotation_lr ({self.config.rotation_lr})"
        meter = Meter(stage.name, head.device, self.advance, f"epoch {first + epoch + 1}; {advice}")
        take = Step(head, self.maps, self.objective, self.options, self.config, stage, tools)
        batches = self._epoch(stage, first + epoch, order)
        for step, (batch, own) in enumerate(batches, epoch * of_epoch):
            units = None if pooled is None else sent(pooled[batch], head.device)
            meter.add(take(step / total, batch, own, units), len(batch))
            if step + 1 < total:
                tools.scheduler.step()
            self.tick()
        meter.read()
        return {"loss": meter.loss / count, "accuracy": meter.right / count}

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
        """Positions of every step's images, and this process's rows unless the pool is fixed."""
        size = self.config.batch_size
        if stage.pool_is_fixed:
            return ((positions, None) for positions in order.split(size))
        return self.maps.epoch(order, size, stage.views, number, self.head.device)

    def _seed(self, epoch: int) -> None:
        seed_generators(self.config.seed * 100_003 + epoch, self.head.device)

    def finish(self) -> None:
        """What the head does after the last epoch."""
        self.head.eval()
        with torch.no_grad():
            self.head.finish(self.batches)

    @property
    def batches(self) -> TrainingPass:
        """What a head may pass over."""
        return TrainingPass(self.maps.store, self.train, self.config.batch_size, self.head.device)


@dataclass(frozen=True)
class TrainingPass:
    """`infodisent.methods.stages.Batches` of a training.

    Attributes:
        store: of the maps.
        train: positions of the training images, ``[n]`` int64.
        batch_size: images of a batch.
        device: where they are wanted.
    """

    store: FeatureStore
    train: Tensor
    batch_size: int
    device: torch.device

    def __call__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """A pass over all images."""
        return self._over(self.train)

    def part(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """A pass over this process's part of them, see `infodisent.methods.stages.part_of`."""
        return self._over(ranks.piece(self.train))

    def _over(self, positions: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for maps, labels, at in self.store.batches(positions, self.batch_size, dtype=None):
            yield tuple(sent(part, self.device) for part in (maps, labels, at))  # type: ignore[misc]


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
