"""Why an image got its class: the channels that count, where they look, and a sum that adds up.

The contribution of channel c to class k is ``W[k, c] · pooled[c]``, and the logit is their sum (and
the bias). Whatever part an explanation shows, the rest is stated, and the whole is checked
against the model's own logit.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from infodisent.backbones.backbone import evaluating
from infodisent.backbones.preprocess import to_picture, transform_config, transform_from
from infodisent.data.images import load_image
from infodisent.layout import to_bpc
from infodisent.methods.infodisent import InfoDisentHead
from infodisent.nn import NonNegativeLinear
from infodisent.progress import bar

if TYPE_CHECKING:
    from infodisent.classifier import InfoDisentClassifier

TOLERANCE = 1e-3
"""How far the contributions may be from the model's logit."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class ChannelEvidence:
    """What one channel adds to the explained class.

    Attributes:
        channel: its index.
        weight: ``W[k, channel]``, >= 0.
        pos, neg: largest positive value and magnitude of the largest negative one, both >= 0.
        pooled: ``pos - neg``.
        contribution: ``weight * pooled``.
        pos_box, neg_box: the feature cell of `pos` and `neg`, ``(x0, y0, x1, y1)`` in pixels of the
            picture; None where the value is 0.
        pos_heat, neg_heat: ReLU(±Y) of the channel over its maximum, in [0, 1], ``[gh, gw]``.
    """

    channel: int
    weight: float
    pos: float
    neg: float
    pooled: float
    contribution: float
    pos_box: Box | None
    neg_box: Box | None
    pos_heat: Tensor = field(repr=False)
    neg_heat: Tensor = field(repr=False)

    @property
    def sign(self) -> int:
        """The side that decides: 1 where the channel supports the class, -1 where it opposes."""
        return 1 if self.contribution >= 0 else -1

    @property
    def box(self) -> Box | None:
        """The cell of the side that decides."""
        return self.pos_box if self.sign == 1 else self.neg_box

    @property
    def heat(self) -> Tensor:
        """The heat map of the side that decides, ``[gh, gw]``."""
        return self.pos_heat if self.sign == 1 else self.neg_heat


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why one image got the logit of one class.

    ``sum(contributions shown) + rest + bias = logit``, see `total`.

    Attributes:
        path: of the image; "" where it came from memory.
        picture: exactly what the network sees.
        class_index, class_name: the explained class.
        true_name: the image's own class, or None where it is not known.
        classes: all K class names.
        logits, probabilities: ``[K]`` float32, on the CPU.
        logit, bias: of the explained class; bias is 0 where the head has none.
        supporting, opposing: channels shown, strongest first.
        rest, rest_count: sum and number of all contributions that are not shown.
        size95: how many channels, largest contributions first, carry 95 % of the logit (without
            bias); None where the logit is not positive.
    """

    path: str
    picture: Image.Image = field(repr=False)
    class_index: int
    class_name: str
    true_name: str | None
    classes: tuple[str, ...] = field(repr=False)
    logits: Tensor = field(repr=False)
    probabilities: Tensor = field(repr=False)
    logit: float
    bias: float
    supporting: tuple[ChannelEvidence, ...] = field(repr=False)
    opposing: tuple[ChannelEvidence, ...] = field(repr=False)
    rest: float
    rest_count: int
    size95: int | None

    @property
    def shown(self) -> tuple[ChannelEvidence, ...]:
        """Supporting, then opposing channels, in the order the figures number them."""
        return self.supporting + self.opposing

    @property
    def channels(self) -> int:
        """C, all channels of the head."""
        return len(self.shown) + self.rest_count

    @property
    def total(self) -> float:
        """Contributions shown + rest + bias: the logit, within `TOLERANCE`."""
        return sum(e.contribution for e in self.shown) + self.rest + self.bias

    @property
    def predicted_name(self) -> str:
        """The class with the largest logit, explained or not."""
        return self.classes[int(self.logits.argmax())]

    @property
    def correct(self) -> bool | None:
        """Whether the prediction is the image's own class; None where that is not known."""
        return None if self.true_name is None else self.predicted_name == self.true_name


