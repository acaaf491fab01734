"""softmax_views(x) -> pools and agreement of two views, with one gradient for both."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from infodisent.backends.native import softmax_views as compiled
from infodisent.backends.selection import select
from infodisent.contract import Best
from infodisent.layout import check_float, check_map, check_same_device
from infodisent.ops import register
from infodisent.ops.softmax_alignment import softmax_alignment
from infodisent.ops.softmax_pool import softmax_pool
from infodisent.tracing import in_batches


class Views(NamedTuple):
    """What `softmax_views` returns.

    Attributes:
        value: largest probability of every prototype over the pixels, ``[2n, M]``.
        index: where, ``[2n, M]`` int32.
        alignment: `softmax_alignment` of the image's two views, ``[2n, P]``. The rows of an image
            are equal; the gradient of each goes to its own view and takes the other as given.
    """

    value: Tensor
    index: Tensor  # type: ignore[assignment]
    alignment: Tensor


def softmax_views(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Views:
    """`softmax_pool` of all images and `softmax_alignment` of two views of each, for PIP-Net.

    The same as these two of ``scores = x·weight^T + bias``. On CPUs with the compiled module scores
    are made and used a few images at a time, and their gradient, as large as they are, never exists
    as a whole: of 160 maps of 26 x 26 and 768 prototypes that is 0.33 GB of fresh memory, which
    takes longer to get than what is in it to compute.

    Args:
        x: ``[2n, P, C]``, rows i and i + n being two views of one image; float32 / float16 /
            bfloat16 / float64, any strides.
        weight: ``[M, C]`` in x's dtype (under autocast in any); None: x holds the scores, M = C.
        bias: ``[M]`` in the same dtype, only with a weight.

    Returns:
        Views. Double backward raises RuntimeError, and gradients in batches (torch's
        ``is_grads_batched``) NotImplementedError where the compiled module serves the call.

    Raises:
        TypeError: an argument is not a tensor of a supported dtype, or dtypes differ.
        ValueError: shapes that do not fit each other, no pixels, channels or prototypes, or
            tensors on different devices.
    """
    _check(x, weight, bias)
    if _served(x, weight, bias):
        return Views(*_Compiled.apply(x, weight, bias))
    scores = x if weight is None else nn.functional.linear(x, weight, bias)
    pool = softmax_pool(scores, input_fmt="NLC")
    one, other = scores.tensor_split(2)
    sides = ((one, other.detach()), (one.detach(), other))
    aligned = [softmax_alignment(a, b, input_fmt="NLC") for a, b in sides]
    return Views(pool.value, pool.index, torch.cat(aligned))


def _check(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    check_float("softmax_views", "x", x)
    if x.ndim != 3 or len(x) % 2:
        raise ValueError(f"softmax_views: x is {tuple(x.shape)}, must be (2n, pixels, channels)")
    check_map("softmax_views", "x", x, "NLC", 0)
    for name, t in (("weight", weight), ("bias", bias)):
        if t is None:
            continue
        check_float("softmax_views", name, t)
        if t.dtype != x.dtype and not register.autocasting(x.device.type):
            raise TypeError(f"softmax_views: x is {x.dtype} but {name} is {t.dtype}, must be alike")
    check_same_device("softmax_views", x=x, weight=weight, bias=bias)
    if weight is not None and (
        weight.ndim != 2 or weight.shape[1] != x.shape[2] or weight.shape[0] == 0
    ):
        raise ValueError(
            f"softmax_views: x is {tuple(x.shape)} but weight is {tuple(weight.shape)}, must be "
            f"(prototypes, {x.shape[2]}), one prototype at least"
        )
    if bias is not None and (weight is None or bias.shape != weight.shape[:1]):
        allowed = "None without a weight" if weight is None else f"({len(weight)},)"
        raise ValueError(f"softmax_views: bias is {tuple(bias.shape)}, must be {allowed}")


def _served(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
    """Whether the compiled code takes this call: plain numbers of one dtype, and nothing looks."""
    given = [t for t in (x, weight, bias) if t is not None]
    with torch.no_grad():  # whether they ask for a gradient is no matter here
        if not register.direct(*given):
            return False
    if any(t.device.type != "cpu" or t.dtype != x.dtype or not t.numel() for t in given):
        return False
    if x.dtype not in (torch.float32, torch.float64):
        return False
    return all(select(op, *given) == "native" for op in ("softmax_pool", "softmax_alignment"))


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        views = compiled.softmax_views(x, weight, bias)
        best, *kept, statistics = views
        ctx.save_for_backward(x, weight, *best, *kept, *statistics)
        ctx.mark_non_differentiable(views.best.index)
        return *views.best, torch.cat([views.agreement, views.agreement])

    @staticmethod
    @register.once
    def backward(  # type: ignore[override]
        ctx: Any, grad: Tensor, _: Tensor, grad_alignment: Tensor
    ) -> tuple[Tensor | None, ...]:
        if in_batches(grad, grad_alignment):
            raise NotImplementedError(
                "softmax_views: the compiled module takes no gradients in batches "
                '(is_grads_batched); use_backend("sparse") does'
            )
        x, weight, value, index, agreement, scores, normalizer, *statistics = ctx.saved_tensors
        views = compiled.Views(Best(value, index), agreement, scores, normalizer, statistics)
        return compiled.softmax_views_backward(
            grad, grad_alignment, views, x, weight, ctx.needs_input_grad
        )
