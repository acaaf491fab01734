"""Train a head from stored features: resumable, repeatable, the same on every run of a seed."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from infodisent import ops
from infodisent.data.features import FeatureStore
from infodisent.evaluation.accuracy import pool_features
from infodisent.files import read_tensors, write_tensors
from infodisent.methods.infodisent import InfoDisentHead
from infodisent.nn import NonNegativeLinear
from infodisent.progress import bar


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
    channels: int, classes: int, seed: int, like: InfoDisentHead | None = None, **options: Any
) -> InfoDisentHead:
    """A head whose initial weights depend on `seed` alone; `like` lends its layout."""
    layout: dict[str, Any] = {}
    if like is not None:
        layout = {"input_fmt": like.input_fmt, "num_prefix_tokens": like.num_prefix_tokens}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return InfoDisentHead(channels, classes, **layout, **options)


def fit_head(
    head: InfoDisentHead,
    store: FeatureStore,
    config: FitConfig | None = None,
    *,
    train: Tensor | None = None,
    state: str | os.PathLike[str] | None = None,
    progress: bool = True,
    label: str = "train head",
) -> list[dict[str, float]]:
    """Minimise cross-entropy + the L1 penalty over the stored training images, in place.

    Args:
        head: its initial weights are used, see `new_head`; trained on the device it is on.
        store: features; maps are read batch by batch, never all at once.
        config: default `FitConfig()`.
        train: positions of the training images; default: the store's "train" split.
        state: a file for the state after every epoch. If it exists, training goes on from it and
            ends exactly where an uninterrupted run ends; a state of other options is refused.
        progress: show a progress bar.
        label: what the bar calls the work.

    Returns:
        Per epoch ``{"loss": mean objective, "accuracy": on the training batches}``.

    Raises:
        ValueError: the head does not fit the store, there are no training images, the loss is not
            finite, or `state` belongs to another run.
    """
    config = config or FitConfig()
    fc = head.fc
    if not isinstance(fc, NonNegativeLinear) or fc.out_features != len(store.classes):
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
    groups = [{"params": list(fc.parameters()), "lr": config.lr}]
    if head.rotation is not None:
        groups.append({"params": list(head.rotation.parameters()), "lr": config.rotation_lr})
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    peaks = [group["lr"] for group in optimizer.param_groups]
    identity = _identity(head, store, train, config)
    history: list[dict[str, float]] = []
    if state is not None and Path(state).is_file():
        history = _restore(Path(state), identity, head, optimizer)
    penalty = config.l1 * _feature_scale(store, train) / fc.out_features
    pooled = None
    if head.rotation is None:  # the pooled features never change: compute them once
        pooled = torch.empty(len(store), store.channels)
        pooled[train] = pool_features(head, store, train)
    device = fc.weight.device
    with bar(progress) as display, torch.random.fork_rng(devices=[]):
        task = display.add_task(
            label, total=epochs * steps, completed=len(history) * steps, note=""
        )
        for epoch in range(len(history), epochs):
            # every epoch has its own seed, so that a resumed run needs no generator's state
            torch.manual_seed(config.seed * 100_003 + epoch)
            order = train[torch.randperm(len(train))]
            head.train()
            total = correct = 0.0
            for step, batch in enumerate(order.split(config.batch_size)):
                done = (epoch * steps + step) / (epochs * steps)
                for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                    group["lr"] = peak * 0.5 * (1 + math.cos(math.pi * done))
                labels = store.labels[batch].to(device)
                if pooled is not None:
                    logits = fc(head.drop(pooled[batch].to(device)))
                else:
                    logits = head(store.gather(batch).to(device), input_fmt="NLC")
                loss = nn.functional.cross_entropy(
                    logits, labels, label_smoothing=config.label_smoothing
                )
                if penalty:
                    loss = loss + penalty * fc.effective_weight().sum()
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                fc.project_()
                total += loss.item() * len(batch)
                correct += (logits.argmax(1) == labels).sum().item()
                note = f"epoch {epoch + 1}/{epochs} loss {loss.item():.3f}"
                display.update(task, advance=1, note=note)
            if not math.isfinite(total):
                raise ValueError(
                    f"fit_head: the loss is {total} in epoch {epoch + 1}; lower lr "
                    f"({config.lr}) or rotation_lr ({config.rotation_lr})"
                )
            history.append({"loss": total / len(train), "accuracy": correct / len(train)})
            if state is not None:
                _store_state(Path(state), identity, head, optimizer, history)
    head.eval()
    return history


@torch.no_grad()
def _feature_scale(store: FeatureStore, train: Tensor, sample: int = 2048) -> float:
    """Mean over channels and images (evenly spaced ones) of the max-pooled map."""
    some = train[:: max(1, len(train) // sample)]
    pos = [ops.mx_pool(x, input_fmt="NLC").pos for x, _, _ in store.batches(some, 256)]
    return torch.cat(pos).mean().item()


def _identity(
    head: InfoDisentHead, store: FeatureStore, train: Tensor, config: FitConfig
) -> dict[str, Any]:
    return {
        "kind": "training",
        "config": dataclasses.asdict(config),
        "head": head.options(),
        "features": store.meta["made_from"],
        "images": hashlib.sha256(train.numpy().tobytes()).hexdigest(),
    }


def _store_state(
    path: Path,
    identity: dict[str, Any],
    head: InfoDisentHead,
    optimizer: torch.optim.Optimizer,
    history: list[dict[str, float]],
) -> None:
    tensors = {f"head.{name}": tensor for name, tensor in head.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in values.items()}
    write_tensors(path, tensors, {**identity, "history": history})


def _differences(now: dict[str, Any], then: dict[str, Any]) -> list[str]:
    """What differs between two identities, nested entries by name."""
    found = []
    for key, value in now.items():
        before = then.get(key)
        if before == value:
            continue
        if isinstance(value, dict) and isinstance(before, dict):
            found += [
                f"{k} was {before.get(k)}, is {value.get(k)}"
                for k in {**before, **value}
                if before.get(k) != value.get(k)
            ]
        else:
            found.append(f"other {key}")
    return found


def _restore(
    path: Path,
    identity: dict[str, Any],
    head: InfoDisentHead,
    optimizer: torch.optim.Optimizer,
) -> list[dict[str, float]]:
    tensors, metadata = read_tensors(path)
    differing = _differences(identity, metadata if isinstance(metadata, dict) else {})
    if differing:
        raise ValueError(
            f"{path} is the state of another training run ({'; '.join(differing)}); give the same "
            "options to go on with it, or overwrite (--overwrite) to start anew"
        )
    try:
        head.load_state_dict(
            {k.removeprefix("head."): v for k, v in tensors.items() if k.startswith("head.")}
        )
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the head: {error}") from error
    saved = optimizer.state_dict()
    saved["state"] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            saved["state"].setdefault(int(index), {})[key] = value.clone()
    optimizer.load_state_dict(saved)
    history: list[dict[str, float]] = metadata["history"]
    return history