def explain(
    model: InfoDisentClassifier,
    image: str | os.PathLike[str] | Image.Image,
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
        top, top_opposing: at most so many channels with the largest positive and the largest
            negative contributions are shown; channels that contribute 0 never are.
        transform: configuration of the evaluation transform, as a checkpoint holds it; default:
            the model's own.
        true_name: the image's own class, if known; only handed on.

    Raises:
        FileNotFoundError, ValueError: the image is missing or cannot be decoded.
        ValueError: an argument is out of range, or the logits are not finite.
        RuntimeError: the contributions do not add up to the model's own logit.
    """
    names = _check(model, classes, class_index, top, top_opposing)
    if isinstance(image, Image.Image):
        path, decoded = str(getattr(image, "filename", "") or ""), image.convert("RGB")
    else:
        path, decoded = os.fspath(image), load_image(image)
    config = transform if transform is not None else transform_config(model)
    x = transform_from(config)(decoded)  # [3, H, W]
    with evaluating(model), torch.no_grad():
        found = _explain(model, x, class_index, top, top_opposing)
    return Explanation(
        path=path,
        picture=to_picture(x, config),
        class_name=names[found["class_index"]],
        true_name=true_name,
        classes=names,
        **found,
    )


def explain_many(
    model: InfoDisentClassifier,
    images: Sequence[str | os.PathLike[str] | Image.Image],
    *,
    true_names: Sequence[str | None] | None = None,
    progress: bool = True,
    **options: Any,
) -> list[Explanation]:
    """`explain` for every image, with a progress bar.

    Args:
        model, images: see `explain`.
        true_names: the images' own classes, as many as images.
        progress: show the bar.
        **options: of `explain`, the same for all.

    Raises:
        ValueError: `true_names` has another length; otherwise as `explain`.
    """
    names = [None] * len(images) if true_names is None else list(true_names)
    if len(names) != len(images):
        raise ValueError(
            f"explain_many: {len(names)} true_names were given for {len(images)} images"
        )
    result = []
    with bar(progress) as display:
        task = display.add_task("explain", total=len(images), note="")
        for image, name in zip(images, names, strict=True):
            result.append(explain(model, image, true_name=name, **options))
            display.update(task, advance=1)
    return result


def cell_box(index: int, grid: tuple[int, int], size: tuple[int, int]) -> Box:
    """The feature cell at flat pixel `index` of `grid` (rows, columns), scaled to a picture.

    `size` is (width, height), as PIL gives it. The box ``(x0, y0, x1, y1)`` is never empty nor
    outside the picture.
    """
    (rows, columns), (width, height) = grid, size
    row, column = divmod(index, columns)
    x0 = min(round(column * width / columns), width - 1)
    y0 = min(round(row * height / rows), height - 1)
    x1 = min(max(round((column + 1) * width / columns), x0 + 1), width)
    y1 = min(max(round((row + 1) * height / rows), y0 + 1), height)
    return x0, y0, x1, y1


def _check(
    model: InfoDisentClassifier,
    classes: Sequence[str] | None,
    class_index: int | None,
    top: int,
    top_opposing: int,
) -> tuple[str, ...]:
    head = model.head
    if not isinstance(head, InfoDisentHead) or not isinstance(head.fc, NonNegativeLinear):
        raise ValueError("explain: the model has no InfoDisent head with classes")
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


def _explain(
    model: InfoDisentClassifier, x: Tensor, class_index: int | None, top: int, top_opposing: int
) -> dict[str, Any]:
    """The fields of an `Explanation` that follow from the image ``[3, H, W]`` alone."""
    from infodisent.evaluation.accuracy import explanation_sizes

    head, like = model.head, next(model.parameters())
    fc = head.fc
    assert isinstance(fc, NonNegativeLinear)
    features = model.forward_features(x[None].to(like.device, like.dtype))
    logits = model.forward_head(features)[0].float().cpu()  # [K], what the user gets
    if not torch.isfinite(logits).all():
        raise ValueError("explain: the model's logits are not finite; check its weights")
    target = int(logits.argmax()) if class_index is None else class_index
    pool = head.pool(features)
    weight = fc.effective_weight()[target].double().cpu()  # [C]
    contribution = weight * pool.pooled[0].double().cpu()  # [C]
    bias = 0.0 if fc.bias is None else float(fc.bias[target])

    order = contribution.argsort(descending=True, stable=True)
    positive = order[contribution[order] > 0][:top]
    order = contribution.argsort(stable=True)
    negative = order[contribution[order] < 0][:top_opposing]
    shown = torch.cat([positive, negative])
    hidden = torch.ones_like(contribution, dtype=torch.bool)
    hidden[shown] = False

    grid = model.grid_size((x.shape[1], x.shape[2]))
    pixels = to_bpc(features, head.input_fmt, head.num_prefix_tokens)[0]  # [P, C]
    heats = _rows(head, pixels, shown).unflatten(0, grid).cpu()  # [gh, gw, n]
    evidence = []
    for i, c in enumerate(shown.tolist()):
        boxes = [
            cell_box(int(index[0, c]), grid, (x.shape[2], x.shape[1])) if index[0, c] >= 0 else None
            for index in (pool.pos_index, pool.neg_index)
        ]
        evidence.append(
            ChannelEvidence(
                channel=c,
                weight=float(weight[c]),
                pos=float(pool.pos[0, c]),
                neg=float(pool.neg[0, c]),
                pooled=float(pool.pooled[0, c]),
                contribution=float(contribution[c]),
                pos_box=boxes[0],
                neg_box=boxes[1],
                pos_heat=_heat(heats[..., i]),
                neg_heat=_heat(-heats[..., i]),
            )
        )
    rest, logit = float(contribution[hidden].sum()), float(logits[target])
    total = sum(e.contribution for e in evidence) + rest + bias
    # A logit of thousands, or one rounded to half precision, is not exact to 1e-3 in itself.
    scale = float(contribution.abs().sum()) + abs(bias)
    if not abs(total - logit) <= max(TOLERANCE, 8 * torch.finfo(fc.weight.dtype).eps * scale):
        raise RuntimeError(
            f"explain: contributions, rest and bias add up to {total:.6f}, but the model's logit "
            f"of class {target} is {logit:.6f}"
        )
    size = int(explanation_sizes(contribution[None])[0])
    return {
        "class_index": target,
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


def _rows(head: InfoDisentHead, pixels: Tensor, channels: Tensor) -> Tensor:
    """Y of a few channels only, ``[P, n]``: their rows of U times X."""
    channels = channels.to(pixels.device)
    if head.rotation is None:
        return pixels[:, channels].float()
    rows: Tensor = head.rotation()[channels].float()  # [n, C]
    return pixels.float() @ rows.t()


def _heat(values: Tensor) -> Tensor:
    heat = values.clamp_min(0)
    return heat / heat.max().clamp_min(torch.finfo(heat.dtype).tiny)
