"""A part of the training images that scores every epoch, and when to stop."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from infodisent import ranks
from infodisent.data.store import FeatureStore
from infodisent.methods import Head
from infodisent.training.objective import Objective

LOSS = "validation_loss"
"""Key of a history's entries: the loss on the validation images, without the penalty."""


def split_validation(
    store: FeatureStore,
    train: Tensor,  # [n] int64
    part: float,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Divide training images into those that train and those that validate.

    Every class (multi-label: every label, and the images without any) gives about the same part and
    keeps at least one image, or group, to train on. Images of a group stay together.

    Args:
        store: has the labels and groups.
        train: positions of the training images.
        part: of them that validates, in (0, 1).
        seed: of the choice.

    Returns:
        Positions that train and that validate, each in the order of `train`.

    Raises:
        ValueError: too few images, or groups, to hold any out.
    """
    labels = store.labels[train]
    if labels.ndim == 2:
        rows = torch.cat([labels, (labels.sum(1, keepdim=True) == 0).float()], 1).numpy()
    else:
        rows = torch.nn.functional.one_hot(labels, len(store.classes)).numpy().astype(np.float32)
    names = [store.groups[i] for i in train.tolist()]
    units = _units(names)
    counts = np.stack([rows[unit].sum(0) for unit in units])  # [units, K]
    total = counts.sum(0)
    # a class of one image keeps it; any other gives at least one
    wanted = np.where(total > 1, np.maximum(1, np.round(total * part)), 0)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(units), generator=generator).tolist()
    order.sort(key=lambda i: -len(units[i]))  # small groups fill what large ones leave
    held, have = [], np.zeros_like(total)
    scale = np.maximum(wanted, 1)
    for i in order:
        after = have + counts[i]
        nearer = (
            np.square((after - wanted) / scale).sum() < np.square((have - wanted) / scale).sum()
        )
        if nearer and not (after[counts[i] > 0] >= total[counts[i] > 0]).any():
            held.append(i)
            have = after
    if not held:
        what = "groups" if any(names) else "images"
        raise ValueError(
            f"fit_head: validation is {part}, but of {len(units)} training {what} none can be held "
            "out without losing a class; set validation=0"
        )
    validates = torch.zeros(len(train), dtype=torch.bool)
    for i in held:
        validates[units[i]] = True
    return train[~validates], train[validates]


def _units(names: Sequence[str]) -> list[list[int]]:
    """Positions that belong together: of a group all, of no group ("") each alone."""
    of: dict[object, list[int]] = {}
    for i, name in enumerate(names):
        of.setdefault(name or i, []).append(i)
    return list(of.values())


@torch.no_grad()
def validate(
    head: Head,
    store: FeatureStore,
    images: Tensor,  # [n] int64
    objective: Objective,
    units: Tensor | None,  # [n, M], where the pool is fixed
    batch_size: int = 256,
) -> dict[str, float]:
    """Loss, accuracy and balanced accuracy; multi-label, of labels: their part that is right, and
    the mean over labels of how many of its positives and negatives are."""
    head.eval()
    loss = right = 0.0
    columns = len(store.classes)
    hits, seen = torch.zeros(2, columns), torch.zeros(2, columns)
    parts = torch.arange(len(images)).split(batch_size * ranks.world())
    own = [images[ranks.piece(at)] for at in parts] if units is None else []
    read = store.read(own, head.device)
    for at in parts:
        labels = store.labels[images[at]]
        if units is None:
            pooled = ranks.gathered(head.pool(next(read), input_fmt="NLC").pooled, len(at))
        else:
            pooled = units[at].to(head.device)
        logits = head.classify(pooled).float().cpu()
        loss += objective(logits, labels).item() * len(at)
        right += objective.right(logits, labels).item()
        if objective.multilabel:
            for side, present in enumerate((labels > 0.5, labels <= 0.5)):
                seen[side] += present.sum(0)
                hits[side] += (present & ((logits > 0) == (labels > 0.5))).sum(0)
        else:
            seen[0] += labels.bincount(minlength=columns)
            hits[0] += labels[logits.argmax(1) == labels].bincount(minlength=columns)
    recall = hits[seen > 0] / seen[seen > 0]
    return {
        LOSS: loss / len(images),
        "validation_accuracy": right / len(images),
        "validation_balanced_accuracy": recall.mean().item(),
    }


def best_epoch(history: Sequence[dict[str, float]]) -> int:
    """Index of the first entry with the lowest validation loss."""
    return min(range(len(history)), key=lambda i: history[i][LOSS])


def stopped(history: Sequence[dict[str, float]], patience: int | None) -> bool:
    """Whether the validation loss has not been lower for `patience` epochs."""
    return (
        patience is not None
        and len(history) > patience
        and len(history) - 1 - best_epoch(history) >= patience
    )
