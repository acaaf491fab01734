"""`ClassPrototypeHead`: what TesNet and ST-ProtoPNet share, unit prototypes of single classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from infodisent.checks import (
    check_classes,
    check_one_pool,
    check_positive,
)
from infodisent.contract import Pool, SparsePool
from infodisent.methods.prototypes import (
    PrototypeHead,
    magnitude,
    mean_of,
    nearest,
    of_own_classes,
)
from infodisent.methods.stages import Batches, Stage, TrainingOptions

LAST_EPOCHS = 20
"""Passes of the last layer over the images, after the projection."""


class ClassPrototypeHead(PrototypeHead):
    """`per_class` unit vectors a class, and a linear layer without bias that adds up.

    Training has two stages: layers and prototypes, which have length 1 after every step; then,
    from prototypes that are patches of their own class (projection), the last layer, which starts
    at 1 for a prototype's own class and at -0.5 for the others.

    Args:
        in_features: channels C of the map.
        num_classes: classes K; 0 leaves the units of one class as output.
        dimension: D, numbers that a pixel is turned into.
        per_class: prototypes of a class, in each of the `branches`.
        similarity, input_fmt, num_prefix_tokens, drop_rate, device: see `PrototypeHead`.

    Attributes:
        branches: sets of prototypes, one after the other.
        last: the linear layer; an identity without classes.

    A subclass makes `add_on`, then calls `build`.

    Raises:
        ValueError: a size, layout or rate that is not allowed, named.
    """

    loss_needs_pool = True
    branches: ClassVar[int] = 1
    last: nn.Module

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        dimension: int,
        *,
        per_class: int,
        similarity: str,
        input_fmt: str,
        num_prefix_tokens: int,
        drop_rate: float,
        device: torch.device | str | None,
    ) -> None:
        name = type(self).__name__
        check_positive(name, "per_class", per_class)
        check_classes(name, num_classes)
        super().__init__(
            in_features,
            self.branches * per_class * max(1, num_classes),
            dimension,
            similarity=similarity,
            input_fmt=input_fmt,
            num_prefix_tokens=num_prefix_tokens,
            drop_rate=drop_rate,
            device=device,
        )
        self.num_classes, self.per_class = num_classes, per_class

    def build(self, place: dict[str, Any]) -> None:
        """Fresh prototypes and last layer; `place` is their device and dtype."""
        start = torch.randn(self.num_features, self.dimension, **place)
        self.prototypes = nn.Parameter(nn.functional.normalize(start))
        self.last = nn.Identity()
        if self.num_classes:
            self.last = nn.Linear(self.num_features, self.num_classes, bias=False, **place)
            with torch.no_grad():
                own = self.own(self.last.weight.device)
                self.last.weight.copy_(torch.where(own.mT, 1.0, -0.5))

    def own(self, device: torch.device | str = "cpu") -> Tensor:
        """Which prototype belongs to which class, ``[M, K]`` bool."""
        own = torch.eye(self.num_classes, dtype=torch.bool, device=device)
        return own.repeat_interleave(self.per_class, dim=0).repeat(self.branches, 1)

    # -- from a map to logits ---------------------------------------------------------------------

    def allowed(self) -> Tensor:
        """Its own class's images, ``[K, M]`` bool; without classes all images."""
        return self.own(self.prototypes.device).mT if self.num_classes else super().allowed()

    def vectors(self) -> Tensor:
        """The prototypes' directions, ``[M, D]``: of length 1."""
        return nn.functional.normalize(self.prototypes)

    def values(
        self,
        best: Tensor,  # [n, M]
    ) -> Tensor:
        """Products or cosines, 0 where negative: nothing in the image is like that prototype."""
        return best.clamp_min(0)

    def one_sided(self, best: Pool) -> SparsePool:
        """The units of the best pixels, see `Head.pool`; a unit of 0 has no place."""
        value = self.values(best.value)
        none = torch.full_like(best.index, -1)
        index = torch.where(value > 0, best.index, none)
        return SparsePool(value, value, torch.zeros_like(value), index, none)

    def classify(
        self,
        pooled: Tensor,  # [n, M]
    ) -> Tensor:
        """``drop(pooled) · W^T``, ``[n, K]``."""
        logits: Tensor = self.last(self.drop(pooled).to(self.prototypes.dtype))
        return logits

    def class_weights(self) -> Tensor:
        """The last layer, ``[K, M]``, of either sign."""
        if not isinstance(self.last, nn.Linear):
            raise ValueError(f"{type(self).__name__}.class_weights: this head has no classes")
        return self.last.weight

    # -- training ---------------------------------------------------------------------------------

    def stages(self, config: TrainingOptions) -> tuple[Stage, ...]:
        """Layers and prototypes, at `rotation_lr`; after the projection the last layer, at `lr`."""
        rate = config.rotation_lr
        layers = {"params": list(self.add_on.parameters()), "lr": rate, "weight_decay": 1e-3}
        last = [{"params": list(self.last.parameters()), "lr": config.lr}]
        return (
            Stage("prototypes", [layers, {"params": [self.prototypes], "lr": rate}]),
            Stage("last layer", last, epochs=LAST_EPOCHS, pool_is_fixed=True),
        )

    def start_stage(self, stage: Stage, batches: Batches) -> None:
        """Before the last layer trains: the projection, see `PrototypeHead.project`."""
        if stage.name == "last layer":
            self.project(batches)

    @torch.no_grad()
    def after_step(self) -> None:
        """Prototypes of length 1, while they train."""
        if self.prototypes.requires_grad:
            self.prototypes.copy_(nn.functional.normalize(self.prototypes))

    def wrong_weights(self) -> Tensor:
        """Sum of the last layer's magnitudes for other classes than a prototype's own."""
        weight = self.class_weights()
        return magnitude(weight, self.own(weight.device))

    def clusters(
        self,
        cosine: Tensor,  # [n, m]
        labels: Tensor,  # [n] int64, or [n, K] float32
        own: Tensor,  # [m, K] bool
    ) -> tuple[Tensor, Tensor]:
        """Means over the images of their largest cosine: own prototypes', other classes'.

        The maximum itself: the published code takes it of cosines times a mask, which makes a
        negative one 0.
        """
        mine = of_own_classes(labels, own)
        largest, other = (mean_of(*nearest(cosine, mask)) for mask in (mine, ~mine))
        return largest, other

    # -- description ------------------------------------------------------------------------------

    def reset(self, num_classes: int, pool_type: str | None = None) -> None:
        """Replace prototypes and last layer by fresh ones; the layers before them stay.

        Raises:
            ValueError: `pool_type` is given: the best pixel is what this head keeps.
        """
        name = type(self).__name__
        check_one_pool(type(self).__name__, pool_type)
        check_classes(name, num_classes)
        self.num_classes = num_classes
        self.num_features = self.branches * self.per_class * max(1, num_classes)
        like = self.prototypes
        self.start_record(like.device)
        self.build({"device": like.device, "dtype": like.dtype})
        self.last.train(self.training)


def layers(
    in_features: int,
    dimension: int,
    between: Callable[[], nn.Module],
    end: Callable[[], nn.Module],
    place: dict[str, Any],
) -> nn.Sequential:
    """Two linear layers of pixels, C to D to D, each followed by a function.

    The published initial values keep the scale of gradients (fan-out); with 1280 channels of a
    backbone for 64 dimensions that makes embedded pixels, and with them projections and logits,
    five times as large, which trains much worse. These keep the scale of the map (fan-in).
    """
    first, second = (
        nn.Linear(in_features, dimension, **place),
        nn.Linear(dimension, dimension, **place),
    )
    for layer in (first, second):
        nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    return nn.Sequential(first, between(), second, end())


def orthogonality(
    vectors: Tensor,  # [..., K, n, D]
) -> Tensor:
    """``sum_k sum_ij |P_k P_k^T - I|_ij``, a scalar: 0 where a class's vectors are orthonormal."""
    gram = vectors @ vectors.mT
    unit = torch.eye(vectors.shape[-2], device=vectors.device, dtype=vectors.dtype)
    return (gram - unit).abs().sum()
