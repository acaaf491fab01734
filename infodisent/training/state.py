"""What a training run leaves after every epoch, so that a killed one goes on."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from infodisent.data.store import FeatureStore
from infodisent.files import read_tensors, write_tensors
from infodisent.methods import DEFAULT, Head

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Schedule = list[tuple[str, int]]
"""Name and epochs of every stage."""


def identity(
    head: Head,
    store: FeatureStore,
    train: Tensor,  # [n] int64
    config: DataclassInstance,
    schedule: Schedule,
) -> dict[str, Any]:
    """What a training run depends on; a state that differs in any of it is of another run."""
    return {
        "kind": "training",
        "config": dataclasses.asdict(config),
        "method": head.method,
        "head": head.options(),
        "stages": [list(stage) for stage in schedule],
        "features": store.meta["made_from"],
        "images": hashlib.sha256(train.numpy().tobytes()).hexdigest(),
    }


def save_state(
    path: Path,
    run: dict[str, Any],
    head: Head,
    optimizer: torch.optim.Optimizer,
    history: list[dict[str, float]],
) -> None:
    """Write weights, the current stage's optimiser and the history, at once or not at all."""
    tensors = {f"head.{name}": tensor for name, tensor in head.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in values.items()}
    write_tensors(path, tensors, {**run, "history": history})


class SavedState:
    """The state of an interrupted run.

    Args:
        path: a file that `save_state` wrote.
        run: the `identity` of the run that is to go on.

    Attributes:
        history: of the epochs that are done.

    Raises:
        ValueError: the file is damaged, or of another run; the message names what differs.
    """

    def __init__(self, path: Path, run: dict[str, Any]) -> None:
        self._path = path
        self._tensors, metadata = read_tensors(path)
        then = dict(metadata) if isinstance(metadata, dict) else {}
        # version 0.1 had one method, and its training one stage
        then.setdefault("method", DEFAULT)
        if len(run["stages"]) == 1:
            then.setdefault("stages", run["stages"])
        differing = _differences(run, then)
        if differing:
            raise ValueError(
                f"{path} is the state of another training run ({'; '.join(differing)}); give the "
                "same options to go on with it, or overwrite (--overwrite) to start anew"
            )
        self.history: list[dict[str, float]] = then["history"]

    def restore_head(self, head: Head) -> None:
        """Load the weights; ValueError where they do not fit."""
        weights = {
            name.removeprefix("head."): tensor
            for name, tensor in self._tensors.items()
            if name.startswith("head.")
        }
        try:
            head.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"{self._path} does not fit the head: {error}") from error

    def restore_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Load what the optimiser of the interrupted stage kept."""
        saved = optimizer.state_dict()
        saved["state"] = {}
        for name, value in self._tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                saved["state"].setdefault(int(index), {})[key] = value.clone()
        optimizer.load_state_dict(saved)


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
