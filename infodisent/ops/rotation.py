"""rotation(A) -> U = exp(A - A^T)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from infodisent import backends, reference, sparse
from infodisent._layout import check_float
from infodisent.ops import _registry


def rotation(A: Tensor) -> Tensor:
    """The rotation matrix of a free square parameter, ``U = exp(A - A^T)``.

    Args:
        A: any real matrix, ``[C, C]``, float32 or float64; half matrices are computed in float32
            and the result is rounded to their dtype. ``A = 0`` gives the identity.

    Returns:
        U: ``[C, C]`` in A's dtype; orthogonal with determinant 1. Rotating a vector is ``U @ v``.
        A NaN or Inf in A gives NaN in U.

    The gradient is ``dA = Sbar - Sbar^T`` with Sbar the adjoint of the exponential at
    ``S = A - A^T`` (reverse mode through the polynomial of `infodisent.sparse.rotation`; 8 products
    of C x C, and 3 more per squaring). It can be taken once: double backward raises RuntimeError.

    Raises:
        TypeError: A is not a floating-point tensor.
        ValueError: A is not a square matrix, or has no rows.
    """
    check_float("rotation", "A", A)
    if A.ndim != 2 or A.shape[0] != A.shape[1]:
        raise ValueError(f"rotation: A is {tuple(A.shape)}, must be a square matrix (C, C)")
    if A.shape[0] == 0:
        raise ValueError("rotation: A is (0, 0): no channels (C = 0)")
    wide = A.float() if A.dtype in (torch.float16, torch.bfloat16) else A
    if backends.select("rotation", A) == "reference":
        with _registry.no_autocast(A):
            return reference.rotation(wide).to(A.dtype)
    u: Tensor = _rotation(wide)[0]
    return u.to(A.dtype)


def _impl(a: Tensor) -> tuple[Tensor, Tensor]:
    return sparse.rotation.rotation(a)


def _fake(a: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(a, memory_format=torch.contiguous_format), a.new_empty(4, *a.shape)


def _setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], output[1])


def _backward(ctx: Any, grad_u: Tensor, _: Tensor) -> Tensor:
    a, powers = ctx.saved_tensors
    result: Tensor = _rotation_backward(grad_u, a, powers)
    return result


def _backward_impl(grad_u: Tensor, a: Tensor, powers: Tensor) -> Tensor:
    return sparse.rotation.rotation_backward(grad_u, a, powers)


def _backward_fake(grad_u: Tensor, a: Tensor, powers: Tensor) -> Tensor:
    return torch.empty_like(a, memory_format=torch.contiguous_format)


_rotation = _registry.register("rotation", "(Tensor A) -> (Tensor U, Tensor powers)", _impl, _fake)
_rotation_backward = _registry.register(
    "rotation_backward",
    "(Tensor grad_U, Tensor A, Tensor powers) -> Tensor",
    _backward_impl,
    _backward_fake,
)
_registry.register_gradient("rotation", _backward, _setup_context)
