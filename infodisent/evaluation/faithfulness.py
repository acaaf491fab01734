"""Whether what an explanation calls important is: deletion and insertion, by cells and by pixels.

Both follow the probability of one class while the picture disappears, or appears, in the order of
an explanation (Petsiuk, Das and Saenko, "RISE", BMVC 2018). A curve's area is by the trapezoid rule
over [0, 1]. Deletion: lower is better. Insertion: higher is better.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from infodisent.backbones.backbone import evaluating
from infodisent.checks import check_positive
from infodisent.classifier import InfoDisentClassifier
from infodisent.evaluation.arguments import (
    check_images,
    check_labels,
    check_maps,
    check_numbers,
)
from infodisent.explanations.unit_maps import UnitMaps
from infodisent.methods import Head

BLUR, SIGMA = 11, 5.0
"""Side and standard deviation, in pixels, of the blur insertion starts from, of RISE's code."""


class Curves(NamedTuple):
    """Areas under the curves of every image, ``[B]`` each, and the curves, ``[B, steps + 1]``."""

    deletion: Tensor
    insertion: Tensor
    deletion_curve: Tensor
    insertion_curve: Tensor


@torch.no_grad()
def cell_curves(
    head: Head,
    maps: Tensor,  # [B, P, C]
    saliency: Tensor,  # [B, P]
    classes: Tensor,  # [B] int64
    *,
    independent: bool = False,
) -> Curves:
    """Deletion and insertion over the feature cells of the head's own map, a cell a step.

    A deleted cell is not seen: every unit is the largest of the cells left, and of none it is 0. So
    all P + 1 steps of an image are one sort and two running maxima, and no network runs. It says
    how well the explanation knows the head, not the backbone; see `pixel_curves`.

    Args:
        head: in evaluation mode.
        maps: what the head is fed with, pixels as rows.
        saliency: larger where a cell counts more; ties go to the lower cell.
        classes: whose probability is followed, usually the predicted ones.
        independent: classes have a sigmoid each, not one softmax.

    Raises:
        ValueError: shapes differ, or the units are no maxima of their maps.
    """
    check_maps("cell_curves", head, maps)
    check_numbers("cell_curves", "saliency", saliency, *maps.shape[:2])
    check_labels("cell_curves", "classes", classes, len(maps), head.num_classes)
    units = UnitMaps(head)
    parts = []
    for chunk in units.chunks(maps):
        values = units.of_images(maps[chunk])  # [b, P, M]
        pool = head.pool(maps[chunk], input_fmt="NLC")
        two_sided = units.check_extreme("cell_curves", values, pool)
        order = saliency[chunk].argsort(dim=1, descending=True, stable=True)
        values = values.gather(1, order[..., None].expand_as(values))
        curves = []
        for rows in (values.flip(1), values):  # what is left, from nothing on; what has come
            pooled = _running(rows)
            if two_sided:
                pooled = pooled - _running(-rows)
            logits = head.classify(pooled.flatten(0, 1)).unflatten(0, pooled.shape[:2])
            curves.append(_chances(logits, classes[chunk, None], independent))
        parts.append((curves[0].flip(1), curves[1]))
    return _curves(parts, saliency.shape[1])


def _running(
    values: Tensor,  # [b, P, M]
) -> Tensor:
    """The maximum of the first 0 … P rows, at least 0, ``[b, P + 1, M]``."""
    return nn.functional.pad(values.cummax(1).values.clamp_min(0), (0, 0, 1, 0))


