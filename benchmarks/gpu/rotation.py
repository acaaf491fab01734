"""The rotation's products by themselves: which form and tile is fast, and what cuBLAS does.

A product by the Triton kernels either makes the parts of its operands in every step ("tf32x3") or
reads parts that were written before ("parts", experimental). Which of them the rotation should
take, for which kind of product and size, one run tells: every tile that serves is timed, the
writing of the parts by itself, and both together.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.cases import Report
from benchmarks.gpu.machine import Machine
from infodisent.testing import check_close

KINDS = ("whole", "symmetric", "both")
"""``a b``; ``a a``, known to be symmetric; ``a b^T + b^T a``, as the gradient of a squaring has."""
FORMS = ("tf32x3", "parts")
OPTIONS: dict[str, dict[str, bool]] = {
    "whole": {},
    "symmetric": {"symmetric": True},
    "both": {"trans_b": True, "both": True},
}
MM, PARTS_MM = "torch.mm", "torch.mm of parts, TF32"
WRITTEN = "the parts, written"
TOLERANCE = 5e-6
"""Of norms; float32 has 3e-7 at 2048 channels."""
SIDE_BY_SIDE = 5e-5
"""The same of a product whose sums a matrix unit keeps to itself, and rounds toward zero."""


class Triton(torch.autograd.Function):
    """The backend's kernels under autograd, without the operator's checks."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, precision: str, products: str) -> Tensor:
        from infodisent.kernels import rotation

        u, kept, info = rotation.rotation(a, precision, products)
        ctx.save_for_backward(a, kept, info)
        ctx.how = precision, products
        return u

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        from infodisent.kernels import rotation

        d_a = rotation.rotation_backward(grad.contiguous(), *ctx.saved_tensors, *ctx.how)
        return d_a, None, None


def by_parts(a: Tensor) -> Tensor:
    """The rotation of a [C, C] with ``products="parts"``."""
    u: Tensor = Triton.apply(a, "full", "parts")
    return u


def operands(channels: int, kind: str, device: str) -> tuple[Tensor, Tensor]:
    """a and b [C, C] float32; one and the same where the product is symmetric."""
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(channels, channels, generator=g).to(device) for _ in range(2))
    if kind != "symmetric":
        return a, b
    a = a + a.mT
    return a, a


def formula(a: Tensor, b: Tensor, kind: str) -> Tensor:
    """The product in the dtype of a and b."""
    return a @ b.mT + b.mT @ a if kind == "both" else a @ b


def side_by_side(a: Tensor, b: Tensor, kind: str) -> Callable[[], Tensor]:
    """One TF32 product of the library of parts that are written before, not timed."""
    from infodisent.kernels.rows import rows

    def parts(x: Tensor) -> Tensor:
        found: Tensor = rows(x[None], torch.float32, 2)
        return found[:, 0]

    def pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        (high, low), (right, right_low) = parts(a), parts(b.mT)  # of b, transposed
        return torch.cat([low, high, high], 1), torch.cat([right, right_low, right], 1)

    left, right = pair(a, b.mT if kind == "both" else b)
    if kind == "both":
        others = pair(b.mT, a)
        left, right = torch.cat([left, others[0]], 1), torch.cat([right, others[1]], 1)

    def run() -> Tensor:
        kept = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            return torch.mm(left, right.mT)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = kept

    return run


def ours(a: Tensor, b: Tensor, kind: str) -> dict[str, Callable[[], Any]]:
    """The product in each form and tile, by name; what gives no product begins with `WRITTEN`."""
    from infodisent.kernels import device, rotation, rotation_parts
    from infodisent.kernels.tiles.blocks import serving

    options, n = OPTIONS[kind], len(a)
    turns = {name: value for name, value in options.items() if name != "symmetric"}
    out, numbers = torch.empty_like(a), torch.ones(rotation.WIDTH, device=a.device)
    gate = rotation_parts.Gate(numbers, rotation.ALWAYS, 0)
    runs: dict[str, Callable[[], Any]] = {}

    def whole(form: str, block: Any) -> Tensor:
        rotation.product(a, b, out, numbers, form, chosen=block, **options)
        return out

    def apart(block: Any, written: Any) -> Tensor:
        rotation_parts.multiply(*written, out, block, gate, **options)
        return out

    for form in FORMS:
        blocks = serving(rotation.tiles.BLOCKS, n, form, device.capability(a.device))
        for block in dict.fromkeys(blocks):
            tile = f"{block.block_m}x{block.block_n}x{block.block_k}"
            runs[f"{form} {tile}"] = functools.partial(whole, form, block)
            if form == "parts":
                write = functools.partial(
                    rotation_parts.of_operands, a, b, block, gate, **turns
                )  # fmt: skip
                runs[f"parts {tile}, written before"] = functools.partial(apart, block, write())
                runs[f"{WRITTEN} for {tile}"] = write
    return runs


def product(machine: Machine, channels: int, kind: str) -> Report:
    """Times of one product [C, C], of all that is right; what is wrong raises."""
    a, b = operands(channels, kind, machine.device)
    truth = formula(a.double(), b.double(), kind)
    runs: dict[str, Callable[[], Any]] = {
        **ours(a, b, kind),
        MM: lambda: formula(a, b, kind),
        PARTS_MM: side_by_side(a, b, kind),
    }
    errors = {
        name: check_close(
            run().clone(), truth, SIDE_BY_SIDE if name == PARTS_MM else TOLERANCE, name
        )
        for name, run in runs.items()
        if not name.startswith(WRITTEN)
    }
    return {
        "channels": channels,
        "kind": kind,
        **machine.times(runs).figures(),
        "errors": errors,
        "ok": True,
    }
