"""The `cuda` backend: hand-written kernels for Hopper GPUs (``csrc/sm90``)."""

from __future__ import annotations

import torch
from torch import Tensor

from infodisent.backends import choices
from infodisent.backends.base import Backend, Call
from infodisent.backends.cuda import channels_last, module, rotate_pool_backward
from infodisent.backends.errors import BackendError
from infodisent.backends.operators import MaybeTensor
from infodisent.backends.sparse.backend import Sparse, unsupported
from infodisent.backends.triton.backend import Triton
from infodisent.contract import Extremes

_TRITON, _SPARSE = Triton(), Sparse()


class Cuda(Backend):
    """TMA, clusters and wgmma; ``auto`` takes it only for sizes at which it was timed as faster.

    At precision "fp8" x and U are rounded to float8 (e4m3), for inference: values are 3 to 4 % off
    on maps after a ReLU and 1 place in 20 is another (`infodisent.backends.cuda.module`;
    ``benchmarks/results/fp8-accuracy.json``, emulated). Gradients, if taken, are those of the whole
    numbers at the places that were kept.
    """

    name = "cuda"
    summary = (
        "hand-written kernels for Hopper GPUs; by auto only at sizes where it was timed as faster"
    )
    needs_gpu = True
    stems = ("rotate_pool", "infodisent_head")
    stand_in = "triton"
    precisions: tuple[str, ...] = ("fp8",)
    fp8 = False

    def at(self, precision: str) -> Backend:
        """The same in float8, at "fp8"."""
        return CudaFloat8() if precision == "fp8" else super().at(precision)

    def objection(self, call: Call) -> str | None:
        """Operators without a kernel, float64, other devices, no module, and ONNX."""
        if call.op not in self.stems:
            return f"there is no CUDA kernel for {call.op}"
        if call.dtype == torch.float64:
            return "the CUDA kernel takes float32, bfloat16, float16, not float64"
        return module.device_objection(call.device) or unsupported(call)

    def reservation(self, call: Call) -> str | None:
        """All sizes but those at which it was timed as faster: `infodisent.backends.choices`."""
        if call.size is None:  # said of all sizes; and all that torch.compile traces
            return "taken only at sizes where `infodisent tune` or a report shows it to be faster"
        return choices.objection(self.name, call.device, call.dtype, call.size, module.identity())

    def decides_by_size(self, device: torch.device) -> bool:
        """Where there is evidence for it."""
        return (
            device.type == "cuda"
            and module.device_objection(device) is None
            and choices.matters(device, module.identity())
        )

    def map_objection(self, x: Tensor, u: Tensor) -> str | None:
        """What was timed are rows of contiguous channels, read where they are."""
        return module.objection(x, u, self.fp8)

    def gradient(self, call: Call) -> str:
        """The Triton kernels where they run, else `sparse`; dU of half maps is this one's own."""
        return _TRITON.name if _TRITON.objection(call) is None else _SPARSE.name

    def describe(self) -> str | None:
        """What was built, or why there is nothing."""
        return module.describe()

    def rotate_pool(self, x: Tensor, u: Tensor) -> Extremes:
        """The kernel reads rows of contiguous channels; other maps are laid out first.

        Raises:
            BackendError: what `Call` does not show: the shape, or strides.
        """
        if x.stride(2) != 1:
            x = channels_last.channels_last(x)
        reason = module.objection(x, u, self.fp8)
        if reason is not None:
            raise BackendError(f"backend {self.name!r} cannot serve this call: {reason}")
        return module.rotate_pool(x, u, fp8=self.fp8)

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
        """dU of half maps by the kernel here, the rest by the backend that `gradient` names."""
        call = Call("rotate_pool", x.device, torch.promote_types(x.dtype, u.dtype))
        own = need_u and not self.fp8 and _has_grad_u(x, u)
        rest = {backend.name: backend for backend in (_TRITON, _SPARSE)}[self.gradient(call)]
        dx, du = rest.rotate_pool_backward(
            grad_pos, grad_neg, x, u, pos_index, neg_index, need_x, need_u and not own
        )
        if own:
            du = rotate_pool_backward.grad_u(grad_pos, grad_neg, x, pos_index, neg_index, u.dtype)
        return dx, du


def _has_grad_u(
    x: Tensor,  # [B, P, C]
    u: Tensor,  # [C, C]
) -> bool:
    # it rounds the gradients to x's dtype, which is fine for a result of that dtype only
    return x.dtype == u.dtype and rotate_pool_backward.objection(x) is None


class CudaFloat8(Cuda):
    """`Cuda` at precision "fp8"."""

    name = "cuda:fp8"
    summary = "the same with x and U rounded to float8, for inference; only where asked for"
    precisions = ()
    fp8 = True

    def reservation(self, call: Call) -> str | None:
        """It is less accurate."""
        return "float8 is for those who ask for it"

    def decides_by_size(self, device: torch.device) -> bool:
        """No size is one for ``auto``."""
        return False
