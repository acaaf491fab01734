"""What a backend is: its name, its objections, who computes its gradient, who stands in for it.

A backend is a folder of this package (or one file), with one file for each operator's stem that it
has kernels for, and one object of a subclass of `Backend`, listed in `infodisent.backends.table`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from infodisent.contract import Best, Extremes

MaybeTensor = Tensor | None


@dataclass(frozen=True)
class Call:
    """What a backend looks at to decide: the operator's stem, the device, and the dtype.

    `size` is B, P and C of the map, where it is known and there is something that depends on it.
    """

    op: str
    device: torch.device
    dtype: torch.dtype
    size: tuple[int, int, int] | None = None


class Backend:
    """One way to compute the operators.

    Attributes:
        name: as it is asked for; with a precision ``"<backend>:<precision>"``.
        summary: what it is and where it runs, one line for tables.
        stems: operators that it has kernels for.
        stand_in: name of the backend that takes its place for all other operators. A model uses
            several operators, and one choice is for all of them.
        precisions: names of what `at` takes.
        needs_gpu: nothing is served without one.
    """

    name: str
    summary: str
    stems: tuple[str, ...] = ()
    stand_in: str = ""
    precisions: tuple[str, ...] = ()
    needs_gpu: bool = False

    def at(self, precision: str) -> Backend:
        """The same at one of its `precisions`."""
        raise ValueError(f"backend {self.name!r} has no precision {precision!r}")

    def objection(self, call: Call) -> str | None:
        """Why it cannot serve a call, or None."""
        raise NotImplementedError

    def reservation(self, call: Call) -> str | None:
        """Why ``auto`` does not take it for a call that it could serve, or None."""
        return None

    def decides_by_size(self, device: torch.device) -> bool:
        """Whether `reservation` has different answers for different sizes on this device."""
        return False

    def map_objection(
        self,
        x: Tensor,  # [B, P, C]
        u: Tensor,  # [C, C]
    ) -> str | None:
        """Why ``auto`` does not take it for these very tensors, which a `Call` does not show."""
        return None

    def gradient(self, call: Call) -> str:
        """Name of the backend that computes the gradient of what this one computed."""
        return self.name

    def describe(self) -> str | None:
        """What was built or loaded here, or why there is nothing; None where nothing is needed."""
        return None

    # One method a stem. Inputs are checked by the operator; autocast and gradients are off.

    def rotation(self, a: Tensor, precision: str) -> tuple[Tensor, Tensor, Tensor]:
        """``exp(a - a^T)``: U, what backward needs, and the decisions made.

        Args:
            a: [C, C] float32 or float64, contiguous.
            precision: "full" or "half".

        Returns:
            U [C, C]; tensors shaped as those of `empty_rotation`.
        """
        raise NotImplementedError

    def empty_rotation(self, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Uninitialised results of `rotation`, for tracing."""
        raise NotImplementedError

    def rotation_backward(
        self,
        grad: Tensor,  # [C, C], contiguous
        a: Tensor,  # [C, C], contiguous
        kept: Tensor,
        decisions: Tensor,
        precision: str,
    ) -> Tensor:
        """dA [C, C]; `kept` and `decisions` are those of this backend's `rotation`."""
        raise NotImplementedError

    def mx_pool(self, y: Tensor) -> Extremes:
        """Pool y [B, P, C] of any strides."""
        raise NotImplementedError

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
        raise NotImplementedError

    def rotate_pool(self, x: Tensor, u: Tensor) -> Extremes:
        """Rotate x [B, P, C] of any strides by u [C, C] and pool."""
        raise NotImplementedError

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
        raise NotImplementedError

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
        raise NotImplementedError

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
        raise NotImplementedError

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
        raise NotImplementedError

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
        raise NotImplementedError

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
        raise NotImplementedError

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
        raise NotImplementedError
