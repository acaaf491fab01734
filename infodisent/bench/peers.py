"""Other ways to compute the same, or a part of it: what the operators are compared with.

Maps are NCHW tensors of any memory format, and all return ``pooled`` ``[B, C]`` unless they say
otherwise. A name marked † is a part of the work, one marked * another map of another parameter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from infodisent import backends, ops, reference
from infodisent.contract import Extremes

Function = Callable[..., Tensor]


def by(backend: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its operators served by `backend`, and so their gradients."""

    def run(*arguments: Any, **options: Any) -> Any:
        with backends.use_backend(backend):
            return function(*arguments, **options)

    return run


def rows(x: Tensor) -> Tensor:
    """The pixels of x as ``[B·P, C]``; no copy of a channels-last map."""
    return x.flatten(2).mT.reshape(-1, x.shape[1])


def pooled(x: Tensor, u: Tensor) -> Tensor:
    """Ours."""
    return ops.rotate_pool(x, u).pooled


def eager(x: Tensor, u: Tensor) -> Tensor:
    """The formula, with its places."""
    return reference.rotate_pool(x, u).pooled


def eager_values(x: Tensor, u: Tensor) -> Tensor:
    """The formula without places, which is less work."""
    y = torch.matmul(u, x.flatten(2))
    return F.relu(y).amax(2) - F.relu(-y).amax(2)


def eager_head(x: Tensor, u: Tensor, weight: Tensor) -> Tensor:
    """Logits ``[B, K]`` from `eager_values`."""
    return F.linear(eager_values(x, u), F.relu(weight))


def conv_max_pool(x: Tensor, u: Tensor) -> Tensor:
    """A 1 x 1 convolution and two max-pools."""
    y = F.conv2d(x, u[:, :, None, None])
    high = F.adaptive_max_pool2d(F.relu(y), 1)
    return (high - F.adaptive_max_pool2d(F.relu(-y), 1)).flatten(1)


def product_aminmax(x: Tensor, u: Tensor) -> Tensor:
    """One product of the map as it lies in a batch, and one reduction for both extremes."""
    low, high = torch.matmul(u, x.flatten(2)).aminmax(dim=2)
    return F.relu(high) - F.relu(-low)


def row_product_aminmax(x: Tensor, u: Tensor) -> Tensor:
    """The same with one flat product over all pixels, for channels-last maps."""
    low, high = row_product(x, u).view(len(x), -1, len(u)).aminmax(dim=1)
    return F.relu(high) - F.relu(-low)


def row_product(x: Tensor, u: Tensor) -> Tensor:
    """The product alone, ``[B·P, C]``."""
    return torch.mm(rows(x), u.mT)


def row_product_extremes(
    x: Tensor,  # [B, C, H, W]
    u: Tensor,  # [C, C]
) -> Extremes:
    """Values and places, all that training needs, by the flat product and two reductions.

    What is equal in the product's dtype ties, and which of these places is named is the library's
    choice.
    """
    y = row_product(x, u).view(len(x), -1, len(u))
    (pos, pos_index), (low, neg_index) = y.max(1), y.min(1)
    pos, neg = F.relu(pos), F.relu(-low)
    places = [
        torch.where(value > 0, index, -1).int()
        for value, index in ((pos, pos_index), (neg, neg_index))
    ]
    return Extremes(pos.float(), neg.float(), *places)


def scatter_grad_y(
    grad_pos: Tensor,  # [B, C] gradient at the positive winners
    grad_neg: Tensor,  # [B, C] gradient at the negative winners, d(pooled)/dY = +1 there
    pos_index: Tensor,  # [B, C] int32, -1: no winner
    neg_index: Tensor,  # [B, C] int32
    pixels: int,
    dtype: torch.dtype,
) -> Tensor:
    """The gradient of the rotated map, ``[B, P, C]`` in `dtype`, nearly all of it zeros.

    A positive and a negative winner are the same pixel of a channel only where that is NaN.
    """
    dy = torch.zeros(len(grad_pos), pixels, grad_pos.shape[1], dtype=dtype, device=grad_pos.device)
    for grad, index in ((grad_pos, pos_index), (grad_neg, neg_index)):
        there = index.clamp_min(0).long()[:, None]
        value = torch.where(index < 0, 0, grad).to(dtype)[:, None]
        # a channel without this winner adds nothing at pixel 0, where the other one may be
        dy.scatter_add_(1, there, value)
    return dy


