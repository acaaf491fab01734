"""One-pass pool with locations, and its gradient as a scatter."""

from __future__ import annotations

import torch
from torch import Tensor

from infodisent.contract import Extremes


def pool(y: Tensor) -> Extremes:
    """Pool a map.

    Args:
        y: [B, P, C], any floating dtype and strides; values are in y's dtype.
    """
    high, high_index = y.max(dim=1)
    low, low_index = y.min(dim=1)
    # max(ReLU(y)) = ReLU(max(y)), NaN included; so nothing of the map's size is written.
    pos = high.clamp_min(0)
    neg = low.neg_().clamp_min_(0)
    pos_index = high_index.to(torch.int32).masked_fill_(pos == 0, -1)
    neg_index = low_index.to(torch.int32).masked_fill_(neg == 0, -1)
    return Extremes(pos, neg, pos_index, neg_index)


def mx_pool(y: Tensor) -> Extremes:
    """`pool` for any floating dtype: half maps are pooled exactly, then widened."""
    pos, neg, pos_index, neg_index = pool(y)
    if y.dtype in (torch.float16, torch.bfloat16):
        pos, neg = pos.float(), neg.float()
    return Extremes(pos, neg, pos_index, neg_index)


def mx_pool_backward(
    grad_pos: Tensor,  # [B, C] gradient that lands on the positive winner
    grad_neg: Tensor,  # [B, C] gradient that lands on the negative winner, d(pooled)/dY = +1
    pos_index: Tensor,  # [B, C] int32
    neg_index: Tensor,  # [B, C] int32
    pixels: int,
    dtype: torch.dtype,
) -> Tensor:
    """dY [B, P, C]: here the map itself is the input, so its gradient is what is asked for."""
    batch, channels = grad_pos.shape
    dy = grad_pos.new_zeros(batch, pixels, channels)
    for grad, index in ((grad_pos, pos_index), (grad_neg, neg_index)):
        value = grad.masked_fill(index < 0, 0)
        dy.scatter_add_(1, index.clamp_min(0).long().unsqueeze(1), value.unsqueeze(1))
    return dy.to(dtype)
