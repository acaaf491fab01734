"""similarity_pool(x, prototypes) -> Pool: the best pixel for every prototype, from one product."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from infodisent import reference
from infodisent.backends.selection import AUTO, FORMULAS, implementation, select
from infodisent.checks import check_choice
from infodisent.contract import Best, Pool
from infodisent.layout import (
    check_float,
    check_map,
    check_same_device,
    from_bpc,
    map_size,
    to_bpc,
    value_dtype,
)
from infodisent.ops import register
from infodisent.ops.valid_pixels import check_valid, check_valid_pixels

SIMILARITIES = ("dot", "cosine", "l2")


def similarity_pool(
    x: Tensor,
    prototypes: Tensor,
    *,
    similarity: str = "dot",
    second: str | None = None,
    mean: bool = False,
    valid: Tensor | None = None,
    input_fmt: str = "NCHW",
    num_prefix_tokens: int = 0,
) -> Pool:
    """Compare every pixel of a map with every prototype and keep the best pixel of each.

    One product of pixels with prototypes serves everything; the ``[B, M, P]`` map of similarities
    never exists. Where a similarity cancels, the product only finds the winner and the value is
    that of the winner's own numbers: a pixel that equals a prototype has a distance of exactly 0,
    in maps of any dtype.

    Args:
        x: map, float32 / float16 / bfloat16 / float64, any strides and memory format; layout
            `input_fmt`: NCHW ``[B, C, H, W]``, NHWC ``[B, H, W, C]``, NCL ``[B, C, N]`` or NLC
            ``[B, N, C]`` with N = `num_prefix_tokens` + P.
        prototypes: ``[M, C]``, any of the same dtypes; if the two differ, the wider one counts.
        similarity: "dot", the largest ``x_p·v_m`` (TesNet's projection); "cosine", the largest
            ``x_p·v_m / (‖x_p‖ ‖v_m‖)``, 0 where a norm is 0; "l2", the **smallest**
            ``‖x_p - v_m‖²`` (ProtoPNet), never negative.
        second: another of the three, with its own pixel, from the same product.
        mean: also return the mean of `similarity` over the pixels, by its closed form (that of the
            mean pixel), which costs no comparison of pixels: NaN or infinite where a pixel is.
        valid: ``[B, P]`` bool, the pixels that count (no padding, inside a segment); all if None.
            What others hold, NaN included, shows nowhere.
        input_fmt: layout of `x`, timm's names.
        num_prefix_tokens: leading tokens that are not pixels (class and register tokens).

    Returns:
        Pool of ``[B, M]`` tensors, `value` and `index`; with `second` also `second_value` and
        `second_index`, with `mean` also `mean`. Values are float32 (float64 if an input is), places
        int32. ``B = 0`` gives empty results. A NaN in a pixel makes every value NaN that it reaches
        in the formula, and its place is reported; an infinite pixel has an infinite distance.
        Gradients reach the winners alone (and, through `mean`, every pixel that counts); where a
        norm or a distance is 0 there is none. Under autocast the inputs of "dot" are cast as for a
        matrix product; "cosine" and "l2" are computed as they are, as torch's own are. Norms are
        sums of squares in the values' dtype: "cosine" wants those of float32 between 1e-18 and
        1e18.

    Double backward raises RuntimeError, but through `mean`.

    Raises:
        TypeError: an argument is not a tensor of a supported dtype.
        ValueError: unknown layout or similarity, shapes that do not fit each other, no channels, no
            pixels, no prototypes, tensors on different devices, or an image without a valid pixel.
    """
    op = "similarity_pool"
    _check(op, x, prototypes, similarity, second, mean, valid, input_fmt, num_prefix_tokens)
    register.refuse_tangents(op, x, prototypes)
    if {similarity, second or similarity} == {"dot"}:
        x, prototypes = register.autocast(x, prototypes)
    backend = select(op, x, prototypes)
    if backend == FORMULAS:
        if valid is not None:
            check_valid_pixels(op, valid)
        with register.no_autocast(x):
            return reference.similarity_pool(
                x,
                prototypes,
                similarity=similarity,
                second=second,
                mean=mean,
                valid=valid,
                input_fmt=input_fmt,
                num_prefix_tokens=num_prefix_tokens,
            )
    run = _impl if register.direct(x, prototypes, valid) else _similarity_pool
    value, index, second_value, second_index = run(
        x, prototypes, valid, similarity, second or "", input_fmt, num_prefix_tokens, backend
    )
    average = None
    if mean:
        with register.no_autocast(x):
            pixels = to_bpc(x, input_fmt, num_prefix_tokens)
            average = _mean(pixels, prototypes, valid, similarity, backend)
    if second is None:
        return Pool(value, index, None, None, average)
    return Pool(value, index, second_value, second_index, average)


def _check(
    op: str,
    x: Tensor,
    prototypes: Tensor,
    similarity: str,
    second: str | None,
    mean: bool,
    valid: Tensor | None,
    input_fmt: str,
    num_prefix_tokens: int,
) -> None:
    check_map(op, "x", x, input_fmt, num_prefix_tokens)
    check_choice(op, "similarity", similarity, SIMILARITIES)
    if second is not None:
        others = tuple(name for name in SIMILARITIES if name != similarity)
        check_choice(op, "second", second, others)
    if not isinstance(mean, bool):
        raise TypeError(f"{op}: mean must be a bool, got {type(mean).__name__}")
    check_prototypes(op, x, prototypes, input_fmt)
    check_same_device(op, x=x, prototypes=prototypes, valid=valid)
    check_valid(op, valid, x, input_fmt, num_prefix_tokens)


def check_prototypes(op: str, x: Tensor, prototypes: Tensor, input_fmt: str) -> None:
    """Raise unless `prototypes` is ``[M, C]`` with the channels of `x` and M >= 1."""
    check_float(op, "prototypes", prototypes)
    channels = map_size(x, input_fmt)[0]
    if prototypes.ndim != 2 or prototypes.shape[1] != channels:
        raise ValueError(
            f"{op}: x is {tuple(x.shape)} [{input_fmt}] but prototypes is "
            f"{tuple(prototypes.shape)}, must be (prototypes, {channels})"
        )
    if prototypes.shape[0] == 0:
        raise ValueError(f"{op}: prototypes is {tuple(prototypes.shape)}: no prototypes (M = 0)")


def _mean(
    x: Tensor,  # [B, P, C]
    prototypes: Tensor,  # [M, C]
    valid: Tensor | None,  # [B, P] bool
    similarity: str,
    backend: str,
) -> Tensor:
    """Mean similarity [B, M]: that of the mean pixel or unit pixel; for "l2" and their spread."""
    dtype = value_dtype(x.dtype, prototypes.dtype)
    v = prototypes.to(dtype)
    if valid is None:
        share = x.new_full((1, 1), 1 / x.shape[1], dtype=dtype).expand(x.shape[:2])
    else:
        x = torch.where(valid[:, :, None], x, 0)
        share = valid.to(dtype) / valid.sum(dim=1, keepdim=True)
    if similarity == "cosine":
        norm = torch.linalg.vector_norm(x, dim=2, dtype=dtype)
        share = torch.where(norm == 0, 0, share / torch.where(norm == 0, 1, norm))
        v = reference.unit(v)
    center = torch.bmm(share[:, None], x.to(dtype))[:, 0]  # [B, C]
    if similarity != "l2":
        return center @ v.mT
    x = x.to(dtype)
    spread = ((x - center[:, None]).square().sum(dim=2) * share).sum(dim=1, keepdim=True)
    product = center.square().sum(dim=1, keepdim=True) - 2 * (center @ v.mT)
    product = product + v.square().sum(dim=1)
    # The product cancels where the mean pixel is near a prototype: it is there for the gradient.
    # The value is the distance of a map of that pixel alone, which no backend lets cancel.
    with torch.no_grad():
        run = _impl if register.direct(center, v) else _similarity_pool
        near = run(center[:, None], v, None, "l2", "", "NLC", 0, backend)[0]
        lost = near - product
    return spread + torch.where(lost.isfinite(), product + lost, near)


_Four = tuple[Tensor, Tensor, Tensor, Tensor]


def _views(similarity: str, second: str) -> tuple[str, ...]:
    return (similarity, second) if second else (similarity,)


def _impl(
    x: Tensor,
    prototypes: Tensor,  # [M, C]
    valid: Tensor | None,  # [B, P] bool
    similarity: str,
    second: str,  # "" for none
    input_fmt: str,
    num_prefix_tokens: int,
    backend: str = AUTO,
) -> _Four:
    if valid is not None:
        check_valid_pixels("similarity_pool", valid)
    served_by = implementation(backend, "similarity_pool", x, prototypes)
    view = to_bpc(x, input_fmt, num_prefix_tokens)
    best = served_by.similarity_pool(view, prototypes, valid, _views(similarity, second))
    if len(best) == 2:
        return (*best[0], *best[1])
    # An operator returns tensors: what was not asked for is an empty one.
    value, index = best[0]
    return value, index, value.new_empty(0), index.new_empty(0)


def _fake(
    x: Tensor,
    prototypes: Tensor,
    valid: Tensor | None,
    similarity: str,
    second: str,
    input_fmt: str,
    num_prefix_tokens: int,
    backend: str = AUTO,
) -> _Four:
    size = (x.shape[0], prototypes.shape[0])
    dtype = value_dtype(x.dtype, prototypes.dtype)
    other = size if second else (0,)
    return (
        x.new_empty(size, dtype=dtype),
        x.new_empty(size, dtype=torch.int32),
        x.new_empty(other, dtype=dtype),
        x.new_empty(other, dtype=torch.int32),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: _Four) -> None:
    x, prototypes, _, ctx.similarity, ctx.second, *layout, backend = inputs
    ctx.backend = implementation(backend, "similarity_pool", x, prototypes).name
    ctx.save_for_backward(x, prototypes, *output)
    ctx.layout = tuple(layout)


def _backward(
    ctx: Any, grad: Tensor, _index: Tensor, second_grad: Tensor, _second_index: Tensor
) -> tuple[Any, ...]:
    x, prototypes, *best = ctx.saved_tensors
    needs = ctx.needs_input_grad[:2]
    nothing = (None,) * 6
    if not any(needs):
        return (None, None, *nothing)
    dx, dv = _similarity_pool_backward(
        grad,
        second_grad,
        x,
        prototypes,
        *best,
        ctx.similarity,
        ctx.second,
        *ctx.layout,
        *needs,
        ctx.backend,
    )
    return (dx if needs[0] else None, dv if needs[1] else None, *nothing)


def _backward_impl(
    grad: Tensor,  # [B, M]
    second_grad: Tensor,  # [B, M], empty where there is no second similarity
    x: Tensor,
    prototypes: Tensor,  # [M, C]
    value: Tensor,  # [B, M], as the forward returned them
    index: Tensor,  # [B, M] int32
    second_value: Tensor,
    second_index: Tensor,
    similarity: str,
    second: str,
    input_fmt: str,
    num_prefix_tokens: int,
    need_x: bool,
    need_prototypes: bool,
    backend: str = AUTO,
) -> tuple[Tensor, Tensor]:
    views = _views(similarity, second)
    dx, dv = implementation(backend, "similarity_pool", x, prototypes).similarity_pool_backward(
        (grad, second_grad)[: len(views)],
        (Best(value, index), Best(second_value, second_index))[: len(views)],
        to_bpc(x, input_fmt, num_prefix_tokens),
        prototypes,
        views,
        need_x,
        need_prototypes,
    )
    return (
        x.new_empty(0)
        if dx is None
        else from_bpc(dx, x, input_fmt, num_prefix_tokens).contiguous(),
        prototypes.new_empty(0) if dv is None else dv,
    )


def _backward_fake(
    grad: Tensor,
    second_grad: Tensor,
    x: Tensor,
    prototypes: Tensor,
    value: Tensor,
    index: Tensor,
    second_value: Tensor,
    second_index: Tensor,
    similarity: str,
    second: str,
    input_fmt: str,
    num_prefix_tokens: int,
    need_x: bool,
    need_prototypes: bool,
    backend: str = AUTO,
) -> tuple[Tensor, Tensor]:
    return (
        x.new_empty(x.shape if need_x else 0),
        prototypes.new_empty(prototypes.shape if need_prototypes else 0),
    )


_similarity_pool = register.register(
    "similarity_pool",
    "(Tensor x, Tensor prototypes, Tensor? valid, str similarity, str second, str input_fmt, "
    'int num_prefix_tokens, str backend="auto") -> '
    "(Tensor value, Tensor index, Tensor second_value, Tensor second_index)",
    _impl,
    _fake,
)
_similarity_pool_backward = register.register(
    "similarity_pool_backward",
    "(Tensor grad, Tensor second_grad, Tensor x, Tensor prototypes, Tensor value, "
    "Tensor index, Tensor second_value, Tensor second_index, str similarity, str second, "
    "str input_fmt, int num_prefix_tokens, "
    'bool need_x, bool need_prototypes, str backend="auto") -> (Tensor dx, Tensor dprototypes)',
    _backward_impl,
    _backward_fake,
)
register.register_gradient("similarity_pool", _backward, _setup_context)
