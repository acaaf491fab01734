"""One compiled pass over the map for both values and both locations."""

from __future__ import annotations

import torch
from torch import Tensor

from infodisent.backends.native import module as _native
from infodisent.layout import value_dtype


def mx_pool(y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pool a map.

    Args:
        y: [B, P, C], any floating dtype and strides.

    Returns:
        pos, neg [B, C] float32 (float64 for float64) and pos_index, neg_index [B, C] int32.
    """
    size = (y.shape[0], y.shape[2])
    dtype = value_dtype(y.dtype)
    pos, neg = (torch.empty(size, dtype=dtype, device="cpu") for _ in range(2))
    pos_index, neg_index = (torch.empty(size, dtype=torch.int32, device="cpu") for _ in range(2))
    _native.mx_pool(y, pos, neg, pos_index, neg_index)
    return pos, neg, pos_index, neg_index
