"""What the metrics that change images share: maps of images, a class's own units, noise."""

from __future__ import annotations

import torch
from torch import Tensor

from infodisent.classifier import InfoDisentClassifier
from infodisent.layout import to_bpc
from infodisent.methods import Head

STD, CLIP = 0.2, 0.25
"""Of the noise on normalised images: EvalProtoPNet's stability score."""


def maps_of(
    model: InfoDisentClassifier,
    images: Tensor,  # [b, 3, H, W], normalised
) -> Tensor:
    """The maps that the head is fed with, pixels as rows: ``[b, P, C]``."""
    like = next(model.parameters())
    features = model.forward_features(images.to(like.device, like.dtype))
    return to_bpc(features, model.head.input_fmt, model.head.num_prefix_tokens)


def own_units(head: Head, count: int) -> Tensor:
    """The units of the largest weights of every class, ``[K, count]`` int64, heaviest first.

    -1 where a class has fewer units of positive weight. What a class-bound method calls a class's
    own prototypes, for heads whose classes share their units.
    """
    weights = head.class_weights().detach()
    top = weights.topk(min(count, weights.shape[1]), dim=1)
    return torch.where(top.values > 0, top.indices, -1).cpu()


def noise_like(
    images: Tensor,
    generator: torch.Generator,
    std: float = STD,
    clip: float = CLIP,
) -> Tensor:
    """Normal noise of `std`, clipped to ± `clip`, drawn on the CPU."""
    noise = torch.randn(images.shape, generator=generator) * std
    return noise.clamp(-clip, clip).to(images)
