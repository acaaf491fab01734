"""What a backend computes, by stem: the functions of each, their arguments and results.

A module of a backend has the functions of a stem, or several's; so may an object. Inputs are
checked by the operator that calls; autocast and gradients are off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from infodisent.contract import Best, Extremes

MaybeTensor = Tensor | None


def absent(backend: object, function: str) -> NotImplementedError:
    """What is raised for a function that a backend has no kernels for."""
    name = getattr(backend, "name", type(backend).__name__)
    stand_in = getattr(backend, "stand_in", "")
    instead = f"; {stand_in!r} stands in for it" if stand_in else ""
    return NotImplementedError(f"backend {name!r} has no kernels of {function}{instead}")


class RotationKernels(Protocol):
    """The functions of `infodisent.ops.rotation`."""

    def rotation(self, a: Tensor, precision: str) -> tuple[Tensor, Tensor, Tensor]:
        """``exp(a - a^T)``: U, what backward needs, and the decisions made.

        Args:
            a: [C, C] float32 or float64, contiguous.
            precision: "full" or "half".

        Returns:
            U [C, C]; tensors shaped as those of `empty_rotation`.
        """
        raise absent(self, "rotation")

    def empty_rotation(self, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Uninitialised results of `rotation`, for tracing."""
        raise absent(self, "empty_rotation")

    def rotation_backward(
        self,
        grad: Tensor,  # [C, C], contiguous
        a: Tensor,  # [C, C], contiguous
        kept: Tensor,
        decisions: Tensor,
        precision: str,
    ) -> Tensor:
        """dA [C, C]; `kept` and `decisions` are those of this backend's `rotation`."""
        raise absent(self, "rotation_backward")


class MxPoolKernels(Protocol):
    """The functions of `infodisent.ops.mx_pool`."""

    def mx_pool(self, y: Tensor) -> Extremes:
        """Pool y [B, P, C] of any strides."""
        raise absent(self, "mx_pool")

    def mx_pool_backward(
        self,
        grad_pos: Tensor,  # [B, C] gradient at the positive winners
        grad_neg: Tensor,  # [B, C] gradient at the negative winners, d(pooled)/dy = +1 there
        pos_index: Tensor,  # [B, C] int32
        neg_index: Tensor,  # [B, C] int32
        pixels: int,
        dtype: torch.dtype,
    ) -> Tensor:
        """dy [B, P, C] in `dtype`."""
        raise absent(self, "mx_pool_backward")


class RotatePoolKernels(Protocol):
    """The functions of `infodisent.ops.rotate_pool`."""

    def rotate_pool(self, x: Tensor, u: Tensor) -> Extremes:
        """Rotate x [B, P, C] of any strides by u [C, C] and pool."""
        raise absent(self, "rotate_pool")

    def rotate_pool_backward(
        self,
        grad_pos: Tensor,  # [B, C] gradient at the positive winners
        grad_neg: Tensor,  # [B, C] gradient at the negative winners, d(pooled)/dY = +1 there
        x: Tensor,  # [B, P, C]
        u: Tensor,  # [C, C]
        pos_index: Tensor,  # [B, C] int32
        neg_index: Tensor,  # [B, C] int32
        need_x: bool,
        need_u: bool,
    ) -> tuple[MaybeTensor, MaybeTensor]:
        """dX [B, P, C] and dU [C, C] in the dtypes of x and u, each only if needed."""
        raise absent(self, "rotate_pool_backward")


class HeadKernels(Protocol):
    """The functions of `infodisent.ops.infodisent_head`."""

    def infodisent_head(
        self,
        x: Tensor,  # [B, P, C]
        u: Tensor,  # [C, C]
        weight: Tensor,  # [K, C]
        bias: Tensor | None,  # [K]
        relu: bool,
    ) -> tuple[Tensor, Extremes] | None:
        """Logits [B, K] in weight's dtype and the pool; None: `rotate_pool`, then a product."""
        return None


class SimilarityPoolKernels(Protocol):
    """The functions of `infodisent.ops.similarity_pool`."""

    def similarity_pool(
        self,
        x: Tensor,  # [B, P, C], any strides
        prototypes: Tensor,  # [M, C]
        valid: Tensor | None,  # [B, P] bool, at least one pixel of every image; None: all count
        similarities: tuple[str, ...],  # one or two of "dot", "cosine", "l2"
    ) -> tuple[Best, ...]:
        """The best pixel for every prototype, by each similarity, all from one product.

        Values are exact where they cancel: "l2" and "cosine" are those of the winner's own numbers.
        """
        raise absent(self, "similarity_pool")

    def similarity_pool_backward(
        self,
        grads: tuple[Tensor, ...],  # [B, M] each, of the values
        best: tuple[Best, ...],  # of the forward
        x: Tensor,  # [B, P, C]
        prototypes: Tensor,  # [M, C]
        similarities: tuple[str, ...],
        need_x: bool,
        need_prototypes: bool,
    ) -> tuple[MaybeTensor, MaybeTensor]:
        """dX [B, P, C] and dV [M, C] in the dtypes of x and prototypes, each only if needed."""
        raise absent(self, "similarity_pool_backward")


