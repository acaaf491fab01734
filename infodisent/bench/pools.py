"""The pools of prototypes beside other ways to the same: the published forms, and better ones.

Maps are ``[B, C, H, W]``, prototypes ``[M, C]``; all return values ``[B, M]``, those of a second
similarity behind them, ``[B, 2·M]``; the alignment of two maps is ``[B, P]``. A row of
`infodisent.bench.shapes.POOLS` says which.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from infodisent import ops, reference
from infodisent.bench.shapes import POOLS, PoolSize
from infodisent.testing import WrongResultError, check_close

Function = Callable[..., Tensor]
OPS = ("similarity_pool", "softmax_pool", "softmax_alignment")
JUDGED = 4
"""Images that are compared with float64, the first and the last among them."""
GRADIENT = 0.05
"""Allowed of a gradient's norm: where two pixels are equal up to rounding another one may win."""


def names(op: str) -> tuple[str, ...]:
    """The rows of `POOLS` that are of this operator."""
    return tuple(name for name, size in POOLS.items() if size.op == op)


def inputs(size: PoolSize, batch: int, dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
    """Map and, where there are, prototypes or a second map; all need a gradient, as the layers
    below train, too.

    Maps of the ProtoPNet line come from a sigmoid, in [0, 1]; scores of PIP-Net are of any sign.
    """
    g = torch.Generator().manual_seed(0)
    shape = (batch, size.channels, size.height, size.width)
    if size.op == "softmax_alignment":
        first, second = torch.randn(2, *shape, generator=g).to(device, dtype)
        return first.clone().requires_grad_(), second.clone().requires_grad_()
    if size.prototypes is None:
        x = torch.randn(shape, generator=g)
        return (x.to(device, dtype).requires_grad_(),)
    x, v = torch.rand(shape, generator=g), torch.rand(size.prototypes, size.channels, generator=g)
    return tuple(t.to(device, dtype).requires_grad_() for t in (x, v))


def fused(module: Any, size: PoolSize) -> Function:
    """The operator of `infodisent.ops` or `infodisent.reference`."""
    if size.op == "softmax_alignment":
        return lambda x, y: module.softmax_alignment(x, y)  # type: ignore[no-any-return]
    if size.op == "softmax_pool":
        return lambda *given: module.softmax_pool(*given).value  # type: ignore[no-any-return]

    def pool(x: Tensor, v: Tensor) -> Tensor:
        first, *second = size.similarities
        found = module.similarity_pool(x, v, similarity=first, second=second[0] if second else None)
        return torch.cat([found.value, found.second_value], 1) if second else found.value

    return pool


def forms(size: PoolSize) -> tuple[Function, Function]:
    """The published form and the best of plain PyTorch."""
    if size.op == "softmax_pool" and size.prototypes:
        return published_codes, best_codes
    return _FORMS[size.similarities]


def peers(size: PoolSize, mode: str) -> dict[str, Function]:
    """The implementations to compare, ours first."""
    published, best = forms(size)
    compared = {"infodisent": fused(ops, size), "published": published, "best eager": best}
    if mode != "backward":  # what it compiles cannot be run backward twice
        compared["torch.compile"] = torch.compile(best if size.prototypes else published)
    return compared


def check(
    what: str,
    size: PoolSize,
    arguments: tuple[Tensor, ...],
    functions: dict[str, Function],
    mode: str,
) -> dict[str, float]:
    """Relative error of every implementation on some images; raises where it is no rounding.

    Gradients are judged where they are timed. Those of two pixels that are equal up to rounding may
    go to either, so that they are judged by the norm of the difference.
    """
    x = arguments[0]
    some = torch.linspace(0, len(x) - 1, min(JUDGED, len(x))).long().unique().to(x.device)
    more = arguments[1:]
    if size.op == "softmax_alignment":  # of a second map the same images
        more = tuple(y[some] for y in more)
    fewer = _leaves(x[some], *more)
    wide = _leaves(*(t.double() for t in fewer))
    truth = fused(reference, size)(*wide)
    gradients = torch.autograd.grad(truth.sum(), wide)
    bound = 1e-4 if x.dtype == torch.float32 else 3e-2
    errors = {}
    for name, function in functions.items():
        label = f"{what}: {name}"
        with torch.no_grad():
            out = function(*arguments)[some].double()
        errors[name] = check_close(out, truth.detach(), bound, label)
        if mode == "forward":
            continue
        found = torch.autograd.grad(function(*fewer).sum(), fewer)
        for argument, one, wanted in zip("xv", found, gradients, strict=False):
            off = float((one.double() - wanted).norm() / wanted.norm())
            if not off <= GRADIENT:
                raise WrongResultError(f"{label}: gradient of {argument} is off by {off:.1e}")
    return errors


def _leaves(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.detach().clone().requires_grad_() for t in tensors)


def _kernels(v: Tensor) -> Tensor:
    """Prototypes as the weight of a convolution, ``[M, C, 1, 1]``."""
    return v[:, :, None, None]


def _largest(y: Tensor) -> Tensor:
    """Maximum over the pixels of a dense map ``[B, M, H, W]`` as published code takes it."""
    return F.max_pool2d(y, y.shape[2:]).flatten(1)


def published_l2(x: Tensor, v: Tensor) -> Tensor:
    """ProtoPNet's: norms by a convolution with ones, a dense map of distances, its pooled minimum.

    The ones have the prototypes' shape, and so the norms are as dense as the distances.
    """
    weight = _kernels(v)
    n = F.conv2d(x**2, torch.ones_like(weight))
    q = (weight**2).sum(dim=(1, 2, 3))[:, None, None]
    return -_largest(-F.relu(n + (q - 2 * F.conv2d(x, weight))))


def best_l2(x: Tensor, v: Tensor) -> Tensor:
    """One product of the map as it lies; norms once a pixel, and prototypes' after the minimum."""
    pixels = x.flatten(2)
    n = pixels.square().sum(1, keepdim=True)
    return F.relu((n - 2 * torch.matmul(v, pixels)).amin(2) + v.square().sum(1))


def published_cosine(x: Tensor, v: Tensor) -> Tensor:
    """A convolution of the normalised map with the normalised prototypes, and a max-pool."""
    return _largest(F.conv2d(F.normalize(x, dim=1), _kernels(F.normalize(v, dim=1))))


def best_cosine(x: Tensor, v: Tensor) -> Tensor:
    """One product of the map as it lies with unit prototypes, scaled by the norms of pixels."""
    pixels = x.flatten(2)
    scale = torch.linalg.vector_norm(pixels, dim=1, keepdim=True).clamp_min(1e-12).reciprocal()
    similarity: Tensor = torch.matmul(F.normalize(v, dim=1), pixels) * scale
    return similarity.amax(2)


def published_both(x: Tensor, v: Tensor) -> Tensor:
    """TesNet's: a convolution and a max-pool for the projection, and again for the cosine."""
    return torch.cat([_largest(F.conv2d(x, _kernels(v))), published_cosine(x, v)], 1)


def best_both(x: Tensor, v: Tensor) -> Tensor:
    """Both views of one product."""
    pixels = x.flatten(2)
    product = torch.matmul(v, pixels)
    scale = torch.linalg.vector_norm(pixels, dim=1, keepdim=True).clamp_min(1e-12).reciprocal()
    norms = torch.linalg.vector_norm(v, dim=1).clamp_min(1e-12)
    cosine = (product * scale).amax(2) / norms
    return torch.cat([product.amax(2), cosine], 1)


def published_softmax(x: Tensor) -> Tensor:
    """PIP-Net's: softmax over channels at every pixel, and an adaptive max-pool."""
    return F.adaptive_max_pool2d(torch.softmax(x, dim=1), 1).flatten(1)


def best_softmax(x: Tensor) -> Tensor:
    """The exponential after the maximum: of B·M numbers and not of the map."""
    pixels = x.flatten(2)
    return (pixels - pixels.logsumexp(1, keepdim=True)).amax(2).exp()


def published_codes(x: Tensor, v: Tensor) -> Tensor:
    """A convolution with the prototypes, then as `published_softmax`."""
    return published_softmax(F.conv2d(x, _kernels(v)))


def best_codes(x: Tensor, v: Tensor) -> Tensor:
    """One product of the map as it lies, then as `best_softmax`."""
    return best_softmax(torch.matmul(v, x.flatten(2)))


def published_alignment(x: Tensor, y: Tensor) -> Tensor:
    """PIP-Net's: two softmaxes, their product summed over channels, and its logarithm."""
    common = torch.softmax(x, dim=1) * torch.softmax(y, dim=1)
    return -torch.log(common.sum(1) + 1e-12).flatten(1)


def best_alignment(x: Tensor, y: Tensor) -> Tensor:
    """Three log-sum-exps; no softmax is held, but the sum of the two maps is."""
    return (x.logsumexp(1) + y.logsumexp(1) - (x + y).logsumexp(1)).flatten(1)


_FORMS: dict[tuple[str, ...], tuple[Function, Function]] = {
    ("l2",): (published_l2, best_l2),
    ("cosine",): (published_cosine, best_cosine),
    ("dot", "cosine"): (published_both, best_both),
    ("softmax",): (published_softmax, best_softmax),
    ("alignment",): (published_alignment, best_alignment),
}
"""The published form and the best of plain PyTorch, by what is compared."""
