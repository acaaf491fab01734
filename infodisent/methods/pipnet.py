"""`PIPNetHead`: prototypes that two views of an image agree on, and nonnegative class weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from infodisent import ops, ranks
from infodisent.checks import check_classes, check_one_pool, check_positive, check_strengths
from infodisent.contract import SparsePool
from infodisent.layout import to_bpc
from infodisent.methods.base import Head
from infodisent.methods.stages import (
    Batches,
    Objective,
    Stage,
    TrainingBatch,
    TrainingOptions,
    part_of,
)

FOUND = 0.1
"""Presence from which a prototype counts; lower ones are 0 where a trained head predicts."""
CLASSIFIER_EPOCHS = 3
"""Passes of the class weights alone, before all trains."""
CYCLES = 6
"""Warm restarts of the class weights' rate in the main stage: 60 epochs by 10, or 30 by 5."""
ADD_ON_FLOOR = 0.01
CLASSIFIER_FLOOR = 0.02
"""Parts of the peak where the rates of a cycle end."""
LAYER_RATE = 3.0
"""Rate of the layer in parts of `rotation_lr`."""
CLASSIFIER_RATE = 5.0
"""Rate of the class weights in parts of `lr`, which is 0.01 by default and 0.05 as published."""
_SMALL = 1e-8


