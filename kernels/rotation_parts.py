"""Products of `rotation` from parts that a launch of its own has written: ``products="parts"``.

Experimental: whether what is spared in every step is more than what is written before, a GPU must
tell (`benchmarks.gpu_report`, stage "rotation"). The kernels, and what they spare:
`infodisent.kernels.rotation_parts_kernels`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from . import device as gpu
from . import rotation_parts_kernels as kernels
from .rows import LOW_BITS
from .tiles import rotation as tiles
from .tiles.blocks import Block


class Gate(NamedTuple):
    """What a launch asks on the device: it does nothing unless ``numbers[flag] > level``."""

    numbers: Tensor
    flag: int
    level: int


class Parts(NamedTuple):
    """Parts ``[2, W, W]`` float32 of a matrix and of its transpose, high ones first; or None.

    W is C, up to a whole number of tiles.
    """

    straight: Tensor | None
    turned: Tensor | None


def parts(x: Tensor, block: Block, gate: Gate, *, straight: bool, turned: bool) -> Parts:
    """TF32 parts of x [C, C], as tiles of that block read them."""
    n = x.shape[-1]
    width = -(-n // block.block_m) * block.block_m
    found = Parts(
        *(
            torch.empty(2, width, width, dtype=torch.float32, device=x.device) if wanted else None
            for wanted in (straight, turned)
        )
    )
    kernels.parts_kernel[(triton.cdiv(width, tiles.PARTS_BLOCK) ** 2,)](
        x, *found, *gate, n, width,
        LOW=LOW_BITS[torch.float32], BLOCK=tiles.PARTS_BLOCK, num_warps=4,
    )  # fmt: skip
    return found


def of_operands(
    a: Tensor,  # [C, C]
    b: Tensor,  # [C, C]
    block: Block,
    gate: Gate,
    *,
    trans_a: bool = False,
    trans_b: bool = False,
    both: bool = False,
) -> tuple[Parts, Parts]:
    """Those parts of the operands that `multiply` reads; where a is b, of one matrix."""
    if a is b:
        one = parts(
            a, block, gate,
            straight=both or not trans_a or trans_b, turned=both or trans_a or not trans_b,
        )  # fmt: skip
        return one, one
    return (
        parts(a, block, gate, straight=both or not trans_a, turned=both or trans_a),
        parts(b, block, gate, straight=both or trans_b, turned=both or not trans_b),
    )


def multiply(
    a: Parts,
    b: Parts,
    out: Tensor,  # [C, C]
    block: Block,
    gate: Gate,
    *,
    trans_a: bool = False,
    trans_b: bool = False,
    symmetric: bool = False,
    both: bool = False,
    add: Tensor | None = None,
    beta: float = 1.0,
) -> None:
    """The product, from parts: see `infodisent.kernels.rotation.product`."""
    n = out.shape[-1]
    left, other_right = (a.turned, a.straight) if trans_a else a
    right, other_left = b if trans_b else (b.turned, b.straight)
    if not both:
        other_left = other_right = None
    assert left is not None
    run = tiles.run(block, gpu.capability(out.device))
    kernels.parts_product_kernel[(tiles.count(block, n, symmetric),)](
        left, right, other_left, other_right, add, out, *gate, beta, n, left.shape[-1],
        SYMMETRIC=symmetric, RUN=run,
        BLOCK=block.block_m, BLOCK_K=block.block_k, GROUP=tiles.GROUP,
        num_warps=block.num_warps, num_stages=block.num_stages,
    )  # fmt: skip


__all__ = ["Gate", "Parts", "multiply", "of_operands", "parts"]
