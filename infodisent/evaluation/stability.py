"""Whether explanations stay where noise says nothing, and change where the model does."""

from __future__ import annotations

import copy
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from infodisent.backbones.backbone import evaluating
from infodisent.checks import check_strengths
from infodisent.classifier import InfoDisentClassifier
from infodisent.evaluation.arguments import (
    check_counts,
    check_images,
    check_labels,
    check_maps,
    check_tensor,
)
from infodisent.evaluation.images import CLIP, STD, maps_of, noise_like
from infodisent.explanations.posthoc import Explainer
from infodisent.methods import Head

_Module = TypeVar("_Module", bound=nn.Module)


class NoiseStability(NamedTuple):
    """Of every image, ``[B]`` each, in [0, 1]; higher is better.

    Attributes:
        places: part of its strongest units that respond at the same cell; NaN without any.
        prediction: 1 where the predicted class is the same.
    """

    places: Tensor
    prediction: Tensor


@torch.no_grad()
def noise_stability(
    model: InfoDisentClassifier,
    images: Tensor,  # [B, 3, H, W], normalised
    *,
    units: int = 10,
    std: float = STD,
    clip: float = CLIP,
    batch_size: int = 32,
    seed: int = 0,
) -> NoiseStability:
    """Whether units keep their cell when normal noise is added to the image.

    Huang et al.'s stability ("Evaluation and improvement of interpretability for self-explainable
    part-prototype networks", ICCV 2023) asks whether the annotated parts in a unit's box stay the
    same; without annotations this asks whether the cell does, which is stricter.

    Args:
        model: runs in evaluation mode, on its device.
        images: as the backbone is fed.
        units: so many with the largest contributions to the predicted class count.
        std, clip: of the noise, in units of normalised pixels.
        batch_size: images at a time.
        seed: of the noise.
    """
    check_counts("noise_stability", units=units, batch_size=batch_size)
    check_strengths("noise_stability", std=std, clip=clip)
    check_images("noise_stability", images)
    generator = torch.Generator().manual_seed(seed)
    head, places, same = model.head, [torch.zeros(0)], [torch.zeros(0)]
    with evaluating(model):
        for batch in images.split(batch_size):
            plain = maps_of(model, batch)
            noisy = maps_of(model, batch + noise_like(batch, generator, std, clip))
            before, after = (head.pool(maps, input_fmt="NLC") for maps in (plain, noisy))
            label, other = (head.classify(pool.pooled).argmax(1) for pool in (before, after))
            parts = head.contributions(before.pooled, label)
            strongest = parts.topk(min(units, parts.shape[1]), dim=1)
            counts = strongest.values > 0
            negative = (before.neg > before.pos).gather(1, strongest.indices)
            stay = torch.where(
                negative,
                (before.neg_index == after.neg_index).gather(1, strongest.indices),
                (before.pos_index == after.pos_index).gather(1, strongest.indices),
            )
            kept = (stay & counts).sum(1) / counts.sum(1)  # 0 / 0 is NaN: none counts
            places.append(kept.cpu())
            same.append((label == other).float().cpu())
    return NoiseStability(torch.cat(places), torch.cat(same))


@torch.no_grad()
def head_randomisation(
    head: Head,
    maps: Tensor,  # [B, P, C]
    classes: Tensor,  # [B] int64
    explainer: Explainer,
    *,
    seed: int = 0,
) -> Tensor:
    """Rank correlation of explanations by a head and by the same with shuffled parameters, ``[B]``.

    Adebayo et al., "Sanity checks for saliency maps", NeurIPS 2018, the classifier alone: an
    explanation that does not change (1) does not explain the model; lower is better. Spearman's,
    ties at their mean rank; NaN where an explanation is constant.
    """
    check_maps("head_randomisation", head, maps)
    check_labels("head_randomisation", "classes", classes, len(maps), head.num_classes)
    other = shuffled(head, seed)
    return rank_correlation(explainer(head, maps, classes), explainer(other, maps, classes))


@torch.no_grad()
def model_randomisation(
    model: InfoDisentClassifier,
    images: Tensor,  # [B, 3, H, W], normalised
    classes: Tensor,  # [B] int64
    explainer: Explainer,
    *,
    seed: int = 0,
) -> Tensor:
    """`head_randomisation` with the backbone's parameters shuffled too, ``[B]``."""
    check_images("model_randomisation", images)
    known = model.head.num_classes
    check_labels("model_randomisation", "classes", classes, len(images), known)
    other = shuffled(model, seed)
    with evaluating(model), evaluating(other):
        pair = [explainer(m.head, maps_of(m, images), classes) for m in (model, other)]
    return rank_correlation(*pair)


@torch.no_grad()
def shuffled(module: _Module, seed: int) -> _Module:
    """A copy in which every parameter's entries have changed places: the same sizes of numbers."""
    other = copy.deepcopy(module)
    other.requires_grad_(False)
    g = torch.Generator().manual_seed(seed)
    for parameter in other.parameters():
        order = torch.randperm(parameter.numel(), generator=g).to(parameter.device)
        parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return other


def rank_correlation(
    a: Tensor,  # [B, P]
    b: Tensor,  # [B, P]
) -> Tensor:
    """Spearman's correlation of every row, ``[B]`` float64, ties at their mean rank."""
    check_tensor("rank_correlation", "a", a, "images", "pixels")
    check_tensor("rank_correlation", "b", b, *a.shape)
    ranks = []
    for rows in (a, b):
        less = (rows[:, None] < rows[:, :, None]).sum(2).double()  # [B, P]
        equal = (rows[:, None] == rows[:, :, None]).sum(2).double()
        rank = less + equal / 2
        ranks.append(rank - rank.mean(1, keepdim=True))
    first, second = ranks
    norm = first.norm(dim=1) * second.norm(dim=1)
    correlation: Tensor = (first * second).sum(1) / norm  # 0 / 0 is NaN
    return correlation.cpu()