class PIPNetHead(Head):
    """Feature map to scores by prototypes that are present in an image or not.

    At every pixel a softmax over the prototypes, for every prototype the largest over pixels: its
    presence p in [0, 1]. Scores are ``W p`` with nonnegative W. Presences below 0.1 count as 0, and
    an image without any other gets no class: the head abstains. Training compares two augmented
    views of every image, so that a prototype answers to what a person sees in both. Three stages:
    the prototypes alone (views agree pixel by pixel, every prototype occurs), the classifier alone,
    then both; after every step that trains W it shrinks by `shrink`, which leaves a few weights.

    Nauta et al., "PIP-Net: Patch-Based Intuitive Prototypes for Interpretable Image
    Classification", CVPR 2023, with its formulas, strengths, ramp and initial weights. What
    differs: the backbone may stay frozen, where a 1 x 1 layer on stored maps makes the prototypes
    (``num_prototypes=0`` takes the backbone's channels as published, which needs a backbone that
    trains); the classifier alone trains on the images themselves; AdamW's rates are those of the
    package, restarts come by parts of the stage, not by a number of epochs; the alignment has no
    1e-12 inside its logarithm; and evaluating does not shrink W, as the published code does once a
    test batch.

    Attributes:
        layer: the 1 x 1 layer to `num_prototypes`, or `nn.Identity`.
        weight: W before it is clamped at 0, ``[K, M]``.

    Args:
        in_features: channels C of the map.
        num_classes: classes K; 0 leaves the presences as output.
        input_fmt: layout of the map: NCHW, NHWC, NCL or NLC.
        num_prefix_tokens: leading tokens of a token map that are not pixels.
        num_prototypes: of the layer; 0 for none, prototypes are the channels.
        pretraining: epochs of the prototypes alone; 0 for none.
        alignment: strength in the main stage of the agreement of two views.
        presence: … of every prototype's occurring in a batch.
        classification: … of the cross-entropy.
        shrink: what a step takes from every weight.
        drop_rate: dropout on the presences in training.
        device, dtype: of the parameters.

    Raises:
        ValueError: a size, layout or option that is not allowed, named.
    """

    method = "pipnet"
    title = "PIP-Net"
    summary = "prototypes that two views agree on; few nonnegative weights; may abstain"
    paper = "Nauta et al. 2023, CVPR"
    unit = "prototype"
    score = "score"
    loss_needs_pool = True
    multilabel = False

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        input_fmt: str = "NCHW",
        num_prefix_tokens: int = 0,
        num_prototypes: int = 512,
        pretraining: int = 10,
        alignment: float = 5.0,
        presence: float = 2.0,
        classification: float = 2.0,
        shrink: float = 1e-3,
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        name = "PIPNetHead"
        check_positive(name, "in_features", in_features)
        for option, count in (
            ("num_classes", num_classes),
            ("num_prototypes", num_prototypes),
            ("pretraining", pretraining),
        ):
            if isinstance(count, bool) or not isinstance(count, int) or count < 0:
                raise ValueError(f"{name}: {option} is {count!r}, must be an int >= 0")
        check_strengths(
            name,
            alignment=alignment,
            presence=presence,
            classification=classification,
            shrink=shrink,
        )
        super().__init__(
            in_features,
            num_prototypes or in_features,
            input_fmt=input_fmt,
            num_prefix_tokens=num_prefix_tokens,
            drop_rate=drop_rate,
        )
        self.num_classes, self.num_prototypes = num_classes, num_prototypes
        self.pretraining, self.shrink = pretraining, shrink
        self.alignment, self.presence = alignment, presence
        self.classification = classification
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.layer: nn.Module = nn.Identity()
        if num_prototypes:
            self.layer = nn.Linear(in_features, num_prototypes, **place)
            nn.init.xavier_uniform_(self.layer.weight)
            nn.init.zeros_(self.layer.bias)
        self._build_weight(place)

    def _build_weight(self, place: dict[str, Any]) -> None:
        weight = torch.empty(self.num_classes, self.num_features, **place)
        self.weight = nn.Parameter(weight.normal_(1.0, 0.1))

    # -- from a map to scores ---------------------------------------------------------------------

    def prototype_scores(
        self,
        x: Tensor,  # a map [B, ...] in layout input_fmt
        input_fmt: str | None = None,
    ) -> Tensor:
        """What the softmax over prototypes is taken of, ``[B, P, M]``."""
        layout = self.layout(input_fmt)
        rows = to_bpc(x, layout["input_fmt"], layout["num_prefix_tokens"])
        scores: Tensor = self.layer(rows.to(self.weight.dtype))
        return scores

    def pool(
        self,
        x: Tensor,  # a map [B, ...] in layout input_fmt
        *,
        input_fmt: str | None = None,
    ) -> SparsePool:
        """Presences of the prototypes, see `Head.pool`; one side only."""
        return self._pool(self.prototype_scores(x, input_fmt))

    def _pool(
        self,
        scores: Tensor,  # [B, P, M]
    ) -> SparsePool:
        best = ops.softmax_pool(scores, input_fmt="NLC")
        none = torch.full_like(best.index, -1)
        return SparsePool(best.value, best.value, torch.zeros_like(best.value), best.index, none)

    def classify(
        self,
        pooled: Tensor,  # [n, M]
    ) -> Tensor:
        """``W p`` of the presences from 0.1, ``[n, K]``; in training ``log1p((W p)^2)`` of all."""
        weight = self.class_weights()
        if self.training:
            scores = nn.functional.linear(self.drop(pooled).to(weight.dtype), weight)
            return torch.log1p(scores.square())
        return nn.functional.linear(found(pooled).to(weight.dtype), weight)

    # -- evidence ---------------------------------------------------------------------------------

    def class_weights(self) -> Tensor:
        """``relu(W)``, ``[K, M]``."""
        if not self.num_classes:
            raise ValueError("PIPNetHead.class_weights: this head has no classes")
        return self.weight.relu()

    def maps(
        self,
        pixels: Tensor,  # [P, C]
        units: Tensor,  # [n] int64
    ) -> Tensor:
        """The softmax at every pixel, a few prototypes of it: ``[P, n]`` float32."""
        every = self.prototype_scores(pixels[None], "NLC")[0].float().softmax(1)  # [P, M]
        return every[:, units.to(every.device)]

    def contributions(
        self,
        pooled: Tensor,  # [n, M]
        classes: Tensor,  # [n] int64
    ) -> Tensor:
        """``W p`` term by term, see `Head.contributions`; presences below 0.1 add nothing."""
        return super().contributions(found(pooled), classes)

    def abstains(
        self,
        pooled: Tensor,  # [n, M]
    ) -> Tensor:
        """Images whose scores are all 0, ``[n]`` bool: no prototype that counts was found."""
        scores = found(pooled).to(self.weight.dtype) @ self.class_weights().mT
        return scores.amax(1) <= 0

    def notices(self) -> tuple[str, ...]:
        """How many prototypes have a weight of more than 1e-3 for some class."""
        used = int((self.class_weights() > 1e-3).any(0).sum())
        return (f"{used} of {self.num_features} prototypes count for some class",)

    # -- training ---------------------------------------------------------------------------------

    def stages(self, config: TrainingOptions) -> tuple[Stage, ...]:
        """Prototypes, classifier, both; the layer at 3 times `rotation_lr`, W at 5 times `lr`."""
        layer: list[dict[str, Any]] = []
        if self.num_prototypes:
            layer = [
                {"params": list(self.layer.parameters()), "lr": LAYER_RATE * config.rotation_lr}
            ]
        weight = {"params": [self.weight], "lr": CLASSIFIER_RATE * config.lr}
        first = Stage("pretraining", layer, epochs=self.pretraining, rate=_annealed, views=2)
        alone = Stage("classifier", [weight], epochs=CLASSIFIER_EPOCHS, pool_is_fixed=True)
        main = Stage("main", [*layer, {**weight, "rate": _restarted}], rate=_annealed, views=2)
        return (first, alone, main) if self.pretraining else (alone, main)

    def training_pool(
        self,
        x: Tensor,  # a map [B, ...] in layout input_fmt
        *,
        input_fmt: str | None = None,
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Presences, and how far an image's two views agree at every pixel, ``[2n, P]``.

        Maps i and i + n are two views of one image.
        """
        layout = self.layout(input_fmt)
        rows = to_bpc(x, layout["input_fmt"], layout["num_prefix_tokens"]).to(self.weight.dtype)
        layer = self.layer if isinstance(self.layer, nn.Linear) else None
        views = ops.softmax_views(rows, *(() if layer is None else (layer.weight, layer.bias)))
        return views.value, {"alignment": views.alignment}

    def loss(
        self,
        objective: Objective,
        logits: Tensor,  # [n, K]
        batch: TrainingBatch,
    ) -> Tensor:
        """Agreement, presence and cross-entropy, as the stage asks for.

        With z', z'' the softmax maps of two views and p their pools, over the pixels of all images:
        ``L_A = 1/2 [mean -log z'·sg(z'') + mean -log sg(z')·z'']``, ``L_T = -1/2 sum over views of
        mean_m log(tanh(sum_b p_bm) + 1e-8)``. In epoch e of E_p of the pretraining
        ``e / E_p · L_A + 5 L_T``; later `alignment`, `presence` and `classification`.
        """
        if batch.labels.ndim == 2:
            raise ValueError(
                "PIPNetHead: images with several labels are not for this method, whose training "
                "scores log1p((W p)^2) are never negative"
            )
        if "alignment" not in batch.extra or batch.pooled is None:
            return self.classification * objective(logits, batch.labels)
        agreement = batch.extra["alignment"].mean()  # of both views: half of either's mean
        occurrence = presence(batch.pooled)
        if batch.stage == "pretraining":
            done = math.floor(batch.progress * self.pretraining + 1e-9) + 1
            return done / self.pretraining * agreement + 5 * occurrence
        return (
            self.alignment * agreement
            + self.presence * occurrence
            + self.classification * objective(logits, batch.labels)
        )

    def after_step(self) -> None:
        """Where W trains it shrinks, and stops at 0."""
        if self.weight.requires_grad:
            with torch.no_grad():
                self.weight.sub_(self.shrink).clamp_min_(0)

    def finish(self, batches: Batches) -> None:
        """Weights of prototypes that no training image has with 0.1 become 0."""
        most = torch.zeros(self.num_features, device=self.device)
        for maps, _, _ in part_of(batches)():
            if len(maps):
                most = torch.maximum(most, self.pool(maps, input_fmt="NLC").pooled.amax(0).to(most))
        most = ranks.gathered(most[None]).amax(0)
        self.weight[:, most <= FOUND] = 0

    # -- description ------------------------------------------------------------------------------

    def reset(self, num_classes: int, pool_type: str | None = None) -> None:
        """Replace the class weights by fresh ones; the prototypes stay.

        Raises:
            ValueError: `pool_type` is given: the best pixel is what this head keeps.
        """
        check_one_pool(type(self).__name__, pool_type)
        check_classes(type(self).__name__, num_classes)
        self.num_classes = num_classes
        self._build_weight({"device": self.weight.device, "dtype": self.weight.dtype})


def found(
    pooled: Tensor,  # [n, M]
) -> Tensor:
    """The presences, those below 0.1 as 0."""
    return torch.where(pooled >= FOUND, pooled, torch.zeros_like(pooled))


def presence(
    pooled: Tensor,  # [2n, M]; rows i and i + n are two views of one image
) -> Tensor:
    """``L_T`` of `PIPNetHead.loss`, a scalar."""
    terms = [-(view.sum(0).tanh() + _SMALL).log().mean() for view in pooled.tensor_split(2)]
    return 0.5 * (terms[0] + terms[1])


def _annealed(progress: float) -> float:
    """Half a cosine from 1 to a hundredth, as `torch.optim`'s CosineAnnealingLR."""
    return ADD_ON_FLOOR + (1 - ADD_ON_FLOOR) * 0.5 * (1 + math.cos(math.pi * progress))


def _restarted(progress: float) -> float:
    """Half cosines from 1 to a fiftieth (0.05 to 0.001), as CosineAnnealingWarmRestarts."""
    within = progress * CYCLES % 1
    return CLASSIFIER_FLOOR + (1 - CLASSIFIER_FLOOR) * 0.5 * (1 + math.cos(math.pi * within))
