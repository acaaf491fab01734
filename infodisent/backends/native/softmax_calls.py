"""The functions of the compiled module for `softmax_pool` and `softmax_alignment`."""

from __future__ import annotations

import torch
from torch import Tensor

from infodisent.backends.native import module
from infodisent.contract import Best
from infodisent.layout import value_dtype


def _optional(t: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return 0 if t is None else module._values((t,), shape, dtype)[0]


def _target(t: Tensor | None, like: Tensor, dtype: torch.dtype) -> tuple[int, tuple[int, ...]]:
    """Where a gradient of the map `like` goes: address and strides; 0 for nowhere."""
    if t is None:
        return 0, (0, 0, 0)
    if t.shape != like.shape or t.dtype != dtype or not t.is_cpu:
        raise ValueError(
            f"native: a gradient is {tuple(t.shape)} {t.dtype} on {t.device}; must be "
            f"{tuple(like.shape)} {dtype} on the cpu"
        )
    return t.data_ptr(), t.stride()


def softmax_pool(
    w: Tensor,  # [B, P, M], any dtype and strides
    bias: Tensor | None,  # [M], float32 (float64)
    temperature: float,
    valid: Tensor | None,  # [B, P] bool
    best: Best,  # to be written
    normalizer: Tensor,  # [2, B, P], to be written
) -> None:
    """Softmax over M and the maximum over P of ``(w + bias) / T``; ``csrc/cpu/softmax_pool.h``."""
    (batch, pixels, count), wide = w.shape, value_dtype(w.dtype)
    valid = None if valid is None else valid.contiguous()
    module._module.softmax_pool(
        *module._map(w),
        _optional(bias, (count,), wide),
        temperature,
        _optional(valid, (batch, pixels), torch.bool),
        *module._values((best.value,), (batch, count), wide),
        *module._values((best.index,), (batch, count), torch.int32),
        *module._values(tuple(normalizer), (batch, pixels), wide),
        torch.get_num_threads(),
    )


def softmax_pool_backward(
    w: Tensor,  # [B, P, M], any dtype and strides
    bias: Tensor | None,  # [M], float32 (float64)
    temperature: float,
    grad: Tensor,  # [B, M]
    best: Best,
    normalizer: Tensor,  # [2, B, P]
    dw: Tensor,  # [B, P, M] float32 (float64), any strides, to be written; may be w
    *,
    add: bool = False,
) -> None:
    """The gradient of `softmax_pool` by w, see ``csrc/cpu/softmax_pool.h``; `add` it to dw."""
    (batch, pixels, count), wide = w.shape, value_dtype(w.dtype)
    if best.index.numel():
        first, last = best.index.aminmax()
        if not 0 <= int(first) <= int(last) < pixels:
            raise ValueError(f"native: a place is outside of {pixels} pixels")
    module._module.softmax_pool_backward(
        *module._map(w),
        _optional(bias, (count,), wide),
        temperature,
        *module._values((grad, best.value), (batch, count), wide),
        *module._values((best.index,), (batch, count), torch.int32),
        *module._values(tuple(normalizer), (batch, pixels), wide),
        *_target(dw, w, wide),
        add,
        torch.get_num_threads(),
    )


def prefer_huge_pages(x: Tensor) -> None:
    """Advice for memory that is about to be written, see ``csrc/buffer.h``; contiguous."""
    module._module.prefer_huge_pages(x.data_ptr(), x.numel() * x.element_size())


def softmax_alignment(
    first: Tensor,  # [B, P, M], any dtype and strides
    second: Tensor,  # the same shape and dtype
    loss: Tensor,  # [B, P] float32 (float64), to be written
    statistics: Tensor,  # [6, B, P], to be written
) -> None:
    """The loss of every pixel, see ``csrc/cpu/softmax_alignment.h``."""
    size, wide = first.shape[:2], value_dtype(first.dtype)
    module._module.softmax_alignment(
        *module._map(first),
        *_target(second, first, first.dtype),
        *module._values((loss,), size, wide),
        *module._values((statistics,), (6, *size), wide),
        torch.get_num_threads(),
    )


def softmax_alignment_backward(
    first: Tensor,  # [B, P, M], any dtype and strides
    second: Tensor,  # the same shape and dtype
    grad: Tensor,  # [B, P] float32 (float64)
    statistics: Tensor,  # [6, B, P]
    d_first: Tensor | None,  # [B, P, M] float32 (float64), any strides, to be written
    d_second: Tensor | None,  # the same
) -> None:
    """The gradients of `softmax_alignment`, see ``csrc/cpu/softmax_alignment.h``."""
    size, wide = first.shape[:2], value_dtype(first.dtype)
    module._module.softmax_alignment_backward(
        *module._map(first),
        *_target(second, first, first.dtype),
        *module._values((grad,), size, wide),
        *module._values((statistics,), (6, *size), wide),
        *_target(d_first, first, wide),
        *_target(d_second, second, wide),
        torch.get_num_threads(),
    )
