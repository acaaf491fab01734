"""mx_pool(y) -> SparsePool: the pool alone, for maps that are already rotated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from infodisent import backends, reference
from infodisent.backends import native, sparse
from infodisent.contract import SparsePool
from infodisent.layout import check_map, from_bpc, map_size, to_bpc, value_dtype
from infodisent.ops import register as _registry


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
    _registry.refuse_tangents("mx_pool", y)
    if backends.select("mx_pool", y) == "reference":
        return reference.mx_pool(y, input_fmt=input_fmt, num_prefix_tokens=num_prefix_tokens)
    run = _impl if _registry.direct(y) else _mx_pool
    pos, neg, pos_index, neg_index = run(y, input_fmt, num_prefix_tokens)
    return SparsePool(pos - neg, pos, neg, pos_index, neg_index)


_Four = tuple[Tensor, Tensor, Tensor, Tensor]


def _impl(y: Tensor, input_fmt: str, num_prefix_tokens: int) -> _Four:
    backend = native if backends.is_native("mx_pool", y) else sparse
    pooled: _Four = backend.mx_pool.mx_pool(to_bpc(y, input_fmt, num_prefix_tokens))
    return pooled


def _fake(y: Tensor, input_fmt: str, num_prefix_tokens: int) -> _Four:
    return empty_pool(y, map_size(y, input_fmt)[0], y.dtype)


def empty_pool(x: Tensor, channels: int, *dtypes: torch.dtype) -> _Four:
    """Uninitialised pos, neg, pos_index, neg_index of the right shapes, for fake kernels."""
    size = (x.shape[0], channels)
    values = [x.new_empty(size, dtype=value_dtype(*dtypes)) for _ in range(2)]
    indices = [x.new_empty(size, dtype=torch.int32) for _ in range(2)]
    return (*values, *indices)  # type: ignore[return-value]


def _setup_context(ctx: Any, inputs: tuple[Tensor, str, int], output: _Four) -> None:
    y, input_fmt, num_prefix_tokens = inputs
    ctx.save_for_backward(output[2], output[3])
    ctx.shape, ctx.dtype = y.shape, y.dtype
    ctx.layout = input_fmt, num_prefix_tokens


def _backward(ctx: Any, grad_pos: Tensor, grad_neg: Tensor, *_: Tensor) -> tuple[Any, ...]:
    # neg = -y at its winner, hence the sign
    grad = _mx_pool_backward(
        grad_pos, -grad_neg, *ctx.saved_tensors, ctx.shape, ctx.dtype, *ctx.layout
    )
    return grad, None, None


def _backward_impl(
    grad_pos: Tensor,
    grad_neg: Tensor,
    pos_index: Tensor,
    neg_index: Tensor,
    shape: list[int],
    dtype: torch.dtype,
    input_fmt: str,
    num_prefix_tokens: int,
) -> Tensor:
    like = grad_pos.new_empty(shape, device="meta")
    pixels = map_size(like, input_fmt, num_prefix_tokens)[1]
    grad = sparse.mx_pool.mx_pool_backward(grad_pos, grad_neg, pos_index, neg_index, pixels, dtype)
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
) -> Tensor:
    return grad_pos.new_empty(shape, dtype=dtype)


_mx_pool = _registry.register(
    "mx_pool",
    "(Tensor y, str input_fmt, int num_prefix_tokens) -> "
    "(Tensor pos, Tensor neg, Tensor pos_index, Tensor neg_index)",
    _impl,
    _fake,
)
_mx_pool_backward = _registry.register(
    "mx_pool_backward",
    "(Tensor grad_pos, Tensor grad_neg, Tensor pos_index, Tensor neg_index, SymInt[] shape, "
    "ScalarType dtype, str input_fmt, int num_prefix_tokens) -> Tensor",
    _backward_impl,
    _backward_fake,
)
_registry.register_gradient("mx_pool", _backward, _setup_context)
