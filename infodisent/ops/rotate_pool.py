"""rotate_pool(x, U) -> SparsePool: rotate every pixel and pool, without keeping the rotated map."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from infodisent import backends, reference
from infodisent.backends import native, sparse
from infodisent.backends import triton as _triton
from infodisent.backends.cuda import module as _native_cuda
from infodisent.contract import SparsePool
from infodisent.layout import (
    check_float,
    check_map,
    check_same_device,
    from_bpc,
    map_size,
    to_bpc,
)
from infodisent.ops import register as _registry
from infodisent.ops.mx_pool import empty_pool


def rotate_pool(
    x: Tensor, U: Tensor, *, input_fmt: str = "NCHW", num_prefix_tokens: int = 0
) -> SparsePool:
    """Rotate the channels of a map and keep the extreme pixels of each rotated channel.

    ``Y[b, :, p] = U X[b, :, p]``, then `mx_pool` of Y. Y is never held whole, and neither is its
    gradient: backward adds one row per winning pixel (``dU = sum_b dY_b X_b^T`` has 2·B·C nonzero
    terms of length C, ``dX = U^T dY``). Only the gradients asked for are computed.

    Args:
        x: map, float32 / float16 / bfloat16 / float64, any strides and memory format; layout
            `input_fmt`: NCHW ``[B, C, H, W]``, NHWC ``[B, H, W, C]``, NCL ``[B, C, N]`` or NLC
            ``[B, N, C]`` with N = `num_prefix_tokens` + P.
        U: rotation, ``[C, C]``, any of the same dtypes; if the two differ, the wider one counts.
        input_fmt: layout of `x`, timm's names.
        num_prefix_tokens: leading tokens that are not pixels (class and register tokens).

    Returns:
        SparsePool of ``[B, C]`` tensors: values float32 (float64 if an input is), accumulated in at
        least float32; locations int32. ``B = 0`` gives empty results. NaN and Inf in `x` come out
        where the formula puts them; but the bfloat16 products of a CPU, and only those, count
            numbers below 2^-126 as zero. Under autocast both inputs are cast as for a matrix
            product.

    Double backward raises RuntimeError.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: unknown layout, shapes that do not fit each other, no channels, no pixels, or
            tensors on different devices.
    """
    check_rotation_fits("rotate_pool", x, U, input_fmt, num_prefix_tokens)
    _registry.refuse_tangents("rotate_pool", x, U)
    x, U = _registry.autocast(x, U)
    backend = backends.select("rotate_pool", x, U)
    if backend == "reference":
        with _registry.no_autocast(x):
            return reference.rotate_pool(
                x, U, input_fmt=input_fmt, num_prefix_tokens=num_prefix_tokens
            )
    if _registry.direct(x, U):
        pos, neg, pos_index, neg_index = forward(backend, x, U, input_fmt, num_prefix_tokens)
    else:
        pos, neg, pos_index, neg_index = _rotate_pool(x, U, input_fmt, num_prefix_tokens)
    return SparsePool(pos - neg, pos, neg, pos_index, neg_index)


def check_rotation_fits(
    op: str, x: Tensor, U: Tensor, input_fmt: str, num_prefix_tokens: int
) -> None:
    """Raise unless `x` is a map and `U` a rotation of its channels, on one device."""
    check_map(op, "x", x, input_fmt, num_prefix_tokens)
    check_float(op, "U", U)
    channels = map_size(x, input_fmt)[0]
    if U.shape != (channels, channels):
        raise ValueError(
            f"{op}: x is {tuple(x.shape)} [{input_fmt}] but U is {tuple(U.shape)}, "
            f"must be ({channels}, {channels})"
        )
    check_same_device(op, x=x, U=U)


_Four = tuple[Tensor, Tensor, Tensor, Tensor]


def forward(backend: str, x: Tensor, u: Tensor, input_fmt: str, num_prefix_tokens: int) -> _Four:
    """pos, neg, pos_index, neg_index; autocast must be off."""
    view = to_bpc(x, input_fmt, num_prefix_tokens)
    if backend == "triton":
        return _triton.rotate_pool(view, u)
    if backend in ("cuda", "cuda_fp8"):
        return _by_cuda(view, u, backend == "cuda_fp8")
    module = native if backend == "native" else sparse
    pooled: _Four = module.rotate_pool.rotate_pool(view, u)
    return pooled


def _by_cuda(x: Tensor, u: Tensor, fp8: bool) -> _Four:
    """The Hopper kernel reads rows of contiguous channels; other maps are laid out first."""
    if x.stride(2) != 1:
        x = x.contiguous()
    reason = _native_cuda.objection(x, u, fp8)
    if reason is not None:
        name = backends.get_backend()
        raise backends.BackendError(f"backend {name!r} cannot serve this call: {reason}")
    return _native_cuda.rotate_pool(x, u, fp8=fp8)


def _cuda_can_grad_u(x: Tensor, u: Tensor) -> bool:
    # it rounds the gradients to x's dtype, which is fine for a result of that dtype only
    return x.dtype == u.dtype and _native_cuda.grad_u_objection(x) is None


def _impl(x: Tensor, u: Tensor, input_fmt: str, num_prefix_tokens: int) -> _Four:
    backend = backends.select("rotate_pool", x, u)
    return forward(backend, x, u, input_fmt, num_prefix_tokens)


def _fake(x: Tensor, u: Tensor, input_fmt: str, num_prefix_tokens: int) -> _Four:
    return empty_pool(x, u.shape[0], x.dtype, u.dtype)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, str, int], output: _Four) -> None:
    x, u, *layout = inputs
    ctx.save_for_backward(x, u, output[2], output[3])
    ctx.layout = tuple(layout)


def _backward(ctx: Any, grad_pos: Tensor, grad_neg: Tensor, *_: Tensor) -> tuple[Any, ...]:
    # neg = -Y at its winner, hence the sign
    x, u, pos_index, neg_index = ctx.saved_tensors
    dx, du = gradients(
        grad_pos, -grad_neg, x, u, pos_index, neg_index, ctx.layout, ctx.needs_input_grad
    )
    return dx, du, None, None


def gradients(
    grad_pos: Tensor,  # [B, C] gradient at the positive winners
    grad_neg: Tensor,  # [B, C] gradient at the negative winners, d(pooled)/dY = +1 there
    x: Tensor,
    u: Tensor,  # [C, C]
    pos_index: Tensor,  # [B, C] int32
    neg_index: Tensor,  # [B, C] int32
    layout: tuple[str, int],  # input_fmt, num_prefix_tokens
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None]:
    """dx and dU as far as `needs` asks for them; nothing is launched for neither."""
    if not any(needs[:2]):
        return None, None
    dx, du = _rotate_pool_backward(
        grad_pos,
        grad_neg,
        x,
        u,
        pos_index,
        neg_index,
        *layout,
        needs[0],
        needs[1],
    )
    return dx if needs[0] else None, du if needs[1] else None


def _backward_impl(
    grad_pos: Tensor,
    grad_neg: Tensor,
    x: Tensor,
    u: Tensor,
    pos_index: Tensor,
    neg_index: Tensor,
    input_fmt: str,
    num_prefix_tokens: int,
    need_x: bool,
    need_u: bool,
) -> tuple[Tensor, Tensor]:
    chosen = backends.select("rotate_pool", x, u)
    backend = backends.for_gradient(chosen, x)
    module: Any = native if backend == "native" else sparse
    run = _triton if backend == "triton" else module.rotate_pool
    view = to_bpc(x, input_fmt, num_prefix_tokens)
    grads, places = (grad_pos, grad_neg), (pos_index, neg_index)
    du_by_cuda = chosen == "cuda" and need_u and _cuda_can_grad_u(view, u)
    dx, du = run.rotate_pool_backward(*grads, view, u, *places, need_x, need_u and not du_by_cuda)
    if du_by_cuda:
        du = _native_cuda.grad_u(*grads, view, *places, u.dtype)
    # An operator returns tensors: what was not asked for is an empty one.
    return (
        x.new_empty(0)
        if dx is None
        else from_bpc(dx, x, input_fmt, num_prefix_tokens).contiguous(),
        u.new_empty(0) if du is None else du,
    )


def _backward_fake(
    grad_pos: Tensor,
    grad_neg: Tensor,
    x: Tensor,
    u: Tensor,
    pos_index: Tensor,
    neg_index: Tensor,
    input_fmt: str,
    num_prefix_tokens: int,
    need_x: bool,
    need_u: bool,
) -> tuple[Tensor, Tensor]:
    return (
        x.new_empty(x.shape) if need_x else x.new_empty(0),
        u.new_empty(u.shape) if need_u else u.new_empty(0),
    )


_rotate_pool = _registry.register(
    "rotate_pool",
    "(Tensor x, Tensor U, str input_fmt, int num_prefix_tokens) -> "
    "(Tensor pos, Tensor neg, Tensor pos_index, Tensor neg_index)",
    _impl,
    _fake,
)
_rotate_pool_backward = _registry.register(
    "rotate_pool_backward",
    "(Tensor grad_pos, Tensor grad_neg, Tensor x, Tensor U, Tensor pos_index, Tensor neg_index, "
    "str input_fmt, int num_prefix_tokens, bool need_x, bool need_U) -> (Tensor dx, Tensor dU)",
    _backward_impl,
    _backward_fake,
)
_registry.register_gradient("rotate_pool", _backward, _setup_context)
