"""The `native` backend: compiled code (``csrc/cpu``) for the CPU."""

from __future__ import annotations

from torch import Tensor

from infodisent.backends.base import Call, MaybeTensor
from infodisent.backends.native import (
    module,
    mx_pool,
    rotate_pool,
    similarity_pool,
    softmax_alignment,
    softmax_pool,
)
from infodisent.backends.native.passes import CompiledPasses
from infodisent.backends.sparse.backend import Sparse, unsupported
from infodisent.backends.sparse.rotation import SkewExponential
from infodisent.contract import Best, Extremes


class Native(Sparse):
    """As `Sparse`, with everything between the products compiled, and the forward fused."""

    name = "native"
    summary = "compiled C++ for CPUs: rotates and pools in registers with AVX2, AVX-512 or NEON"
    exponential = SkewExponential(CompiledPasses())

    def objection(self, call: Call) -> str | None:
        """Other devices, and an installation without the compiled module."""
        if call.device.type not in ("cpu", "meta"):
            return f"the compiled code runs on the cpu only, not on {call.device.type}"
        return unsupported(call) or module.objection()

    def describe(self) -> str | None:
        """What was built, or why there is nothing."""
        return module.describe()

    def mx_pool(self, y: Tensor) -> Extremes:
        """See `infodisent.backends.native.mx_pool`."""
        return mx_pool.mx_pool(y)

    def rotate_pool(self, x: Tensor, u: Tensor) -> Extremes:
        """See `infodisent.backends.native.rotate_pool`."""
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
        """See `infodisent.backends.native.rotate_pool`."""
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
        """See `infodisent.backends.native.similarity_pool`."""
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
        """See `infodisent.backends.native.similarity_pool`."""
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
        scores: Tensor | None = None,
    ) -> tuple[Best, Tensor]:
        """See `infodisent.backends.native.softmax_pool`."""
        return softmax_pool.softmax_pool(x, prototypes, temperature, bias, valid, scores)

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
        scores: Tensor | None = None,
    ) -> tuple[MaybeTensor, MaybeTensor]:
        """See `infodisent.backends.native.softmax_pool`."""
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
            scores,
        )

    def softmax_alignment(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """See `infodisent.backends.native.softmax_alignment`."""
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
        """See `infodisent.backends.native.softmax_alignment`."""
        softmax_alignment.softmax_alignment_backward(
            grad, first, second, statistics, d_first, d_second
        )
