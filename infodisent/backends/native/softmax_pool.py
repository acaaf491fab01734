"""Softmax and maximum in one compiled pass over scores; with prototypes, by chunks of products.

Beside the results the pass takes 64 pixels of scores a thread (``csrc/cpu/softmax_pool.cpp``). The
gradient of scores that are the map itself is written once, in the layout of the map.
"""

from __future__ import annotations

import torch
from torch import Tensor

from infodisent.backends.native import softmax_calls
from infodisent.backends.sparse.softmax_pool import Collected, chunks, computed_in
from infodisent.contract import Best, empty_best
from infodisent.layout import value_dtype


def _scores(
    x: Tensor,  # [n, P, C]
    prototypes: Tensor | None,  # [M, C], of the dtype computed in
    dtype: torch.dtype,
    out: Tensor | None = None,  # [n, P, M], contiguous, where products go
) -> Tensor:
    """``x_p·v_m``, [n, P, M], contiguous; x itself without prototypes, half numbers as they are."""
    if prototypes is None:
        return x if value_dtype(x.dtype) == dtype else x.to(dtype)
    rows = x.to(dtype).reshape(-1, x.shape[2])
    if out is None:
        return torch.mm(rows, prototypes.mT).view(*x.shape[:2], -1)
    torch.mm(rows, prototypes.mT, out=out.view(-1, len(prototypes)))
    return out


def _room(ranges: list[tuple[int, int]], pixels: int, count: int, dtype: torch.dtype) -> Tensor:
    """Memory for the longest of these ranges of images, [n, P, M], the same for all of them."""
    longest = max((stop - start for start, stop in ranges), default=0)
    return torch.empty(longest, pixels, count, dtype=dtype, device="cpu")


def _piece(part: slice, kept: Tensor | None, room: Tensor | None) -> Tensor | None:
    """Where what belongs to these images goes: among what is kept of all, or in the room."""
    if kept is not None:
        return kept[part]
    return None if room is None else room[: part.stop - part.start]


def _bias(bias: Tensor | None, temperature: float, dtype: torch.dtype) -> Tensor | None:
    """In units of the scores before they are divided by the temperature; never given alone."""
    return None if bias is None else (bias.to(dtype) * temperature).contiguous()


def softmax_pool(
    x: Tensor,  # [B, P, C]
    prototypes: Tensor | None,  # [M, C]
    temperature: float,
    bias: Tensor | None,  # [M]
    valid: Tensor | None,  # [B, P] bool
    scores: Tensor | None = None,  # [B, P, M] of the dtype computed in, contiguous, to be written
) -> tuple[Best, Tensor]:
    """Best [B, M] and normalizer [2, B, P], see `infodisent.backends.operators`.

    With prototypes the products can be kept for the gradient, which then need not make them again.
    """
    batch, pixels, _ = x.shape
    count = x.shape[2] if prototypes is None else len(prototypes)
    dtype = computed_in(x, prototypes, bias)
    best = empty_best(batch, count, dtype, "cpu")
    normalizer = torch.empty(2, batch, pixels, dtype=dtype, device="cpu")
    v = None if prototypes is None else prototypes.to(dtype)
    b = _bias(bias, temperature, dtype)
    if scores is not None:
        softmax_calls.prefer_huge_pages(scores)
    ranges = [(0, batch)] if v is None else chunks(x, count, dtype.itemsize)
    room = None if v is None or scores is not None else _room(ranges, pixels, count, dtype)
    for start, stop in ranges:
        part = slice(start, stop)
        softmax_calls.softmax_pool(
            _scores(x[part], v, dtype, _piece(part, scores, room)),
            b,
            temperature,
            None if valid is None else valid[part],
            Best(best.value[part], best.index[part]),
            normalizer[:, part],
        )
    return best, normalizer


def softmax_pool_backward(
    grad: Tensor,  # [B, M]
    best: Best,
    normalizer: Tensor,  # [2, B, P]
    x: Tensor,  # [B, P, C]
    prototypes: Tensor | None,  # [M, C]
    temperature: float,
    bias: Tensor | None,  # [M]
    dx: Tensor | None,  # [B, P, C], to be written
    need_prototypes: bool,
    need_bias: bool,
    scores: Tensor | None = None,  # [B, P, M], of the forward
) -> tuple[Tensor | None, Tensor | None]:
    """Write dX; dV [M, C] and dbias [M], if needed."""
    batch, count = best.value.shape
    dtype = computed_in(x, prototypes, bias)
    collected = Collected(x, prototypes, bias, dtype, temperature, dx, need_prototypes, need_bias)
    b = _bias(bias, temperature, dtype)
    # a half gradient is rounded chunk by chunk
    at_once = prototypes is None and (dx is None or dx.dtype == dtype)
    ranges = [(0, batch)] if at_once else chunks(x, count, dtype.itemsize)
    room = None if prototypes is None else _room(ranges, x.shape[1], count, dtype)
    for start, stop in ranges:
        part = slice(start, stop)
        place = _piece(part, None, room)
        w = _scores(x[part], collected.v, dtype, place) if scores is None else scores[part]
        if place is not None:
            dw = place  # over the scores themselves, where they are not kept
        elif at_once and dx is not None:
            dw = dx
        else:
            dw = torch.empty_like(w, dtype=dtype)
        softmax_calls.softmax_pool_backward(
            w,
            b,
            temperature,
            grad[part].to(dtype).contiguous(),
            Best(best.value[part], best.index[part]),
            normalizer[:, part],
            dw,
        )
        if dw is not dx:
            collected.add(part, dw, best.index[part])
    return collected.results()
