"""One step of a training: precision, parts of a batch, several processes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.checkpoint import checkpoint

from infodisent import ranks
from infodisent.devices import autocast, sent
from infodisent.methods import Head, Stage
from infodisent.methods.rotations import divided_rotations
from infodisent.methods.stages import TrainingBatch, TrainingOptions
from infodisent.training.averaging import Average
from infodisent.training.config import FitConfig
from infodisent.training.maps import Maps
from infodisent.training.objective import Objective

Figures = Tensor
"""``[3]`` on the head's device: mean loss of the images, how many were right before the step, the
penalty in the loss."""


@dataclass
class Tools:
    """What moves the weights of one stage.

    Attributes:
        optimizer: of the head's and the backbone's weights.
        scheduler: of its rates.
        scaler: of the loss in float16; switched off otherwise.
        average: of the weights; None without.
    """

    optimizer: torch.optim.Optimizer
    scheduler: LambdaLR
    scaler: torch.amp.GradScaler
    average: Average | None = None

    def move(self) -> None:
        """A step of the optimiser, unless a gradient in float16 was beyond its range."""
        self.scaler.step(self.optimizer)
        self.scaler.update()

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The weights are their averages in the block, where there are any."""
        with contextlib.nullcontext() if self.average is None else self.average.shown():
            yield

    def settle(self) -> None:
        """The stage ends: the averages become the weights."""
        if self.average is not None:
            self.average.install()
            self.average = None


def adamw(
    groups: list[dict[str, Any]],
    device: torch.device,
    scaled: bool = False,
) -> torch.optim.AdamW:
    """The optimiser of every stage, without weight decay but where a group has one.

    Args:
        groups: of parameters.
        device: theirs. On the CPU every update is one pass, in place of ten operators.
        scaled: the loss is; the fused update asks no GPU whether a gradient in float16 was finite.
    """
    fused = True if scaled or device.type == "cpu" else None
    return torch.optim.AdamW(groups, weight_decay=0.0, fused=fused)


def grad_scaler(config: FitConfig, device: torch.device) -> torch.amp.GradScaler:
    """Of the loss, switched on where products are float16."""
    return torch.amp.GradScaler(device.type, enabled=config.precision == torch.float16)


