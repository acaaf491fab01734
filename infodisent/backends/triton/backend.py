"""The `triton` backend: the kernels of ``infodisent.kernels`` on NVIDIA GPUs."""

from __future__ import annotations

import torch

from infodisent.backends import selfcheck
from infodisent.backends.base import Backend, Call
from infodisent.backends.operators import Kernels
from infodisent.backends.sparse.backend import unsupported
from infodisent.backends.triton import kernels as host
from infodisent.backends.triton import loading, softmax_pool


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
    kernels = Kernels(
        rotation=host,
        rotate_pool=host,
        infodisent_head=host,
        similarity_pool=host,
        softmax_pool=softmax_pool,
        softmax_alignment=host,
    )

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
