"""rotation(A) -> U = exp(A - A^T)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from infodisent import backends, reference
from infodisent.backends import sparse
from infodisent.backends import triton as _triton
from infodisent.backends.sparse.rotation import BLOCKS
from infodisent.layout import check_float
from infodisent.ops import register as _registry
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
    _registry.refuse_tangents("rotation", A)
    wide = A.float() if A.dtype in (torch.float16, torch.bfloat16) else A
    backend = backends.select("rotation", wide)
    if backend == "reference":
        with _registry.no_autocast(A):
            return reference.rotation(wide).to(A.dtype)
    run = _on_device if backend == "triton" else _rotation
    u: Tensor = run(wide, precision)[0]
    return u.to(A.dtype)


def _impl(a: Tensor, precision: str) -> tuple[Tensor, Tensor, Tensor]:
    native = backends.is_native("rotation", a)
    return sparse.rotation.rotation(a.contiguous(), precision, native)


def _fake(a: Tensor, precision: str) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(a, memory_format=torch.contiguous_format),
        a.new_empty(BLOCKS, *a.shape),
        torch.empty(2, dtype=torch.int64, device="cpu"),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    a, ctx.precision = inputs
    ctx.save_for_backward(a, *output[1:])


def _backward(ctx: Any, grad_u: Tensor, *_: Any) -> tuple[Tensor, None]:
    a, kept, info = ctx.saved_tensors
    return _rotation_backward(grad_u, a, kept, info, ctx.precision), None


def _backward_impl(grad_u: Tensor, a: Tensor, kept: Tensor, info: Tensor, precision: str) -> Tensor:
    native = backends.is_native("rotation", a)
    return sparse.rotation.rotation_backward(
        grad_u.contiguous(), a.contiguous(), kept, info, precision, native
    )


def _backward_fake(grad_u: Tensor, a: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(a, memory_format=torch.contiguous_format)


_rotation = _registry.register(
    "rotation",
    "(Tensor A, str precision) -> (Tensor U, Tensor kept, Tensor info)",
    _impl,
    _fake,
)
_rotation_backward = _registry.register(
    "rotation_backward",
    "(Tensor grad_U, Tensor A, Tensor kept, Tensor info, str precision) -> Tensor",
    _backward_impl,
    _backward_fake,
)
_registry.register_gradient("rotation", _backward, _setup_context)


# The Triton kernels keep other things for backward, and more of them: an operator of their own.


def _on_device_impl(a: Tensor, precision: str) -> tuple[Tensor, Tensor, Tensor]:
    return _triton.rotation(a.contiguous(), precision)


def _on_device_fake(a: Tensor, precision: str) -> tuple[Tensor, Tensor, Tensor]:
    kernels = _triton.module("rotation")
    return (
        torch.empty_like(a, memory_format=torch.contiguous_format),
        a.new_empty(kernels.BLOCKS, *a.shape),
        a.new_empty(kernels.WIDTH),
    )


def _on_device_backward(ctx: Any, grad_u: Tensor, *_: Any) -> tuple[Tensor, None]:
    a, kept, numbers = ctx.saved_tensors
    return _on_device_gradient(grad_u, a, kept, numbers, ctx.precision), None


def _on_device_gradient_impl(
    grad_u: Tensor, a: Tensor, kept: Tensor, numbers: Tensor, precision: str
) -> Tensor:
    return _triton.rotation_backward(grad_u.contiguous(), a.contiguous(), kept, numbers, precision)


_on_device = _registry.register(
    "rotation_on_device",
    "(Tensor A, str precision) -> (Tensor U, Tensor kept, Tensor numbers)",
    _on_device_impl,
    _on_device_fake,
)
_on_device_gradient = _registry.register(
    "rotation_on_device_backward",
    "(Tensor grad_U, Tensor A, Tensor kept, Tensor numbers, str precision) -> Tensor",
    _on_device_gradient_impl,
    _backward_fake,
)
_registry.register_gradient("rotation_on_device", _on_device_backward, _setup_context)
