"""Rotate and pool in one compiled pass; gradients by gather-accumulate over the winners.

Where the processor has AVX2, AVX-512 or NEON, ``csrc/cpu/rotate_pool.cpp`` multiplies and pools a
few rows at a time in registers: the rotated map never exists. Products with a float32 rotation from
512 channels on are screened by 16-bit integers where a timing shows that to be faster
(``csrc/cpu/rotate_pool_screen.h``), with the same bits. Elsewhere, and for float64, chunks of
images go through one flat library product and one pass over its result. There, maps with contiguous
channels are read in place, prefix tokens included: a row more or less in the product costs less
than a copy, and the pool steps over it; other layouts and half maps are first laid out as rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from infodisent.backends.native import module
from infodisent.contract import Extremes, empty_extremes
from infodisent.layout import value_dtype

CHUNK_ROWS = 1024
"""Rows (pixels) that are rotated at a time. The rotated chunk should stay in cache until it is
pooled, and the product be long enough to pay for the packing of U: measured, see
``benchmarks/chunk.py``."""

CHUNK_BYTES = 8 << 20
"""Of the rows that dU is gathered from at a time, where they have to be laid out first. Every chunk
goes over the whole of dU once more."""

_WASTE = 1.25
"""Rows of prefix tokens that may be multiplied along, as a factor."""


def _in_place(x: Tensor, dtype: torch.dtype) -> int:
    """Rows from one image to the next if x is a set of contiguous rows already, else 0."""
    batch, pixels, channels = x.shape
    if x.dtype != dtype or x.stride(2) != 1 or x.stride(1) != channels:
        return 0
    step, rest = divmod(x.stride(0), channels) if batch > 1 else (pixels, 0)
    return step if rest == 0 and pixels <= step <= _WASTE * pixels else 0


def _images(pixels: int) -> int:
    """Images in a chunk."""
    return max(1, CHUNK_ROWS // pixels)


def _as_rows(x: Tensor, step: int) -> Tensor:
    """The rows from the first pixel of the first image to the last pixel of the last."""
    batch, pixels, channels = x.shape
    return x.as_strided(((batch - 1) * step + pixels, channels), (channels, 1))


def rotate_pool(x: Tensor, u: Tensor) -> Extremes:
    """Forward.

    Args:
        x: [B, P, C] floating point, any strides.
        u: [C, C] floating point.

    Beside the results it takes 8 MiB for the part of x in use (screened 16; one image as float32,
    where that is more) and 64 rows of U a thread (screened 128); with library products, two chunks
    of float rows (`CHUNK_ROWS` · C, or one image where that is more).
    """
    wanted = module.multiplies(x.dtype, u.dtype, len(u))
    if wanted is not None:
        return module.rotate_pool(x, u.to(wanted).contiguous())
    return by_library(x, u)


def by_library(x: Tensor, u: Tensor) -> Extremes:
    """`rotate_pool` by library products."""
    batch, pixels, channels = x.shape
    dtype = value_dtype(x.dtype, u.dtype)
    if dtype == torch.float64:
        x = x.to(dtype)
    outputs = empty_extremes(batch, channels, dtype, "cpu")
    if batch == 0:
        return outputs
    ut = u.to(dtype).mT
    step = _in_place(x, dtype)
    stride = step or pixels
    count = _images(stride)
    y = torch.empty(min(count, batch) * stride, channels, dtype=dtype, device="cpu")
    rows = None if step else torch.empty_like(y)
    for start in range(0, batch, count):
        stop = min(start + count, batch)
        whole = stop - start == batch  # a slice is not free beside a small map
        part = x if whole else x[start:stop]
        if rows is None:
            source = _as_rows(part, step)
        else:
            source = rows[: (stop - start) * pixels]
            module.rows(part, source)
        torch.mm(source, ut, out=y[: len(source)])
        rotated = y.as_strided((stop - start, pixels, channels), (stride * channels, channels, 1))
        module.mx_pool(rotated, *(outputs if whole else (t[start:stop] for t in outputs)))
    return outputs


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
    grads = [g.to(dtype).contiguous() for g in (grad_pos, grad_neg)]
    indices = [pos_index.contiguous(), neg_index.contiguous()]
    du = _grad_u(x, grads, indices, dtype).to(u.dtype) if need_u else None
    dx = None
    if need_x:
        wide = torch.empty(x.shape, dtype=dtype, device="cpu")
        rotation = u.to(dtype).contiguous()
        module.grad_x(rotation, grads, indices, wide)
        dx = wide.to(x.dtype)
    return dx, du


def _grad_u(x: Tensor, grads: list[Tensor], indices: list[Tensor], dtype: torch.dtype) -> Tensor:
    """Gather-accumulate of the winners' rows."""
    batch, _, channels = x.shape
    if dtype == torch.float64:
        x = x.to(dtype)
    du = torch.empty(channels, channels, dtype=dtype, device="cpu")
    if batch == 0:
        return du.zero_()
    if x.stride(2) == 1:  # any dtype: a row is widened while it is added
        module.grad_u(x, grads, indices, du, False)
        return du
    # a pixel's channels lie apart: lay a chunk out as rows rather than gather single numbers
    for start, stop, rows in laid_out(x, dtype):
        some = slice(start, stop)
        module.grad_u(rows, [g[some] for g in grads], [i[some] for i in indices], du, start > 0)
    return du


def laid_out(x: Tensor, dtype: torch.dtype) -> Iterator[tuple[int, int, Tensor]]:
    """Images start … stop of x [B, P, C] as contiguous rows [n, P, C] of `dtype`, in turn.

    The rows are the same memory every time.
    """
    batch, pixels, channels = x.shape
    count = max(1, CHUNK_BYTES // (pixels * channels * dtype.itemsize))
    rows = torch.empty(min(count, batch), pixels, channels, dtype=dtype, device="cpu")
    for start in range(0, batch, count):
        stop = min(start + count, batch)
        part = rows[: stop - start]
        module.rows(x[start:stop], part.view(-1, channels))
        yield start, stop, part
