"""What the tests of `rotate_pool`'s gradients share: winners, the truth, and the judge."""

from __future__ import annotations

import math

import torch
from infodisent.kernels import rotate_pool_backward as backward
from torch import Tensor

from infodisent.testing import relative
from tests.kernels.marks import DEVICE

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def winners(batch: int, pixels: int, channels: int, absent: float = 0.2) -> tuple[Tensor, ...]:
    """grad_pos, grad_neg, pos_index, neg_index: some absent, some of both sides on one pixel."""
    grads = torch.randn(2, batch, channels)
    index = torch.randint(pixels, (2, batch, channels), dtype=torch.int32)
    index[1] = torch.where(torch.rand(batch, channels) < 0.2, index[0], index[1])
    index[torch.rand(2, batch, channels) < absent] = -1
    grads[index < 0] = math.nan  # what no pixel has chosen must not be used
    return (*grads, *index)


def both(given: tuple[Tensor, ...]) -> list[tuple[Tensor, Tensor]]:
    """(gradient, 0 where there is no winner, float64; index, 0 where there is none) of a side."""
    grad_pos, grad_neg, pos_index, neg_index = given
    return [
        (torch.where(i >= 0, g, 0).double(), i.clamp_min(0).long())
        for g, i in ((grad_pos, pos_index), (grad_neg, neg_index))
    ]


def exact(given: tuple[Tensor, ...], x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """dX, dU in float64; only rows of winners are touched."""
    x, u = x.double(), u.double()
    dx, du = torch.zeros_like(x), torch.zeros_like(u)
    for grad, index in both(given):
        for b in range(x.shape[0]):
            g = grad[b, :, None]
            du += torch.where(g != 0, g * x[b, index[b]], 0)
            dx[b].index_add_(0, index[b], torch.where(g != 0, g * u, 0))
    return dx, du


def eager(given: tuple[Tensor, ...], x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """The dense products with dY in the dtype that autograd has there."""
    dtype = torch.promote_types(x.dtype, u.dtype)
    dy = torch.zeros(x.shape)
    for grad, index in both(given):
        dy.scatter_add_(1, index[:, None], grad.float()[:, None])
    dy = dy.to(dtype)
    dx = (dy @ u.to(dtype)).to(x.dtype)
    du = (dy.flatten(0, 1).mT @ x.to(dtype).flatten(0, 1)).to(u.dtype)
    return dx, du


def run(
    given: tuple[Tensor, ...],
    x: Tensor,
    u: Tensor,
    products: str | None = None,
    need_x: bool = True,
    need_u: bool = True,
) -> tuple[Tensor | None, Tensor | None]:
    """dX, dU on the CPU; x keeps its strides."""
    if DEVICE.type != "cpu":
        storage = torch.empty(0, dtype=x.dtype, device=DEVICE).set_(x.untyped_storage().to(DEVICE))
        x = storage.as_strided(x.shape, x.stride(), x.storage_offset())
    grad_pos, grad_neg, pos_index, neg_index = (t.to(DEVICE) for t in given)
    actual = backward.rotate_pool_backward(
        grad_pos, grad_neg, x, u.to(DEVICE), pos_index, neg_index, need_x, need_u, products
    )
    return tuple(None if t is None else t.cpu() for t in actual)


def check(given: tuple[Tensor, ...], x: Tensor, u: Tensor, products: str | None = None) -> None:
    actual = run(given, x, u, products)
    compare(actual, given, x, u, 2.0**-13 if products == "bf16x3" else 0.0)


def compare(
    actual: tuple[Tensor, Tensor], given: tuple[Tensor, ...], x: Tensor, u: Tensor, slack: float = 0
) -> None:
    for one, truth, other, like in zip(actual, exact(given, x, u), eager(given, x, u), (x, u)):
        assert one.shape == like.shape
        assert one.dtype == like.dtype
        bound = relative(other, truth) + torch.finfo(like.dtype).eps + slack
        assert relative(one, truth) <= bound
