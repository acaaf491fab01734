"""`FitConfig`: the options of a training."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from infodisent.checks import check_choice
from infodisent.methods.stages import LoopOptions, TrainingStatistics

CLASS_WEIGHTS = ("none", "balanced")
SAMPLERS = ("shuffle", "balanced")
PRECISIONS = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What products are computed in, by the name that `FitConfig.amp` has for it."""
SCHEDULES = ("method", "cosine", "linear", "constant")
SMALL_FEATURES = 0.5
"""Mean of the max-pooled map below which the weights' rate grows. EfficientNet-Lite0 on photographs
of solar cells has 0.57, small networks of random weights 0.07."""

IMBALANCED = 3
"""Ratio of the largest class's images to the smallest's above which classes are imbalanced."""
_AUTOMATIC = ("lr", "logit_adjustment")


def weights_rate(lr: float | None, feature_scale: float) -> float:
    """`lr`, or where it is None 0.01 and more for small features.

    Adam moves a weight by about the rate a step, whatever the features are. Where they are small
    the weights must become as much larger in the same number of steps.
    """
    if lr is not None:
        return lr
    grown = 0 < feature_scale < SMALL_FEATURES
    return 1e-2 * (SMALL_FEATURES / feature_scale if grown else 1.0)


@dataclass(frozen=True)
class FitConfig:
    """Options of `infodisent.training.fit.fit_head`.

    Attributes:
        epochs: passes over the training set; None for 15, or more where that is under 120 steps.
        batch_size: images per step, drawn anew every epoch.
        lr: peak learning rate of the weights; AdamW, cosine to zero. None for 0.01, or more where
            the features are small, see `weights_rate`.
        rotation_lr: the same for the rotation's parameter A.
        backbone_lr: the same for the backbone, where it trains.
        l1: strength of the penalty ``l1 · m · sum_k pull_k sum_c W_kc / K``, m being the mean of
            the max-pooled features, which makes one value fit all backbones, and pull_k how
            strongly the loss pulls on class k (1 where classes are balanced, see
            `TrainingStatistics`). It makes explanations short.
        label_smoothing: of the cross-entropy.
        seed: of initial weights, batch order, validation split and dropout.
        class_weights: of the cross-entropy: "none", "balanced" (inversely proportional to a class's
            images) or K numbers. Multi-label: the weight of a label's positives, for which
            "balanced" is negatives / positives.
        sampler: "shuffle", every image once an epoch; "balanced", as many draws an epoch, with
            replacement, every class equally often.
        logit_adjustment: tau of ``logits + tau · log(share)`` in the training loss, so that the
            logits themselves owe less to how frequent a class is (Menon et al., "Long-tail learning
            via logit adjustment", 2021): 0 learns the frequencies, 1 treats all classes alike. None
            for 1 where the classes are imbalanced (the largest has more than `IMBALANCED` times the
            images of the smallest) and neither `class_weights` nor `sampler` sees to it, else 0.
        validation: part of the *training* images, in [0, 1), that is held out to score every epoch:
            of every class the same part, groups (`FeatureStore.groups`) never divided. 0 for none.
        patience: stop where the validation loss has not been lower for so many epochs, and keep the
            weights of the best; None never stops. Of a head with several stages those stop, each by
            itself, that say so (`Stage.stops_early`), which is the last one if none does.
        amp: precision of the products in a step (`torch.autocast`): "none", that of the weights and
            maps; "bf16"; "fp16", whose loss is scaled (`torch.amp.GradScaler`). Weights, losses and
            penalties stay float32. It matters where a backbone or an embedding trains: what is
            pooled from stored half-precision maps is computed from them in any case.
        accumulate: parts that the images of a step are divided into, one after the other through
            backbone and pool, which takes as much less memory. `batch_size` stays that of the step,
            and the step what it is, up to the order of sums: where loss and penalty are means over
            the images their gradients are added up; any other loss sees all images at once, and
            the pool of each part is computed a second time for its gradient. Only what a pool
            draws at random (``pooling="gumbel"``) is drawn otherwise.
        ema: decay, in [0, 1), of the exponential moving average of the weights that train; 0 for
            none. After t steps of a stage it is ``min(ema, (1 + t) / (10 + t))``, so that the
            beginning is forgotten in short trainings, too. The average, with the head's constraints
            (`Head.after_step`), is what is validated, kept, and what the next stage starts from.
        schedule: of the learning rates over a stage: "method", the head's own; "cosine" or
            "linear", to zero; "constant".
        warmup: part of a stage's steps, in [0, 1), in which the rates rise to the schedule, evenly.

    Raises:
        TypeError, ValueError: an option that is not allowed, named.
    """

    epochs: int | None = None
    batch_size: int = 256
    lr: float | None = None
    rotation_lr: float = 3e-3
    l1: float = 0.1
    label_smoothing: float = 0.0
    seed: int = 0
    class_weights: str | Sequence[float] = "none"
    sampler: str = "shuffle"
    logit_adjustment: float | None = None
    validation: float = 0.0
    patience: int | None = None
    backbone_lr: float = 1e-4
    amp: str = "none"
    accumulate: int = 1
    ema: float = 0.0
    schedule: str = "method"
    warmup: float = 0.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "seed", "patience", "accumulate"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, numbers.Integral):
                raise TypeError(f"FitConfig: {name} is {value!r}, must be an int")
            object.__setattr__(self, name, int(value))  # NumPy's integers, too
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"FitConfig: seed is {self.seed}, must be in [0, 2**32)")
        for name in ("epochs", "batch_size", "patience", "accumulate"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"FitConfig: {name} is {value}, must be >= 1")
        for name in ("lr", "rotation_lr", "backbone_lr", "l1", "logit_adjustment"):
            given = getattr(self, name)
            value = 0.0 if name in _AUTOMATIC and given is None else self._number(name)
            if not (0 <= value < math.inf):
                raise ValueError(f"FitConfig: {name} is {value}, must be finite and >= 0")
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"FitConfig: accumulate is {self.accumulate}, must be <= batch_size "
                f"({self.batch_size}): parts of a step's images"
            )
        for name in ("label_smoothing", "validation", "ema", "warmup"):
            value = self._number(name)
            if not 0 <= value < 1:
                raise ValueError(f"FitConfig: {name} is {value}, must be in [0, 1)")
        check_choice("FitConfig", "sampler", self.sampler, SAMPLERS)
        check_choice("FitConfig", "amp", self.amp, tuple(PRECISIONS))
        check_choice("FitConfig", "schedule", self.schedule, SCHEDULES)
        if self.patience is not None and not self.validation:
            raise ValueError(
                f"FitConfig: patience is {self.patience}, which needs validation > 0: a part of "
                "the training images to score"
            )
        self._check_class_weights()

    def _number(self, name: str) -> float:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(f"FitConfig: {name} is {value!r}, must be a number")
        if not isinstance(value, (int, float)):  # NumPy's
            object.__setattr__(self, name, float(value))
        return float(value)

    def _check_class_weights(self) -> None:
        given = self.class_weights
        if isinstance(given, str):
            return check_choice("FitConfig", "class_weights", given, CLASS_WEIGHTS)
        try:
            weights = tuple(float(weight) for weight in given)
        except (TypeError, ValueError):
            raise TypeError(
                f"FitConfig: class_weights is {given!r}, must be none, balanced or a number a class"
            ) from None
        if not weights or not all(0 <= w < math.inf for w in weights) or not any(weights):
            raise ValueError(
                f"FitConfig: class_weights is {weights}, must be finite and >= 0, one of them > 0"
            )
        object.__setattr__(self, "class_weights", weights)
        return None

    def knowing(self, statistics: TrainingStatistics) -> LoopOptions:
        """What a head may read of the options: with `statistics`, and ``lr`` a number."""
        rate = weights_rate(self.lr, statistics.feature_scale)
        return LoopOptions(rate, self.rotation_lr, self.l1, statistics)

    @property
    def precision(self) -> torch.dtype | None:
        """What products are computed in, None for that of the weights and maps."""
        return PRECISIONS[self.amp]

    @property
    def statistics(self) -> TrainingStatistics | None:
        """None: what is known of the training images comes with `knowing`."""
        return None

    def as_dict(self) -> dict[str, Any]:
        """All options, JSON-able."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        if not isinstance(self.class_weights, str):
            values["class_weights"] = list(self.class_weights)
        return values


def same_options(now: dict[str, Any], then: dict[str, Any]) -> dict[str, Any]:
    """`then`, options that an older version wrote, with those that it did not have at rest."""
    if "validation" not in then and then.get("lr") == 1e-2 and now["lr"] is None:
        then = {**then, "lr": None}  # 0.01 was the default
    return {**FitConfig().as_dict(), **then}
