"""Rotate and pool by chunks of images; gradients by gather-accumulate over the winners.

The rotated map Y exists only for one chunk at a time, its gradient never. With B images, C channels
and P pixels the backward touches 2·B·C rows of length C instead of the B·P·C² multiply-adds of the
dense form, see `infodisent.backends.sparse.winners`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from infodisent.backends.sparse.mx_pool import mx_pool_backward, pool
from infodisent.backends.sparse.winners import (
    GATHERING,
    chunks,
    pixels_of_sums,
    rows,
    sum_of_pixels,
)
from infodisent.contract import Extremes, empty_extremes
from infodisent.layout import value_dtype


def rotate_pool(x: Tensor, u: Tensor) -> Extremes:
    """Forward.

    Args:
        x: [B, P, C] float, any strides.
        u: [C, C] float.
    """
    batch, pixels, channels = x.shape
    dtype = value_dtype(x.dtype, u.dtype)
    ut = u.to(dtype).mT
    pooled = empty_extremes(batch, channels, dtype, x.device)
    parts = chunks(batch, pixels * channels, dtype.itemsize)
    longest = parts[0][1] if parts else 0
    y = torch.empty(longest * pixels, channels, dtype=dtype, device=x.device)
    for start, stop in parts:
        rotated = torch.mm(rows(x[start:stop], dtype), ut, out=y[: (stop - start) * pixels])
        part_pools = pool(rotated.view(stop - start, pixels, channels))
        for whole, part in zip(pooled, part_pools, strict=True):
            whole[start:stop] = part
    return pooled


def rotate_pool_backward(
    grad_pos: Tensor,  # [B, C] gradient at the positive winners
    grad_neg: Tensor,  # [B, C] gradient at the negative winners, d(pooled)/dY = +1 there
    x: Tensor,  # [B, P, C]
    u: Tensor,  # [C, C]
    pos_index: Tensor,  # [B, C] int32
    neg_index: Tensor,  # [B, C] int32
    need_x: bool,
    need_u: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """dX [B, P, C] and dU [C, C] in the dtypes of x and u, each only if needed."""
    dtype = value_dtype(x.dtype, u.dtype)
    pixels = x.shape[1]
    if x.device.type not in GATHERING:
        return _by_products(grad_pos, grad_neg, x, u, pos_index, neg_index, need_x, need_u, dtype)
    index = torch.stack((pos_index, neg_index))  # [2, B, C]
    grad = torch.stack((grad_pos, grad_neg)).to(dtype)
    # Where one side has no winner, the other's entry is split into two exact halves, so that no row
    # is gathered that the formula does not touch (0 times an Inf in it would be NaN).
    absent = index < 0
    grad = torch.where(absent, grad.flip(0), grad) * torch.where(absent | absent.flip(0), 0.5, 1.0)
    grad = grad.masked_fill_(absent & absent.flip(0), 0)
    index = torch.where(absent, index.flip(0), index).clamp_min(0)
    du = sum_of_pixels(grad, index, x).to(u.dtype) if need_u else None
    dx = pixels_of_sums(grad, index, u.to(dtype), pixels).to(x.dtype) if need_x else None
    return dx, du


def _by_products(
    grad_pos: Tensor,  # [B, C]
    grad_neg: Tensor,  # [B, C]
    x: Tensor,  # [B, P, C]
    u: Tensor,  # [C, C]
    pos_index: Tensor,  # [B, C] int32
    neg_index: Tensor,  # [B, C] int32
    need_x: bool,
    need_u: bool,
    dtype: torch.dtype,
) -> tuple[Tensor | None, Tensor | None]:
    """The same with dY written out, one chunk of images at a time: scatters and products alone."""
    batch, pixels, channels = x.shape
    du = torch.zeros(channels, channels, dtype=dtype, device=x.device) if need_u else None
    dx = torch.empty(batch, pixels, channels, dtype=x.dtype, device=x.device) if need_x else None
    wide = u.to(dtype)
    for start, stop in chunks(batch, pixels * channels, dtype.itemsize):
        part = slice(start, stop)
        dy = mx_pool_backward(
            grad_pos[part], grad_neg[part], pos_index[part], neg_index[part], pixels, dtype
        ).view(-1, channels)
        if du is not None:
            du += torch.mm(dy.mT, rows(x[part], dtype))
        if dx is not None:
            dx[part] = torch.mm(dy, wide).view(-1, pixels, channels).to(x.dtype)
    return dx, None if du is None else du.to(u.dtype)
