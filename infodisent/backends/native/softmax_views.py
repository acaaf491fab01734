"""What training by two views needs of a layer's scores: pools, and how far the views agree.

Scores are made, pooled and compared a few images at a time while they are in cache; their gradient
is never held for more than these, but goes into the layer's at once. Scores themselves are kept.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from infodisent.backends.native import softmax_calls
from infodisent.contract import Best, empty_best

CHUNK_BYTES = 8 << 20
"""Of the scores of both views that are worked on at a time."""


class Views(NamedTuple):
    """What the forward leaves.

    Attributes:
        best: of all images, ``[2n, M]``.
        agreement: of pixels, ``[n, P]``, see `infodisent.ops.softmax_alignment`.
        scores: ``[2n, P, M]``; x itself without a layer.
        normalizer: ``[2, 2n, P]``, of `softmax_pool`.
        statistics: of `softmax_alignment`, a tensor ``[6, k, P]`` for every chunk of k pairs.
    """

    best: Best
    agreement: Tensor
    scores: Tensor
    normalizer: Tensor
    statistics: list[Tensor]


def _chunks(scores: Tensor) -> list[tuple[slice, slice]]:
    """Images of the first view and the same of the second, a few at a time."""
    half, size = len(scores) // 2, scores.element_size()
    count = max(1, CHUNK_BYTES // max(1, 2 * size * scores.shape[1] * scores.shape[2]))
    starts = range(0, half, count)
    ends = [min(half, start + count) for start in starts]
    return [
        (slice(start, end), slice(half + start, half + end))
        for start, end in zip(starts, ends, strict=True)
    ]


def softmax_views(
    x: Tensor,  # [2n, P, C] float32 or float64; rows i and i + n are two views of one image
    weight: Tensor | None,  # [M, C] of the same dtype; None: x holds the scores
    bias: Tensor | None,  # [M], only with a weight
) -> Views:
    """Pools of ``x·weight^T + bias`` of all images, and the agreement of their two views."""
    scores = x
    if weight is not None:
        scores = x.new_empty(*x.shape[:2], len(weight))
        softmax_calls.prefer_huge_pages(scores)
    images, pixels, count = scores.shape
    best = empty_best(images, count, x.dtype, "cpu")
    normalizer = x.new_empty(2, images, pixels)
    agreement = x.new_empty(images // 2, pixels)
    statistics = []
    for pair in _chunks(scores):
        for part in pair:
            if weight is not None:
                rows, out = x[part].reshape(-1, x.shape[2]), scores[part].view(-1, count)
                if bias is None:
                    torch.mm(rows, weight.mT, out=out)
                else:
                    torch.addmm(bias, rows, weight.mT, out=out)
            found = Best(best.value[part], best.index[part])
            softmax_calls.softmax_pool(scores[part], None, 1.0, None, found, normalizer[:, part])
        one, other = (scores[part] for part in pair)
        kept = x.new_empty(6, len(one), pixels)
        softmax_calls.softmax_alignment(one, other, agreement[pair[0]], kept)
        statistics.append(kept)
    return Views(best, agreement, scores, normalizer, statistics)


def softmax_views_backward(
    grad: Tensor,  # [2n, M], of the pooled values
    grad_alignment: Tensor,  # [2n, P], of what each view's own gradient comes from
    views: Views,
    x: Tensor,  # [2n, P, C]
    weight: Tensor | None,  # [M, C]
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias, those that are needed."""
    scores, (_, pixels, count) = views.scores, views.scores.shape
    need_x, need_weight, need_bias = needs
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if need_x else None
    if dx is not None:
        softmax_calls.prefer_huge_pages(dx)
    dw = torch.zeros_like(weight) if need_weight and weight is not None else None
    db = x.new_zeros(count) if need_bias else None
    grad, grad_alignment = grad.contiguous(), grad_alignment.contiguous()
    alike = torch.equal(*grad_alignment.tensor_split(2))  # as those of a mean are
    buffer = x.new_empty(0)
    for pair, statistics in zip(_chunks(scores), views.statistics, strict=True):
        size = 2 * (pair[0].stop - pair[0].start)
        if len(buffer) != size:
            buffer = x.new_empty(size, pixels, count)
        sides = buffer.tensor_split(2)
        _both_sides(scores, grad_alignment, pair, statistics, sides, alike)
        for part, d in zip(pair, sides, strict=True):
            found = Best(views.best.value[part], views.best.index[part])
            softmax_calls.softmax_pool_backward(
                scores[part], None, 1.0, grad[part], found, views.normalizer[:, part], d, add=True
            )
            flat = d.view(-1, count)
            if dw is not None:
                dw.addmm_(flat.mT, x[part].reshape(-1, x.shape[2]))
            if dx is not None and weight is not None:
                torch.mm(flat, weight, out=dx[part].view(-1, x.shape[2]))
            elif dx is not None:
                dx[part] = d
        if db is not None:
            db += buffer.sum((0, 1))
    return dx, dw, db


def _both_sides(
    scores: Tensor,  # [2n, P, M]
    grad: Tensor,  # [2n, P]
    pair: tuple[slice, slice],
    statistics: Tensor,  # [6, k, P]
    sides: tuple[Tensor, ...],  # two [k, P, M], to be written
    alike: bool,
) -> None:
    """The gradient of the agreement by the scores of each view."""
    (first, second), (one, other) = pair, sides
    wanted: list[tuple[slice, Tensor | None, Tensor | None]] = [(first, one, other)]
    if not alike:
        wanted = [(first, one, None), (second, None, other)]
    for rows, *targets in wanted:
        softmax_calls.softmax_alignment_backward(
            scores[first], scores[second], grad[rows], statistics, targets[0], targets[1]
        )
