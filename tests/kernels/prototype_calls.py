"""Host code of the operators of prototypes, for the recorder of `tests.kernels.kernel_compile`."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from infodisent.contract import Best

VIEWS = (("dot",), ("l2",), ("cosine", "dot"))
"""Similarities that `similarity_pool` is compiled for."""
PROTOTYPES = 2000

Maps = Iterable[tuple[Tensor, Tensor]]
"""x [B, P, C] and u [C, C] in the dtype that prototypes have."""


def _empty(*size: int, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(*size, dtype=dtype, device="meta")


def similarity_pool(maps: Maps, products: str) -> None:
    """Forward by one similarity or two, with pixels left out or none."""
    from infodisent.kernels import similarity_pool as host

    for x, u in maps:
        prototypes = _empty(PROTOTYPES, x.shape[2], dtype=u.dtype)
        for number, similarities in enumerate(VIEWS):
            valid = _empty(*x.shape[:2], dtype=torch.bool) if number else None
            host.similarity_pool(x, prototypes, valid, similarities, products)


def similarity_pool_backward(maps: Maps, products: str) -> None:
    """Both gradients; the dtypes alone are the products'."""
    from infodisent.kernels import similarity_pool_backward as host

    for x, u in maps:
        prototypes = _empty(PROTOTYPES, x.shape[2], dtype=u.dtype)
        grad = _empty(len(x), PROTOTYPES)
        for similarities in VIEWS:
            number = len(similarities)
            best = (Best(grad, grad.int()),) * number
            for each in (x, x.mT.contiguous().mT):  # two layouts
                host.similarity_pool_backward(
                    (grad,) * number, best, each, prototypes, similarities, True, True
                )


def softmax_pool(maps: Maps, products: str) -> None:
    """Forward and gradient of x with prototypes in u's dtype, and of x as scores."""
    from infodisent.kernels import softmax_pool as host

    for n, (x, u) in enumerate(maps):
        valid = _empty(*x.shape[:2], dtype=torch.bool) if n else None
        prototypes = _empty(PROTOTYPES, x.shape[2], dtype=u.dtype)
        bias = _empty(PROTOTYPES) if n % 2 else None
        best, normalizer = host.softmax_pool(x, prototypes, 0.1, bias, valid, products)
        call = (best.value, best, normalizer, x, prototypes, 0.1, bias, products)
        for _ in host.scores_gradient(*call):
            pass
        for each in (x, x.mT.contiguous().mT):  # two layouts
            best, normalizer = host.softmax_pool(each, None, 1.0, None, valid)
            host.map_gradient(best.value, best, normalizer, each, 1.0, each)


def softmax_alignment(maps: Maps, products: str) -> None:
    """Forward and gradient of x beside u's dtype, of one side and of both, in two layouts."""
    from infodisent.kernels import softmax_alignment as host

    for x, u in maps:
        for each in (x, x.mT.contiguous().mT):
            other = torch.empty_like(each, dtype=u.dtype)
            loss, statistics = host.softmax_alignment(each, other)
            for d_other in (None, other):
                host.softmax_alignment_backward(loss, each, other, statistics, each, d_other)
