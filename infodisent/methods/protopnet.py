"""`ProtoPNetHead`: compare every pixel with prototypes of every class, keep the best, add up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from infodisent import ops, ranks
from infodisent.checks import (
    check_choice,
    check_classes,
    check_one_pool,
    check_positive,
    check_strengths,
    check_switches,
)
from infodisent.contract import SparsePool
from infodisent.methods.prototypes import (
    PrototypeHead,
    magnitude,
    mean_of,
    nearest,
    of_own_classes,
    present,
)
from infodisent.methods.stages import Batches, Stage, TrainingBatch, TrainingOptions, part_of

SIMILARITIES = ("cosine", "l2")
EPSILON = 1e-4
"""Of the logarithm of a distance: a pixel that equals a prototype has ``log(1 / EPSILON)``."""
LAST_EPOCHS = 20
"""Passes of the last layer over the images, after the projection."""
NEAREST, OWN_AMONG_NEAREST = 6, 3
"""Pruning looks at so many images nearest to a prototype, and wants so many of its own class."""
FIRST, LAST, PRUNED = "prototypes", "last layer", "last layer after pruning"
"""Names of stages; later rounds of the first are "prototypes 2" and so on."""


class ProtoPNetHead(PrototypeHead):
    """Feature map to logits by prototypes, each of one class and, once trained, a training patch.

    Two 1 x 1 layers turn every pixel into `dimension` numbers. Each prototype keeps its best pixel,
    and a linear layer without bias adds up: it starts at 1 for a prototype's own class and at -0.5
    for the others. Training has two stages: layers and prototypes; then every
    prototype is moved onto the nearest patch among the training images of its class (projection)
    and the last layer alone trains. With `pruning` there is a third: prototypes whose nearest
    images are mostly of other classes lose their weights (`prune`), and the last layer trains on.

    Chen et al., "This Looks Like That: Deep Learning for Interpretable Image Recognition", NeurIPS
    2019 (arXiv 1806.10574), with its formulas, strengths and initial values. What differs: the
    backbone stays frozen, `projections` rounds of training before the last layer's (one, where the
    published code has one every ten epochs), AdamW with a cosine rate,
    and the cluster and separation terms are the minima themselves, where the published code takes
    them from a difference that is right only while distances are below `dimension`. The similarity
    is the cosine by default, which trains better and is what the field moved to ("Cosine similarity
    is almost all you need", WACV 2026). With it the layers end without the published sigmoid: in
    the positive corner of space all cosines are large.

    Besides the attributes of `PrototypeHead` it has ``last``, the linear layer, and ``kept``
    ``[M]`` bool, the prototypes that pruning left; the others stay, with weights of 0.

    Args:
        in_features: channels C of the map.
        num_classes: classes K; 0 leaves the similarities of `per_class` prototypes as output.
        input_fmt: layout of the map: NCHW, NHWC, NCL or NLC.
        num_prefix_tokens: leading tokens of a token map that are not pixels.
        similarity: "cosine", clamped at 0; or "l2", ``log((d + 1) / (d + 1e-4))`` of the smallest
            squared distance d, as published.
        per_class: prototypes of a class.
        dimension: D, numbers that a pixel is turned into.
        cluster: strength of the mean distance (of "cosine": 1 - similarity) of an image to the
            nearest prototype of its own class.
        separation: strength of minus the same for the other classes.
        wrong_weight: strength of the sum of the last layer's magnitudes for other classes.
        projections: rounds of training layers and prototypes, each followed by a projection; each
            has the epochs of the configuration.
        pruning: drop prototypes after the last layer has trained, see `prune`.
        bias: of the last layer; for several labels an image, whose log-odds it starts at.
        drop_rate: dropout on the similarities in training.
        device, dtype: of the parameters.

    Raises:
        ValueError: a size, layout or option that is not allowed, named.
    """

    method = "protopnet"
    title = "ProtoPNet"
    summary = "prototypes of every class, each a training patch; the best pixels, a linear layer"
    paper = "Chen et al. 2019, arXiv 1806.10574"
    loss_needs_pool = True
    wrong_start: ClassVar[float] = -0.5
    kept: Tensor

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        input_fmt: str = "NCHW",
        num_prefix_tokens: int = 0,
        similarity: str = "cosine",
        per_class: int = 10,
        dimension: int = 128,
        cluster: float = 0.8,
        separation: float = 0.08,
        wrong_weight: float = 1e-4,
        projections: int = 1,
        pruning: bool = False,
        bias: bool = False,
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        name = type(self).__name__
        check_choice(name, "similarity", similarity, SIMILARITIES)
        check_positive(name, "per_class", per_class)
        check_positive(name, "projections", projections)
        check_classes(name, num_classes)
        check_switches(name, pruning=pruning, bias=bias)
        check_strengths(name, cluster=cluster, separation=separation, wrong_weight=wrong_weight)
        super().__init__(
            in_features,
            per_class * max(1, num_classes),
            dimension,
            similarity=similarity,
            input_fmt=input_fmt,
            num_prefix_tokens=num_prefix_tokens,
            drop_rate=drop_rate,
            device=device,
        )
        self.num_classes, self.per_class = num_classes, per_class
        self.cluster, self.separation, self.wrong_weight = cluster, separation, wrong_weight
        self.projections, self.pruning, self.bias = projections, pruning, bias
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.add_on = nn.Sequential(
            nn.Linear(in_features, dimension, **place),
            nn.ReLU(),
            nn.Linear(dimension, dimension, **place),
            nn.Sigmoid() if similarity == "l2" else nn.Identity(),
        )
        for layer in self.add_on:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        self._build_prototypes(place)

    def _build_prototypes(self, place: dict[str, Any]) -> None:
        units = self.num_features
        draw = torch.rand if self.similarity == "l2" else torch.randn
        self.prototypes = nn.Parameter(draw(units, self.dimension, **place))
        self.register_buffer("kept", torch.ones(units, dtype=torch.bool, device=place["device"]))
        self.last: nn.Module = nn.Identity()
        if self.num_classes:
            self.last = nn.Linear(units, self.num_classes, bias=self.bias, **place)
            with torch.no_grad():
                own = self.own(self.last.weight.device)
                self.last.weight.copy_(torch.where(own.mT, 1.0, self.wrong_start))
                if self.last.bias is not None:
                    self.last.bias.zero_()

    def own(self, device: torch.device | str = "cpu") -> Tensor:
        """Which prototype belongs to which class, ``[M, K]`` bool."""
        own = torch.eye(self.num_classes, dtype=torch.bool, device=device)
        return own.repeat_interleave(self.per_class, dim=0)

    # -- from a map to logits ---------------------------------------------------------------------

    def allowed(self) -> Tensor:
        """Its own class's images, ``[K, M]`` bool; without classes all images."""
        if not self.num_classes:
            return super().allowed()
        return self.own(self.prototypes.device).mT

    def pool(
        self,
        x: Tensor,  # a map [B, ...] in layout input_fmt
        *,
        input_fmt: str | None = None,
    ) -> SparsePool:
        """Similarities to the prototypes, see `Head.pool`; one side only."""
        best = self.compare(self.embed(x, input_fmt))
        value = self.values(best.value)
        none = torch.full_like(best.index, -1)
        index = torch.where(value > 0, best.index, none)
        return SparsePool(value, value, torch.zeros_like(value), index, none)

    def values(
        self,
        best: Tensor,  # [n, M]
    ) -> Tensor:
        """The similarity of a cosine or a squared distance, >= 0."""
        if self.similarity == "cosine":
            return best.clamp_min(0)
        return torch.log((best + 1) / (best + EPSILON))

    def _distance(self, similarity: Tensor) -> Tensor:
        """What the cluster and separation terms are counted in, from the similarity."""
        if self.similarity == "cosine":
            return 1 - similarity
        return (1 - EPSILON) / torch.expm1(similarity) - EPSILON

    def classify(
        self,
        pooled: Tensor,  # [n, M]
    ) -> Tensor:
        """``drop(pooled) · W^T + bias``, ``[n, K]``."""
        units: Tensor = self.drop(pooled).to(self.prototypes.dtype)
        if not isinstance(self.last, nn.Linear):
            return units
        return nn.functional.linear(units, self.class_weights(), self.last.bias)

    # -- evidence ---------------------------------------------------------------------------------

    def class_weights(self) -> Tensor:
        """The last layer, ``[K, M]``, of either sign; 0 for prototypes that were dropped."""
        if not isinstance(self.last, nn.Linear):
            raise ValueError(f"{type(self).__name__}.class_weights: this head has no classes")
        return self.last.weight * self.kept

    def offsets(
        self,
        classes: Tensor,  # [n] int64
    ) -> Tensor:
        """The bias of the last layer, ``[n]``, or 0."""
        if not isinstance(self.last, nn.Linear) or self.last.bias is None:
            return super().offsets(classes)
        return self.last.bias[classes]

    def notices(self) -> tuple[str, ...]:
        """Those of `PrototypeHead`, and how many prototypes were dropped."""
        dropped = int((~self.kept).sum())
        if not dropped:
            return super().notices()
        told = f"{dropped} of {self.num_features} {self.unit}s were dropped and count for no class"
        return (*super().notices(), told)

    # -- training ---------------------------------------------------------------------------------

    def stages(self, config: TrainingOptions) -> tuple[Stage, ...]:
        """Rounds of layers and prototypes at `rotation_lr`; then the last layer at `lr`."""
        rounds = [FIRST, *(f"{FIRST} {number}" for number in range(2, self.projections + 1))]
        layers = {
            "params": list(self.add_on.parameters()),
            "lr": config.rotation_lr,
            "weight_decay": 1e-3,
        }
        vectors = {"params": [self.prototypes], "lr": config.rotation_lr}
        first = [Stage(name, [layers, vectors]) for name in rounds]
        last = [LAST, PRUNED] if self.pruning else [LAST]
        return (*first, *(self.last_stage(name, config) for name in last))

    def last_stage(self, name: str, config: TrainingOptions) -> Stage:
        """A stage of this name in which the last layer alone trains, at `lr`."""
        groups = [{"params": list(self.last.parameters()), "lr": config.lr}]
        return Stage(name, groups, epochs=LAST_EPOCHS, pool_is_fixed=True)

    def start_stage(self, stage: Stage, batches: Batches) -> None:
        """After every round a projection, see `PrototypeHead.project`; `prune` before the last."""
        if stage.name == PRUNED:
            self.prune(batches)
        elif stage.name != FIRST:
            self.project(batches)

    @torch.no_grad()
    def prune(self, batches: Batches) -> None:
        """Drop the prototypes that stand for no class of their own, in place.

        For each the `NEAREST` training images of all classes are found, by their nearest patches;
        where fewer than `OWN_AMONG_NEAREST` of them are of its class, its weights become 0 and stay
        so (`kept`). One pass over the images.

        Args:
            batches: of the training images.
        """
        seen: list[tuple[Tensor, Tensor]] = []

        def embedded() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            for maps, labels, numbers in part_of(batches)():
                seen.append((numbers.cpu(), labels.cpu()))
                yield self.embed(maps, "NLC"), labels, numbers

        image = ops.best_pixels(
            embedded(), self.vectors().detach(), k=NEAREST, similarity=self.similarity, gather=True
        ).image
        numbers, labels = (ranks.gathered(torch.cat(parts)) for parts in zip(*seen, strict=True))
        numbers, order = numbers.sort()
        own = self.own()
        count = torch.zeros(self.num_features, dtype=torch.int64)
        for row in image:  # [M], of every prototype the next nearest image, -1 where there is none
            at = torch.searchsorted(numbers, row.clamp_min(0)).clamp_max(len(numbers) - 1)
            classes = present(labels[order[at]], self.num_classes)
            count += (classes & own).any(1) & (row >= 0)
        self.kept &= (count >= OWN_AMONG_NEAREST).to(self.kept.device)
        if isinstance(self.last, nn.Linear):
            self.last.weight.mul_(self.kept)

    def start_offsets(
        self,
        offsets: Tensor,  # [K]
    ) -> None:
        """Start the bias at the log-odds of the labels; nothing without a bias."""
        if isinstance(self.last, nn.Linear) and self.last.bias is not None:
            with torch.no_grad():
                self.last.bias.copy_(offsets)

    def penalty(
        self,
        config: TrainingOptions,
        batch: TrainingBatch,
    ) -> Tensor | None:
        """Cluster, separation and wrong-class terms, as published, the first two as minima."""
        own = self.own(self.prototypes.device)
        terms = self.wrong_weight * magnitude(self.class_weights(), own)
        pooled = batch.pooled
        if pooled is None or not pooled.requires_grad or not len(pooled):
            return terms
        mine = of_own_classes(batch.labels, own)
        for strength, mask in ((self.cluster, mine), (-self.separation, ~mine)):
            similarity, counts = nearest(pooled, mask)
            terms = terms + strength * mean_of(self._distance(similarity), counts)
        return terms

    # -- description ------------------------------------------------------------------------------

    def reset(self, num_classes: int, pool_type: str | None = None) -> None:
        """Replace prototypes and last layer by fresh ones; the layers before them stay.

        Raises:
            ValueError: `pool_type` is given: the best pixel is what this head keeps.
        """
        name = type(self).__name__
        check_one_pool(type(self).__name__, pool_type)
        check_classes(name, num_classes)
        self.num_classes, self.num_features = num_classes, self.per_class * max(1, num_classes)
        like = self.prototypes
        self.start_record(like.device)
        self._build_prototypes({"device": like.device, "dtype": like.dtype})
        self.last.train(self.training)
