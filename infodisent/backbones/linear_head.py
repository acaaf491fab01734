"""The classifier of a model whose head is nothing but average pool and linear layer."""

from __future__ import annotations

import torch
from torch import Tensor

from infodisent.backbones.backbone import Backbone, evaluating, noise, on_vectors
from infodisent.layout import to_bpc

TOLERANCE = 1e-4
"""Largest difference from the original's logits, of their largest."""


@torch.no_grad()
def linear_classifier(backbone: Backbone) -> tuple[Tensor, Tensor] | None:
    """W ``[K, C]`` and b ``[K]`` with ``W mean(map) + b`` the original's logits, if there are.

    None for heads that do more, such as a norm after the pool, that pool otherwise, or that are the
    caller's own. Costs a pass of one image. What the head computes of the unit vectors is taken
    for W, and must then give the original's logits of random features.
    """
    plan = backbone.plan
    if not backbone.num_classes or plan.opaque or plan.pool != "avg":
        return None
    like = next(backbone.parameters())
    if like.is_meta:
        return None

    def tail(v: Tensor) -> Tensor:
        outputs = []
        for paths in plan.tails:
            output = v
            for path in paths:
                output = on_vectors(backbone.model.get_submodule(path), output)
            outputs.append(output)
        return torch.stack(outputs).mean(0)

    with evaluating(backbone.model):
        channels = backbone.num_features
        bias = tail(like.new_zeros(1, channels))[0]
        weight = (tail(torch.eye(channels, device=like.device, dtype=like.dtype)) - bias).mT
        image = noise((1, backbone.in_chans, *backbone.image_size), like)
        raw = noise((2, *backbone.raw(image).shape[1:]), like)
        want = backbone.classify(raw)
        pixels = to_bpc(backbone.to_map(raw), plan.input_fmt, plan.num_prefix_tokens)
        error = (pixels.mean(1) @ weight.mT + bias - want).abs().max() / want.abs().max()
    return (weight, bias) if error <= TOLERANCE else None
