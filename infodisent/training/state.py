"""What a training run leaves after every epoch, so that a killed one goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from infodisent.data.store import FeatureStore
from infodisent.files import read_tensors, write_tensors
from infodisent.methods import DEFAULT, Head
from infodisent.training.config import FitConfig, same_options
from infodisent.training.validation import stopped

RECIPE = 2
"""Of the objective. 1 is that of version 0.1: classes are penalised alike, and nothing is adjusted
for their frequency or for the size of features."""

Schedule = list[tuple[str, int]]
"""Name and epochs of every stage."""


def identity(
    head: Head,
    store: FeatureStore,
    train: Tensor,  # [n] int64
    config: FitConfig,
    schedule: Schedule,
    recipe: int = RECIPE,
    sources: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What a training run depends on; a state that differs in any of it is of another run.

    `sources`: what maps come from besides the store, by name.
    """
    return {
        "kind": "training",
        "recipe": recipe,
        "config": config.as_dict(),
        "method": head.method,
        "head": head.options(),
        "stages": [list(stage) for stage in schedule],
        "features": store.meta["made_from"],
        "images": hashlib.sha256(train.numpy().tobytes()).hexdigest(),
        **(sources or {}),
    }


def save_state(
    path: Path,
    run: dict[str, Any],
    head: Head,
    optimizer: torch.optim.Optimizer,
    history: list[dict[str, float]],
    *,
    best: dict[str, Tensor] | None = None,
    parts: Sequence[int] = (),
    backbone: nn.Module | None = None,
    average: Sequence[Tensor] = (),
    scaler: dict[str, Any] | None = None,
    lengths: Sequence[int] = (),
) -> None:
    """Write weights, the current stage's optimiser and the history, at once or not at all.

    Args:
        path: of the file.
        run: its `identity`.
        head, optimizer, history: as they are.
        best: the state of the best epoch, where there is early stopping.
        backbone: where it trains, too.
        parts: epochs of the last stage that finished runs of fewer epochs had.
        average: of the weights, in their optimiser's order.
        scaler: state of the loss's scaler, JSON-able.
        lengths: epochs of the stages that have ended, where one has stopped early.
    """
    tensors = {f"head.{name}": tensor for name, tensor in head.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in values.items()}
    if backbone is not None:
        tensors |= {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in (best or {}).items()}
    tensors |= {f"average.{number}": value for number, value in enumerate(average)}
    metadata = {**run, "history": history} | ({"parts": list(parts)} if parts else {})
    metadata |= {"scaler": scaler} if scaler else {}
    metadata |= {"lengths": list(lengths)} if lengths else {}
    write_tensors(path, tensors, metadata)


class SavedState:
    """The state of an interrupted run.

    Args:
        path: a file that `save_state` wrote.

    Attributes:
        recipe: that it was begun with and goes on with, see `RECIPE`.
        history: of the epochs that are done.
        parts: epochs of the last stage in finished runs that this one goes on from, oldest first.
        best: the state of the best epoch; empty without early stopping.
        lengths: epochs of the stages that have ended, where one has stopped early.

    Raises:
        ValueError: the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._tensors, metadata = read_tensors(path)
        except ValueError as error:
            raise ValueError(f"{error}; delete it, and the training begins anew") from error
        self._then = dict(metadata) if isinstance(metadata, dict) else {}
        self.recipe: int = self._then.get("recipe", 1)
        self.history: list[dict[str, float]] = self._then.get("history", [])
        self.parts: list[int] = list(self._then.get("parts", []))
        self.best = self._part("best.")
        self.lengths: list[int] = list(self._then.get("lengths", []))

    def check(self, run: dict[str, Any], patience: int | None = None) -> None:
        """Whether it is of a run, or of one that this run is longer than: adds to `parts` then.

        Args:
            run: the `identity` of the run that is to go on.
            patience: that ends its last stage early, if any does.

        Raises:
            ValueError: it is of another run; the message names what differs.
        """
        then = self._then
        # version 0.1 had one method, and its training one stage
        then.setdefault("method", DEFAULT)
        then.setdefault("recipe", 1)
        if len(run["stages"]) == 1:
            then.setdefault("stages", run["stages"])
        if isinstance(then.get("config"), dict):
            then["config"] = same_options(run["config"], then["config"])
        counts = [*self.lengths, *(n for _, n in then.get("stages", [])[len(self.lengths) :])]
        last = sum(counts[:-1]) + sum(self.parts)  # where the last part of the last stage begins
        done = self.history[last:]
        ended = sum(counts) == len(self.history) or stopped(done, patience)
        if _goes_further(run, then, ended):
            self.parts.append(len(done))
            then |= {"stages": run["stages"]}
            then["config"]["epochs"] = run["config"]["epochs"]
        differing = _differences(run, then)
        if differing:
            raise ValueError(
                f"{self._path} is the state of another training run ({'; '.join(differing)}); give "
                "the same options to go on with it, train into another folder (--out; --features "
                "takes the features of this one), or overwrite (--overwrite) to start anew"
            )

    def _part(self, prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self._tensors.items()
            if name.startswith(prefix)
        }

    def restore_head(self, head: Head, backbone: nn.Module | None = None) -> None:
        """Load the weights, the backbone's too where it trains; ValueError where they don't fit."""
        try:
            head.load_state_dict(self._part("head."))
        except RuntimeError as error:
            raise ValueError(f"{self._path} does not fit the head: {error}") from error
        if backbone is not None:
            try:
                backbone.load_state_dict(self._part("backbone."))
            except RuntimeError as error:
                raise ValueError(f"{self._path} does not fit the backbone: {error}") from error

    def restore_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Load what the optimiser of the interrupted stage kept."""
        saved = optimizer.state_dict()
        saved["state"] = {}
        for name, value in self._part("optimizer.").items():
            index, key = name.split(".")
            saved["state"].setdefault(int(index), {})[key] = value.clone()
        optimizer.load_state_dict(saved)
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                if value.shape == parameter.shape:  # the fused update goes through memory in order
                    state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)

    def restore_scaler(self, scaler: torch.amp.GradScaler) -> None:
        """Load what the loss's scaler had learned of the gradients' size."""
        if scaler.is_enabled():
            scaler.load_state_dict(self._then.get("scaler", {}))

    def restore_average(self, values: Sequence[Tensor]) -> None:
        """Load the averages of the interrupted stage; ValueError where they don't fit."""
        saved = self._part("average.")
        if [saved[n].shape for n in sorted(saved, key=int)] != [value.shape for value in values]:
            raise ValueError(f"{self._path} does not fit the head: other averages")
        for number, value in enumerate(values):
            value.copy_(saved[str(number)])


def _goes_further(now: dict[str, Any], then: dict[str, Any], ended: bool) -> bool:
    """Whether `now` is the same run, which has ended, with more epochs in its last stage."""
    stages, before = now["stages"], then.get("stages")
    return (
        ended
        and isinstance(before, list)
        and len(before) == len(stages)
        and before[:-1] == stages[:-1]
        and before[-1][0] == stages[-1][0]
        and before[-1][1] < stages[-1][1]
    )


def _differences(now: dict[str, Any], then: dict[str, Any]) -> list[str]:
    """What differs between two identities, nested entries by name."""
    differing = []
    for key, value in now.items():
        before = then.get(key)
        if before == value:
            continue
        if isinstance(value, dict) and isinstance(before, dict):
            differing += [
                f"{k} was {before.get(k)}, is {value.get(k)}"
                for k in {**before, **value}
                if before.get(k) != value.get(k)
            ]
        else:
            differing.append(f"other {key}")
    return differing
