"""Accuracy and explanation size of a head, and the two yardsticks beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from infodisent.backbones.torchvision_import import ensure_torchvision
from infodisent.data.features import FeatureStore
from infodisent.methods.infodisent import InfoDisentHead
from infodisent.nn import NonNegativeLinear

CARRIED = 0.95
"""Part of the predicted class's logit that the counted channels carry together."""


@dataclass(frozen=True)
class Evaluation:
    """Figures on one set of images.

    Attributes:
        images: how many.
        accuracy, balanced_accuracy, f1: top-1, its mean over the classes that have images, and the
            mean of their F1; all in [0, 1].
        loss: mean cross-entropy, nats.
        explanation_size: median number of channels, largest contributions first, that carry 95 % of
            the predicted class's logit (without bias); None where it is not defined.
        explained: part of the images whose logit is positive, where that number exists.
    """

    images: int
    accuracy: float
    balanced_accuracy: float
    f1: float
    loss: float
    explanation_size: float | None = None
    explained: float | None = None

    def as_dict(self) -> dict[str, float | int | None]:
        """All fields, JSON-able."""
        return asdict(self)


def score(logits: Tensor, labels: Tensor) -> Evaluation:
    """Figures of given logits ``[n, K]`` against labels ``[n]``.

    Raises:
        ValueError: no images.
    """
    if not len(labels):
        raise ValueError("evaluate: there are no images to score")
    ensure_torchvision()  # torchmetrics imports torchvision where it is installed
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

    if not torch.isfinite(logits).all():
        raise ValueError("evaluate: the logits hold NaN or Inf; check the weights")
    classes = logits.shape[1]
    present = labels.bincount(minlength=classes) > 0
    return Evaluation(
        images=len(labels),
        accuracy=(logits.argmax(1) == labels).float().mean().item(),
        balanced_accuracy=multiclass_accuracy(logits, labels, classes, average=None)[present]
        .mean()
        .item(),
        f1=multiclass_f1_score(logits, labels, classes, average=None)[present].mean().item(),
        loss=nn.functional.cross_entropy(logits, labels).item(),
    )


def explanation_sizes(contributions: Tensor) -> Tensor:
    """How many channels carry 95 % of a logit.

    Args:
        contributions: ``W[k] * pooled[b]`` of the predicted class, ``[n, C]``.

    Returns:
        ``[n]`` int64, the smallest number of channels, largest first, whose sum is at least 95 % of
        the whole; 0 where the whole is not positive and the number does not exist.
    """
    total = contributions.sum(1, keepdim=True)
    running = contributions.sort(dim=1, descending=True).values.cumsum(1)
    enough = running >= CARRIED * total - 1e-6 * total.abs()
    first = enough.to(torch.uint8).argmax(1) + 1
    return torch.where(total.squeeze(1) > 0, first, 0)


@torch.no_grad()
def pool_features(
    head: InfoDisentHead, store: FeatureStore, indices: Tensor, batch_size: int = 256
) -> Tensor:
    """The pooled features of stored images, ``[n, C]`` float32, in the order of `indices`."""
    head.eval()
    parts = [store_pool(head, maps) for maps, _, _ in store.batches(indices, batch_size)]
    return torch.cat(parts) if parts else torch.empty(0, store.channels)


def store_pool(head: InfoDisentHead, maps: Tensor) -> Tensor:
    """Pool stored maps ``[n, P, C]``, whatever layout the head has in its model: ``[n, C]``."""
    where = next(head.parameters()).device
    return head.pool(maps.to(where), input_fmt="NLC").pooled.cpu()


@torch.no_grad()
def evaluate_pooled(head: InfoDisentHead, pooled: Tensor, labels: Tensor) -> Evaluation:
    """Figures of a head on pooled features ``[n, C]``."""
    fc = head.fc
    assert isinstance(fc, NonNegativeLinear)
    weight = fc.effective_weight().float().cpu()
    logits = pooled @ weight.T
    if fc.bias is not None:
        logits = logits + fc.bias.float().cpu()
    base = score(logits, labels)
    sizes = torch.cat(
        [
            explanation_sizes(weight[part_logits.argmax(1)] * part)
            for part, part_logits in zip(pooled.split(1024), logits.split(1024), strict=True)
        ]
    )
    defined = sizes[sizes > 0]
    return Evaluation(
        **{
            **asdict(base),
            "explanation_size": defined.float().median().item() if len(defined) else None,
            "explained": len(defined) / len(sizes),
        }
    )


def evaluate_head(
    head: InfoDisentHead, store: FeatureStore, indices: Tensor, batch_size: int = 256
) -> Evaluation:
    """Figures of a head on stored images."""
    return evaluate_pooled(
        head, pool_features(head, store, indices, batch_size), store.labels[indices]
    )


def linear_probe(
    store: FeatureStore, train: Tensor, test: Tensor, *, weight_decay: float = 0.1
) -> Evaluation:
    """Logistic regression on the average-pooled map, the usual uninterpretable head.

    Standardised features, L2 penalty ``weight_decay / 2 · |W|^2``, full-batch L-BFGS.
    """
    if len(train) < 2:
        raise ValueError(f"linear_probe: {len(train)} training image(s), at least 2 are needed")
    average = store.average()
    mean, std = average[train].mean(0), average[train].std(0) + 1e-6
    x, y = (average[train] - mean) / std, store.labels[train]
    layer = nn.Linear(store.channels, len(store.classes))
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(
        layer.parameters(), max_iter=300, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(layer(x), y)
        loss = loss + weight_decay / 2 * layer.weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    with torch.no_grad():
        return score(layer((average[test] - mean) / std), store.labels[test])


def original_head(store: FeatureStore, indices: Tensor) -> Evaluation | None:
    """The original head's figures, or None where it does not know these classes.

    It counts among all the classes it knows: a dog that it calls a wolf is wrong even if "wolf" is
    not in the data.
    """
    if store.original_logits is None:
        return None
    known = match_classes(store.classes, store.original_logits.shape[1])
    if known is None:
        return None
    return score(store.original_logits[indices], torch.tensor(known)[store.labels[indices]])


def match_classes(classes: Sequence[str], original: int) -> list[int] | None:
    """Index of every class in an original head of `original` classes; None if that is unknown.

    Folder names that start with a WordNet id ("n02086240", "n02086240_shih_tzu") are looked up in
    timm's class lists of that size; a folder for every class, none of them a WordNet id, is taken
    to be in order.
    """
    ids = [m.group(0) if (m := re.match(r"n\d{8}(?=$|\W|_)", name)) else None for name in classes]
    if all(ids):
        ensure_torchvision()
        from timm.data import ImageNetInfo

        subset = {1000: "imagenet-1k", 21841: "imagenet-22k", 11821: "imagenet-12k"}.get(original)
        if subset is None:
            return None
        index = {name: i for i, name in enumerate(ImageNetInfo(subset).label_names())}
        return [index[i] for i in ids] if all(i in index for i in ids) else None  # type: ignore[index]
    return list(range(original)) if len(classes) == original and not any(ids) else None
