"""`ProtoPoolHead`: classes choose their prototypes from a pool that all of them share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from infodisent.checks import (
    check_choice,
    check_classes,
    check_one_pool,
    check_positive,
    check_strengths,
    check_switches,
)
from infodisent.contract import SparsePool
from infodisent.methods.protopnet import EPSILON, LAST, LAST_EPOCHS, SIMILARITIES
from infodisent.methods.prototypes import (
    PrototypeHead,
    magnitude,
    mean_of,
    nearest,
    of_own_classes,
)
from infodisent.methods.stages import (
    Batches,
    Objective,
    Stage,
    TrainingBatch,
    TrainingOptions,
)

SHARPEST = 1000.0
"""Factor of the assignment's logits at the end of their schedule, as published."""
TAU = 0.5
"""Temperature of the Gumbel-softmax, as published."""
SMALLEST_POOL = 20


class ProtoPoolHead(PrototypeHead):
    """Feature map to logits by a pool of prototypes, from which every class fills its slots.

    Each class has `slots` slots; a slot chooses among all M prototypes, softly while it trains and
    one of them in the end, so classes share prototypes. A prototype counts by its *focal*
    similarity: that of its best pixel minus that of the average pixel, which asks for parts and not
    for backgrounds. A linear layer adds up the slots, starting at 1 for a class's own
    and 0 for others. Stages: layers, prototypes and choices; the projection onto the nearest patch
    of all classes that use a prototype; the last layer.

    Rymarczyk et al., "Interpretable Image Classification with Differentiable Prototypes
    Assignment", ECCV 2022 (arXiv 2112.02902), with the strengths and the schedule of the published
    code: choices are a Gumbel-softmax (temperature 0.5) of logits times 1000 sqrt(t / T), T being
    half of the stage. What differs: the backbone stays frozen; in evaluation, in the projection and
    in the last stage a slot has the prototype of its largest logit, where the published code goes
    on drawing at random (the repair is CaBRNet's); cluster and separation terms are the minima
    themselves, see `nearest`. With "cosine", the default here, the focal similarity is
    ``max - mean`` of the cosines, as the paper writes it; with "l2" that of the code,
    ``g(min d) - g(mean d)``, ``g(d) = log((d + 1) / (d + 1e-4))``. On a frozen
    backbone the subtracted mean can cost accuracy on new images (benchmarks/README, of flowers17).

    Besides the attributes of `PrototypeHead` it has ``assignment`` ``[K, slots, M]``, the choices'
    logits, and ``last``, the linear layer on ``K · slots`` slots.

    Args:
        in_features: channels C of the map.
        num_classes: classes K; 0 leaves the focal similarities as output.
        input_fmt: layout of the map: NCHW, NHWC, NCL or NLC.
        num_prefix_tokens: leading tokens of a token map that are not pixels.
        pool_size: prototypes M; default: 10 K, at least 20. Published: 202 for 200 classes, with
            a backbone that trains; with a frozen one that is too few.
        slots: of a class, each of which takes one prototype.
        dimension: D, numbers that a pixel is turned into.
        similarity: "cosine" or "l2", see above.
        cluster: strength of the mean distance (of "cosine": 1 - similarity) of an image to the
            nearest of the `slots` prototypes that its class prefers.
        separation: strength of minus the same for all other prototypes.
        orthogonality: strength of the mean cosine of the choices of two slots of a class.
        wrong_weight: strength of the last layer's magnitudes for other classes' slots.
        bias: of the last layer; a multi-label set needs it, and it starts at the labels' log-odds.
        drop_rate: dropout on the focal similarities in the last stage; not published, without
            it that layer learns the training images by heart.
        device, dtype: of the parameters.

    Raises:
        ValueError: a size, layout or option that is not allowed, named.
    """

    method = "protopool"
    title = "ProtoPool"
    summary = "a pool of prototypes; every class's slots choose from it; best minus mean pixel"
    paper = "Rymarczyk et al. 2022, arXiv 2112.02902"
    loss_needs_pool = True

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        input_fmt: str = "NCHW",
        num_prefix_tokens: int = 0,
        pool_size: int | None = None,
        slots: int = 10,
        dimension: int = 128,
        similarity: str = "cosine",
        cluster: float = 0.8,
        separation: float = 0.08,
        orthogonality: float = 1.0,
        wrong_weight: float = 1e-4,
        bias: bool = False,
        drop_rate: float = 0.2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        name = type(self).__name__
        check_choice(name, "similarity", similarity, SIMILARITIES)
        check_classes(name, num_classes)
        check_positive(name, "slots", slots)
        if pool_size is not None:
            check_positive(name, "pool_size", pool_size)
        strengths = {
            "cluster": cluster,
            "separation": separation,
            "orthogonality": orthogonality,
            "wrong_weight": wrong_weight,
        }
        check_strengths(name, **strengths)
        check_switches(name, bias=bias)
        super().__init__(
            in_features,
            pool_size or max(SMALLEST_POOL, 10 * num_classes),
            dimension,
            similarity=similarity,
            input_fmt=input_fmt,
            num_prefix_tokens=num_prefix_tokens,
            drop_rate=drop_rate,
            device=device,
        )
        self.num_classes, self.pool_size, self.slots = num_classes, pool_size, slots
        self.cluster, self.separation = cluster, separation
        self.orthogonality, self.wrong_weight = orthogonality, wrong_weight
        self.bias = bias
        self.sharpness = 0.0  # of the choices in training, set by start_epoch
        # what `loss` drew, for the penalty of the same step: as published, and drawn once
        self._drawn: Tensor | None = None
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        layer = nn.Linear(in_features, dimension, **place)
        self.add_on = nn.Sequential(layer, nn.Sigmoid() if similarity == "l2" else nn.Identity())
        draw = torch.rand if similarity == "l2" else torch.randn
        self.prototypes = nn.Parameter(draw(self.num_features, dimension, **place))
        self._build_classifier(place)

    def _build_classifier(self, place: dict[str, Any]) -> None:
        self.last: nn.Module = nn.Identity()
        shape = (max(1, self.num_classes), self.slots, self.num_features)
        self.assignment = nn.Parameter(torch.empty(shape, **place))
        # Xavier's of the published layout, [K, M, slots]
        spread = math.sqrt(2 / (self.slots * (self.num_features + shape[0])))
        nn.init.normal_(self.assignment, std=spread)
        if self.num_classes:
            inputs = self.num_classes * self.slots
            self.last = nn.Linear(inputs, self.num_classes, bias=self.bias, **place)
            with torch.no_grad():
                self.last.weight.copy_(self._own_slots(self.last.weight.device))
                if self.last.bias is not None:
                    self.last.bias.zero_()

    def _own_slots(self, device: torch.device) -> Tensor:
        """A class's own slots, ``[K, K · slots]`` bool."""
        eye = torch.eye(self.num_classes, dtype=torch.bool, device=device)
        return eye.repeat_interleave(self.slots, dim=1)

    # -- choices ----------------------------------------------------------------------------------

    def choices(self) -> Tensor:
        """Which prototype each slot takes, ``[K · slots, M]``: a one, or in training shares."""
        logits = self.assignment.flatten(0, 1)
        if self.training and self.assignment.requires_grad:
            if not self.sharpness:
                return logits.softmax(-1)
            return nn.functional.gumbel_softmax(logits * self.sharpness, tau=TAU)
        return nn.functional.one_hot(logits.argmax(-1), self.num_features).to(logits.dtype)

    def _chosen(self) -> Tensor:
        """The prototype of each slot, ``[K · slots]`` int64."""
        return self.assignment.flatten(0, 1).argmax(-1)

    def allowed(self) -> Tensor:
        """The classes whose slots have chosen a prototype, ``[K, M]`` bool."""
        if not self.num_classes:
            return super().allowed()
        chosen = nn.functional.one_hot(self._chosen(), self.num_features)
        classes: Tensor = chosen.unflatten(0, (self.num_classes, self.slots)).any(1)
        return classes

    # -- from a map to logits ---------------------------------------------------------------------

    def pool(
        self,
        x: Tensor,  # a map [B, ...] in layout input_fmt
        *,
        input_fmt: str | None = None,
    ) -> SparsePool:
        """Focal similarities to the prototypes, see `Head.pool`; one side only."""
        best = self.compare(self.embed(x, input_fmt), mean=True)
        assert best.mean is not None
        value = self._focal(best.value, best.mean)
        none = torch.full_like(best.index, -1)
        index = torch.where(value > 0, best.index, none)
        return SparsePool(value, value, torch.zeros_like(value), index, none)

    def training_pool(
        self,
        x: Tensor,  # a map [B, ...] in layout input_fmt
        *,
        input_fmt: str | None = None,
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Focal similarities, and the best and mean comparisons that slots mix."""
        best = self.compare(self.embed(x, input_fmt), mean=True)
        assert best.mean is not None
        value = self._focal(best.value, best.mean)
        return value, {"best": best.value, "mean": best.mean}

    def _focal(self, best: Tensor, mean: Tensor) -> Tensor:
        """Of best and mean cosines, or squared distances; >= 0 but for rounding."""
        if self.similarity == "cosine":
            return (best - mean).clamp_min(0)
        return (self.values(best) - self.values(mean)).clamp_min(0)

    def values(
        self,
        best: Tensor,  # [n, M]
    ) -> Tensor:
        """The similarity of a cosine, which is itself, or of a squared distance."""
        if self.similarity == "cosine":
            return best
        return torch.log((best + 1) / (best + EPSILON))

    def classify(
        self,
        pooled: Tensor,  # [n, M]
    ) -> Tensor:
        """``drop(pooled) · W^T + bias``, ``[n, K]``, W of `class_weights`."""
        units: Tensor = self.drop(pooled).to(self.prototypes.dtype)
        if not isinstance(self.last, nn.Linear):
            return units
        return nn.functional.linear(units, self.class_weights(), self.last.bias)

    def maps(
        self,
        pixels: Tensor,  # [P, C], those of one image
        units: Tensor,  # [n] int64
    ) -> Tensor:
        """Similarities of every pixel minus that of their mean, ``[P, n]`` float32."""
        embedded = self.embed(pixels[None], "NLC")
        mean = self.compare(embedded, units, mean=True).mean  # [1, n]
        assert mean is not None
        every = self.compare(embedded.transpose(0, 1), units).value  # [P, n]
        return (self.values(every) - self.values(mean)).float()

    def class_weights(self) -> Tensor:
        """What each prototype counts for each class through the slots that have it, ``[K, M]``."""
        if not isinstance(self.last, nn.Linear):
            raise ValueError(f"{type(self).__name__}.class_weights: this head has no classes")
        weight = self.last.weight
        empty = weight.new_zeros(self.num_classes, self.num_features)
        return empty.index_add(1, self._chosen(), weight)

    def offsets(
        self,
        classes: Tensor,  # [n] int64
    ) -> Tensor:
        """The bias of the last layer, ``[n]``, or 0."""
        if not isinstance(self.last, nn.Linear) or self.last.bias is None:
            return super().offsets(classes)
        return self.last.bias[classes]

    def notices(self) -> tuple[str, ...]:
        """Those of `PrototypeHead`, and how many prototypes no slot has chosen."""
        unused = int((~self.allowed().any(0)).sum())
        if not unused:
            return super().notices()
        told = f"{unused} of {self.num_features} {self.unit}s are chosen by no class's slots"
        return (*super().notices(), told)

    # -- training ---------------------------------------------------------------------------------

    def start_offsets(
        self,
        offsets: Tensor,  # [K]
    ) -> None:
        """Start the bias at the log-odds of the labels; without one a multi-label set is refused.

        Raises:
            ValueError: there is no bias: similarities are >= 0, and no label could be absent.
        """
        if not isinstance(self.last, nn.Linear) or self.last.bias is None:
            raise ValueError(
                f"{type(self).__name__}: bias is False, must be True for several labels an image"
            )
        with torch.no_grad():
            self.last.bias.copy_(offsets)

    def stages(self, config: TrainingOptions) -> tuple[Stage, ...]:
        """Layers, prototypes and choices at `rotation_lr`; then the last layer at `lr`."""
        rate = config.rotation_lr
        groups = [
            {"params": list(self.add_on.parameters()), "lr": rate, "weight_decay": 1e-3},
            {"params": [self.prototypes, self.assignment], "lr": rate},
        ]
        last = [{"params": list(self.last.parameters()), "lr": config.lr}]
        return (
            Stage("prototypes", groups),
            Stage(LAST, last, epochs=LAST_EPOCHS, pool_is_fixed=True),
        )

    def start_stage(self, stage: Stage, batches: Batches) -> None:
        """Before the last layer trains: the projection, see `PrototypeHead.project`."""
        if stage.name == LAST:
            self.project(batches)
            self.unprojected &= self.allowed().any(0)  # the others miss no image

    def start_epoch(self, stage: Stage, epoch: int, epochs: int, batches: Batches) -> None:
        """How sharp choices are in this epoch, as published."""
        self.sharpness = SHARPEST * min(1.0, math.sqrt(epoch / max(1.0, epochs / 2)))

    def loss(
        self,
        objective: Objective,
        logits: Tensor,  # [n, K]
        batch: TrainingBatch,
    ) -> Tensor:
        """The objective; while slots choose, of what their mixtures of prototypes say."""
        if not batch.extra:
            return objective(logits, batch.labels)
        share = self.choices()  # [K * slots, M]
        self._drawn = share.detach()
        both = torch.cat([batch.extra["best"], batch.extra["mean"]]).to(share.dtype)
        best, mean = self.values(both @ share.mT).tensor_split(2)
        assert isinstance(self.last, nn.Linear)
        # nothing is clamped here: where a slot says nothing it must still learn
        return objective(self.last(best - mean), batch.labels)

    def penalty(
        self,
        config: TrainingOptions,
        batch: TrainingBatch,
    ) -> Tensor | None:
        """Cluster, separation, orthogonality and wrong-class terms, as published."""
        assert isinstance(self.last, nn.Linear)
        weight = self.last.weight
        terms = self.wrong_weight * magnitude(weight, self._own_slots(weight.device).mT)
        if not batch.extra:
            return terms
        logits = self.assignment
        length = torch.linalg.vector_norm(logits, dim=-1).clamp_min(1e-12)  # [K, slots]
        along = torch.einsum("ks,ksm->km", 1 / length, logits)  # sums of a class's unit vectors
        alike = along.square().sum() / (self.slots * self.num_classes) - 1
        terms = terms + self.orthogonality * alike
        drawn, self._drawn = self._drawn, None
        if drawn is None:
            drawn = self.choices().detach()
        preferred = drawn.unflatten(0, (self.num_classes, -1)).sum(1)  # [K, M]
        place = preferred.topk(min(self.slots, self.num_features)).indices
        own = torch.zeros_like(preferred, dtype=torch.bool).scatter_(1, place, True)
        mine = of_own_classes(batch.labels, own.mT)
        best = batch.extra["best"]
        near = best if self.similarity == "cosine" else -best
        for strength, mask in ((self.cluster, mine), (-self.separation, ~mine)):
            similarity, counts = nearest(near, mask)
            distance = 1 - similarity if self.similarity == "cosine" else -similarity
            terms = terms + strength * mean_of(distance, counts)
        return terms

    # -- description ------------------------------------------------------------------------------

    def reset(self, num_classes: int, pool_type: str | None = None) -> None:
        """Replace choices and last layer by fresh ones; the layers and prototypes stay.

        Raises:
            ValueError: `pool_type` is given: the best pixel is what this head keeps.
        """
        name = type(self).__name__
        check_one_pool(type(self).__name__, pool_type)
        check_classes(name, num_classes)
        self.num_classes = num_classes
        like = self.prototypes
        self._build_classifier({"device": like.device, "dtype": like.dtype})
        self.last.train(self.training)

    def options(self) -> dict[str, Any]:
        """The keyword arguments that rebuild this head's structure."""
        return {**super().options(), "pool_size": self.num_features}