@dataclass(frozen=True)
class Step:
    """What the steps of a stage share.

    Attributes:
        head, maps, objective, options, config: as of `infodisent.training.epochs.Training`.
        stage: what trains.
        tools: that move it.
    """

    head: Head
    maps: Maps
    objective: Objective
    options: TrainingOptions
    config: FitConfig
    stage: Stage
    tools: Tools

    def __call__(
        self,
        done: float,
        positions: Tensor,  # [n] int64
        rows: Tensor | None,  # of this process's images, as `Maps.epoch` gives them
        units: Tensor | None,  # [n, M], where the pool is fixed
    ) -> Figures:
        """Take a step; nothing waits for the device.

        Args:
            done: part of the stage, in [0, 1).
            positions: of the images.
            rows, units: one of both.
        """
        with divided_rotations(self.head):
            return self._take(done, positions, rows, units)

    def _take(
        self,
        done: float,
        positions: Tensor,  # [n] int64
        rows: Tensor | None,
        units: Tensor | None,  # [n, M]
    ) -> Figures:
        parts = 1
        if rows is not None:  # no part of any process is empty
            parts = max(1, min(self.config.accumulate, len(positions) // ranks.world()))
        self.tools.optimizer.zero_grad()
        batch = logits = None
        if parts > 1 and self.head.loss_adds_up and self.objective.is_mean:
            assert rows is not None
            figures = self._added(done, positions, rows, parts)
        else:
            logits, batch = self._forward(done, positions, rows, units, parts, len(positions))
            figures = self._backward(logits, batch)
        if rows is not None:
            groups = self.tools.optimizer.param_groups
            ranks.average_gradients([p for group in groups for p in group["params"]])
        self.tools.move()
        self.head.after_step()
        if batch is not None and logits is not None:
            with torch.no_grad():
                self.head.learn(logits.detach(), batch)
        if self.tools.average is not None:
            self.tools.average.update()
        return figures

    def _added(self, done: float, positions: Tensor, rows: Tensor, parts: int) -> Figures:
        """The gradients of the parts added up: they are means over the images."""
        own = [piece.tensor_split(parts) for piece in positions.tensor_split(ranks.world())]
        total = torch.zeros(3, device=self.head.device)
        for number, part in enumerate(self._split(rows, parts)):
            where = torch.cat([pieces[number] for pieces in own])
            share = len(where) / len(positions)
            logits, batch = self._forward(done, where, part, None, 1)
            loss, right, penalty = self._backward(logits, batch, share)
            total += torch.stack([loss * share, right, penalty * share])
        return total

    def _forward(
        self,
        done: float,
        positions: Tensor,  # [n] int64
        rows: Tensor | None,
        units: Tensor | None,  # [n, M]
        parts: int,
        whole: int | None = None,
    ) -> tuple[Tensor, TrainingBatch]:
        """Logits ``[views · n, K]``, and what the head is told of the step.

        `whole`: n, where every process has the piece of it that `ranks.piece` gives.
        """
        head, views = self.head, 1 if rows is None else self.stage.views
        labels = sent(self.maps.store.labels[positions], head.device)
        labels = labels.repeat(views, *(1,) * (labels.ndim - 1))
        extra: Mapping[str, Tensor] = {}
        pooled = units
        with self._precision():
            if rows is not None and (head.loss_needs_pool or ranks.world() > 1 or parts > 1):
                pooled, extra = self._units(rows, parts, whole)
            if pooled is not None:
                logits = head.classify(pooled)
            else:
                assert rows is not None
                logits = head(self.maps.made(rows), input_fmt="NLC")
        if self.config.precision is not None:  # losses and penalties are no products
            logits, pooled = _wide(logits), None if pooled is None else _wide(pooled)
            extra = {name: _wide(value) for name, value in extra.items()}
        where = sent(positions, head.device)
        return logits, TrainingBatch(labels, pooled, extra, self.stage.name, done, where)

    def _units(
        self, rows: Tensor, parts: int, images: int | None
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The units of all processes' images, of so many, and what the head has beside them.

        Of several parts each is computed again for its gradient, which depends on all of them.
        """
        views = self.stage.views
        if parts == 1:
            pooled, extra = self._pool(rows)
        else:
            pieces: Any = [
                checkpoint(self._pool, part, use_reentrant=False)
                for part in self._split(rows, parts)
            ]
            pooled = _joined([units for units, _ in pieces], views)
            names = pieces[0][1]
            extra = {name: _joined([more[name] for _, more in pieces], views) for name in names}
        return (
            everyones(pooled, views, images),
            {name: everyones(value, views, images) for name, value in extra.items()},
        )

    def _pool(self, rows: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        with self._precision():
            return self.head.training_pool(self.maps.made(rows), input_fmt="NLC")

    def _backward(self, logits: Tensor, batch: TrainingBatch, share: float = 1) -> Figures:
        """Add the gradient of the loss, `share` times, to the parameters'."""
        loss = self.head.loss(self.objective, logits, batch)
        penalty = self.head.penalty(self.options, batch)
        if penalty is not None:
            loss = loss + penalty
        scaled: Any = self.tools.scaler.scale(loss if share == 1 else loss * share)
        scaled.backward()
        views = len(batch.labels) // len(batch.positions) if batch.positions is not None else 1
        right = self.objective.right(logits.detach(), batch.labels) / views
        added = torch.zeros_like(loss) if penalty is None else penalty
        return torch.stack([loss, right.to(loss.dtype), added.to(loss.dtype)]).detach()

    def _split(self, rows: Tensor, parts: int) -> list[Tensor]:
        """This process's rows in parts, each with its images' views behind each other."""
        views = [view.tensor_split(parts) for view in rows.tensor_split(self.stage.views)]
        return [torch.cat(part) if len(part) > 1 else part[0] for part in zip(*views, strict=True)]

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        return autocast(self.config.precision, self.head.device)


def everyones(
    value: Tensor,  # [views · m, ...]
    views: int,
    images: int | None = None,
) -> Tensor:
    """The rows of all processes, ``[views · n, ...]``, the views still behind each other.

    `images`: n, where every process has the piece of it that `ranks.piece` gives.
    """
    if ranks.world() == 1:
        return value
    return torch.cat([ranks.gathered(view, images) for view in value.tensor_split(views)])


def _joined(
    parts: Sequence[Tensor],  # [views · m_i, ...]
    views: int,
) -> Tensor:
    """The rows of all parts, the views still behind each other."""
    split = [part.tensor_split(views) for part in parts]
    return torch.cat([part[view] for view in range(views) for part in split])


def _wide(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
