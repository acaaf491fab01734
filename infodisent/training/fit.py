"""Train a head from stored features: resumable, repeatable, the same on every run of a seed."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from infodisent import ops
from infodisent.data.store import FeatureStore
from infodisent.devices import own_generators, seed_generators
from infodisent.evaluation.accuracy import pool_features
from infodisent.methods import DEFAULT, Head, Stage, build_head
from infodisent.progress import bar
from infodisent.training.state import SavedState, identity, save_state


@dataclass(frozen=True)
class FitConfig:
    """Options of `fit_head`.

    Attributes:
        epochs: passes over the training set; None for 15, or more where that is under 120 steps.
        batch_size: images per step, shuffled anew every epoch.
        lr: peak learning rate of the weights; AdamW, cosine to zero.
        rotation_lr: the same for the rotation's parameter A.
        l1: strength of the penalty ``l1 · m · sum(W) / K``, m being the mean of the max-pooled
            features, which makes one value fit all backbones. It makes explanations short.
        label_smoothing: of the cross-entropy.
        seed: of initial weights, batch order and dropout.
    """

    epochs: int | None = None
    batch_size: int = 256
    lr: float = 1e-2
    rotation_lr: float = 3e-3
    l1: float = 0.1
    label_smoothing: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "seed"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise TypeError(f"FitConfig: {name} is {value!r}, must be an int")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"FitConfig: seed is {self.seed}, must be in [0, 2**32)")
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"FitConfig: {name} is {value}, must be >= 1")
        for name in ("lr", "rotation_lr", "l1"):
            value = getattr(self, name)
            if not (0 <= value < math.inf):
                raise ValueError(f"FitConfig: {name} is {value}, must be finite and >= 0")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"FitConfig: label_smoothing is {self.label_smoothing}, must be in [0, 1)"
            )


def new_head(
    channels: int,
    classes: int,
    seed: int,
    like: Head | None = None,
    *,
    method: str | None = None,
    **options: Any,
) -> Head:
    """A head whose initial weights depend on `seed` alone.

    Args:
        channels, classes: C of the map and K.
        seed: of the weights; the caller's random numbers go on as before.
        like: a head that lends its layout and its method.
        method: of the head, one of `infodisent.methods.METHODS`; default: that of `like`, if given.
        **options: of the method.
    """
    layout: dict[str, Any] = {} if like is None else like.layout()
    if method is None:
        method = DEFAULT if like is None else like.method
    device = torch.device(options.get("device") or "cpu")
    with own_generators(device):
        seed_generators(seed, device)
        return build_head(method, channels, classes, **layout, **options)


def fit_head(
    head: Head,
    store: FeatureStore,
    config: FitConfig | None = None,
    *,
    train: Tensor | None = None,  # [n] int64
    state: str | os.PathLike[str] | None = None,
    progress: bool = True,
    label: str = "train head",
) -> list[dict[str, float]]:
    """Minimise cross-entropy + the head's penalty over the stored training images, in place.

    The head says what trains, in which stages and at which rates (`Head.stages`).

    Args:
        head: its initial weights are used, see `new_head`; trained on the device it is on.
        store: features; maps are read batch by batch, never all at once.
        config: default `FitConfig()`.
        train: positions of the training images; default: the store's "train" split.
        state: a file for the state after every epoch. If it exists, training goes on from it, in
            the stage where it stopped, and ends exactly where an uninterrupted run ends; a state of
            other options is refused.
        progress: show a progress bar.
        label: what the bar calls the work.

    Returns:
        Per epoch ``{"loss": mean objective, "accuracy": on the training batches}``.

    Raises:
        ValueError: the head does not fit the store, there are no training images, the loss is not
            finite, or `state` belongs to another run.
    """
    config = config or FitConfig()
    if head.num_classes != len(store.classes):
        raise ValueError(
            f"fit_head: the head has {head.num_classes} classes, the store {len(store.classes)}"
        )
    if head.in_features != store.channels:
        raise ValueError(
            f"fit_head: the head takes {head.in_features} channels, the store has {store.channels}"
        )
    train = store.indices("train") if train is None else train
    if not len(train):
        raise ValueError("fit_head: there are no training images")
    steps = math.ceil(len(train) / config.batch_size)
    epochs = config.epochs or max(15, math.ceil(120 / steps))
    stages = head.stages(config)
    schedule = [(stage.name, stage.epochs or epochs) for stage in stages]
    total = sum(count for _, count in schedule)
    run = identity(head, store, train, config, schedule)
    saved = None
    if state is not None and Path(state).is_file():
        saved = SavedState(Path(state), run)
        saved.restore_head(head)
    history = [] if saved is None else list(saved.history)
    scale = _feature_scale(store, train)
    with bar(progress) as display, own_generators(head.device):
        task = display.add_task(label, total=total * steps, completed=len(history) * steps, note="")

        def advance(name: str, loss: float) -> None:
            where = f"epoch {len(history) + 1}/{total}"
            where += f" ({name})" if len(stages) > 1 else ""
            display.update(task, advance=1, note=f"{where} loss {loss:.3f}")

        def keep(optimizer: torch.optim.Optimizer) -> None:
            if state is not None:
                save_state(Path(state), run, head, optimizer, history)

        training = _Training(head, store, train, config, scale, history, advance, keep)
        first = 0
        for stage, (_, count) in zip(stages, schedule, strict=True):
            if len(history) < first + count:
                training.stage(stage, first, count, saved)
            first += count
    head.eval()
    return history


@dataclass(frozen=True)
class _Training:
    """What the stages of one run share.

    Attributes:
        head, store, train, config: as in `fit_head`.
        feature_scale: for the head's penalty.
        history: of the epochs done; grows.
        advance: told after every step the stage's name and the loss.
        keep: called after every epoch with the optimiser.
    """

    head: Head
    store: FeatureStore
    train: Tensor
    config: FitConfig
    feature_scale: float
    history: list[dict[str, float]]
    advance: Callable[[str, float], None]
    keep: Callable[[torch.optim.Optimizer], None]

    def stage(self, stage: Stage, first: int, epochs: int, saved: SavedState | None) -> None:
        """Run the epochs of a stage that are left; `first` is the number of its first epoch."""
        head, begun = self.head, len(self.history) - first
        # the optimiser adds entries of its own to the groups
        groups = [dict(group) for group in stage.groups]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        if begun and saved is not None:
            saved.restore_optimizer(optimizer)
        elif not begun:
            self._seed(first)
            head.eval()
            with torch.no_grad():
                head.start_stage(stage, self._batches)
        peaks = [group["lr"] for group in stage.groups]
        pooled = _PooledRows(head, self.store, self.train) if stage.pool_is_fixed else None
        steps = math.ceil(len(self.train) / self.config.batch_size)
        with _training_only(head, stage.parameters()):
            for epoch in range(begun, epochs):
                # every epoch has its own seed, so that a resumed run needs no generator's state
                self._seed(first + epoch)
                order = self.train[torch.randperm(len(self.train))]
                head.train()
                total = correct = 0.0
                for step, batch in enumerate(order.split(self.config.batch_size)):
                    done = (epoch * steps + step) / (epochs * steps)
                    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                        group["lr"] = peak * 0.5 * (1 + math.cos(math.pi * done))
                    loss, right = self._step(batch, pooled, optimizer)
                    total += loss * len(batch)
                    correct += right
                    self.advance(stage.name, loss)
                if not math.isfinite(total):
                    raise ValueError(
                        f"fit_head: the loss is {total} in epoch {first + epoch + 1}; lower lr "
                        f"({self.config.lr}) or rotation_lr ({self.config.rotation_lr})"
                    )
                count = len(self.train)
                self.history.append({"loss": total / count, "accuracy": correct / count})
                self.keep(optimizer)

    def _step(
        self,
        batch: Tensor,  # [n] int64
        pooled: _PooledRows | None,
        optimizer: torch.optim.Optimizer,
    ) -> tuple[float, float]:
        """One step; the mean loss of its images and how many were right before it."""
        head, device = self.head, self.head.device
        labels = self.store.labels[batch].to(device)
        units = None
        if pooled is not None:
            units = pooled[batch].to(device)
            logits = head.classify(units)
        elif head.penalty_needs_pool:
            units = head.pool(self.store.gather(batch).to(device), input_fmt="NLC").pooled
            logits = head.classify(units)
        else:
            logits = head(self.store.gather(batch).to(device), input_fmt="NLC")
        loss = nn.functional.cross_entropy(
            logits, labels, label_smoothing=self.config.label_smoothing
        )
        penalty = head.penalty(self.config, self.feature_scale, units, labels)
        if penalty is not None:
            loss = loss + penalty
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        head.after_step()
        return loss.item(), (logits.argmax(1) == labels).sum().item()

    def _seed(self, epoch: int) -> None:
        seed_generators(self.config.seed * 100_003 + epoch, self.head.device)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        device = self.head.device
        for maps, labels, positions in self.store.batches(self.train, self.config.batch_size):
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


@torch.no_grad()
def _feature_scale(
    store: FeatureStore,
    train: Tensor,  # [n] int64
    sample: int = 2048,
) -> float:
    """Mean over channels and images (evenly spaced ones) of the max-pooled map."""
    some = train[:: max(1, len(train) // sample)]
    pos = [ops.mx_pool(x, input_fmt="NLC").pos for x, _, _ in store.batches(some, 256)]
    return torch.cat(pos).mean().item()
