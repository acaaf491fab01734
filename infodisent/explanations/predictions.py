"""Predictions of many images: class, probability, logit, and how long an explanation would be."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from infodisent import ranks
from infodisent.backbones.backbone import evaluating
from infodisent.backbones.preprocess import transform_config, transform_from
from infodisent.classifier import InfoDisentClassifier
from infodisent.data.images import ImageDataset, collate
from infodisent.data.notices import print_notes
from infodisent.data.pictures import ImageSource
from infodisent.explanations.request import Loaded, taken_apart
from infodisent.explanations.sparsity import exact, explanation_sizes
from infodisent.progress import bar

THRESHOLD = 0.5
"""Probability from which a label of a multi-label model counts as present."""


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image, or why it cannot say anything.

    Attributes:
        path: of the image; "" where it came from memory.
        true_name: the image's own class; None where it is not known.
        probabilities: of all K classes; None for an image that could not be read.
        logit: of the most probable class.
        top: the most probable classes, at most three, with their probabilities.
        labels: of a multi-label model: those with a probability of at least `THRESHOLD`.
        explanation_size: how many units carry 95 % of the score (the logit, or what
            `Head.scores` says) without its offset; None where it is not positive.
        abstained: the model says no class, see `Head.abstains`; `top` then has no meaning.
        error: why the image could not be read; "" where it could.
    """

    path: str
    true_name: str | None = None
    probabilities: tuple[float, ...] | None = None
    logit: float | None = None
    top: tuple[tuple[str, float], ...] = ()
    labels: tuple[str, ...] = ()
    explanation_size: int | None = None
    abstained: bool = False
    error: str = ""

    @property
    def predicted(self) -> str | None:
        """The most probable class; None for an image that could not be read, or an abstention."""
        return self.top[0][0] if self.top and not self.abstained else None

    @property
    def correct(self) -> bool | None:
        """Whether `predicted` is the image's own class; None where one of them is not known."""
        return (
            None if None in (self.predicted, self.true_name) else self.predicted == self.true_name
        )


def predict_images(
    model: InfoDisentClassifier | Loaded,
    paths: Sequence[ImageSource],
    *,
    classes: Sequence[str] | None = None,
    true_names: Sequence[str | None] | None = None,
    task: str | None = None,
    transform: dict[str, Any] | None = None,
    intensity_range: tuple[float, float] | None = None,
    page: int | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    progress: bool = True,
) -> list[Prediction]:
    """Predict images in batches; those that cannot be read come back with the reason.

    Several processes (`infodisent.ranks`) predict every so-and-so-many-th image each, and all get
    the whole list.

    Args:
        model: from `infodisent.attach`, or what `infodisent.load` returns, which lends its classes,
            transform and task; runs in evaluation mode, on its device.
        paths: of the images, or images in memory, see `infodisent.data.pictures.load_picture`; or
            one tensor or array of several.
        classes: K class names; default "0", "1", …
        true_names: the images' own classes, as many as paths, None where one is not known.
        task: "multiclass" (softmax, the default) or "multilabel" (a sigmoid each, as for a single
            class).
        transform: configuration of the evaluation transform; keys that it lacks are the model's.
        intensity_range, page: how files are read, see `infodisent.data.pictures.load_picture`.
        batch_size: images per forward pass.
        num_workers: decoding processes; 0 decodes in this one.
        progress: show a progress bar.

    Returns:
        As many predictions as paths, in their order.

    Raises:
        ValueError: an argument of another length or out of range, or logits that are not finite.
    """
    if batch_size < 1:
        raise ValueError(f"predict: batch_size is {batch_size}, must be >= 1")
    classifier, classes, transform, task = taken_apart(model, classes, transform, task)
    count = classifier.num_classes
    names = tuple(classes) if classes is not None else tuple(map(str, range(count)))
    true = tuple(true_names) if true_names is not None else (None,) * len(paths)
    for what, given, needed in (
        ("class names", len(names), count),
        ("true_names", len(true), len(paths)),
    ):
        if given != needed:
            raise ValueError(f"predict: {given} {what} were given, {needed} are needed")
    task = "multilabel" if len(names) == 1 else task or "multiclass"
    config = {**transform_config(classifier), **(transform or {})}
    asked = {"intensity_range": intensity_range, "page": page}
    config |= {name: value for name, value in asked.items() if value is not None}
    decode: Callable[[Image.Image], Any] = transform_from(config)
    own = ranks.share(range(len(paths)))
    loader: Any = DataLoader(
        ImageDataset([paths[i] for i in own], decode, config),
        batch_size,
        num_workers=num_workers,
        collate_fn=collate,
    )
    counts: Counter[str] = Counter()
    rows: dict[int, Prediction] = {}
    skipped = 0
    with bar(progress) as display, evaluating(classifier), torch.no_grad():
        display_task = display.add_task("predict", total=len(own), note="")
        for good, batch, bad, notes in loader:
            counts.update(notes)
            if batch is not None:
                made = _predict_batch(classifier, batch, names, task)
                for at, fields in zip(good, made, strict=True):
                    rows[own[at]] = Prediction(_path(paths[own[at]]), true[own[at]], **fields)
            for at, reason in bad:
                path = _path(paths[own[at]])
                rows[own[at]] = Prediction(path, true[own[at]], error=reason)
            skipped += len(bad)
            note = f"{skipped} unreadable" if skipped else ""
            display.update(display_task, advance=len(good) + len(bad), note=note)
    counts = sum(ranks.everyones(counts), start=Counter())
    if progress:
        print_notes(counts)
    every = {i: row for part in ranks.everyones(rows) for i, row in part.items()}
    return [every[i] for i in range(len(paths))]


