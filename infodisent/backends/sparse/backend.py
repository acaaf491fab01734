"""The `sparse` backend: its objections, and its kernels by stem."""

from __future__ import annotations

import torch

from infodisent.backends.base import Backend, Call
from infodisent.backends.operators import Kernels
from infodisent.backends.sparse import (
    mx_pool,
    rotate_pool,
    similarity_pool,
    softmax_alignment,
    softmax_pool,
)
from infodisent.backends.sparse.passes import TorchPasses
from infodisent.backends.sparse.rotation import SkewExponential


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
    kernels = Kernels(
        rotation=SkewExponential(TorchPasses()),
        mx_pool=mx_pool,
        rotate_pool=rotate_pool,
        similarity_pool=similarity_pool,
        softmax_pool=softmax_pool,
        softmax_alignment=softmax_alignment,
    )

    def objection(self, call: Call) -> str | None:
        """Devices that it is not made for, and ONNX."""
        return unsupported(call)
