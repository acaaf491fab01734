"""The alignment of two maps of scores from three log-sum-exps a pixel, by chunks of images."""

from __future__ import annotations

import torch
from torch import Tensor

from infodisent.backends.sparse.softmax_pool import chunks
from infodisent.layout import value_dtype


def softmax_alignment(
    first: Tensor,  # [B, P, C]
    second: Tensor,  # [B, P, C]
) -> tuple[Tensor, Tensor]:
    """The loss [B, P] and its statistics [6, B, P], see `infodisent.backends.operators`."""
    batch, pixels, channels = first.shape
    dtype = value_dtype(first.dtype, second.dtype)
    statistics = torch.empty(6, batch, pixels, dtype=dtype, device=first.device)
    for start, stop in chunks(first, channels, dtype.itemsize):
        a, b = first[start:stop].to(dtype), second[start:stop].to(dtype)
        kept = statistics[:, start:stop]
        top_a, top_b = a.amax(dim=2), b.amax(dim=2)
        a, b = a - top_a[:, :, None], b - top_b[:, :, None]
        both = a + b
        top = both.amax(dim=2)
        top.masked_fill_(top == -torch.inf, 0)
        both.sub_(top[:, :, None])
        for row, (high, e) in enumerate(((top_a, a), (top_b, b), (top, both))):
            kept[2 * row], kept[2 * row + 1] = high, e.exp_().sum(dim=2)
    logs = statistics[1::2].log()
    return (logs[0] + logs[1] - logs[2]) - statistics[4], statistics


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
    factors = grad.to(dtype) / statistics[1::2]  # [3, B, P]
    for start, stop in chunks(first, first.shape[2], dtype.itemsize):
        part = slice(start, stop)
        top_a, _, top_b, _, top, _ = statistics[:, part, :, None]
        f_a, f_b, f_both = factors[:, part, :, None]
        a, b = first[part].to(dtype) - top_a, second[part].to(dtype) - top_b
        both = (a + b).sub_(top).exp_().mul_(f_both)
        if d_first is not None:
            d_first[part] = a.exp_().mul_(f_a).sub_(both)
        if d_second is not None:
            d_second[part] = b.exp_().mul_(f_b).sub_(both)
