"""How sure a mean over images is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK = 1 << 20
"""Values drawn at a time."""


@dataclass(frozen=True)
class Interval:
    """A mean over images with its bootstrap interval.

    Attributes:
        mean: None where no image has a value.
        low, high: ends of the interval; None as `mean`.
        images: how many have a value.
    """

    mean: float | None
    low: float | None
    high: float | None
    images: int


def bootstrap(
    values: Tensor,  # [n]
    *,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Mean of values of images, and its percentile interval over images drawn with replacement.

    Efron 1979. NaN is no value and left out; the same seed gives the same interval.

    Args:
        values: one an image.
        draws: resamples.
        level: part of the resampled means inside, in (0, 1).
        seed: of the draws.

    Raises:
        ValueError: `draws` or `level` is out of range.
    """
    if draws < 1 or not 0 < level < 1:
        raise ValueError(
            f"bootstrap: draws is {draws} and level {level}, must be >= 1 and in (0, 1)"
        )
    known = values.detach().cpu().double().flatten()
    known = known[~known.isnan()]
    if not len(known):
        return Interval(None, None, None, 0)
    g = torch.Generator().manual_seed(seed)
    at_once = max(1, _BLOCK // len(known))
    means = torch.cat(
        [
            known[torch.randint(len(known), (count, len(known)), generator=g)].mean(1)
            for count in _split(draws, at_once)
        ]
    )
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = means.quantile(ends).tolist()
    return Interval(float(known.mean()), low, high, len(known))


def _split(whole: int, part: int) -> list[int]:
    return [min(part, whole - at) for at in range(0, whole, part)]


def bootstrap_of(
    statistic: Callable[[Tensor], float],
    images: int,
    *,
    draws: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """A figure that is no mean over images, and its percentile interval over images drawn.

    Args:
        statistic: of images by their positions, ``[n]`` int64, in which some may be twice.
        images: n.
        draws, level, seed: see `bootstrap`.
    """
    if not images:
        return Interval(None, None, None, 0)
    g = torch.Generator().manual_seed(seed)
    whole = statistic(torch.arange(images))
    drawn = torch.tensor(
        [statistic(torch.randint(images, (images,), generator=g)) for _ in range(draws)],
        dtype=torch.float64,
    )
    drawn = drawn[~drawn.isnan()]
    if math.isnan(whole) or not len(drawn):
        return Interval(None, None, None, 0)
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = drawn.quantile(ends).tolist()
    return Interval(whole, low, high, images)
