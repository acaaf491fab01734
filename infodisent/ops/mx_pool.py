"""mx_pool(y) -> SparsePool: the pool alone, for maps that are already rotated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from infodisent import reference
from infodisent.backends.selection import AUTO, FORMULAS, implementation, select
from infodisent.contract import Extremes, SparsePool
from infodisent.layout import check_map, from_bpc, map_size, to_bpc, value_dtype
from infodisent.ops import register


def mx_pool(y: Tensor, *, input_fmt: str = "NCHW", num_prefix_tokens: int = 0) -> SparsePool:
    """Keep per image and channel the largest positive and the largest negative pixel.

    ``pos = max(0, max_p y)``, ``neg = max(0, max_p -y)``, ``pooled = pos - neg``.

    Args:
        y: map, float32 / float16 / bfloat16 / float64, any strides and memory format; layout
            `input_fmt`: NCHW ``[B, C, H, W]``, NHWC ``[B, H, W, C]``, NCL ``[B, C, N]`` or NLC
            ``[B, N, C]`` with N = `num_prefix_tokens` + P.
        input_fmt: layout of `y`, timm's names.
        num_prefix_tokens: leading tokens that are not pixels (class and register tokens).

    Returns:
        SparsePool of ``[B, C]`` tensors; values are float32 for half inputs. ``B = 0`` gives empty
        results. A NaN pixel makes pos, neg and pooled of its channel NaN and its place is reported.

    Only the winning pixels receive gradient, nothing where the index is -1. The gradient can be
    taken once: double backward raises RuntimeError.

    Raises:
        TypeError: y is not a floating-point tensor.
        ValueError: unknown layout, wrong number of dimensions, no channels, or no pixels.
    """
    check_map("mx_pool", "y", y, input_fmt, num_prefix_tokens)
    register.refuse_tangents("mx_pool", y)
    backend = select("mx_pool", y)
    if backend == FORMULAS:
        return reference.mx_pool(y, input_fmt=input_fmt, num_prefix_tokens=num_prefix_tokens)
    run = _impl if register.direct(y) else _mx_pool
    return Extremes(*run(y, input_fmt, num_prefix_tokens, backend)).pooled()


def _impl(y: Tensor, input_fmt: str, num_prefix_tokens: int, backend: str = AUTO) -> Extremes:
    return implementation(backend, "mx_pool", y).mx_pool(to_bpc(y, input_fmt, num_prefix_tokens))


def _fake(y: Tensor, input_fmt: str, num_prefix_tokens: int, backend: str = AUTO) -> Extremes:
    return traced_extremes(y, map_size(y, input_fmt)[0], y.dtype)


def traced_extremes(x: Tensor, channels: int, *dtypes: torch.dtype) -> Extremes:
    """Results for tracing, of a map x and inputs of some dtypes; sizes may be symbols."""
    size = (x.shape[0], channels)
    pos, neg = (x.new_empty(size, dtype=value_dtype(*dtypes)) for _ in range(2))
    places = (x.new_empty(size, dtype=torch.int32) for _ in range(2))
    return Extremes(pos, neg, *places)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    y, *ctx.layout, backend = inputs
    ctx.backend = implementation(backend, "mx_pool", y).name
    ctx.save_for_backward(output[2], output[3])
    ctx.shape, ctx.dtype = y.shape, y.dtype


def _backward(ctx: Any, grad_pos: Tensor, grad_neg: Tensor, *_: Tensor) -> tuple[Any, ...]:
    # neg = -y at its winner, hence the sign
    grad = _mx_pool_backward(
        grad_pos, -grad_neg, *ctx.saved_tensors, ctx.shape, ctx.dtype, *ctx.layout, ctx.backend
    )
    return grad, None, None, None


def _backward_impl(
    grad_pos: Tensor,  # [B, C] gradient at the positive winners
    grad_neg: Tensor,  # [B, C] gradient at the negative winners, d(pooled)/dy = +1 there
    pos_index: Tensor,  # [B, C] int32
    neg_index: Tensor,  # [B, C] int32
    shape: list[int],
    dtype: torch.dtype,
    input_fmt: str,
    num_prefix_tokens: int,
    backend: str = AUTO,
) -> Tensor:
    like = grad_pos.new_empty(shape, device="meta")
    pixels = map_size(like, input_fmt, num_prefix_tokens)[1]
    served_by = implementation(backend, "mx_pool", grad_pos)
    grad = served_by.mx_pool_backward(grad_pos, grad_neg, pos_index, neg_index, pixels, dtype)
    return from_bpc(grad, like, input_fmt, num_prefix_tokens).contiguous()


def _backward_fake(
    grad_pos: Tensor,
    grad_neg: Tensor,
    pos_index: Tensor,
    neg_index: Tensor,
    shape: list[int],
    dtype: torch.dtype,
    input_fmt: str,
    num_prefix_tokens: int,
    backend: str = AUTO,
) -> Tensor:
    return grad_pos.new_empty(shape, dtype=dtype)


_mx_pool = register.register(
    "mx_pool",
    '(Tensor y, str input_fmt, int num_prefix_tokens, str backend="auto") -> '
    "(Tensor pos, Tensor neg, Tensor pos_index, Tensor neg_index)",
    _impl,
    _fake,
)
_mx_pool_backward = register.register(
    "mx_pool_backward",
    "(Tensor grad_pos, Tensor grad_neg, Tensor pos_index, Tensor neg_index, SymInt[] shape, "
    'ScalarType dtype, str input_fmt, int num_prefix_tokens, str backend="auto") -> Tensor',
    _backward_impl,
    _backward_fake,
)
register.register_gradient("mx_pool", _backward, _setup_context)
