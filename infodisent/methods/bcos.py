"""`BcosHead`: B-cos layers on the map, so that a logit is a linear map of it, told by the input."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from infodisent import ranks
from infodisent.checks import (
    check_choice,
    check_classes,
    check_one_pool,
    check_positive,
    check_strength,
)
from infodisent.contract import SparsePool
from infodisent.layout import to_bpc, value_dtype
from infodisent.methods.base import Head
from infodisent.methods.stages import (
    Batches,
    Objective,
    Stage,
    TrainingBatch,
    TrainingOptions,
    part_of,
)

TARGETS = ("soft", "labels")
START = 10.0
"""Largest logit, without bias, that the pooled units of training images can have at the start."""
_PIXEL, _VECTOR, _COSINE = 1e-6, 1e-12, 1e-6
"""What the published unit adds: to the squared length of a pixel, to that of a vector, and to a
cosine before a power other than 1."""


class BcosHead(Head):
    """Feature map to logits by two B-cos layers, the mean over pixels between them.

    A B-cos unit is ``(w · x) |cos(w, x)|^(B - 1)`` with w of unit length and no bias: linear in x
    by weights that x itself scales down where they do not point its way. The head's units are the
    `hidden` outputs of the first, a 1 x 1 layer, averaged over the pixels; the second makes K
    outputs of them, ``logit_k = g (v_k · z) |cos(v_k, z)|^(B - 1) + b_k``. A unit adds its own term
    of ``v_k · z``, scaled by the class's cosine, and a pixel adds the same of its own outputs, see
    `pixel_contributions`: either sum is the logit without bias, and nothing is approximated.
    ``hidden=0`` has one layer of K outputs, one unit a class, and their mean, as the published
    models end.

    Boehle et al., "B-cos Networks: Alignment is All We Need for Interpretability", CVPR 2022 (arXiv
    2205.10268), and "B-cos Alignment for Inherently Interpretable CNNs and Vision Transformers"
    (arXiv 2306.10898): the unit with its MaxOut, the bias of ``-log(K - 1)`` and the loss. What
    differs: only the head is B-cos, so that it explains logits by the frozen map and not by the
    colours of an image; with `hidden` units the mean over pixels comes before the second layer, so
    that the units alone make the logits; g is learned and starts at `START` over the mean length of
    what it multiplies; AdamW with a cosine rate.

    Besides the attributes of `Head` it has ``first`` and, with hidden units, ``second``: weights of
    any length.

    Args:
        in_features: channels C of the map.
        num_classes: classes K; 0 leaves the hidden units as output.
        input_fmt: layout of the map: NCHW, NHWC, NCL or NLC.
        num_prefix_tokens: leading tokens of a token map that are not pixels.
        hidden: units H of the first layer; 0 for one layer only.
        b: the exponent B >= 1; 1 is a linear layer with weights of unit length.
        max_out: candidates of every unit, of which it takes the greatest.
        targets: "soft": binary cross-entropy with targets 1 for an image's class and 1 / K for the
            others, as published, whatever `FitConfig` says of class weights, logit adjustment and
            label smoothing; "labels": the objective of the configuration. Multi-label sets always
            have the latter, binary cross-entropy of every label.
        drop_rate: dropout on the units in training.
        device, dtype: of the parameters.

    Attributes:
        bias: buffer ``[K]``, not trained: ``-log(K - 1)``, or the log-odds of multi-label sets.
        log_gain: parameter, the logarithm of g.

    Raises:
        ValueError: a size, layout or option that is not allowed, named.
    """

    method = "bcos"
    title = "B-cos"
    sigmoid = True
    summary = "B-cos layers on the map: every logit is a linear map of it, pixel by pixel"
    paper = "Boehle et al. 2022, arXiv 2205.10268"
    unit = "feature"

    bias: Tensor

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        input_fmt: str = "NCHW",
        num_prefix_tokens: int = 0,
        hidden: int = 256,
        b: float = 2.0,
        max_out: int = 1,
        targets: str = "soft",
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        name = "BcosHead"
        if isinstance(hidden, bool) or not isinstance(hidden, int) or hidden < 0:
            raise ValueError(f"{name}: hidden is {hidden!r}, must be an int >= 0")
        check_classes(type(self).__name__, num_classes)
        super().__init__(
            in_features,
            hidden or max(1, num_classes),
            input_fmt=input_fmt,
            num_prefix_tokens=num_prefix_tokens,
            drop_rate=drop_rate,
        )
        check_positive(name, "max_out", max_out)
        check_choice(name, "targets", targets, TARGETS)
        check_strength(name, "b", b, least=1)
        self.hidden, self.b, self.max_out, self.targets = hidden, float(b), max_out, targets
        self._build_first({"device": device, "dtype": dtype})
        self._build_classifier(num_classes, {"device": device, "dtype": dtype})

    def _build_first(self, place: dict[str, Any]) -> None:
        self.first = _weights(self.num_features * self.max_out, self.in_features, place)

    def _build_classifier(self, num_classes: int, place: dict[str, Any]) -> None:
        self.num_classes = num_classes
        self.second: nn.Parameter | None = None
        if self.hidden and num_classes:
            self.second = _weights(num_classes * self.max_out, self.hidden, place)
        bias = torch.full((num_classes,), -math.log(max(1, num_classes - 1)), **place)
        self.register_buffer("bias", bias)
        self.log_gain = nn.Parameter(torch.zeros((), **place))

    # -- from a map to logits ---------------------------------------------------------------------

    def outputs(
        self,
        rows: Tensor,  # [..., P, C]
    ) -> Tensor:
        """The first layer at every pixel, ``[..., P, M]``, float32 or wider."""
        rows = rows.to(value_dtype(rows.dtype, self.first.dtype))
        length = (rows.square().sum(-1, keepdim=True) + _PIXEL).sqrt()
        return self._scaled(_responses(rows, self.first, self.max_out), length)

    def _scaled(self, response: Tensor, length: Tensor) -> Tensor:
        """``response · |response / length|^(B - 1)``."""
        return response * self._dynamic(response, length)

    def _dynamic(self, response: Tensor, length: Tensor) -> Tensor:
        if self.b == 1:
            return torch.ones_like(response)
        cosine = response.abs() / length
        return cosine if self.b == 2 else (cosine + _COSINE).pow(self.b - 1)

    def pool(
        self,
        x: Tensor,  # a map [B, ...] in layout input_fmt
        *,
        input_fmt: str | None = None,
    ) -> SparsePool:
        """The mean of every unit, as `pos` or `neg`, and the pixel of its extreme.

        The outputs at all pixels, ``[B, P, M]``, are held.
        """
        layout = self.layout(input_fmt)
        outputs = self.outputs(to_bpc(x, layout["input_fmt"], layout["num_prefix_tokens"]))
        mean = outputs.mean(1)
        none = torch.full_like(mean, -1, dtype=torch.int32)
        greatest, least = (
            places.to(torch.int32) for places in (outputs.argmax(1), outputs.argmin(1))
        )
        return SparsePool(
            mean,
            mean.clamp_min(0),
            (-mean).clamp_min(0),
            torch.where(mean > 0, greatest, none),
            torch.where(mean < 0, least, none),
        )

    def classify(
        self,
        pooled: Tensor,  # [n, M]
    ) -> Tensor:
        """``g (v_k · z) |cos(v_k, z)|^(B - 1) + b_k``, ``[n, K]``; of one layer ``g z_k + b_k``."""
        gain = self._gain()
        pooled = self.drop(pooled.to(gain.dtype))
        if self.second is None:
            return gain * pooled + self.bias
        response = _responses(pooled, self.second, self.max_out)
        return gain * self._scaled(response, _length(pooled)) + self.bias

    # -- evidence ---------------------------------------------------------------------------------

    def class_weights(self) -> Tensor:
        """g times the second layer at a cosine of 1, ``[K, M]``: the most that a unit can count.

        Of MaxOut the candidate of largest weights; the identity, times g, of one layer.
        """
        gain = self._gain()
        if self.second is None:
            return gain * torch.eye(self.num_classes, device=gain.device, dtype=gain.dtype)
        weight = _unit(self.second).unflatten(0, (self.num_classes, self.max_out))
        largest: Tensor = weight.gather(1, weight.abs().argmax(1, keepdim=True))[:, 0]
        return gain * largest

    def contributions(
        self,
        pooled: Tensor,  # [n, M]
        classes: Tensor,  # [n] int64
    ) -> Tensor:
        """``g v_km z_m |cos(v_k, z)|^(B - 1)``, ``[n, M]``: exact, see `Head.contributions`."""
        return self.dynamic_weights(pooled, classes).to(pooled.device) * pooled

    def dynamic_weights(
        self,
        pooled: Tensor,  # [n, M]
        classes: Tensor,  # [n] int64
    ) -> Tensor:
        """What every unit's value is multiplied with to make a logit, ``[n, M]``."""
        gain = self._gain()
        device, classes = gain.device, classes.to(gain.device)
        dtype = (
            torch.float64 if pooled.dtype == torch.float64 and device.type != "mps" else gain.dtype
        )
        pooled, gain = pooled.to(device, dtype), gain.to(dtype)
        if self.second is None:
            return gain * nn.functional.one_hot(classes, self.num_classes).to(dtype)
        weight = _unit(self.second.to(dtype)).unflatten(0, (self.num_classes, self.max_out))[
            classes
        ]
        response, which = (weight @ pooled[:, :, None])[..., 0].max(1)  # [n] of [n, max_out]
        weight = weight[torch.arange(len(classes), device=device), which]
        dynamic: Tensor = gain * self._dynamic(response[:, None], _length(pooled)) * weight
        return dynamic

    def offsets(
        self,
        classes: Tensor,  # [n] int64
    ) -> Tensor:
        """The bias of each class, ``[n]``."""
        return self.bias[classes.to(self.bias.device)]

    def maps(
        self,
        pixels: Tensor,  # [P, C]
        units: Tensor,  # [n] int64
    ) -> Tensor:
        """The outputs of a few units of the first layer, ``[P, n]`` float32."""
        return self.outputs(pixels)[:, units.to(pixels.device)].float()

    def pixel_contributions(
        self,
        x: Tensor,  # a map [B, ...] in layout input_fmt
        classes: Tensor,  # [B] int64
        *,
        input_fmt: str | None = None,
    ) -> Tensor:
        """What every pixel adds to the logit of a class, ``[B, P]``; with `offsets` the logit."""
        layout = self.layout(input_fmt)
        outputs = self.outputs(to_bpc(x, layout["input_fmt"], layout["num_prefix_tokens"]))
        weights = self.dynamic_weights(outputs.mean(1), classes)
        return (outputs @ weights[:, :, None])[..., 0] / outputs.shape[1]

    # -- training ---------------------------------------------------------------------------------

    def stages(self, config: TrainingOptions) -> tuple[Stage, ...]:
        """One stage: the layer on the map at `rotation_lr`, what follows it at `lr`."""
        after = [self.log_gain] if self.second is None else [self.second, self.log_gain]
        groups = [
            {"params": [self.first], "lr": config.rotation_lr},
            {"params": after, "lr": config.lr},
        ]
        return (Stage("train", groups),)

    def start_stage(self, stage: Stage, batches: Batches) -> None:
        """The gain, from the lengths of the units of the training images."""
        total, count = 0.0, 0
        for maps, _, _ in part_of(batches)():
            pooled = self.pool(maps, input_fmt="NLC").pooled
            total += pooled.norm(dim=1).sum().item()
            count += len(pooled)
        total, count = sum(ranks.everyones(total)), sum(ranks.everyones(count))
        self.log_gain.fill_(math.log(START / max(total / count, 1e-6)))

    def ignored(self, multilabel: bool) -> tuple[str, ...]:
        """What the loss leaves alone, unless it is the objective."""
        more = ("label_smoothing", "class_weights", "logit_adjustment")
        return super().ignored(multilabel) + (
            () if multilabel or self.targets == "labels" else more
        )

    def loss(
        self,
        objective: Objective,
        logits: Tensor,  # [n, K]
        batch: TrainingBatch,
    ) -> Tensor:
        """Binary cross-entropy with soft targets, summed over classes, or the objective."""
        if self.targets == "labels" or batch.labels.ndim == 2:
            return objective(logits, batch.labels)
        classes = self.num_classes
        target = nn.functional.one_hot(batch.labels, classes).to(logits).clamp_min(1 / classes)
        return classes * nn.functional.binary_cross_entropy_with_logits(logits, target)

    def start_offsets(
        self,
        offsets: Tensor,  # [K]
    ) -> None:
        """Multi-label: the bias, as the log-odds of the labels."""
        self.bias.copy_(offsets)

    def no_weight_decay(self) -> set[str]:
        """The gain; lengths of the other weights do not count."""
        return {"log_gain"}

    # -- description ------------------------------------------------------------------------------

    def reset(self, num_classes: int, pool_type: str | None = None) -> None:
        """Replace what classifies by fresh weights; a hidden layer stays.

        Raises:
            ValueError: `pool_type` is given: the mean is what this head classifies.
        """
        check_one_pool(type(self).__name__, pool_type)
        check_classes(type(self).__name__, num_classes)
        place = {"device": self.first.device, "dtype": self.first.dtype}
        if not self.hidden:
            self.num_features = max(1, num_classes)
            self._build_first(place)
        self._build_classifier(num_classes, place)

    def _gain(self) -> Tensor:
        if not self.num_classes:
            raise ValueError("BcosHead: this head has no classes (num_classes=0)")
        return self.log_gain.exp()


def _weights(units: int, channels: int, place: dict[str, Any]) -> nn.Parameter:
    return nn.Parameter(torch.empty(units, channels, **place).normal_(0, channels**-0.5))


def _unit(
    weight: Tensor,  # [M, C]
) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(weight, dim=1, keepdim=True)
    return weight / length


def _length(
    rows: Tensor,  # [n, C]
) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return length + _VECTOR


def _responses(
    rows: Tensor,  # [..., C]
    weight: Tensor,  # [M · max_out, C]
    max_out: int,
) -> Tensor:
    """``w · x`` with w of unit length, the greatest of every unit's candidates: ``[..., M]``."""
    response = rows @ _unit(weight.to(rows.dtype)).mT
    return response if max_out == 1 else response.unflatten(-1, (-1, max_out)).amax(-1)
