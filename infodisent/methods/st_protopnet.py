"""`STProtoPNetHead`: prototypes far from the other classes' and prototypes close to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from infodisent import ops
from infodisent.checks import check_choice, check_strengths
from infodisent.contract import SparsePool
from infodisent.methods.class_prototypes import (
    ClassPrototypeHead,
    layers,
    orthogonality,
)
from infodisent.methods.stages import Batches, Objective, TrainingBatch, TrainingOptions, part_of

VARIANTS = ("cropped", "full")


class STProtoPNetHead(ClassPrototypeHead):
    """Feature map to logits by two branches of prototypes, trivial and support, added up.

    Each branch has its own two 1 x 1 layers, unit prototypes and weights. Trivial prototypes are
    kept away from those of other classes, support prototypes close to them, as support vectors lie
    at the border between classes. The units are the trivial prototypes, then the support ones.

    Wang et al., "Learning Support and Trivial Prototypes for Interpretable Image Classification",
    ICCV 2023 (arXiv 2301.04011), with its formulas and strengths. What differs: the backbone stays
    frozen, one projection onto patches, AdamW with a cosine rate. The published code trains one
    branch on even batches and the other on odd ones; on a frozen backbone the two share nothing,
    so both train on every batch. Negative projections count as 0, the largest cosines
    of other classes are maxima themselves (`ClassPrototypeHead.clusters`), and prototypes start as
    random directions. Probabilities are those of the summed logits, where the published script
    shows the mean of the branches' own. The "full" variant's bilinear enlargement of the map is
    left out: stored maps are rows of pixels that know no grid.

    Args:
        in_features: channels C of the map.
        num_classes: classes K; 0 leaves the units of ``2 · per_class`` prototypes as output.
        input_fmt: layout of the map: NCHW, NHWC, NCL or NLC.
        num_prefix_tokens: leading tokens of a token map that are not pixels.
        variant: "cropped" (published for objects cut out): tanh after both layers, units are the
            largest projections, training terms the largest cosines; "full" (whole images): linear
            layers, units and terms are the largest cosines, at least 0.
        per_class: prototypes of a class in each branch.
        dimension: D, numbers that a pixel is turned into.
        cluster: strength of minus an image's mean cosine with its class's nearest prototype.
        trivial_separation, support_separation: strength of the same with the nearest prototype of
            another class, in each branch.
        orthogonal: strength of ``sum_k |P_k P_k^T - I|_1`` in each branch.
        discrimination: strength of the mean over pairs of classes of the largest product of their
            trivial prototypes.
        closeness: strength of minus the mean over pairs of classes of the smallest product of their
            support prototypes.
        wrong_weight: strength of the sum of the last layer's magnitudes for other classes.
        drop_rate: dropout on the units in training.
        device, dtype: of the parameters.

    Raises:
        ValueError: a size, layout or option that is not allowed, named.
    """

    method = "st_protopnet"
    title = "ST-ProtoPNet"
    summary = "two sets of prototypes, apart from other classes and close to them, added up"
    paper = "Wang et al. 2023, arXiv 2301.04011"
    branches = 2
    add_on: nn.ModuleList

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        input_fmt: str = "NCHW",
        num_prefix_tokens: int = 0,
        variant: str = "full",
        per_class: int = 5,
        dimension: int = 64,
        cluster: float = 0.8,
        trivial_separation: float = 0.08,
        support_separation: float = 0.48,
        orthogonal: float = 1e-3,
        discrimination: float = 1.0,
        closeness: float = 1.0,
        wrong_weight: float = 1e-4,
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        name = "STProtoPNetHead"
        check_choice(name, "variant", variant, VARIANTS)
        strengths = {
            "cluster": cluster,
            "trivial_separation": trivial_separation,
            "support_separation": support_separation,
            "orthogonal": orthogonal,
            "discrimination": discrimination,
            "closeness": closeness,
            "wrong_weight": wrong_weight,
        }
        check_strengths(name, **strengths)
        super().__init__(
            in_features,
            num_classes,
            dimension,
            per_class=per_class,
            similarity="dot" if variant == "cropped" else "cosine",
            input_fmt=input_fmt,
            num_prefix_tokens=num_prefix_tokens,
            drop_rate=drop_rate,
            device=device,
        )
        self.variant, self.cluster, self.wrong_weight = variant, cluster, wrong_weight
        self.trivial_separation = trivial_separation
        self.support_separation = support_separation
        self.orthogonal, self.discrimination = orthogonal, discrimination
        self.closeness = closeness
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        function = nn.Tanh if variant == "cropped" else nn.Identity
        self.add_on = nn.ModuleList(
            [layers(in_features, dimension, function, function, place) for _ in range(2)]
        )
        self.build(place)

    # -- from a map to logits ---------------------------------------------------------------------

    def embed(
        self,
        x: Tensor,  # a map [B, ...] in layout input_fmt
        input_fmt: str | None = None,
    ) -> Tensor:
        """What is compared with the branches' prototypes, ``[2, B, P, D]``."""
        rows = self.rows(x, input_fmt)
        return torch.stack([branch(rows) for branch in self.add_on])

    def compare(
        self,
        embedded: Tensor,  # [2, B, P, D]
        units: Tensor | None = None,  # [n] int64
        **options: Any,
    ) -> ops.Pool:
        """Every prototype's best pixel in its branch, see `PrototypeHead.compare`."""
        pools = [
            ops.similarity_pool(
                pixels, vectors, similarity=self.similarity, input_fmt="NLC", **options
            )
            for pixels, vectors in zip(embedded, self.vectors().chunk(2), strict=True)
        ]
        chosen = slice(None) if units is None else units.to(embedded.device)
        both: Any = (
            None if part[0] is None else torch.cat(part, 1)[:, chosen]
            for part in zip(*pools, strict=True)
        )
        return ops.Pool(*both)

    def pool(
        self,
        x: Tensor,  # a map [B, ...] in layout input_fmt
        *,
        input_fmt: str | None = None,
    ) -> SparsePool:
        """The largest projections or cosines, see `Head.pool`; one side only."""
        return self.one_sided(self.compare(self.embed(x, input_fmt)))

    def training_pool(
        self,
        x: Tensor,  # a map [B, ...] in layout input_fmt
        *,
        input_fmt: str | None = None,
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Units ``[B, M]``, and the "cosine" ``[B, M]`` that the terms are of."""
        embedded = self.embed(x, input_fmt)
        if self.similarity == "cosine":
            pooled = self.values(self.compare(embedded).value)
            return pooled, {"cosine": pooled}
        best = self.compare(embedded, second="cosine")
        assert best.second_value is not None
        return self.values(best.value), {"cosine": best.second_value}

    # -- training ---------------------------------------------------------------------------------

    def best_patches(self, batches: Batches) -> ops.BestPixels:
        """Every prototype's nearest patch in its branch, a pass over the images for each."""
        halves = [
            ops.best_pixels(
                ((self.embed(maps, "NLC")[side], *of) for maps, *of in part_of(batches)()),
                vectors.detach(),
                similarity=self.similarity,
                allowed=allowed.cpu(),
                vectors=True,
                gather=True,
            )
            for side, (vectors, allowed) in enumerate(
                zip(self.vectors().chunk(2), self.allowed().chunk(2, 1), strict=True)
            )
        ]
        both = (torch.cat(part, 1) for part in zip(*halves, strict=True))
        return ops.BestPixels(*both)

    @torch.no_grad()
    def project(self, batches: Batches) -> None:
        """Move every prototype onto its nearest patch's direction, see `PrototypeHead.project`."""
        super().project(batches)
        still = self.unprojected[:, None]
        self.prototypes.copy_(torch.where(still, self.prototypes, self.vectors()))

    def loss(
        self,
        objective: Objective,
        logits: Tensor,  # [n, K]
        batch: TrainingBatch,
    ) -> Tensor:
        """The objective of the trivial branch's logits and that of the support branch's."""
        assert batch.pooled is not None
        units = self.drop(batch.pooled).to(self.prototypes.dtype).chunk(2, 1)
        weights = self.class_weights().chunk(2, 1)
        trivial, support = (
            objective(nn.functional.linear(unit, weight), batch.labels)
            for unit, weight in zip(units, weights, strict=True)
        )
        return trivial + support

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
        own = self.own(cosine.device)[: cosine.shape[1] // 2]
        sides = (self.trivial_separation, self.support_separation)
        for side, separation in zip(cosine.chunk(2, 1), sides, strict=True):
            near, other = self.clusters(side, batch.labels, own)
            terms = terms - self.cluster * near + separation * other
        size = self.branches, self.num_classes, self.per_class, self.dimension
        bases = self.prototypes.view(size)
        terms = terms + self.orthogonal * orthogonality(bases)
        trivial, support = bases
        terms = terms + self.discrimination * largest_products(trivial, trivial)
        return terms + self.closeness * largest_products(support, -support)


def largest_products(
    bases: Tensor,  # [K, n, D]
    others: Tensor,  # [K, n, D]
) -> Tensor:
    """Mean over ordered pairs of classes k, l of ``max_ij p_ki · q_lj``, a scalar; 0 of one class.

    With ``others = -bases`` minus the mean of the smallest products.
    """
    classes, count, _ = bases.shape
    if classes == 1:
        return bases.new_zeros(())
    gram = bases.flatten(0, 1) @ others.flatten(0, 1).mT
    largest = gram.view(classes, count, classes, count).amax((1, 3))
    return (largest.sum() - largest.trace()) / (classes * (classes - 1))
