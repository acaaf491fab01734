"""softmax_alignment(first, second): what the softmaxes of two maps agree on, pixel by pixel."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from infodisent import reference
from infodisent.backends.selection import AUTO, FORMULAS, implementation, select
from infodisent.layout import check_map, check_same_device, map_size, to_bpc, value_dtype
from infodisent.ops import register
from infodisent.ops.softmax_pool import like_the_map, pixels_of_gradient


def softmax_alignment(
    first: Tensor, second: Tensor, *, input_fmt: str = "NCHW", num_prefix_tokens: int = 0
) -> Tensor:
    """``-log sum_m softmax(first)_m softmax(second)_m`` at every pixel, from three log-sum-exps.

    The gradient on `first` is ``softmax(first) - softmax(first + second)``, on `second` likewise;
    neither a softmax nor a product of two is held, and a side without a gradient costs nothing.
    PIP-Net's alignment loss is half the sum of the means of ``softmax_alignment(a, b.detach())``
    and ``softmax_alignment(a.detach(), b)``.

    Args:
        first, second: maps of scores of one shape, float32 / float16 / bfloat16 / float64, any
            strides and memory format; layout `input_fmt` as for `softmax_pool`.
        input_fmt: layout of both, timm's names.
        num_prefix_tokens: leading tokens that are not pixels (class and register tokens).

    Returns:
        ``[B, P]``, float32 (float64 if an input is), >= 0 up to rounding, +Inf where the two have
        no prototype in common, NaN where one of them has no softmax (a NaN, a +Inf, or nothing but
        -Inf). Double backward raises RuntimeError.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: unknown layout, two shapes, no channels, no pixels, or two devices.
    """
    for name, x in (("first", first), ("second", second)):
        check_map("softmax_alignment", name, x, input_fmt, num_prefix_tokens)
    if first.shape != second.shape:
        raise ValueError(
            f"softmax_alignment: first is {tuple(first.shape)} but second is "
            f"{tuple(second.shape)}, must be the same"
        )
    check_same_device("softmax_alignment", first=first, second=second)
    register.refuse_tangents("softmax_alignment", first, second)
    backend = select("softmax_alignment", first, second)
    if backend == FORMULAS:
        with register.no_autocast(first):
            return reference.softmax_alignment(
                first, second, input_fmt=input_fmt, num_prefix_tokens=num_prefix_tokens
            )
    arguments = first, second, input_fmt, num_prefix_tokens, backend
    if register.direct(first, second):
        return _impl(*arguments)[0]
    loss: Tensor = _softmax_alignment(*arguments)[0]
    return loss


def _impl(
    first: Tensor,
    second: Tensor,
    input_fmt: str,
    num_prefix_tokens: int,
    backend: str = AUTO,
) -> tuple[Tensor, Tensor]:
    views = (to_bpc(x, input_fmt, num_prefix_tokens) for x in (first, second))
    return implementation(backend, "softmax_alignment", first, second).softmax_alignment(*views)


def _fake(
    first: Tensor,
    second: Tensor,
    input_fmt: str,
    num_prefix_tokens: int,
    backend: str = AUTO,
) -> tuple[Tensor, Tensor]:
    size = first.shape[0], map_size(first, input_fmt, num_prefix_tokens)[1]
    dtype = value_dtype(first.dtype, second.dtype)
    return first.new_empty(size, dtype=dtype), first.new_empty((6, *size), dtype=dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    first, second, *layout, backend = inputs
    ctx.backend = implementation(backend, "softmax_alignment", first, second).name
    ctx.save_for_backward(first, second, output[1])
    ctx.layout = tuple(layout)


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Any, ...]:
    needs = ctx.needs_input_grad[:2]
    if not any(needs):
        return None, None, None, None, None
    given = _softmax_alignment_backward(grad, *ctx.saved_tensors, *ctx.layout, *needs, ctx.backend)
    sides = (g if need else None for g, need in zip(given, needs, strict=True))
    return *sides, None, None, None


def _backward_impl(
    grad: Tensor,  # [B, P]
    first: Tensor,
    second: Tensor,
    statistics: Tensor,  # [6, B, P]
    input_fmt: str,
    num_prefix_tokens: int,
    need_first: bool,
    need_second: bool,
    backend: str = AUTO,
) -> tuple[Tensor, Tensor]:
    layout = input_fmt, num_prefix_tokens
    # An operator returns tensors: what was not asked for is an empty one.
    d_first, d_second = (
        like_the_map(x) if need else x.new_empty(0)
        for x, need in ((first, need_first), (second, need_second))
    )
    implementation(backend, "softmax_alignment", first, second).softmax_alignment_backward(
        grad,
        to_bpc(first, *layout),
        to_bpc(second, *layout),
        statistics,
        pixels_of_gradient(d_first, *layout) if need_first else None,
        pixels_of_gradient(d_second, *layout) if need_second else None,
    )
    return d_first, d_second


def _backward_fake(
    grad: Tensor,
    first: Tensor,
    second: Tensor,
    statistics: Tensor,
    input_fmt: str,
    num_prefix_tokens: int,
    need_first: bool,
    need_second: bool,
    backend: str = AUTO,
) -> tuple[Tensor, Tensor]:
    return (
        like_the_map(first) if need_first else first.new_empty(0),
        like_the_map(second) if need_second else second.new_empty(0),
    )


_softmax_alignment = register.register(
    "softmax_alignment",
    '(Tensor first, Tensor second, str input_fmt, int num_prefix_tokens, str backend="auto") -> '
    "(Tensor loss, Tensor statistics)",
    _impl,
    _fake,
)
_softmax_alignment_backward = register.register(
    "softmax_alignment_backward",
    "(Tensor grad, Tensor first, Tensor second, Tensor statistics, str input_fmt, "
    "int num_prefix_tokens, bool need_first, bool need_second, "
    'str backend="auto") -> (Tensor d_first, Tensor d_second)',
    _backward_impl,
    _backward_fake,
)
register.register_gradient("softmax_alignment", _backward, _setup_context)
