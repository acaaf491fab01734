"""Why an image got its class: the units that count, where they look, and a sum that adds up.

A head says what each of its units (channels, prototypes) contributes to a class, and the logit is
their sum (and the bias). Whatever part an explanation shows, the rest is stated, and the whole is
checked against the model's own logit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from infodisent.backbones.backbone import evaluating
from infodisent.backbones.preprocess import to_picture, transform_config, transform_from
from infodisent.classifier import InfoDisentClassifier
from infodisent.contract import SparsePool
from infodisent.data.images import load_image
from infodisent.explanations.evidence import (
    TOLERANCE,
    Box,
    ChannelEvidence,
    Explanation,
    cell_box,
)
from infodisent.explanations.sparsity import explanation_sizes
from infodisent.layout import to_bpc
from infodisent.methods import Head
from infodisent.progress import bar

ImageSource = str | os.PathLike[str] | Image.Image

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


def explain(
    model: InfoDisentClassifier,
    image: ImageSource,
    *,
    classes: Sequence[str] | None = None,
    class_index: int | None = None,
    top: int = 4,
    top_opposing: int = 2,
    transform: dict[str, Any] | None = None,
    true_name: str | None = None,
) -> Explanation:
    """Explain a prediction.

    Args:
        model: from `infodisent.attach` or a checkpoint; runs in evaluation mode, on its device.
        image: a file or a picture.
        classes: K class names; default "0", "1", …
        class_index: class to explain; default: the predicted one.
        top, top_opposing: at most so many units with the largest positive and the largest
            negative contributions are shown; units that contribute 0 never are.
        transform: configuration of the evaluation transform, as a checkpoint holds it; default:
            the model's own.
        true_name: the image's own class, if known; only handed on.

    Raises:
        FileNotFoundError, ValueError: the image is missing or cannot be decoded.
        ValueError: an argument is out of range, or the logits are not finite.
        RuntimeError: the contributions do not add up to the model's own logit.
    """
    names = _check(model, classes, class_index, top, top_opposing)
    return _explain_picture(
        model, *_decode(image), true_name, names, class_index, (top, top_opposing), transform
    )


def explain_many(
    model: InfoDisentClassifier,
    images: Sequence[ImageSource],
    *,
    classes: Sequence[str] | None = None,
    class_index: int | None = None,
    top: int = 4,
    top_opposing: int = 2,
    transform: dict[str, Any] | None = None,
    true_names: Sequence[str | None] | None = None,
    on_error: Callable[[ImageSource, Exception], None] | None = None,
    progress: bool = True,
) -> list[Explanation]:
    """`explain` for every image, each decoded once, with a progress bar.

    Args:
        model, images, classes, class_index, top, top_opposing, transform: see `explain`.
        true_names: the images' own classes, as many as images.
        on_error: called with an image that is missing or cannot be decoded and the error, and the
            image is left out of the result; by default the error is raised.
        progress: show the bar.

    Raises:
        ValueError: `true_names` has another length; otherwise as `explain`.
    """
    true = [None] * len(images) if true_names is None else list(true_names)
    if len(true) != len(images):
        raise ValueError(
            f"explain_many: {len(true)} true_names were given for {len(images)} images"
        )
    names = _check(model, classes, class_index, top, top_opposing)
    explanations = []
    with bar(progress) as display:
        task = display.add_task("explain", total=len(images), note="")
        for image, true_name in zip(images, true, strict=True):
            try:
                path, decoded = _decode(image)
            except (FileNotFoundError, ValueError) as error:
                if on_error is None:
                    raise
                on_error(image, error)
            else:
                explanations.append(
                    _explain_picture(
                        model,
                        path,
                        decoded,
                        true_name,
                        names,
                        class_index,
                        (top, top_opposing),
                        transform,
                    )
                )
            display.update(task, advance=1)
    return explanations


def _check(
    model: InfoDisentClassifier,
    classes: Sequence[str] | None,
    class_index: int | None,
    top: int,
    top_opposing: int,
) -> tuple[str, ...]:
    head = model.head
    if not isinstance(head, Head) or not head.num_classes:
        raise ValueError("explain: the model has no interpretable head with classes")
    names = tuple(classes) if classes is not None else tuple(map(str, range(head.num_classes)))
    if len(names) != head.num_classes:
        raise ValueError(
            f"explain: {len(names)} class names were given for {head.num_classes} classes"
        )
    for name, value in (("class_index", class_index), ("top", top), ("top_opposing", top_opposing)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise TypeError(f"explain: {name} is {value!r}, must be an int")
    if class_index is not None and not 0 <= class_index < head.num_classes:
        raise ValueError(
            f"explain: class_index is {class_index}, allowed are 0 … {head.num_classes - 1}"
        )
    for name, count in (("top", top), ("top_opposing", top_opposing)):
        if count < 0:
            raise ValueError(f"explain: {name} is {count}, must be >= 0")
    return names


def _decode(image: ImageSource) -> tuple[str, Image.Image]:
    """The path ("" where there is none) and the RGB picture; errors as `load_image`."""
    if isinstance(image, Image.Image):
        return str(getattr(image, "filename", "") or ""), image.convert("RGB")
    return os.fspath(image), load_image(image)


def _explain_picture(
    model: InfoDisentClassifier,
    path: str,
    decoded: Image.Image,
    true_name: str | None,
    names: tuple[str, ...],
    class_index: int | None,
    counts: tuple[int, int],
    transform: dict[str, Any] | None,
) -> Explanation:
    """`explain` after its checks; `counts` are `top` and `top_opposing`."""
    config = transform if transform is not None else transform_config(model)
    x = transform_from(config)(decoded)  # [3, H, W]
    with evaluating(model), torch.no_grad():
        fields = _explain(model, x, class_index, *counts)
    return Explanation(
        path=path,
        picture=to_picture(x, config),
        class_name=names[fields["class_index"]],
        true_name=true_name,
        classes=names,
        unit=model.head.unit,
        **fields,
    )


def _explain(
    model: InfoDisentClassifier,
    x: Tensor,  # [3, H, W]
    class_index: int | None,
    top: int,
    top_opposing: int,
) -> dict[str, Any]:
    """The fields of an `Explanation` that follow from the image alone."""
    head, like = model.head, next(model.parameters())
    features = model.forward_features(x[None].to(like.device, like.dtype))
    raw_logits = model.forward_head(features)[0]  # [K], what the user gets
    logits = raw_logits.float().cpu()
    if not torch.isfinite(logits).all():
        raise ValueError("explain: the model's logits are not finite; check its weights")
    target = torch.tensor([int(logits.argmax()) if class_index is None else class_index])
    pool = head.pool(features)
    contribution = head.contributions(pool.pooled.cpu().to(torch.float64), target)[0]  # [M]
    bias = float(head.offsets(target)[0])

    order = contribution.argsort(descending=True, stable=True)
    positive = order[contribution[order] > 0][:top]
    order = contribution.argsort(stable=True)
    negative = order[contribution[order] < 0][:top_opposing]
    shown = torch.cat([positive, negative])
    hidden = torch.ones_like(contribution, dtype=torch.bool)
    hidden[shown] = False

    grid = model.grid_size((x.shape[1], x.shape[2]))
    pixels = to_bpc(features, head.input_fmt, head.num_prefix_tokens)[0]  # [P, C]
    heats = head.maps(pixels, shown).unflatten(0, grid).cpu()  # [gh, gw, n]
    weight = head.class_weights()[int(target)].cpu().to(torch.float64)  # [M]
    evidence = _evidence(shown, weight, pool, contribution, heats, (x.shape[2], x.shape[1]))
    rest, logit = float(contribution[hidden].sum()), float(logits[target])
    total = sum(e.contribution for e in evidence) + rest + bias
    # A logit of thousands, or one rounded to half precision, is not exact to 1e-3 in itself.
    scale = float(contribution.abs().sum()) + abs(bias)
    if not abs(total - logit) <= max(TOLERANCE, 8 * torch.finfo(raw_logits.dtype).eps * scale):
        raise RuntimeError(
            f"explain: contributions, rest and bias add up to {total:.6f}, but the model's logit "
            f"of class {int(target)} is {logit:.6f}"
        )
    size = int(explanation_sizes(contribution[None])[0])
    return {
        "class_index": int(target),
        "logits": logits,
        "probabilities": logits.softmax(0),
        "logit": logit,
        "bias": bias,
        "supporting": tuple(evidence[: len(positive)]),
        "opposing": tuple(evidence[len(positive) :]),
        "rest": rest,
        "rest_count": int(hidden.sum()),
        "size95": size if size and logit > 0 else None,
    }


def _evidence(
    shown: Tensor,  # [n] int64
    weight: Tensor,  # [M]
    pool: SparsePool,  # [1, M] each
    contribution: Tensor,  # [M]
    heats: Tensor,  # [gh, gw, n]
    size: tuple[int, int],
) -> list[ChannelEvidence]:
    """The units shown, in order; `size` is (width, height) of the picture."""
    grid = (heats.shape[0], heats.shape[1])
    evidence = []
    for i, unit in enumerate(shown.tolist()):
        pos_box, neg_box = (
            cell_box(int(index[0, unit]), grid, size) if index[0, unit] >= 0 else None
            for index in (pool.pos_index, pool.neg_index)
        )
        evidence.append(
            ChannelEvidence(
                channel=unit,
                weight=float(weight[unit]),
                pos=float(pool.pos[0, unit]),
                neg=float(pool.neg[0, unit]),
                pooled=float(pool.pooled[0, unit]),
                contribution=float(contribution[unit]),
                pos_box=pos_box,
                neg_box=neg_box,
                pos_heat=_heat(heats[..., i]),
                neg_heat=_heat(-heats[..., i]),
            )
        )
    return evidence


def _heat(
    values: Tensor,  # [gh, gw]
) -> Tensor:
    """The positive part over its maximum, in [0, 1]."""
    heat = values.clamp_min(0)
    return heat / heat.max().clamp_min(torch.finfo(heat.dtype).tiny)