def scatter_product(
    grad_pos: Tensor,  # [B, C]
    grad_neg: Tensor,  # [B, C]
    x: Tensor,  # [B, C, H, W]
    pos_index: Tensor,  # [B, C]
    neg_index: Tensor,  # [B, C]
) -> Tensor:
    """The gradient of U, ``[C, C]`` in x's dtype: `scatter_grad_y`, then one product of rows."""
    pixel_rows = rows(x)
    dy = scatter_grad_y(
        grad_pos, grad_neg, pos_index, neg_index, len(pixel_rows) // len(x), x.dtype
    )
    return torch.mm(dy.flatten(0, 1).mT, pixel_rows)


class _LibraryPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, u: Tensor) -> Tensor:
        found = row_product_extremes(x, u)
        ctx.save_for_backward(x, found.pos_index, found.neg_index)
        return found.pos - found.neg

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        x, *places = ctx.saved_tensors
        return None, scatter_product(grad, grad, x, *places)


def library_pool(x: Tensor, u: Tensor) -> Tensor:
    """Forward and gradient of U by the library's products alone; float32 ``[B, C]``."""
    pooled: Tensor = _LibraryPool.apply(x, u)
    return pooled


class _ProductAlone(torch.autograd.Function):
    """The flat matrix products that rotate_pool contains, on rows laid out beforehand.

    Forward ``X U^T``, backward the dense ``dY^T X``; both read the same rows.
    """

    @staticmethod
    def forward(ctx: Any, laid_out: Tensor, u: Tensor) -> Tensor:
        ctx.save_for_backward(laid_out)
        return torch.mm(laid_out, u.mT)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        return None, torch.mm(grad.mT, ctx.saved_tensors[0])


def product_alone() -> Function:
    """The product of the first map that it is given, whose rows it lays out at the first call."""
    laid_out: list[Tensor] = []

    def product(x: Tensor, u: Tensor) -> Tensor:
        if not laid_out:
            laid_out.append(rows(x).contiguous())
        result: Tensor = _ProductAlone.apply(laid_out[0], u)
        return result

    return product


def training_step(module: Any) -> Function:
    """Rotation and head of `infodisent.ops` or `infodisent.reference`: logits ``[B, K]``."""
    return lambda x, a, weight: module.infodisent_head(x, module.rotation(a), weight)


def eigenvalues(a: Tensor) -> Tensor:
    """exp of the skew matrix from the eigenvalues of the Hermitian ``-i (A - A^T)``, ``[C, C]``."""
    values, vectors = torch.linalg.eigh(-1j * (a - a.mT))
    product: Tensor = (vectors * torch.exp(1j * values)) @ vectors.mH
    return product.real


class Orthogonal(nn.Module):
    """`torch.nn.utils.parametrizations.orthogonal` as a function of its own parameter."""

    def __init__(self, a: Tensor, method: str) -> None:
        super().__init__()
        layer = nn.Linear(len(a), len(a), bias=False, device=a.device)
        self.layer = nn.utils.parametrizations.orthogonal(layer, orthogonal_map=method)
        if method != "householder":  # which has no matrix of that meaning
            # it starts at zero, where an exponential costs nothing: give it our norm, since it
            # takes the lower triangle L of its parameter to L - L^T
            with torch.no_grad():
                self.layer.parametrizations.weight.original.copy_(a - a.mT)  # type: ignore[union-attr,operator]

    def forward(self, _: Tensor) -> Tensor:
        """The orthogonal matrix of its own parameter; the argument makes it one of the peers."""
        weight = self.layer.weight
        assert isinstance(weight, Tensor)
        return weight


def orthogonal(channels: int, method: str, device: str) -> Function:
    """`torch.nn.utils.parametrizations.orthogonal` as a function of a square parameter.

    Without trivialization, which costs a product more. Its exponential is that of the lower
    triangle minus its transpose; Householder's and Cayley's are other maps. The diagonal, 1, is
    what Householder's takes for signs.
    """
    module = nn.Linear(channels, channels, bias=False, device=device)
    nn.utils.parametrizations.orthogonal(
        module, orthogonal_map=method, use_trivialization=method == "householder"
    )
    parametrization: Any = module.parametrizations.weight[0]  # type: ignore[index,union-attr]
    signs = torch.eye(channels, device=device) if method == "householder" else 0
    return lambda a: parametrization((a - a.mT).tril(-1) + signs)
