"""Pools over pixels other than the extreme one, in plain PyTorch: ablations of InfoDisent.

Each is taken of a channel and of its negative, and clamped at 0, so that it stands where the sparse
pool's `pos` and `neg` stand. The places are those of the extremes. The rotated map ``[B, P, C]`` is
held, and so is its gradient: a training step takes three dense products of ``P C^2`` numbers an
image, where the sparse pool's backward adds one row for every winning pixel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from infodisent.checks import check_choice, check_positive, check_strength
from infodisent.contract import SparsePool

POOLINGS = ("max", "topk", "lse", "gumbel")
TOPK = 5
TEMPERATURE = {"lse": 0.1, "gumbel": 0.1}


def check_pooling(
    owner: str, pooling: str, topk: int | None, temperature: float | None
) -> tuple[int | None, float | None]:
    """The options of a pool, with its defaults for those that it has and that are None.

    Raises:
        ValueError: an unknown pool, an option that it does not have, or a value not allowed.
    """
    check_choice(owner, "pooling", pooling, POOLINGS)
    for name, value, users in (
        ("topk", topk, ("topk",)),
        ("temperature", temperature, tuple(TEMPERATURE)),
    ):
        if value is not None and pooling not in users:
            raise ValueError(
                f"{owner}: {name} is {value}, which is for pooling {' and '.join(users)}, not "
                f"{pooling!r}"
            )
    if pooling == "topk":
        topk = TOPK if topk is None else topk
        check_positive(owner, "topk", topk)
    if pooling in TEMPERATURE:
        temperature = TEMPERATURE[pooling] if temperature is None else temperature
        check_strength(owner, "temperature", temperature)
        if not temperature:
            raise ValueError(f"{owner}: temperature is {temperature!r}, must be a number > 0")
        temperature = float(temperature)
    return topk, temperature


def topk_mean(
    y: Tensor,  # [B, P, C]
    k: int,
) -> Tensor:
    """The mean of a channel's k greatest values, ``[B, C]``; of all where it has fewer."""
    return y.topk(min(k, y.shape[1]), dim=1).values.mean(1)


def log_mean_exp(
    y: Tensor,  # [B, P, C]
    temperature: float,
) -> Tensor:
    """``t log mean_p exp(Y_p / t)``, ``[B, C]``: from the mean (t large) to the maximum (small).

    The mean, not the sum, of the exponentials: a constant channel has its constant, 0 has 0.
    """
    pixels = torch.tensor(float(y.shape[1]), dtype=y.dtype, device=y.device)
    return temperature * (torch.logsumexp(y / temperature, dim=1) - pixels.log())


def gumbel_mean(
    y: Tensor,  # [B, P, C]
    temperature: float,
) -> Tensor:
    """``sum_p softmax_p((Y_p + G_p) / t) Y_p``, ``[B, C]``, G standard Gumbel, new every call."""
    noise = torch.empty_like(y).exponential_().clamp_min(torch.finfo(y.dtype).tiny).log().neg()
    return (nn.functional.softmax((y + noise) / temperature, dim=1) * y).sum(1)


def pool_softly(
    y: Tensor,  # [B, P, C], float32 or wider
    pooling: str,
    topk: int | None,
    temperature: float | None,
) -> SparsePool:
    """Both sides of a rotated map by "topk", "lse" or "gumbel", with the places of its extremes."""

    def value(side: Tensor) -> Tensor:
        if pooling == "topk":
            assert topk is not None
            return topk_mean(side, topk)
        assert temperature is not None
        of = log_mean_exp if pooling == "lse" else gumbel_mean
        return of(side, temperature)

    pos, neg = value(y).clamp_min(0), value(-y).clamp_min(0)
    with torch.no_grad():
        greatest, least = y.argmax(1).to(torch.int32), y.argmin(1).to(torch.int32)
        none = torch.full_like(greatest, -1)
    return SparsePool(
        pos - neg,
        pos,
        neg,
        torch.where(pos > 0, greatest, none),
        torch.where(neg > 0, least, none),
    )
