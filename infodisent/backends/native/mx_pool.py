"""One compiled pass over the map for both values and both locations; the gradient is sparse's."""

from __future__ import annotations

from torch import Tensor

from infodisent.backends.native import module
from infodisent.backends.sparse.mx_pool import mx_pool_backward
from infodisent.contract import Extremes, empty_extremes
from infodisent.layout import value_dtype


def mx_pool(y: Tensor) -> Extremes:
    """Pool a map.

    Args:
        y: [B, P, C], any floating dtype and strides.
    """
    outputs = empty_extremes(y.shape[0], y.shape[2], value_dtype(y.dtype), "cpu")
    module.mx_pool(y, *outputs)
    return outputs


__all__ = ["mx_pool", "mx_pool_backward"]
