"""rotation(A) -> U = exp(A - A^T)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from infodisent import reference
from infodisent.backends.selection import AUTO, FORMULAS, implementation, select
from infodisent.layout import check_float
from infodisent.ops import register
from infodisent.polynomials.plans import PRECISIONS


def rotation(A: Tensor, *, precision: str = "full") -> Tensor:
    """The rotation matrix of a free square parameter, ``U = exp(A - A^T)``.

    Args:
        A: any real matrix, ``[C, C]``, float32 or float64; half matrices are computed in float32
            and the result is rounded to their dtype. ``A = 0`` gives the identity.
        precision: "full": to the accuracy of the dtype computed in. "half": for heads that run in
            half precision; polynomials of lower degree, whose error of up to 6e-4 is below the
            rounding of U to bfloat16. The reference backend and float64 are always "full".

    Returns:
        U: ``[C, C]`` in A's dtype; orthogonal with determinant 1. Rotating a vector is ``U @ v``.
        A NaN or Inf in A gives NaN in U, and so does a norm that squares out of the dtype's
        range (from about 1e9 in float32, where no digit would be left).

    The gradient is ``dA = Sbar - Sbar^T`` with Sbar the adjoint of the exponential at
    ``S = A - A^T``, by reverse mode through the polynomial (`infodisent.backends.sparse.rotation`):
    at most 8 products of C x C and 2 more per squaring, at any scale of the upstream gradient. It
    can be taken once: double backward raises RuntimeError.

    Degree and squarings follow a bound of ``||S||_2``. The Triton kernels decide on the device,
    wait for nothing and can be captured in a CUDA graph; there U is NaN beyond ``||S||_2`` of 1638
    ("half": 3276). Elsewhere one number a call is read back from a GPU, and while a CUDA graph is
    captured, where nothing may be read back, the largest polynomial and 4 squarings serve
    ``||S||_2`` up to 100: a replay with a larger bound gives NaN, never a wrong U.

    Raises:
        TypeError: A is not a floating-point tensor.
        ValueError: A is not a square matrix, or has no rows, or `precision` is unknown.
    """
    check_float("rotation", "A", A)
    if A.ndim != 2 or A.shape[0] != A.shape[1]:
        raise ValueError(f"rotation: A is {tuple(A.shape)}, must be a square matrix (C, C)")
    if A.shape[0] == 0:
        raise ValueError("rotation: A is (0, 0): no channels (C = 0)")
    if precision not in PRECISIONS:
        raise ValueError(
            f"rotation: precision is {precision!r}, allowed are {', '.join(PRECISIONS)}"
        )
    register.refuse_tangents("rotation", A)
    wide = A.float() if A.dtype in (torch.float16, torch.bfloat16) else A
    backend = select("rotation", wide)
    if backend == FORMULAS:
        with register.no_autocast(A):
            return reference.rotation(wide).to(A.dtype)
    u: Tensor = _rotation(wide, precision, backend)[0]
    return u.to(A.dtype)


def _impl(a: Tensor, precision: str, backend: str = AUTO) -> tuple[Tensor, Tensor, Tensor]:
    return implementation(backend, "rotation", a).rotation(a.contiguous(), precision)


def _fake(a: Tensor, precision: str, backend: str = AUTO) -> tuple[Tensor, Tensor, Tensor]:
    return implementation(backend, "rotation", a).empty_rotation(a)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    a, ctx.precision, backend = inputs
    ctx.backend = implementation(backend, "rotation", a).name
    ctx.save_for_backward(a, *output[1:])


def _backward(ctx: Any, grad_u: Tensor, *_: Any) -> tuple[Tensor, None, None]:
    return _rotation_backward(grad_u, *ctx.saved_tensors, ctx.precision, ctx.backend), None, None


def _backward_impl(
    grad_u: Tensor,  # [C, C]
    a: Tensor,  # [C, C]
    kept: Tensor,
    decisions: Tensor,
    precision: str,
    backend: str = AUTO,
) -> Tensor:
    return implementation(backend, "rotation", a).rotation_backward(
        grad_u.contiguous(), a.contiguous(), kept, decisions, precision
    )


def _backward_fake(grad_u: Tensor, a: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(a, memory_format=torch.contiguous_format)


_rotation = register.register(
    "rotation",
    '(Tensor A, str precision, str backend="auto") -> (Tensor U, Tensor kept, Tensor decisions)',
    _impl,
    _fake,
)
_rotation_backward = register.register(
    "rotation_backward",
    "(Tensor grad_U, Tensor A, Tensor kept, Tensor decisions, str precision, "
    'str backend="auto") -> Tensor',
    _backward_impl,
    _backward_fake,
)
register.register_gradient("rotation", _backward, _setup_context)
