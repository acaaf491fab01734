"""How few units an explanation needs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CARRIED = 0.95
"""Part of the predicted class's score, or of all evidence, that the counted units carry."""


def explanation_sizes(
    contributions: Tensor,  # [n, M]
) -> Tensor:
    """How many units carry 95 % of a score (a logit; what `Head.scores` says) without its offset.

    Args:
        contributions: what each unit adds to the score of the predicted class.

    Returns:
        ``[n]`` int64, the smallest number of units, largest first, whose sum is at least 95 % of
        the whole; 0 where the whole is not positive and the number does not exist.
    """
    total = contributions.sum(1, keepdim=True)
    running = contributions.sort(dim=1, descending=True).values.cumsum(1)
    enough = running >= CARRIED * total - 1e-6 * total.abs()
    first = enough.to(torch.uint8).argmax(1) + 1
    return torch.where(total.squeeze(1) > 0, first, 0)


def magnitude_sizes(
    contributions: Tensor,  # [n, M]
) -> Tensor:
    """How many units carry 95 % of all evidence, for or against.

    Unlike `explanation_sizes` it exists whatever the score's sign, and units that oppose count.

    Args:
        contributions: what each unit adds to the score of the predicted class.

    Returns:
        ``[n]`` int64, the smallest number of units, largest magnitudes first, whose magnitudes add
        up to at least 95 % of those of all; 0 where no unit contributes.
    """
    return explanation_sizes(contributions.abs())


def exact(
    values: Tensor,
) -> Tensor:
    """On the CPU as float64, in this order: not every device has it."""
    return values.cpu().to(torch.float64)


def typical_size(
    sizes: Sequence[Tensor],  # [n] int64 each, of `explanation_sizes`
) -> tuple[float | None, float | None]:
    """The median of the numbers that exist, and the part of the images that have one.

    None for either where there is nothing to take it of.
    """
    if not sizes:
        return None, None
    every = torch.cat(list(sizes))
    defined = every[every > 0]
    return defined.float().median().item() if len(defined) else None, len(defined) / len(every)
