"""The `sparse` backend: its objections, and its kernels by stem."""

from __future__ import annotations

import torch
from torch import Tensor

from infodisent.backends.base import Backend, Call, MaybeTensor
from infodisent.backends.sparse import (
    mx_pool,
    rotate_pool,
    similarity_pool,
    softmax_alignment,
    softmax_pool,
)
from infodisent.backends.sparse.passes import TorchPasses
from infodisent.backends.sparse.rotation import SkewExponential
from infodisent.contract import Best, Extremes


def unsupported(call: Call) -> str | None:
    """What no backend with a gradient of its own can serve, or None."""
    if call.device.type not in ("cpu", "cuda", "mps", "meta"):
        return f"the sparse gradient is made for cpu, cuda and mps, not for {call.device.type}"
    if torch.onnx.is_in_onnx_export():
        return "torch.onnx.export needs the plain formulas: ONNX has no operator for this one"
    return None


class Sparse(Backend):
    """Library products on chunks that stay in cache, one-pass pools, sparse gradients."""

    name = "sparse"
    summary = "PyTorch alone: products on chunks that stay in cache, the sparse gradient; CPU, GPUs"
    stems = (
        "rotation",
        "mx_pool",
        "rotate_pool",
        "similarity_pool",
        "softmax_pool",
        "softmax_alignment",
        "infodisent_head",
    )
    exponential = SkewExponential(TorchPasses())

    def objection(self, call: Call) -> str | None:
        """Devices that it is not made for, and ONNX."""
        return unsupported(call)

    def rotation(self, a: Tensor, precision: str) -> tuple[Tensor, Tensor, Tensor]:
        """See `SkewExponential.forward`."""
        return self.exponential.forward(a, precision)

    def empty_rotation(self, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `SkewExponential.forward`."""
        return self.exponential.empty(a)

    def rotation_backward(
        self, grad: Tensor, a: Tensor, kept: Tensor, decisions: Tensor, precision: str
    ) -> Tensor:
        """See `SkewExponential.backward`."""
        return self.exponential.backward(grad, a, kept, decisions, precision)

    def mx_pool(self, y: Tensor) -> Extremes:
        """See `infodisent.backends.sparse.mx_pool`."""
        return mx_pool.mx_pool(y)

    def mx_pool_backward(
        self,
        grad_pos: Tensor,
        grad_neg: Tensor,
        pos_index: Tensor,
        neg_index: Tensor,
        pixels: int,
        dtype: torch.dtype,
    ) -> Tensor:
        """See `infodisent.backends.sparse.mx_pool`."""
        return mx_pool.mx_pool_backward(grad_pos, grad_neg, pos_index, neg_index, pixels, dtype)

    def rotate_pool(self, x: Tensor, u: Tensor) -> Extremes:
        """See `infodisent.backends.sparse.rotate_pool`."""
        return rotate_pool.rotate_pool(x, u)

    def rotate_pool_backward(
        self,
        grad_pos: Tensor,
        grad_neg: Tensor,
        x: Tensor,
        u: Tensor,
        pos_index: Tensor,
        neg_index: Tensor,
        need_x: bool,
        need_u: bool,
    ) -> tuple[MaybeTensor, MaybeTensor]:
        """See `infodisent.backends.sparse.rotate_pool`."""
        return rotate_pool.rotate_pool_backward(
            grad_pos, grad_neg, x, u, pos_index, neg_index, need_x, need_u
        )

    def similarity_pool(
        self,
        x: Tensor,
        prototypes: Tensor,
        valid: Tensor | None,
        similarities: tuple[str, ...],
    ) -> tuple[Best, ...]:
        """See `infodisent.backends.sparse.similarity_pool`."""
        return similarity_pool.similarity_pool(x, prototypes, valid, similarities)

    def similarity_pool_backward(
        self,
        grads: tuple[Tensor, ...],
        best: tuple[Best, ...],
        x: Tensor,
        prototypes: Tensor,
        similarities: tuple[str, ...],
        need_x: bool,
        need_prototypes: bool,
    ) -> tuple[MaybeTensor, MaybeTensor]:
        """See `infodisent.backends.sparse.similarity_pool`."""
        return similarity_pool.similarity_pool_backward(
            grads, best, x, prototypes, similarities, need_x, need_prototypes
        )

    def softmax_pool(
        self,
        x: Tensor,
        prototypes: Tensor | None,
        temperature: float,
        bias: Tensor | None,
        valid: Tensor | None,
    ) -> tuple[Best, Tensor]:
        """See `infodisent.backends.sparse.softmax_pool`."""
        return softmax_pool.softmax_pool(x, prototypes, temperature, bias, valid)

    def softmax_pool_backward(
        self,
        grad: Tensor,
        best: Best,
        normalizer: Tensor,
        x: Tensor,
        prototypes: Tensor | None,
        temperature: float,
        bias: Tensor | None,
        dx: Tensor | None,
        need_prototypes: bool,
        need_bias: bool,
    ) -> tuple[MaybeTensor, MaybeTensor]:
        """See `infodisent.backends.sparse.softmax_pool`."""
        return softmax_pool.softmax_pool_backward(
            grad,
            best,
            normalizer,
            x,
            prototypes,
            temperature,
            bias,
            dx,
            need_prototypes,
            need_bias,
        )

    def softmax_alignment(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """See `infodisent.backends.sparse.softmax_alignment`."""
        return softmax_alignment.softmax_alignment(first, second)

    def softmax_alignment_backward(
        self,
        grad: Tensor,
        first: Tensor,
        second: Tensor,
        statistics: Tensor,
        d_first: Tensor | None,
        d_second: Tensor | None,
    ) -> None:
        """See `infodisent.backends.sparse.softmax_alignment`."""
        softmax_alignment.softmax_alignment_backward(
            grad, first, second, statistics, d_first, d_second
        )
