"""The alignment of two maps of scores in one compiled pass, and its gradient in another."""

from __future__ import annotations

import torch
from torch import Tensor

from infodisent.backends.native import softmax_calls
from infodisent.backends.sparse.softmax_pool import chunks
from infodisent.layout import value_dtype


def _alike(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Both of one dtype, as the compiled code takes them."""
    if first.dtype == second.dtype:
        return first, second
    dtype = value_dtype(first.dtype, second.dtype)
    return first.to(dtype), second.to(dtype)


def softmax_alignment(
    first: Tensor,  # [B, P, C]
    second: Tensor,  # [B, P, C]
) -> tuple[Tensor, Tensor]:
    """The loss [B, P] and its statistics [6, B, P], see `infodisent.backends.operators`."""
    dtype = value_dtype(first.dtype, second.dtype)
    loss = torch.empty(first.shape[:2], dtype=dtype, device="cpu")
    statistics = torch.empty(6, *loss.shape, dtype=dtype, device="cpu")
    softmax_calls.softmax_alignment(*_alike(first, second), loss, statistics)
    return loss, statistics


def softmax_alignment_backward(
    grad: Tensor,  # [B, P]
    first: Tensor,  # [B, P, C]
    second: Tensor,  # [B, P, C]
    statistics: Tensor,  # [6, B, P]
    d_first: Tensor | None,  # [B, P, C], to be written
    d_second: Tensor | None,  # [B, P, C], to be written
) -> None:
    """``grad (softmax(a) - softmax(a + b))`` of each side that is asked for."""
    dtype = statistics.dtype
    grad = grad.to(dtype).contiguous()
    first, second = _alike(first, second)
    given = [d for d in (d_first, d_second) if d is not None]
    if all(d.dtype == dtype for d in given):
        softmax_calls.softmax_alignment_backward(first, second, grad, statistics, d_first, d_second)
        return
    for start, stop in chunks(first, first.shape[2], dtype.itemsize):  # half gradients: rounded
        part = slice(start, stop)
        wide = [
            None if d is None else torch.empty_like(d[part], dtype=dtype)
            for d in (d_first, d_second)
        ]
        kept = statistics[:, part].contiguous()
        softmax_calls.softmax_alignment_backward(first[part], second[part], grad[part], kept, *wide)
        for d, w in zip((d_first, d_second), wide, strict=True):
            if d is not None and w is not None:
                d[part] = w