@torch.no_grad()
def pixel_curves(
    model: InfoDisentClassifier,
    images: Tensor,  # [B, 3, H, W], normalised
    saliency: Tensor,  # [B, gh, gw] or [B, H, W]
    classes: Tensor,  # [B] int64
    *,
    steps: int | None = None,
    batch_size: int | None = None,
    independent: bool = False,
) -> Curves:
    """Deletion and insertion over image pixels, through backbone and head.

    Deleted pixels become 0, the mean colour of normalised images; insertion starts from the image
    blurred by an 11 x 11 Gaussian of standard deviation 5, edges reflected.

    Args:
        model: runs in evaluation mode, on its device.
        images: as the backbone is fed.
        saliency: a map of cells is resized bilinearly, as it is shown.
        classes: whose probability is followed, usually the predicted ones.
        steps: parts of about equal size; default: H, so that a step is one row's worth of pixels as
            in RISE.
        batch_size: of masked images; default: 32, on a CPU 8, whose activations stay in its caches.
        independent: classes have a sigmoid each, not one softmax.

    Raises:
        ValueError: shapes differ, or `steps` is not in 1 … H·W.
    """
    check_images("pixel_curves", images)
    check_numbers("pixel_curves", "saliency", saliency, len(images), "rows", "columns")
    known = model.head.num_classes
    check_labels("pixel_curves", "classes", classes, len(images), known)
    size = images.shape[2:]
    if steps is not None:
        check_positive("pixel_curves", "steps", steps)
    count = size[0] if steps is None else steps
    pixels = size[0] * size[1]
    if count > pixels:
        raise ValueError(f"pixel_curves: steps is {count}, allowed are 1 … {pixels}")
    if saliency.shape[1:] != size:
        saliency = nn.functional.interpolate(saliency[:, None].float(), size, mode="bilinear")[:, 0]
    like = next(model.parameters())
    if batch_size is None:
        batch_size = 8 if like.device.type == "cpu" else 32
    check_positive("pixel_curves", "batch_size", batch_size)
    parts = []
    ends = torch.linspace(0, pixels, count + 1).round().long()
    with evaluating(model):
        for image, order, label in zip(
            images.to(like),
            saliency.flatten(1).argsort(dim=1, descending=True, stable=True),
            classes,
        ):
            rank = torch.empty_like(order).scatter_(0, order, torch.arange(pixels).to(order))
            rank = rank.to(like.device).unflatten(0, size)
            curves = []
            for gone, kept in ((torch.zeros_like(image), image), (image, _blurred(image))):
                chances = []
                for end in ends.to(like.device).split(batch_size):
                    before = (rank < end[:, None, None])[:, None]
                    logits = model(torch.where(before, gone, kept))
                    chances.append(_chances(logits, label, independent))
                curves.append(torch.cat(chances)[None])
            parts.append((curves[0], curves[1]))
    return _curves(parts, count)


def _blurred(
    image: Tensor,  # [3, H, W]
) -> Tensor:
    at = torch.arange(BLUR, dtype=image.dtype, device=image.device) - BLUR // 2
    row = torch.exp(-(at**2) / (2 * SIGMA**2))
    row = row / row.sum()
    padded = nn.functional.pad(image[:, None], [BLUR // 2] * 4, mode="reflect")
    return nn.functional.conv2d(padded, (row[:, None] * row)[None, None])[:, 0]


def _chances(logits: Tensor, classes: Tensor, independent: bool) -> Tensor:
    """Probability of a class, without the last dimension of `logits`."""
    logits = logits.float()
    every = logits.sigmoid() if independent else logits.softmax(-1)
    place = classes.to(every.device).expand(every.shape[:-1])
    return every.gather(-1, place[..., None])[..., 0]


def _curves(parts: list[tuple[Tensor, Tensor]], steps: int) -> Curves:
    if not parts:
        none = torch.zeros(0)
        return Curves(none, none, none.new_zeros(0, steps + 1), none.new_zeros(0, steps + 1))
    deletion, insertion = (torch.cat(curves).cpu() for curves in zip(*parts, strict=True))
    return Curves(_area(deletion), _area(insertion), deletion, insertion)


def _area(
    curve: Tensor,  # [B, steps + 1]
) -> Tensor:
    return torch.trapezoid(curve, dim=1) / (curve.shape[1] - 1)
