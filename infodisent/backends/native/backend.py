"""The `native` backend: compiled code (``csrc/cpu``) for the CPU."""

from __future__ import annotations

from infodisent.backends.base import Call
from infodisent.backends.native import (
    module,
    mx_pool,
    rotate_pool,
    similarity_pool,
    softmax_alignment,
    softmax_pool,
)
from infodisent.backends.native.passes import CompiledPasses
from infodisent.backends.operators import Kernels
from infodisent.backends.sparse.backend import Sparse, unsupported
from infodisent.backends.sparse.rotation import SkewExponential


class Native(Sparse):
    """As `Sparse`, with everything between the products compiled, and the forward fused."""

    name = "native"
    summary = "compiled C++ for CPUs: rotates and pools in registers with AVX2, AVX-512 or NEON"
    kernels = Kernels(
        rotation=SkewExponential(CompiledPasses()),
        mx_pool=mx_pool,
        rotate_pool=rotate_pool,
        similarity_pool=similarity_pool,
        softmax_pool=softmax_pool,
        softmax_alignment=softmax_alignment,
    )

    def objection(self, call: Call) -> str | None:
        """Other devices, and an installation without the compiled module."""
        if call.device.type not in ("cpu", "meta"):
            return f"the compiled code runs on the cpu only, not on {call.device.type}"
        return unsupported(call) or module.objection()

    def describe(self) -> str | None:
        """What was built, or why there is nothing."""
        return module.describe()
