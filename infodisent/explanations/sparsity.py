"""How few units an explanation needs."""

from __future__ import annotations

import torch
from torch import Tensor

CARRIED = 0.95
"""Part of the predicted class's logit that the counted units carry together."""


def explanation_sizes(
    contributions: Tensor,  # [n, M]
) -> Tensor:
    """How many units carry 95 % of a logit.

    Args:
        contributions: what each unit adds to the logit of the predicted class.

    Returns:
        ``[n]`` int64, the smallest number of units, largest first, whose sum is at least 95 % of
        the whole; 0 where the whole is not positive and the number does not exist.
    """
    total = contributions.sum(1, keepdim=True)
    running = contributions.sort(dim=1, descending=True).values.cumsum(1)
    enough = running >= CARRIED * total - 1e-6 * total.abs()
    first = enough.to(torch.uint8).argmax(1) + 1
    return torch.where(total.squeeze(1) > 0, first, 0)
