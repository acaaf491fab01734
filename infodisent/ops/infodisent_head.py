"""infodisent_head(x, U, weight, bias) -> logits: the whole head as one differentiable operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from infodisent import reference
from infodisent.backends.selection import AUTO, FORMULAS, implementation, select
from infodisent.contract import Extremes, SparsePool
from infodisent.layout import check_float, check_same_device, to_bpc, value_dtype
from infodisent.ops import register
from infodisent.ops.mx_pool import traced_extremes
from infodisent.ops.rotate_pool import check_rotation_fits, gradients

NONNEG = ("relu", "none")


def infodisent_head(
    x: Tensor,
    U: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    nonneg: str = "relu",
    input_fmt: str = "NCHW",
    num_prefix_tokens: int = 0,
    return_pool: bool = False,
) -> Tensor | tuple[Tensor, SparsePool]:
    """Rotate, pool and classify: ``logits = pooled · W^T (+ bias)`` with ``W = ReLU(weight)``.

    Args:
        x, U, input_fmt, num_prefix_tokens: as in `rotate_pool`.
        weight: ``[K, C]`` for K classes, floating point.
        bias: ``[K]`` or None.
        nonneg: "relu": negative entries of `weight` count as zero and get no gradient; "none":
            `weight` is used as given (the caller keeps it nonnegative).
        return_pool: also return what the pool kept, differentiable in its values.

    Returns:
        logits ``[B, K]`` in weight's dtype, accumulated in at least float32; with `return_pool`
        the pair ``(logits, SparsePool)``.

    Gradients for any subset of x, U, weight and bias: only those asked for are computed. Double
    backward raises RuntimeError. Under autocast x and U are cast as for a matrix product; weight
    and logits stay as they are.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: as `rotate_pool`; unknown `nonneg`; weight or bias of the wrong shape.
    """
    _check(x, U, weight, bias, nonneg, input_fmt, num_prefix_tokens)
    register.refuse_tangents("infodisent_head", x, U, weight, bias)
    x, U = register.autocast(x, U)
    backend = select("infodisent_head", x, U, weight, layout=(input_fmt, num_prefix_tokens))
    if backend == FORMULAS:
        with register.no_autocast(x):
            return reference.infodisent_head(
                x,
                U,
                weight,
                bias,
                nonneg=nonneg,
                input_fmt=input_fmt,
                num_prefix_tokens=num_prefix_tokens,
                return_pool=return_pool,
            )
    run = _impl if register.direct(x, U, weight, bias) else _head
    logits, pos, neg, pos_index, neg_index = run(
        x, U, weight, bias, nonneg == "relu", input_fmt, num_prefix_tokens, backend
    )
    if not return_pool:
        result: Tensor = logits
        return result
    return logits, Extremes(pos, neg, pos_index, neg_index).pooled()


def _check(
    x: Tensor,
    U: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    nonneg: str,
    input_fmt: str,
    num_prefix_tokens: int,
) -> None:
    op = "infodisent_head"
    check_rotation_fits(op, x, U, input_fmt, num_prefix_tokens)
    if nonneg not in NONNEG:
        raise ValueError(f"{op}: nonneg is {nonneg!r}, allowed are {', '.join(NONNEG)}")
    check_float(op, "weight", weight)
    if weight.ndim != 2 or weight.shape[1] != U.shape[0]:
        raise ValueError(
            f"{op}: x is {tuple(x.shape)} [{input_fmt}] but weight is {tuple(weight.shape)}, "
            f"must be (classes, {U.shape[0]})"
        )
    if bias is not None:
        check_float(op, "bias", bias)
        if bias.shape != weight.shape[:1]:
            raise ValueError(
                f"{op}: weight is {tuple(weight.shape)} but bias is {tuple(bias.shape)}, "
                f"must be ({weight.shape[0]},)"
            )
    check_same_device(op, x=x, U=U, weight=weight, bias=bias)


_Five = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype == dtype else x.to(dtype)  # asking costs less than a call that does nothing


def _effective(weight: Tensor, relu: bool, dtype: torch.dtype) -> Tensor:
    return _cast(weight.clamp_min(0) if relu else weight, dtype)


def _impl(
    x: Tensor,
    u: Tensor,  # [C, C]
    weight: Tensor,  # [K, C]
    bias: Tensor | None,  # [K]
    relu: bool,
    input_fmt: str,
    num_prefix_tokens: int,
    backend: str = AUTO,
) -> _Five:
    served_by = implementation(backend, "infodisent_head", x, u, weight)
    view = to_bpc(x, input_fmt, num_prefix_tokens)
    whole = served_by.infodisent_head(view, u, weight, bias, relu)
    if whole is not None:
        return (whole[0], *whole[1])
    pool = served_by.rotate_pool(view, u)
    dtype = value_dtype(pool.pos.dtype, weight.dtype)
    w = _effective(weight, relu, dtype)
    logits = torch.nn.functional.linear(
        _cast(pool.pos - pool.neg, dtype), w, None if bias is None else _cast(bias, dtype)
    )
    return (_cast(logits, weight.dtype), *pool)


def _fake(
    x: Tensor,
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    relu: bool,
    input_fmt: str,
    num_prefix_tokens: int,
    backend: str = AUTO,
) -> _Five:
    logits = weight.new_empty(x.shape[0], weight.shape[0])
    return (logits, *traced_extremes(x, u.shape[0], x.dtype, u.dtype))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: _Five) -> None:
    x, u, weight, bias, ctx.relu, *ctx.layout, backend = inputs
    ctx.backend = implementation(backend, "infodisent_head", x, u, weight).name
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(x, u, weight, *output[1:])


def _backward(
    ctx: Any, grad_logits: Tensor, grad_pos: Tensor, grad_neg: Tensor, *_: Tensor
) -> tuple[Any, ...]:
    x, u, weight, pos, neg, pos_index, neg_index = ctx.saved_tensors
    need_x, need_u, need_weight, need_bias = ctx.needs_input_grad[:4]
    dtype = value_dtype(pos.dtype, weight.dtype)
    grad_logits = grad_logits.to(dtype)
    d_weight = d_bias = dx = du = None
    if need_weight:
        d_weight = grad_logits.mT @ (pos - neg).to(dtype)
        if ctx.relu:  # one pass: what stands where weight <= 0 becomes 0
            d_weight = torch.ops.aten.threshold_backward(d_weight, _cast(weight, dtype), 0)
        d_weight = d_weight.to(weight.dtype)
    if need_bias:
        d_bias = grad_logits.sum(0).to(ctx.bias_dtype)
    if need_x or need_u:
        d_pooled = (grad_logits @ _effective(weight, ctx.relu, dtype)).to(pos.dtype)
        # neg = -Y at its winner: a gradient of neg itself enters with the other sign
        dx, du = gradients(
            ctx.backend,
            (d_pooled + grad_pos, d_pooled - grad_neg),
            (pos_index, neg_index),
            x,
            u,
            tuple(ctx.layout),
            ctx.needs_input_grad,
        )
    return dx, du, d_weight, d_bias, None, None, None, None


_head = register.register(
    "infodisent_head",
    "(Tensor x, Tensor U, Tensor weight, Tensor? bias, bool relu, str input_fmt, "
    'int num_prefix_tokens, str backend="auto") -> '
    "(Tensor logits, Tensor pos, Tensor neg, Tensor pos_index, Tensor neg_index)",
    _impl,
    _fake,
)
register.register_gradient("infodisent_head", _backward, _setup_context)
