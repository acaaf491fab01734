"""softmax_pool(x) -> Pool: softmax at every pixel and the largest over pixels, never held dense."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from infodisent import reference
from infodisent.backends.selection import AUTO, FORMULAS, implementation, select
from infodisent.contract import Best, Pool
from infodisent.layout import (
    check_float,
    check_map,
    check_same_device,
    map_size,
    to_bpc,
    value_dtype,
)
from infodisent.ops import register
from infodisent.ops.similarity_pool import check_prototypes
from infodisent.ops.valid_pixels import check_valid, check_valid_pixels
from infodisent.tracing import in_batches

KEPT_BYTES = 1 << 20, 64 << 20
"""Of products that compiled code keeps for the gradient. More are made again, a chunk of images at
a time, which is a fourth product beside three; fewer are made again in no time."""
TEMPERATURES = 2.0**-100, 2.0**100
"""What a temperature may be: its inverse is a float32, too."""


def softmax_pool(
    x: Tensor,
    prototypes: Tensor | None = None,
    *,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    valid: Tensor | None = None,
    input_fmt: str = "NCHW",
    num_prefix_tokens: int = 0,
) -> Pool:
    """Softmax over prototypes at every pixel, then for every prototype the largest over pixels.

    ``s[b, m, p] = softmax over m of (x[b, :, p]·v_m / temperature + bias_m)``; without `prototypes`
    the channels are the scores, ``softmax over c of x[b, c, p] / temperature``, M = C (PIP-Net).
    Neither the softmax nor its gradient with respect to products is held for more than a chunk of
    images; backward needs two numbers a pixel, and on CPUs up to 64 MiB of the products themselves
    where prototypes make them. The gradient is zero at pixels that are no
    prototype's best, whatever they hold. Only the gradients asked for are computed.

    Args:
        x: map, float32 / float16 / bfloat16 / float64, any strides and memory format; layout
            `input_fmt`: NCHW ``[B, C, H, W]``, NHWC ``[B, H, W, C]``, NCL ``[B, C, N]`` or NLC
            ``[B, N, C]`` with N = `num_prefix_tokens` + P.
        prototypes: ``[M, C]``, any of the same dtypes; None: x holds the scores.
        temperature: a float, 2^-100 to 2^100; a constant without a gradient.
        bias: ``[M]``, any of the same dtypes, only with `prototypes`; temperature times bias is
            computed and must be in the range of the values' dtype.
        valid: ``[B, P]`` bool, pixels that count; None: all. The others may hold anything.
        input_fmt: layout of `x`, timm's names.
        num_prefix_tokens: leading tokens that are not pixels (class and register tokens).

    Returns:
        Pool of ``[B, M]`` tensors, `value` and `index`: probabilities float32 (float64 if an input
        is), computed in that; places int32, ties to the lowest. A pixel with a NaN or +Inf score,
        or with nothing but -Inf, has no softmax: where one counts, all values of its image are NaN,
        and their place is the first such pixel. A score of -Inf beside others has probability 0.
        ``B = 0`` gives empty results. Under autocast x, prototypes and bias are cast as for a
        matrix product, if there is one.

    Double backward raises RuntimeError.

    Raises:
        TypeError: an argument of a wrong type or dtype.
        ValueError: unknown layout, shapes that do not fit each other, no channels, pixels or
            prototypes, an image without a valid pixel (which a captured CUDA graph cannot see: it
            gives -Inf there), a temperature out of range, or tensors on different devices.
    """
    check_map("softmax_pool", "x", x, input_fmt, num_prefix_tokens)
    temperature = _check_numbers(x, prototypes, temperature, bias, input_fmt)
    check_valid("softmax_pool", valid, x, input_fmt, num_prefix_tokens)
    check_same_device("softmax_pool", x=x, prototypes=prototypes, bias=bias, valid=valid)
    register.refuse_tangents("softmax_pool", x, prototypes, bias)
    if prototypes is not None:
        x, prototypes, *biases = register.autocast(x, prototypes, *([] if bias is None else [bias]))
        bias = biases[0] if biases else None
    backend = select("softmax_pool", x, prototypes, bias)
    if backend == FORMULAS:
        if valid is not None:
            check_valid_pixels("softmax_pool", valid)
        with register.no_autocast(x):
            return reference.softmax_pool(
                x,
                prototypes,
                temperature=temperature,
                bias=bias,
                valid=valid,
                input_fmt=input_fmt,
                num_prefix_tokens=num_prefix_tokens,
            )
    if backend == "native" and _keeps(x, prototypes, bias, valid, input_fmt, num_prefix_tokens):
        layout = input_fmt, num_prefix_tokens
        return Pool(*_Kept.apply(x, prototypes, bias, valid, temperature, *layout))
    arguments = x, prototypes, bias, valid, temperature, input_fmt, num_prefix_tokens, backend
    if register.direct(x, prototypes, bias, valid):
        return Pool(*_impl(*arguments)[:2])
    return Pool(*_softmax_pool(*arguments)[:2])


def _check_numbers(
    x: Tensor, prototypes: Tensor | None, temperature: float, bias: Tensor | None, input_fmt: str
) -> float:
    """The temperature as a float; raises unless prototypes [M, C], bias [M] and it make sense."""
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float)):
        raise TypeError(
            f"softmax_pool: temperature must be a float, got {type(temperature).__name__}"
        )
    if not TEMPERATURES[0] <= temperature <= TEMPERATURES[1]:  # NaN is in no range
        raise ValueError(
            f"softmax_pool: temperature is {temperature}, must be finite, 2^-100 to 2^100"
        )
    if prototypes is not None:
        check_prototypes("softmax_pool", x, prototypes, input_fmt)
    if bias is not None:
        check_float("softmax_pool", "bias", bias)
        if prototypes is None:
            raise ValueError("softmax_pool: bias is given without prototypes")
        if bias.shape != prototypes.shape[:1]:
            raise ValueError(
                f"softmax_pool: prototypes is {tuple(prototypes.shape)} but bias is "
                f"{tuple(bias.shape)}, must be ({len(prototypes)},)"
            )
    return float(temperature)


def like_the_map(x: Tensor) -> Tensor:
    """Memory for a gradient of `x`: contiguous, or channels-last where x is."""
    last = (
        x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    )
    return torch.empty_like(
        x, memory_format=torch.channels_last if last else torch.contiguous_format
    )


def pixels_of_gradient(dx: Tensor, input_fmt: str, num_prefix_tokens: int) -> Tensor:
    """`like_the_map` as [B, P, C], its prefix tokens set to zero."""
    if num_prefix_tokens:
        dx.narrow(1 if input_fmt == "NLC" else 2, 0, num_prefix_tokens).zero_()
    return to_bpc(dx, input_fmt, num_prefix_tokens)


def _impl(
    x: Tensor,
    prototypes: Tensor | None,  # [M, C]
    bias: Tensor | None,  # [M]
    valid: Tensor | None,  # [B, P]
    temperature: float,
    input_fmt: str,
    num_prefix_tokens: int,
    backend: str = AUTO,
) -> tuple[Tensor, Tensor, Tensor]:
    if valid is not None:
        check_valid_pixels("softmax_pool", valid)
    served_by = implementation(backend, "softmax_pool", x, prototypes, bias)
    view = to_bpc(x, input_fmt, num_prefix_tokens)
    best, normalizer = served_by.softmax_pool(view, prototypes, temperature, bias, valid)
    return *best, normalizer


def _keeps(
    x: Tensor,
    prototypes: Tensor | None,  # [M, C]
    bias: Tensor | None,  # [M]
    valid: Tensor | None,  # [B, P]
    input_fmt: str,
    num_prefix_tokens: int,
) -> bool:
    """Whether products are kept for the gradient: there will be one, they are few, nobody looks."""
    given = [t for t in (x, prototypes, bias) if t is not None]
    if prototypes is None or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    if not any(t.requires_grad for t in given):
        return False
    with torch.no_grad():  # that one of them asks for a gradient is known
        if not register.direct(*given, valid):
            return False
    size = x.shape[0] * map_size(x, input_fmt, num_prefix_tokens)[1] * len(prototypes)
    needed = size * value_dtype(*(t.dtype for t in given)).itemsize
    return KEPT_BYTES[0] <= needed <= KEPT_BYTES[1]


class _Kept(torch.autograd.Function):
    """The compiled pool of products that are kept."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        prototypes: Tensor,  # [M, C]
        bias: Tensor | None,  # [M]
        valid: Tensor | None,  # [B, P]
        temperature: float,
        *layout: Any,
    ) -> tuple[Tensor, Tensor]:
        if valid is not None:
            check_valid_pixels("softmax_pool", valid)
        view = to_bpc(x, *layout)
        dtype = value_dtype(*(t.dtype for t in (x, prototypes, bias) if t is not None))
        scores = x.new_empty(*view.shape[:2], len(prototypes), dtype=dtype)
        native: Any = implementation("native", "softmax_pool", x, prototypes, bias)
        best, normalizer = native.softmax_pool(view, prototypes, temperature, bias, valid, scores)
        ctx.save_for_backward(x, prototypes, bias, *best, normalizer, scores)
        ctx.temperature, ctx.layout = temperature, layout
        ctx.mark_non_differentiable(best.index)
        return best.value, best.index

    @staticmethod
    @register.once
    def backward(  # type: ignore[override]
        ctx: Any, grad: Tensor, _: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, prototypes, bias, value, index, normalizer, scores = ctx.saved_tensors
        need_x, need_prototypes, need_bias = needs = ctx.needs_input_grad[:3]
        if in_batches(grad):  # torch takes an operator apart, not this
            output = value, index, normalizer, ctx.temperature, *ctx.layout, *needs, "native"
            given = _softmax_pool_backward(grad, x, prototypes, bias, *output)
            return *(g if n else None for g, n in zip(given, needs, strict=True)), *(None,) * 4
        dx = like_the_map(x) if need_x else None
        native: Any = implementation("native", "softmax_pool", x, prototypes, bias)
        dv, db = native.softmax_pool_backward(
            grad,
            Best(value, index),
            normalizer,
            to_bpc(x, *ctx.layout),
            prototypes,
            ctx.temperature,
            bias,
            None if dx is None else pixels_of_gradient(dx, *ctx.layout),
            need_prototypes,
            need_bias,
            scores,
        )
        return dx, dv, db, None, None, None, None


def _fake(
    x: Tensor,
    prototypes: Tensor | None,
    bias: Tensor | None,
    valid: Tensor | None,
    temperature: float,
    input_fmt: str,
    num_prefix_tokens: int,
    backend: str = AUTO,
) -> tuple[Tensor, Tensor, Tensor]:
    channels, pixels = map_size(x, input_fmt, num_prefix_tokens)
    size = x.shape[0], channels if prototypes is None else prototypes.shape[0]
    dtype = value_dtype(x.dtype, *(t.dtype for t in (prototypes, bias) if t is not None))
    return (
        x.new_empty(size, dtype=dtype),
        x.new_empty(size, dtype=torch.int32),
        x.new_empty((2, x.shape[0], pixels), dtype=dtype),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, prototypes, bias, _, ctx.temperature, *layout, backend = inputs
    ctx.backend = implementation(backend, "softmax_pool", x, prototypes, bias).name
    ctx.save_for_backward(x, prototypes, bias, *output)
    ctx.layout = tuple(layout)


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Any, ...]:
    x, prototypes, bias, *output = ctx.saved_tensors
    needs = ctx.needs_input_grad[:3]
    gradients: tuple[Tensor | None, ...] = (None, None, None)
    if any(needs):
        given = _softmax_pool_backward(
            grad,
            x,
            prototypes,
            bias,
            *output,
            ctx.temperature,
            *ctx.layout,
            *needs,
            ctx.backend,
        )
        gradients = tuple(g if need else None for g, need in zip(given, needs, strict=True))
    return *gradients, None, None, None, None, None


def _backward_impl(
    grad: Tensor,  # [B, M]
    x: Tensor,
    prototypes: Tensor | None,  # [M, C]
    bias: Tensor | None,  # [M]
    value: Tensor,  # [B, M]
    index: Tensor,  # [B, M] int32
    normalizer: Tensor,  # [2, B, P]
    temperature: float,
    input_fmt: str,
    num_prefix_tokens: int,
    need_x: bool,
    need_prototypes: bool,
    need_bias: bool,
    backend: str = AUTO,
) -> tuple[Tensor, Tensor, Tensor]:
    layout = input_fmt, num_prefix_tokens
    dx = like_the_map(x) if need_x else None
    dv, db = implementation(backend, "softmax_pool", x, prototypes, bias).softmax_pool_backward(
        grad,
        Best(value, index),
        normalizer,
        to_bpc(x, *layout),
        prototypes,
        temperature,
        bias,
        None if dx is None else pixels_of_gradient(dx, *layout),
        need_prototypes,
        need_bias,
    )
    # An operator returns tensors: what was not asked for is an empty one.
    return tuple(x.new_empty(0) if d is None else d for d in (dx, dv, db))  # type: ignore[return-value]


def _backward_fake(
    grad: Tensor,
    x: Tensor,
    prototypes: Tensor | None,
    bias: Tensor | None,
    value: Tensor,
    index: Tensor,
    normalizer: Tensor,
    temperature: float,
    input_fmt: str,
    num_prefix_tokens: int,
    need_x: bool,
    need_prototypes: bool,
    need_bias: bool,
    backend: str = AUTO,
) -> tuple[Tensor, Tensor, Tensor]:
    nothing = x.new_empty(0)
    return (
        like_the_map(x) if need_x else nothing,
        prototypes.new_empty(prototypes.shape)
        if need_prototypes and prototypes is not None
        else nothing.clone(),
        bias.new_empty(bias.shape) if need_bias and bias is not None else nothing.clone(),
    )


_softmax_pool = register.register(
    "softmax_pool",
    "(Tensor x, Tensor? prototypes, Tensor? bias, Tensor? valid, float temperature, "
    'str input_fmt, int num_prefix_tokens, str backend="auto") -> '
    "(Tensor value, Tensor index, Tensor normalizer)",
    _impl,
    _fake,
)
_softmax_pool_backward = register.register(
    "softmax_pool_backward",
    "(Tensor grad, Tensor x, Tensor? prototypes, Tensor? bias, Tensor value, Tensor index, "
    "Tensor normalizer, float temperature, str input_fmt, int num_prefix_tokens, bool need_x, "
    'bool need_prototypes, bool need_bias, str backend="auto") -> '
    "(Tensor dx, Tensor d_prototypes, Tensor d_bias)",
    _backward_impl,
    _backward_fake,
)
register.register_gradient("softmax_pool", _backward, _setup_context)
