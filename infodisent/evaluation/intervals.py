"""How sure a mean over images is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from infodisent.checks import check_positive

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
    _check("bootstrap", draws, level)
    if not isinstance(values, Tensor):
        raise TypeError(f"bootstrap: values is a {type(values).__name__}, must be a tensor")
    known = values.detach().cpu().double().flatten()
    known = known[~known.isnan()]
    if not len(known):
        return Interval(None, None, None, 0)
    means = _drawn_means(known, draws, torch.Generator().manual_seed(seed))
    return _interval(float(known.mean()), means, level, len(known))


def bootstrap_runs(
    runs: Sequence[Tensor],  # [n] each
    *,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Mean over runs of their means over images, and its interval over both.

    For every draw as many runs as there are, with replacement, and of each its images, with
    replacement: what differs between seeds and between images is both in the interval. The runs may
    be of other images. NaN is no value; a run without any is left out.

    Args:
        runs: values of the images of each run; one value each where a figure has no others.
        draws, level, seed: as in `bootstrap`.
    """
    _check("bootstrap_runs", draws, level)
    for values in runs:
        if not isinstance(values, Tensor):
            raise TypeError(
                f"bootstrap_runs: runs hold a {type(values).__name__}, must be tensors of images"
            )
    known = [values.detach().cpu().double().flatten() for values in runs]
    known = [values[~values.isnan()] for values in known]
    known = [values for values in known if len(values)]
    if not known:
        return Interval(None, None, None, 0)
    g = torch.Generator().manual_seed(seed)
    means = torch.stack([_drawn_means(values, draws, g) for values in known])  # [runs, draws]
    run = torch.randint(len(known), (len(known), draws), generator=g)
    draw = torch.randint(draws, (len(known), draws), generator=g)
    mean = float(torch.stack([values.mean() for values in known]).mean())
    return _interval(mean, means[run, draw].mean(0), level, sum(map(len, known)))


def _check(what: str, draws: int, level: float) -> None:
    check_positive(what, "draws", draws)
    if not isinstance(level, Real) or not 0 < level < 1:
        raise ValueError(f"{what}: level is {level!r}, must be in (0, 1)")


def _drawn_means(known: Tensor, draws: int, g: torch.Generator) -> Tensor:
    """Means of values drawn with replacement, ``[draws]``."""
    count = len(known)
    return torch.cat(
        [
            known[torch.randint(count, (part, count), generator=g)].mean(1)
            for part in _split(draws, max(1, _BLOCK // count))
        ]
    )


def _interval(mean: float, drawn: Tensor, level: float, images: int) -> Interval:
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = drawn.quantile(ends).tolist()
    return Interval(mean, low, high, images)


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
    _check("bootstrap_of", draws, level)
    if isinstance(images, bool) or not isinstance(images, int) or images < 0:
        raise ValueError(f"bootstrap_of: images is {images!r}, must be an int >= 0")
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
    return _interval(whole, drawn, level, images)
