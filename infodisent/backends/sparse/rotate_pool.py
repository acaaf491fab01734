"""Rotate and pool by chunks of images; gradients by gather-accumulate over the winners.

The rotated map Y exists only for one chunk at a time, its gradient never. With B images, C channels
and P pixels the backward touches 2·B·C rows of length C instead of the B·P·C² multiply-adds of the
dense form; ``embedding_bag`` with per-sample weights is exactly that gather-accumulate, vectorised,
parallel over output rows and free of atomics on the CPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from infodisent.backends.sparse.mx_pool import mx_pool_backward, pool
from infodisent.contract import Extremes, empty_extremes
from infodisent.layout import value_dtype

CHUNK_BYTES = 8 << 20
"""Size of one chunk of Y. It should stay in the last-level cache between product and pool."""
GATHERING = ("cpu", "cuda", "meta")
"""Devices whose torch has an ``embedding_bag`` with weights, from the oldest that is supported on;
Apple's has not."""


def _chunks(x: Tensor, itemsize: int) -> list[tuple[int, int]]:
    batch, pixels, channels = x.shape
    step = max(1, CHUNK_BYTES // (pixels * channels * itemsize))
    return [(i, min(i + step, batch)) for i in range(0, batch, step)]


def _rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[n, P, C] -> [n·P, C] with contiguous rows; a view where memory already is that way."""
    return x.to(dtype).reshape(-1, x.shape[2]).contiguous()


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
    chunks = _chunks(x, dtype.itemsize)
    longest = chunks[0][1] if chunks else 0
    y = torch.empty(longest * pixels, channels, dtype=dtype, device=x.device)
    for start, stop in chunks:
        rotated = torch.mm(_rows(x[start:stop], dtype), ut, out=y[: (stop - start) * pixels])
        parts = pool(rotated.view(stop - start, pixels, channels))
        for whole, part in zip(pooled, parts, strict=True):
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
    du = _grad_u(grad, index, x, dtype).to(u.dtype) if need_u else None
    dx = _grad_x(grad, index, u.to(dtype), pixels).to(x.dtype) if need_x else None
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
    for start, stop in _chunks(x, dtype.itemsize):
        part = slice(start, stop)
        dy = mx_pool_backward(
            grad_pos[part], grad_neg[part], pos_index[part], neg_index[part], pixels, dtype
        ).view(-1, channels)
        if du is not None:
            du += torch.mm(dy.mT, _rows(x[part], dtype))
        if dx is not None:
            dx[part] = torch.mm(dy, wide).view(-1, pixels, channels).to(x.dtype)
    return dx, None if du is None else du.to(u.dtype)


def _grad_u(grad: Tensor, index: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """dU[c] = sum over images and both sides of grad[., b, c] · x[b, index[., b, c]]."""
    batch, pixels, channels = x.shape
    du = torch.zeros(channels, channels, dtype=dtype, device=x.device)
    # Contiguous rows of the right dtype are gathered in place; anything else chunk by chunk.
    in_place = x.dtype == dtype and x.is_contiguous()
    for start, stop in [(0, batch)] if in_place and batch else _chunks(x, du.element_size()):
        n = stop - start
        rows = _rows(x[start:stop], dtype)
        first = torch.arange(0, n * pixels, pixels, device=x.device, dtype=torch.int64)
        bags = (index[:, start:stop] + first[:, None]).permute(2, 1, 0).reshape(channels, 2 * n)
        weights = grad[:, start:stop].permute(2, 1, 0).reshape(channels, 2 * n)
        du += F.embedding_bag(bags, rows, mode="sum", per_sample_weights=weights)
    return du


def _grad_x(grad: Tensor, index: Tensor, u: Tensor, pixels: int) -> Tensor:
    """dX[b, p] = sum of grad[., b, c] · u[c] over the channels whose winner in image b is p."""
    _, batch, channels = grad.shape
    dx = torch.empty(batch, pixels, channels, dtype=u.dtype, device=u.device)
    # 2·C entries an image, sorted by pixel so that every pixel's entries form one bag.
    flat_index = index.permute(1, 0, 2).reshape(batch, 2 * channels)
    order = flat_index.argsort(dim=1, stable=True)  # stable: a fixed order of summation
    channel = order.remainder(channels)
    weights = grad.permute(1, 0, 2).reshape(batch, 2 * channels).gather(1, order)
    counts = torch.zeros(batch, pixels, dtype=torch.int64, device=u.device)
    counts.scatter_add_(1, flat_index.long(), torch.ones_like(order))
    step = max(1, CHUNK_BYTES // (pixels * channels * u.element_size()))
    for start in range(0, batch, step):
        stop = min(start + step, batch)
        offsets = counts[start:stop].flatten().cumsum(0).roll(1)
        offsets[0] = 0
        summed = F.embedding_bag(
            channel[start:stop].flatten(),
            u,
            offsets,
            mode="sum",
            per_sample_weights=weights[start:stop].flatten(),
        )
        dx[start:stop] = summed.view(stop - start, pixels, channels)
    return dx
