"""What float64 has at places that somebody has found: near ties may fall either way."""

from __future__ import annotations

import torch
from torch import Tensor


def similarity_at(
    x: Tensor,  # [B, P, C]
    v: Tensor,  # [M, C]
    index: Tensor,  # [B, M]
    similarity: str,
) -> Tensor:
    """The similarity of every prototype with the pixel at its place, ``[B, M]``.

    Args:
        x, v: pixels and prototypes, float64 for a truth; it can be differentiated by both.
        index: pixels, integers.
        similarity: "dot", "cosine" or "l2", as `infodisent.ops.similarity_pool` has them.
    """
    winner = torch.take_along_dim(x, index.long()[:, :, None], dim=1)
    if similarity == "l2":
        return (winner - v).square().sum(2)
    dot = (winner * v).sum(2)
    return dot / winner.norm(dim=2) / v.norm(dim=1) if similarity == "cosine" else dot
