"""rotate_pool(x, U) -> SparsePool: rotate every pixel and pool, without keeping the rotated map."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from infodisent import reference
from infodisent.backends.selection import AUTO, FORMULAS, implementation, select
from infodisent.contract import Extremes, SparsePool
from infodisent.layout import (
    check_float,
    check_map,
    check_same_device,
    from_bpc,
    map_size,
    to_bpc,
)
from infodisent.ops import register
from infodisent.ops.mx_pool import traced_extremes


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
        numbers below 2^-126 as zero. Under autocast both inputs are cast as for a matrix product.

    Double backward raises RuntimeError.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: unknown layout, shapes that do not fit each other, no channels, no pixels, or
            tensors on different devices.
    """
    check_rotation_fits("rotate_pool", x, U, input_fmt, num_prefix_tokens)
    register.refuse_tangents("rotate_pool", x, U)
    x, U = register.autocast(x, U)
    backend = select("rotate_pool", x, U, layout=(input_fmt, num_prefix_tokens))
    if backend == FORMULAS:
        with register.no_autocast(x):
            return reference.rotate_pool(
                x, U, input_fmt=input_fmt, num_prefix_tokens=num_prefix_tokens
            )
    arguments = x, U, input_fmt, num_prefix_tokens, backend
    if register.direct(x, U):
        return _impl(*arguments).pooled()
    return Extremes(*_rotate_pool(*arguments)).pooled()


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


def _impl(
    x: Tensor,
    u: Tensor,  # [C, C]
    input_fmt: str,
    num_prefix_tokens: int,
    backend: str = AUTO,
) -> Extremes:
    served_by = implementation(backend, "rotate_pool", x, u)
    return served_by.rotate_pool(to_bpc(x, input_fmt, num_prefix_tokens), u)


def _fake(
    x: Tensor, u: Tensor, input_fmt: str, num_prefix_tokens: int, backend: str = AUTO
) -> Extremes:
    return traced_extremes(x, u.shape[0], x.dtype, u.dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, u, *layout, backend = inputs
    ctx.backend = implementation(backend, "rotate_pool", x, u).name
    ctx.save_for_backward(x, u, output[2], output[3])
    ctx.layout = tuple(layout)


def _backward(ctx: Any, grad_pos: Tensor, grad_neg: Tensor, *_: Tensor) -> tuple[Any, ...]:
    # neg = -Y at its winner, hence the sign
    x, u, pos_index, neg_index = ctx.saved_tensors
    dx, du = gradients(
        ctx.backend,
        (grad_pos, -grad_neg),
        (pos_index, neg_index),
        x,
        u,
        ctx.layout,
        ctx.needs_input_grad,
    )
    return dx, du, None, None, None


def gradients(
    backend: str,  # of the forward
    grads: tuple[Tensor, Tensor],  # [B, C] at positive, negative winners; d(pooled)/dY = +1 at both
    places: tuple[Tensor, Tensor],  # [B, C] int32
    x: Tensor,
    u: Tensor,  # [C, C]
    layout: tuple[str, int],  # input_fmt, num_prefix_tokens
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None]:
    """dx and dU as far as `needs` asks for them; nothing is launched for neither."""
    if not any(needs[:2]):
        return None, None
    dx, du = _rotate_pool_backward(*grads, x, u, *places, *layout, *needs[:2], backend)
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
    backend: str = AUTO,
) -> tuple[Tensor, Tensor]:
    view = to_bpc(x, input_fmt, num_prefix_tokens)
    dx, du = implementation(backend, "rotate_pool", x, u).rotate_pool_backward(
        grad_pos, grad_neg, view, u, pos_index, neg_index, need_x, need_u
    )
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
    backend: str = AUTO,
) -> tuple[Tensor, Tensor]:
    return (
        x.new_empty(x.shape) if need_x else x.new_empty(0),
        u.new_empty(u.shape) if need_u else u.new_empty(0),
    )


_rotate_pool = register.register(
    "rotate_pool",
    '(Tensor x, Tensor U, str input_fmt, int num_prefix_tokens, str backend="auto") -> '
    "(Tensor pos, Tensor neg, Tensor pos_index, Tensor neg_index)",
    _impl,
    _fake,
)
_rotate_pool_backward = register.register(
    "rotate_pool_backward",
    "(Tensor grad_pos, Tensor grad_neg, Tensor x, Tensor U, Tensor pos_index, Tensor neg_index, "
    "str input_fmt, int num_prefix_tokens, bool need_x, bool need_U, "
    'str backend="auto") -> (Tensor dx, Tensor dU)',
    _backward_impl,
    _backward_fake,
)
register.register_gradient("rotate_pool", _backward, _setup_context)
