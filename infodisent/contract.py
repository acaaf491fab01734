"""What the operators promise to return: the types, and the one place that allocates them.

Shapes, dtypes and the rules for ties, NaN and nothing are those of `SparsePool`; every backend
returns its four tensors as `Extremes`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class SparsePool(NamedTuple):
    """What the sparse pool keeps of a map: per image and channel two values and two places.

    Attributes:
        pooled: ``pos - neg``, ``[B, C]``, float32 (float64 for float64 maps).
        pos: largest positive value of the channel, 0 where there is none, ``[B, C]``.
        neg: magnitude of the largest negative value, 0 where there is none, ``[B, C]``.
        pos_index: flat pixel index of `pos`, row-major over H x W and counted after the prefix
            tokens, int32 ``[B, C]``; -1 where `pos` is 0. Ties go to the lowest index.
        neg_index: the same for `neg`.
    """

    pooled: Tensor
    pos: Tensor
    neg: Tensor
    pos_index: Tensor
    neg_index: Tensor


class Extremes(NamedTuple):
    """The four tensors that every kernel of a pool computes; `SparsePool` without their difference.

    Attributes:
        pos, neg: ``[B, C]`` float32 (float64 for float64 maps), >= 0 or NaN.
        pos_index, neg_index: ``[B, C]`` int32, -1 where the value is 0.
    """

    pos: Tensor
    neg: Tensor
    pos_index: Tensor
    neg_index: Tensor

    def pooled(self) -> SparsePool:
        """The same with ``pos - neg`` in front."""
        return SparsePool(self.pos - self.neg, *self)


class Pool(NamedTuple):
    """What `similarity_pool` and `softmax_pool` keep of a map: per image and prototype the best.

    Attributes:
        value: best similarity (the largest; of "l2" the smallest), ``[B, M]``, float32 (float64
            where an input is).
        index: flat index of the pixel that has it, row-major over H x W and counted after the
            prefix tokens, int32 ``[B, M]``, >= 0. Ties go to the lowest index.
        second_value, second_index: the same for a second similarity, None if none was asked for.
        mean: mean of the first similarity over the pixels that count, ``[B, M]``, or None.
    """

    value: Tensor
    index: Tensor  # type: ignore[assignment]  # the field hides tuple.index, which nobody needs
    second_value: Tensor | None = None
    second_index: Tensor | None = None
    mean: Tensor | None = None


class Best(NamedTuple):
    """What a kernel returns for one similarity: the best value and its pixel.

    Attributes:
        value: ``[B, M]`` float32 (float64 where an input is).
        index: ``[B, M]`` int32.
    """

    value: Tensor
    index: Tensor  # type: ignore[assignment]


def empty_best(batch: int, prototypes: int, dtype: torch.dtype, device: torch.device | str) -> Best:
    """Uninitialised `Best`: values of `dtype`, float32 or float64, and int32 places."""
    value = torch.empty(batch, prototypes, dtype=dtype, device=device)
    return Best(value, torch.empty(batch, prototypes, dtype=torch.int32, device=device))


def empty_extremes(
    batch: int, channels: int, dtype: torch.dtype, device: torch.device | str
) -> Extremes:
    """Uninitialised `Extremes`: values of `dtype`, float32 or float64, and int32 places.

    `device` is named always: compiled code writes to these addresses whatever torch's default is.
    """
    pos = torch.empty(batch, channels, dtype=dtype, device=device)
    index = torch.empty(batch, channels, dtype=torch.int32, device=device)
    return Extremes(pos, torch.empty_like(pos), index, torch.empty_like(index))
