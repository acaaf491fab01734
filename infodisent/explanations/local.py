"""Why an image got its class: the units that count, where they look, and a sum that adds up.

A head says what each of its units (channels, prototypes) contributes to a class, and the logit, or
what the head says instead (`Head.scores`), is their sum (and the bias). Whatever part an
explanation shows, the rest is stated, and the whole is checked against the model's own score.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from infodisent.backbones.backbone import evaluating
from infodisent.backbones.geometry import Box, CropGeometry, crop_geometry
from infodisent.backbones.preprocess import to_picture, transform_from
from infodisent.classifier import InfoDisentClassifier
from infodisent.contract import SparsePool
from infodisent.data.notes import crop_note
from infodisent.data.notices import print_notes
from infodisent.data.pictures import ImageSource, Picture, load_picture
from infodisent.explanations.decisions import path_evidence
from infodisent.explanations.evidence import (
    TOLERANCE,
    ChannelEvidence,
    Explanation,
    cell_box,
)
from infodisent.explanations.posthoc import at_cells
from infodisent.explanations.ready import check_one_size, ready_tensor
from infodisent.explanations.request import Loaded, Request, make_request
from infodisent.explanations.sparsity import exact, explanation_sizes, magnitude_sizes
from infodisent.layout import to_bpc
from infodisent.progress import bar

__all__ = [
    "TOLERANCE",
    "Box",
    "ChannelEvidence",
    "Explanation",
    "ImageSource",
    "cell_box",
    "explain",
    "explain_many",
]

ABSTAINS = "the model abstains: no {} that counts is found in the image, so no class is supported"
_BATCH = 16
"""Images per backbone pass."""


def explain(
    model: InfoDisentClassifier | Loaded,
    image: ImageSource,
    *,
    classes: Sequence[str] | None = None,
    class_index: int | None = None,
    class_name: str | None = None,
    top: int = 4,
    top_opposing: int = 2,
    transform: dict[str, Any] | None = None,
    true_name: str | None = None,
    task: str | None = None,
    intensity_range: tuple[float, float] | None = None,
    page: int | None = None,
    ready: bool = False,
) -> Explanation:
    """Explain a prediction.

    Args:
        model: from `infodisent.attach` or `infodisent.load`; runs in evaluation mode, on its
            device. What `load` returns lends its classes, transform and task.
        image: a path, PIL image, array, tensor, bytes or open file, see
            `infodisent.data.pictures.load_picture`.
        classes: K class names; default "0", "1", …
        class_index, class_name: class to explain, by its position or its name; default: the
            predicted one (the most probable label).
        top, top_opposing: at most so many units with the largest positive and the largest
            negative contributions are shown; units that contribute 0 never are.
        transform: configuration of the evaluation transform, as a checkpoint holds it; keys that it
            lacks are the model's own.
        true_name: the image's own class, if known; only handed on.
        task: "multiclass", or "multilabel", which gives every label a probability of its own.
        intensity_range: ``(low, high)`` shown as black and white where pixels are not 8-bit.
        page: of a multi-page file, from 0.
        ready: the image is a tensor or array ``[C, H, W]`` or ``[1, C, H, W]`` as the backbone is
            fed, such as a data loader gives: already resized and normalised by `transform`.

    Raises:
        FileNotFoundError, ValueError: the image is missing or cannot be decoded.
        TypeError: the image is no image, such as a list, or `model` no model.
        ValueError: an argument is out of range, or the logits are not finite.
        RuntimeError: the contributions do not add up to the model's own score.
    """
    request = make_request(
        model, classes, class_index, top, top_opposing, transform, task, intensity_range, page,
        class_name=class_name, ready=ready,
    )  # fmt: skip
    return _explain_pictures(request, [_read(request, image)], [true_name])[0]


def explain_many(
    model: InfoDisentClassifier | Loaded,
    images: Sequence[ImageSource],
    *,
    classes: Sequence[str] | None = None,
    class_index: int | None = None,
    class_name: str | None = None,
    top: int = 4,
    top_opposing: int = 2,
    transform: dict[str, Any] | None = None,
    true_names: Sequence[str | None] | None = None,
    on_error: Callable[[ImageSource, Exception], None] | None = None,
    progress: bool = True,
    task: str | None = None,
    intensity_range: tuple[float, float] | None = None,
    page: int | None = None,
    ready: bool = False,
    on_features: Callable[[Explanation, Tensor], None] | None = None,
) -> list[Explanation]:
    """`explain` for every image, each decoded once, several a backbone pass, with a progress bar.

    Args:
        model, classes, class_index, class_name, top, top_opposing, transform, task,
            intensity_range, page, ready: see `explain`.
        images: a list of what `explain` takes, or one tensor or array of several.
        true_names: the images' own classes, as many as images.
        on_error: called with an image that is missing or cannot be decoded and the error, and the
            image is left out of the result; by default the error is raised.
        progress: show the bar.
        on_features: called with every explanation and the feature map ``[1, ...]`` that it is of,
            in the head's own layout, for those who want more of it than an explanation holds.

    Raises:
        TypeError: `images` is one image instead of several.
        ValueError: `true_names` has another length; otherwise as `explain`.
    """
    one = isinstance(images, (str, bytes, bytearray, memoryview)) or hasattr(images, "read")
    if one or not hasattr(images, "__iter__") or getattr(images, "ndim", 4) < 4:
        raise TypeError(
            f"explain_many: images is a {type(images).__name__}, must be a list of images; explain "
            "takes one"
        )
    images = list(images)
    true = [None] * len(images) if true_names is None else list(true_names)
    if len(true) != len(images):
        raise ValueError(
            f"explain_many: {len(true)} true_names were given for {len(images)} images"
        )
    request = make_request(
        model, classes, class_index, top, top_opposing, transform, task, intensity_range, page,
        class_name=class_name, ready=ready,
    )  # fmt: skip
    explanations: list[Explanation] = []
    counts: Counter[str] = Counter()
    with bar(progress) as display:
        shown = display.add_task("explain", total=len(images), note="")
        for start in range(0, len(images), _BATCH):
            chunk = range(start, min(start + _BATCH, len(images)))
            pictures, names = [], []
            for i in chunk:
                try:
                    pictures.append(_read(request, images[i]))
                    names.append(true[i])
                except (FileNotFoundError, ValueError) as error:
                    if on_error is None:
                        raise
                    on_error(images[i], error)
            if pictures:
                explanations += _explain_pictures(request, pictures, names, counts, on_features)
            display.update(shown, advance=len(chunk))
    if progress:
        print_notes(counts)
    return explanations


class _Seen(NamedTuple):
    """An image as it was read, as the backbone is fed, and how the one lies in the other."""

    picture: Picture
    x: Tensor  # [C, H, W]
    geometry: CropGeometry
    read_again: Callable[[], Image.Image] | None


def _read(request: Request, source: ImageSource) -> _Seen:
    config = request.config
    if request.ready:
        x = ready_tensor(source, config["input_size"][0])
        shown = to_picture(x, config)
        return _Seen(Picture(shown), x, CropGeometry.identity(shown.size), None)
    picture = load_picture(source, **request.options)
    # a stream is read once and a PIL image may be closed; all else is read again from where it is
    again = (
        functools.partial(_photograph, picture)
        if hasattr(source, "read") or isinstance(source, Image.Image)
        else functools.partial(_photograph, source, **request.options)
    )
    geometry = crop_geometry(config, picture.image.size)
    return _Seen(picture, transform_from(config)(picture.image), geometry, again)


def _photograph(source: ImageSource | Picture, **options: Any) -> Image.Image:
    picture = source if isinstance(source, Picture) else load_picture(source, **options)
    return picture.image


def _explain_pictures(
    request: Request,
    pictures: Sequence[_Seen],
    true_names: Sequence[str | None],
    counts: Counter[str] | None = None,
    on_features: Callable[[Explanation, Tensor], None] | None = None,
) -> list[Explanation]:
    """One backbone pass for all pictures, then each by itself; `counts` are kinds of notes."""
    model, config = request.model, request.config
    check_one_size([seen.x for seen in pictures])
    x = torch.stack([seen.x for seen in pictures])  # [n, C, H, W]
    like = next(model.parameters())
    explanations = []
    with evaluating(model), torch.no_grad():
        features = model.forward_features(x.to(like.device, like.dtype))
        for i, (seen, true_name) in enumerate(zip(pictures, true_names, strict=True)):
            picture, geometry = seen.picture, seen.geometry
            notes = (*picture.notes, *crop_note(geometry))
            if counts is not None:
                counts.update(note.kind for note in notes)
            fields = _explain(request, features[i : i + 1], geometry)
            explanations.append(
                Explanation(
                    path=picture.path,
                    picture=to_picture(x[i], config),
                    class_name=request.names[fields["class_index"]],
                    true_name=true_name,
                    classes=request.names,
                    unit=model.head.unit,
                    score=model.head.score,
                    offset=model.head.offset,
                    task=request.task,
                    image_size=picture.image.size,
                    crop_in_image=geometry.window,
                    geometry=geometry,
                    read_photograph=seen.read_again,
                    notes=(
                        *(note.text for note in notes),
                        *([ABSTAINS.format(model.head.unit)] if fields["abstained"] else []),
                    ),
                    **fields,
                )
            )
            if on_features is not None:
                on_features(explanations[-1], features[i : i + 1])
    return explanations


def _explain(
    request: Request,
    features: Tensor,  # a map [1, ...]
    geometry: CropGeometry,
) -> dict[str, Any]:
    """The fields of an `Explanation` that follow from the map of one image alone."""
    model, class_index = request.model, request.class_index
    head, size = model.head, geometry.input_size
    raw_logits = model.forward_head(features)[0]  # [K], what the user gets
    logits = raw_logits.float().cpu()
    if not torch.isfinite(logits).all():
        raise ValueError("explain: the model's logits are not finite; check its weights")
    target = torch.tensor([int(logits.argmax()) if class_index is None else class_index])
    scores = head.scores(raw_logits[None])[0].float().cpu()
    pool = head.pool(features)
    pooled = exact(pool.pooled)
    contribution = head.contributions(pooled, target)[0]  # [M]
    bias = float(head.offsets(target)[0])

    order = contribution.argsort(descending=True, stable=True)
    positive = order[contribution[order] > 0][: request.top]
    order = contribution.argsort(stable=True)
    negative = order[contribution[order] < 0][: request.top_opposing]
    shown = torch.cat([positive, negative])
    hidden = torch.ones_like(contribution, dtype=torch.bool)
    hidden[shown] = False

    grid = model.grid_size((size[1], size[0]))
    pixels = to_bpc(features, head.input_fmt, head.num_prefix_tokens)[0]  # [P, C]
    weight = exact(head.class_weights()[int(target)])  # [M]

    def evidence_of(units: Tensor, added: Tensor) -> list[ChannelEvidence]:
        if not len(units):
            return []
        heats = head.maps(pixels, units).unflatten(0, grid).cpu()  # [gh, gw, n]
        return _evidence(units, weight, pool, added, heats, geometry)

    cells = at_cells(pool, contribution[None].to(pool.pooled), weight[None], len(pixels))
    evidence = evidence_of(shown, contribution[shown])
    rest, score = float(contribution[hidden].sum()), float(scores[target])
    total = sum(e.contribution for e in evidence) + rest + bias
    # A logit of thousands, or one rounded to half precision, is not exact to 1e-3 in itself.
    scale = float(contribution.abs().sum()) + abs(bias)
    if not abs(total - score) <= max(TOLERANCE, 8 * torch.finfo(raw_logits.dtype).eps * scale):
        raise RuntimeError(
            f"explain: contributions, rest and {head.offset} add up to {total:.6f}, but the "
            f"model's {head.score} of class {int(target)} is {score:.6f}"
        )
    size95 = int(explanation_sizes(contribution[None])[0])
    independent = request.task == "multilabel" or len(logits) == 1
    silent = head.abstains(pool.pooled)
    return {
        "abstained": silent is not None and bool(silent[0]),
        "class_index": int(target),
        "cells": cells[0].unflatten(0, grid).float().cpu(),
        "logits": logits,
        "probabilities": head.probabilities(logits, independent),
        "logit": float(logits[target]),
        "score_value": score,
        "bias": bias,
        "supporting": tuple(evidence[: len(positive)]),
        "opposing": tuple(evidence[len(positive) :]),
        "rest": rest,
        "rest_count": int(hidden.sum()),
        "size95": size95 if size95 and score > 0 else None,
        "magnitude_size": int(magnitude_sizes(contribution[None])[0]),
        "decisions": path_evidence(
            head.decisions(pooled[0]), int(target), bias, request.names, evidence_of
        ),
    }


def _evidence(
    shown: Tensor,  # [n] int64
    weight: Tensor,  # [M]
    pool: SparsePool,  # [1, M] each
    contribution: Tensor,  # [n]
    heats: Tensor,  # [gh, gw, n]
    geometry: CropGeometry,
) -> list[ChannelEvidence]:
    """The units shown, in order."""
    grid = (heats.shape[0], heats.shape[1])
    evidence = []
    for i, unit in enumerate(shown.tolist()):
        pos_box, neg_box = (
            cell_box(int(index[0, unit]), grid, geometry.input_size)
            if index[0, unit] >= 0
            else None
            for index in (pool.pos_index, pool.neg_index)
        )
        evidence.append(
            ChannelEvidence(
                channel=unit,
                weight=float(weight[unit]),
                pos=float(pool.pos[0, unit]),
                neg=float(pool.neg[0, unit]),
                pooled=float(pool.pooled[0, unit]),
                contribution=float(contribution[i]),
                pos_box=pos_box,
                neg_box=neg_box,
                pos_heat=_heat(heats[..., i]),
                neg_heat=_heat(-heats[..., i]),
                pos_box_in_image=pos_box and geometry.in_image(pos_box),
                neg_box_in_image=neg_box and geometry.in_image(neg_box),
            )
        )
    return evidence


def _heat(
    values: Tensor,  # [gh, gw]
) -> Tensor:
    """The positive part over its maximum, in [0, 1]."""
    heat = values.clamp_min(0)
    return heat / heat.max().clamp_min(torch.finfo(heat.dtype).tiny)
