"""Learning rates over a stage, by torch's own scheduler."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch.optim.lr_scheduler import LambdaLR

from infodisent.methods.stages import cosine
from infodisent.training.config import FitConfig

Rate = Callable[[float], float]
"""From the part of a stage that is done to the part of the peak that a rate is."""


def linear(progress: float) -> float:
    """From 1 to 0."""
    return 1 - progress


def constant(progress: float) -> float:
    """The peak throughout."""
    del progress
    return 1.0


RATES: dict[str, Rate] = {"cosine": cosine, "linear": linear, "constant": constant}
"""By the names of `FitConfig.schedule` that are not "method"."""


def scheduler(
    optimizer: torch.optim.Optimizer,
    rates: Sequence[Rate],
    config: FitConfig,
    steps: int,
    done: int = 0,
) -> LambdaLR:
    """A scheduler of a stage, to be told of every step but the last.

    Args:
        optimizer: its groups' ``lr`` are the peaks.
        rates: the method's own, of every group.
        config: says whether another schedule is wanted, and the warm-up.
        steps: of the stage.
        done: steps before an interruption. A rate follows from the number of its step alone.
    """
    if config.schedule != "method":
        rates = [RATES[config.schedule]] * len(rates)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    factors: list[Callable[[int], float]] = [
        functools.partial(_factor, rate, steps, config.warmup) for rate in rates
    ]
    return LambdaLR(optimizer, factors, last_epoch=done - 1)


def _factor(rate: Rate, steps: int, warmup: float, step: int) -> float:
    rising = math.ceil(warmup * steps)
    return rate(step / steps) * (min(1.0, (step + 1) / rising) if rising else 1.0)