class SoftmaxPoolKernels(Protocol):
    """The functions of `infodisent.ops.softmax_pool`."""

    def softmax_pool(
        self,
        x: Tensor,  # [B, P, C], any strides
        prototypes: Tensor | None,  # [M, C]; None: x itself holds the scores, M = C
        temperature: float,
        bias: Tensor | None,  # [M], only with prototypes
        valid: Tensor | None,  # [B, P] bool
    ) -> tuple[Best, Tensor]:
        """The largest probability of every prototype over the pixels, each with a softmax over m.

        Returns:
            the best; and the normalizer, [2, B, P] in the values' dtype: of every pixel the largest
            score before it is divided by the temperature, ``w = x_p·v_m + temperature·bias_m``,
            and the sum over m of ``exp((w - largest) / temperature)``. Where that is NaN the pixel
            has no softmax.
        """
        raise absent(self, "softmax_pool")

    def softmax_pool_backward(
        self,
        grad: Tensor,  # [B, M]
        best: Best,  # of the forward
        normalizer: Tensor,  # [2, B, P], of the forward
        x: Tensor,  # [B, P, C]
        prototypes: Tensor | None,  # [M, C]
        temperature: float,
        bias: Tensor | None,  # [M]
        dx: Tensor | None,  # [B, P, C] in x's dtype, any strides, to be written; None: not needed
        need_prototypes: bool,
        need_bias: bool,
    ) -> tuple[MaybeTensor, MaybeTensor]:
        """Write dX; dV [M, C] and dbias [M] in the dtypes of prototypes and bias, if needed."""
        raise absent(self, "softmax_pool_backward")


class SoftmaxAlignmentKernels(Protocol):
    """The functions of `infodisent.ops.softmax_alignment`."""

    def softmax_alignment(
        self,
        first: Tensor,  # [B, P, C], any strides
        second: Tensor,  # [B, P, C], any strides
    ) -> tuple[Tensor, Tensor]:
        """``-log Σ_m softmax(first)_m softmax(second)_m`` of every pixel, [B, P].

        Returns:
            the loss; and [6, B, P] in its dtype: of ``a = first``, of ``b = second`` and of
            ``(a - largest a) + (b - largest b)`` the largest (0 where the last is -Inf), each
            followed by the sum over m of the exponentials of what is below it.
        """
        raise absent(self, "softmax_alignment")

    def softmax_alignment_backward(
        self,
        grad: Tensor,  # [B, P]
        first: Tensor,  # [B, P, C]
        second: Tensor,  # [B, P, C]
        statistics: Tensor,  # [6, B, P], of the forward
        d_first: Tensor | None,  # [B, P, C] in first's dtype, to be written; None: not needed
        d_second: Tensor | None,  # the same of second
    ) -> None:
        """``d_first = grad (softmax(first) - softmax(first + second))``, d_second likewise."""
        raise absent(self, "softmax_alignment_backward")


@dataclass(frozen=True)
class Kernels:
    """Where a backend has the functions of its stems; None: nowhere, or where its base has them."""

    rotation: RotationKernels | None = None
    mx_pool: MxPoolKernels | None = None
    rotate_pool: RotatePoolKernels | None = None
    infodisent_head: HeadKernels | None = None
    similarity_pool: SimilarityPoolKernels | None = None
    softmax_pool: SoftmaxPoolKernels | None = None
    softmax_alignment: SoftmaxAlignmentKernels | None = None


STEMS: dict[str, type] = {
    "rotation": RotationKernels,
    "mx_pool": MxPoolKernels,
    "rotate_pool": RotatePoolKernels,
    "infodisent_head": HeadKernels,
    "similarity_pool": SimilarityPoolKernels,
    "softmax_pool": SoftmaxPoolKernels,
    "softmax_alignment": SoftmaxAlignmentKernels,
}
"""The protocol of each field of `Kernels`."""


def functions(stem: str) -> tuple[str, ...]:
    """Names of the functions of a stem."""
    return tuple(name for name in vars(STEMS[stem]) if not name.startswith("_"))
