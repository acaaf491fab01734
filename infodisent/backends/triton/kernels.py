"""The kernels of ``infodisent.kernels`` as the backend calls them: imported at the first call."""

from __future__ import annotations

from torch import Tensor

from infodisent.backends.operators import MaybeTensor
from infodisent.contract import Best, Extremes

PRODUCTS = {"full": "tf32x3", "half": "bf16x3"}
"""How the rotation multiplies, by its precision."""


def rotation(a: Tensor, precision: str) -> tuple[Tensor, Tensor, Tensor]:
    """U [C, C], and what backward needs: ``[BLOCKS, C, C]`` and numbers on the device."""
    from infodisent.kernels import rotation as host

    results: tuple[Tensor, Tensor, Tensor] = host.rotation(a, precision, PRODUCTS[precision])
    return results


def empty_rotation(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Uninitialised results of `rotation`."""
    from infodisent.kernels import rotation as host

    return a.new_empty(a.shape), a.new_empty(host.BLOCKS, *a.shape), a.new_empty(host.WIDTH)


def rotation_backward(
    grad: Tensor,  # [C, C]
    a: Tensor,  # [C, C]
    kept: Tensor,  # [BLOCKS, C, C]
    decisions: Tensor,  # [WIDTH]
    precision: str,
) -> Tensor:
    """dA [C, C]."""
    from infodisent.kernels import rotation as host

    products = PRODUCTS[precision]
    d_a: Tensor = host.rotation_backward(grad, a, kept, decisions, precision, products)
    return d_a


def rotate_pool(
    x: Tensor,  # [B, P, C]
    u: Tensor,  # [C, C]
) -> Extremes:
    """Rotate and pool."""
    from infodisent.kernels import rotate_pool as host

    return Extremes(*host.rotate_pool(x, u))


def rotate_pool_backward(
    grad_pos: Tensor,  # [B, C]
    grad_neg: Tensor,  # [B, C]
    x: Tensor,  # [B, P, C]
    u: Tensor,  # [C, C]
    pos_index: Tensor,  # [B, C]
    neg_index: Tensor,  # [B, C]
    need_x: bool,
    need_u: bool,
) -> tuple[MaybeTensor, MaybeTensor]:
    """dX [B, P, C] and dU [C, C], each only if needed."""
    from infodisent.kernels import rotate_pool_backward as host

    gradients: tuple[MaybeTensor, MaybeTensor] = host.rotate_pool_backward(
        grad_pos, grad_neg, x, u, pos_index, neg_index, need_x, need_u
    )
    return gradients


def infodisent_head(
    x: Tensor,  # [B, P, C]
    u: Tensor,  # [C, C]
    weight: Tensor,  # [K, C]
    bias: Tensor | None,  # [K]
    relu: bool,
) -> tuple[Tensor, Extremes]:
    """Logits [B, K] in weight's dtype, and the pool."""
    from infodisent.kernels import infodisent_head as host

    logits, *pool = host.infodisent_head(x, u, weight, bias, relu)
    return logits, Extremes(*pool)


def similarity_pool(
    x: Tensor,  # [B, P, C]
    prototypes: Tensor,  # [M, C]
    valid: Tensor | None,  # [B, P] bool
    similarities: tuple[str, ...],
) -> tuple[Best, ...]:
    """The best pixels by each similarity."""
    from infodisent.kernels import similarity_pool as host

    best: tuple[Best, ...] = host.similarity_pool(x, prototypes, valid, similarities)
    return best


def similarity_pool_backward(
    grads: tuple[Tensor, ...],  # [B, M] each
    best: tuple[Best, ...],
    x: Tensor,  # [B, P, C]
    prototypes: Tensor,  # [M, C]
    similarities: tuple[str, ...],
    need_x: bool,
    need_prototypes: bool,
) -> tuple[MaybeTensor, MaybeTensor]:
    """dX [B, P, C] and dV [M, C], each only if needed."""
    from infodisent.kernels import similarity_pool_backward as host

    gradients: tuple[MaybeTensor, MaybeTensor] = host.similarity_pool_backward(
        grads, best, x, prototypes, similarities, need_x, need_prototypes
    )
    return gradients


def softmax_alignment(
    first: Tensor,  # [B, P, C]
    second: Tensor,  # [B, P, C]
) -> tuple[Tensor, Tensor]:
    """The loss [B, P] and its statistics [6, B, P]."""
    from infodisent.kernels import softmax_alignment as host

    results: tuple[Tensor, Tensor] = host.softmax_alignment(first, second)
    return results


def softmax_alignment_backward(
    grad: Tensor,  # [B, P]
    first: Tensor,  # [B, P, C]
    second: Tensor,  # [B, P, C]
    statistics: Tensor,  # [6, B, P]
    d_first: Tensor | None,  # [B, P, C], to be written
    d_second: Tensor | None,  # [B, P, C], to be written
) -> None:
    """Write the gradients that are asked for."""
    from infodisent.kernels import softmax_alignment as host

    host.softmax_alignment_backward(grad, first, second, statistics, d_first, d_second)
