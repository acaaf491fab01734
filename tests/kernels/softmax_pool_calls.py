"""Host code of softmax_pool, for the recorder of `tests.kernels.kernel_compile`."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def run(maps: Iterable[tuple[Tensor, Tensor]], number: int, products: str) -> None:
    """Forward and gradient of x with so many prototypes in u's dtype, and of x as scores."""
    from infodisent.kernels import softmax_pool as host

    for n, (x, u) in enumerate(maps):
        valid = torch.empty(x.shape[:2], dtype=torch.bool, device="meta") if n else None
        prototypes = torch.empty(number, x.shape[2], dtype=u.dtype, device="meta")
        bias = torch.empty(number, device="meta") if n % 2 else None
        best, normalizer = host.softmax_pool(x, prototypes, 0.1, bias, valid, products)
        call = (best.value, best, normalizer, x, prototypes, 0.1, bias, products)
        for _ in host.scores_gradient(*call):
            pass
        for each in (x, x.mT.contiguous().mT):  # two layouts
            best, normalizer = host.softmax_pool(each, None, 1.0, None, valid)
            host.map_gradient(best.value, best, normalizer, each, 1.0, each)