def _path(source: ImageSource) -> str:
    return os.fsdecode(source) if isinstance(source, (str, os.PathLike)) else ""


def _predict_batch(
    model: InfoDisentClassifier,
    batch: Tensor,  # [n, channels, H, W]
    names: tuple[str, ...],
    task: str,
) -> list[dict[str, Any]]:
    """The fields of a `Prediction` that follow from the pixels, an image each."""
    head, like = model.head, next(model.parameters())
    features = model.forward_features(batch.to(like.device, like.dtype))
    logits = model.forward_head(features).float().cpu()  # [n, K]
    if not torch.isfinite(logits).all():
        raise ValueError("predict: the model's logits are not finite; check its weights")
    pooled = exact(head.pool(features).pooled)  # [n, M]
    best = logits.argmax(1)
    scores = head.scores(logits.to(head.device)).cpu()
    sizes = explanation_sizes(head.contributions(pooled, best))
    silent = head.abstains(pooled)
    chances = head.probabilities(logits, task == "multilabel")
    top = chances.topk(min(3, len(names)), dim=1)
    return [
        {
            "probabilities": tuple(chances[i].tolist()),
            "logit": float(logits[i, best[i]]),
            "top": tuple(
                (names[k], p)
                for k, p in zip(top.indices[i].tolist(), top.values[i].tolist(), strict=True)
            ),
            "labels": tuple(n for n, p in zip(names, chances[i].tolist(), strict=True)
                            if p >= THRESHOLD) if task == "multilabel" else (),
            "abstained": silent is not None and bool(silent[i]),
            "explanation_size": int(sizes[i]) if sizes[i] and scores[i, best[i]] > 0 else None,
        }
        for i in range(len(logits))
    ]  # fmt: skip


@dataclass(frozen=True)
class Accuracy:
    """How often predictions are right, of the images whose class is known.

    Attributes:
        images: how many those are.
        accuracy: part of them.
        balanced: its mean over their classes.
    """

    images: int
    accuracy: float
    balanced: float


def accuracy_of(predictions: Sequence[Prediction]) -> Accuracy | None:
    """Accuracy over the images that were read and whose class is known; None without any.

    As in `infodisent.evaluation.accuracy`, an image on which the model abstains counts as the first
    of its equal classes.
    """
    by_class: dict[str, list[bool]] = {}
    for prediction in predictions:
        true = prediction.true_name
        if prediction.top and true is not None:
            by_class.setdefault(true, []).append(prediction.top[0][0] == true)
    if not by_class:
        return None
    count = sum(map(len, by_class.values()))
    return Accuracy(
        count,
        sum(map(sum, by_class.values())) / count,
        sum(sum(right) / len(right) for right in by_class.values()) / len(by_class),
    )
