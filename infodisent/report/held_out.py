"""Which of a run's held-out images a report shows."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from infodisent.backbones.backbone import evaluating
from infodisent.data.archives import is_there
from infodisent.data.store import FeatureStore
from infodisent.training.checkpoint import Checkpoint


@torch.no_grad()
def wrong_indices(
    loaded: Checkpoint,
    store: FeatureStore,
    indices: torch.Tensor,  # [n] int64
) -> torch.Tensor:
    """Those of the stored images that the model gets wrong; multi-label: in any label.

    An image on which it abstains is one of them, whatever its class.
    """
    head, wrong = loaded.model.head, [indices[:0]]
    with evaluating(head):
        for maps, labels, at in store.batches(indices, 256, dtype=None):
            pooled = head.pool(maps.to(head.device), input_fmt="NLC").pooled
            logits, silent = head.classify(pooled).cpu(), head.abstains(pooled)
            if labels.ndim == 2:
                wrong.append(at[((logits > 0) != (labels > 0.5)).any(1)])
            else:
                missed = logits.argmax(1) != labels
                wrong.append(at[missed if silent is None else missed | silent.cpu()])
    return torch.cat(wrong)


def balanced(labels: torch.Tensor, indices: torch.Tensor, seed: int) -> list[int]:
    """All the indices in an order whose first few, however many, are evenly from the classes.

    Of several labels the first counts.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = indices[torch.randperm(len(indices), generator=generator)]
    turns: dict[int, int] = {}
    keyed = []
    for i in shuffled.tolist():
        label = label_of(labels, i)
        turns[label] = turns.get(label, -1) + 1
        keyed.append((turns[label], label, i))
    return [i for _, _, i in sorted(keyed)]


def label_of(labels: torch.Tensor, i: int) -> int:
    """Class of an image; of several labels the first, 0 where it has none."""
    return int(labels[i].argmax() if labels.ndim == 2 else labels[i])


def existing(
    files: Sequence[str], ordered: Sequence[int], count: int
) -> tuple[list[int], list[int]]:
    """The first `count` whose files exist, and those passed over because theirs do not."""
    chosen: list[int] = []
    lost: list[int] = []
    for i in ordered:
        if len(chosen) == count:
            break
        (chosen if is_there(files[i]) else lost).append(i)
    return chosen, lost
