"""The `triton` backend: the kernels of ``infodisent.kernels`` on NVIDIA GPUs."""

from __future__ import annotations

import torch
from torch import Tensor

from infodisent.backends import selfcheck
from infodisent.backends.base import Backend, Call, MaybeTensor
from infodisent.backends.sparse.backend import unsupported
from infodisent.backends.triton import kernels, loading, softmax_pool
from infodisent.contract import Best, Extremes


def _check(op: str, device: torch.device, dtype: torch.dtype) -> str:
    from infodisent.backends.triton import checks  # loads what nothing but a check needs

    return checks.run(op, device, dtype)


class Triton(Backend):
    """One pass over the map; ``auto`` takes it where a check on this machine has passed."""

    name = "triton"
    summary = "Triton kernels for NVIDIA GPUs from compute capability 8.0; self-checked before auto"
    needs_gpu = True
    stems = loading.STEMS
    stand_in = "sparse"

    def objection(self, call: Call) -> str | None:
        """Other devices and dtypes, no Triton, and ONNX."""
        return loading.objection(call.op, call.device, call.dtype) or unsupported(call)

    def reservation(self, call: Call) -> str | None:
        """The verdict of the check on this machine, which may run now."""
        return selfcheck.objection(call.op, call.device, call.dtype, _check)

    def describe(self) -> str | None:
        """Whether the kernels load, and what is known of them on such a GPU."""
        reason = loading.missing()
        if reason is not None or not torch.cuda.is_available() or torch.version.hip is not None:
            return reason or "the kernels load"
        return f"the kernels load; {loading.known(torch.cuda.get_device_capability())}"

    def rotation(self, a: Tensor, precision: str) -> tuple[Tensor, Tensor, Tensor]:
        """See `kernels.rotation`: everything is decided on the device."""
        return kernels.rotation(a, precision)

    def empty_rotation(self, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `kernels.rotation`."""
        return kernels.empty_rotation(a)

    def rotation_backward(
        self, grad: Tensor, a: Tensor, kept: Tensor, decisions: Tensor, precision: str
    ) -> Tensor:
        """See `kernels.rotation`."""
        return kernels.rotation_backward(grad, a, kept, decisions, precision)

    def rotate_pool(self, x: Tensor, u: Tensor) -> Extremes:
        """See `kernels.rotate_pool`."""
        return kernels.rotate_pool(x, u)

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
        """See `kernels.rotate_pool_backward`."""
        return kernels.rotate_pool_backward(
            grad_pos, grad_neg, x, u, pos_index, neg_index, need_x, need_u
        )

    def infodisent_head(
        self, x: Tensor, u: Tensor, weight: Tensor, bias: Tensor | None, relu: bool
    ) -> tuple[Tensor, Extremes] | None:
        """See `kernels.infodisent_head`."""
        return kernels.infodisent_head(x, u, weight, bias, relu)

    def similarity_pool(
        self,
        x: Tensor,
        prototypes: Tensor,
        valid: Tensor | None,
        similarities: tuple[str, ...],
    ) -> tuple[Best, ...]:
        """See `kernels.similarity_pool`."""
        return kernels.similarity_pool(x, prototypes, valid, similarities)

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
        """See `kernels.similarity_pool_backward`."""
        return kernels.similarity_pool_backward(
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
        """See `infodisent.backends.triton.softmax_pool`."""
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
        """See `infodisent.backends.triton.softmax_pool`."""
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
        """See `kernels.softmax_alignment`."""
        return kernels.softmax_alignment(first, second)

    def softmax_alignment_backward(
        self,
        grad: Tensor,
        first: Tensor,
        second: Tensor,
        statistics: Tensor,
        d_first: Tensor | None,
        d_second: Tensor | None,
    ) -> None:
        """See `kernels.softmax_alignment_backward`."""
        kernels.softmax_alignment_backward(grad, first, second, statistics, d_first, d_second)
