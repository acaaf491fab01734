"""The `reference` backend: the formulas of `infodisent.reference` under autograd.

It has no kernels: an operator that it serves calls the formula itself, before torch's dispatcher,
so that autograd, forward mode and exporters see plain PyTorch.
"""

from __future__ import annotations

from infodisent.backends.base import Backend, Call


class Reference(Backend):
    """Plain PyTorch: any device and dtype, dense gradients of any order, exportable to ONNX."""

    name = "reference"
    summary = "the formulas in plain PyTorch: dense gradients of any order, any device, ONNX"
    stems = (
        "rotation",
        "mx_pool",
        "rotate_pool",
        "similarity_pool",
        "softmax_pool",
        "softmax_alignment",
        "infodisent_head",
    )

    def objection(self, call: Call) -> str | None:
        """None: it serves everything."""
        return None
