"""`TesNetHead`: prototypes of a class span its subspace; pixels are projected onto them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from infodisent.checks import check_choice, check_strengths
from infodisent.contract import SparsePool
from infodisent.methods.class_prototypes import (
    ClassPrototypeHead,
    layers,
    orthogonality,
)
from infodisent.methods.stages import TrainingBatch, TrainingOptions

ACTIVATIONS = ("none", "sigmoid")


class TesNetHead(ClassPrototypeHead):
    """Feature map to logits by projections onto unit prototypes, a subspace for every class.

    Two 1 x 1 layers turn every pixel into `dimension` numbers x. Evidence of a prototype v is the
    largest projection ``x·v`` over the pixels; the training terms use the largest cosine, mostly
    another pixel's. Both come from one product. A linear layer adds up, see `ClassPrototypeHead`.

    Wang et al., "Interpretable Image Recognition by Constructing Transparent Embedding Space", ICCV
    2021, with its formulas and strengths. What differs: the backbone stays frozen, one projection
    onto patches, AdamW with a cosine rate; 128 dimensions, not 64, and layers that start
    by keeping the map's scale, see `infodisent.methods.class_prototypes.layers`; negative
    projections count as 0; prototypes start as random directions of length 1; the
    largest cosines are maxima themselves, see `ClassPrototypeHead.clusters`; and the term
    of the subspaces takes the distances of the classes' projectors from one Gram matrix,
    where the published code makes K² of D x D.

    Args:
        in_features: channels C of the map.
        num_classes: classes K; 0 leaves the projections on `per_class` prototypes as output.
        input_fmt: layout of the map: NCHW, NHWC, NCL or NLC.
        num_prefix_tokens: leading tokens of a token map that are not pixels.
        activation: what the layers end with: "sigmoid" as published, or "none".
        per_class: prototypes of a class.
        dimension: D, numbers that a pixel is turned into.
        cluster: strength of minus the mean cosine of an image with its class's nearest prototype.
        separation: strength of the same with the nearest of the other classes.
        orthogonal: strength of ``sum_k |P_k P_k^T - I|_1``, `P_k` being a class's prototypes.
        subspaces: strength of minus the distances between the classes' subspaces, see
            `subspace_distances`.
        wrong_weight: strength of the sum of the last layer's magnitudes for other classes.
        drop_rate: dropout on the projections in training.
        device, dtype: of the parameters.

    Raises:
        ValueError: a size, layout or option that is not allowed, named.
    """

    method = "tesnet"
    title = "TesNet"
    summary = "unit prototypes span a subspace a class; the largest projections, a linear layer"
    paper = "Wang et al. 2021, ICCV"

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        input_fmt: str = "NCHW",
        num_prefix_tokens: int = 0,
        activation: str = "sigmoid",
        per_class: int = 10,
        dimension: int = 128,
        cluster: float = 0.8,
        separation: float = 0.08,
        orthogonal: float = 1e-4,
        subspaces: float = 1e-7,
        wrong_weight: float = 1e-4,
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        name = "TesNetHead"
        check_choice(name, "activation", activation, ACTIVATIONS)
        strengths = {"cluster": cluster, "separation": separation, "orthogonal": orthogonal}
        strengths |= {"subspaces": subspaces, "wrong_weight": wrong_weight}
        check_strengths(name, **strengths)
        super().__init__(
            in_features,
            num_classes,
            dimension,
            per_class=per_class,
            similarity="dot",
            input_fmt=input_fmt,
            num_prefix_tokens=num_prefix_tokens,
            drop_rate=drop_rate,
            device=device,
        )
        self.activation, self.cluster, self.separation = activation, cluster, separation
        self.orthogonal, self.subspaces, self.wrong_weight = orthogonal, subspaces, wrong_weight
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        end = nn.Sigmoid if activation == "sigmoid" else nn.Identity
        self.add_on = layers(in_features, dimension, nn.ReLU, end, place)
        self.build(place)

    def pool(
        self,
        x: Tensor,  # a map [B, ...] in layout input_fmt
        *,
        input_fmt: str | None = None,
    ) -> SparsePool:
        """The largest projections on the prototypes, see `Head.pool`; one side only."""
        return self.one_sided(self.compare(self.embed(x, input_fmt)))

    def training_pool(
        self,
        x: Tensor,  # a map [B, ...] in layout input_fmt
        *,
        input_fmt: str | None = None,
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Projections ``[B, M]``, and "cosine" ``[B, M]`` of the same product."""
        best = self.compare(self.embed(x, input_fmt), second="cosine")
        assert best.second_value is not None
        return self.values(best.value), {"cosine": best.second_value}

    def penalty(
        self,
        config: TrainingOptions,
        batch: TrainingBatch,
    ) -> Tensor | None:
        """All terms of the first stage; of the last layer only that of wrong weights.

        Those of cosines are there where `training_pool` is: ``batch.extra``.
        """
        terms = self.wrong_weight * self.wrong_weights()
        cosine = batch.extra.get("cosine")
        if cosine is None or not len(cosine):
            return terms
        own, other = self.clusters(cosine, batch.labels, self.own(cosine.device))
        terms = terms - self.cluster * own + self.separation * other
        bases = self.prototypes.view(self.num_classes, self.per_class, self.dimension)
        terms = terms + self.orthogonal * orthogonality(bases)
        return terms - self.subspaces * subspace_distances(bases)


def subspace_distances(
    bases: Tensor,  # [K, n, D]
) -> Tensor:
    """``sum_kl |P_k^T P_k - P_l^T P_l|_F / (2 sqrt 2)`` over ordered pairs, a scalar.

    The K matrices are points in D² dimensions, and one Gram matrix ``[K, K]`` has all their
    distances, in float64 (where the device has it) because these cancel. Where two are equal there
    is no gradient.
    """
    wide = bases if bases.device.type == "mps" else bases.double()
    points = (wide.mT @ wide).flatten(1)  # [K, D²]
    gram = points @ points.mT
    square = gram.diagonal()
    between = square[:, None] + square - 2 * gram
    rounding = 8 * torch.finfo(wide.dtype).eps
    apart = between > rounding * (square[:, None] + square)  # nor the diagonal
    distance = torch.where(apart, between, 1).sqrt() * apart
    return distance.sum().to(bases.dtype) / (2 * math.sqrt(2))
