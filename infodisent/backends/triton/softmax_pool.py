"""`softmax_pool` by the Triton kernels: the pool, and the gradient of scores in some images.

dX and dV of prototypes are products of the library with that gradient, as in the sparse backend.
"""

from __future__ import annotations

from torch import Tensor

from infodisent.backends.operators import MaybeTensor
from infodisent.backends.sparse.softmax_pool import Collected, computed_in
from infodisent.contract import Best


def softmax_pool(
    x: Tensor,  # [B, P, C]
    prototypes: Tensor | None,  # [M, C]
    temperature: float,
    bias: Tensor | None,  # [M]
    valid: Tensor | None,  # [B, P] bool
) -> tuple[Best, Tensor]:
    """Best [B, M] and normalizer [2, B, P], see `infodisent.backends.operators`."""
    from infodisent.kernels import softmax_pool as host

    results: tuple[Best, Tensor] = host.softmax_pool(x, prototypes, temperature, bias, valid)
    return results


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
) -> tuple[MaybeTensor, MaybeTensor]:
    """Write dX; dV [M, C] and dbias [M], if needed."""
    from infodisent.kernels import softmax_pool as host

    if prototypes is None:
        if dx is not None:
            host.map_gradient(grad, best, normalizer, x, temperature, dx)
        return None, None
    dtype = computed_in(x, prototypes, bias)
    collected = Collected(x, prototypes, bias, dtype, temperature, dx, need_prototypes, need_bias)
    for part, dw in host.scores_gradient(
        grad, best, normalizer, x, prototypes, temperature, bias
    ):  # fmt: skip
        collected.add(part, dw, best.index[part])
    return collected.results()
