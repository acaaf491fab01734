"""Operands of `rotate_pool` and its gradients: rows of contiguous channels, in parts.

The kernels, and why parts are split as they are: `infodisent.kernels.rows_kernels`.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from .rows_kernels import rows_kernel, split_kernel

BLOCK_P, BLOCK_C = 32, 128  # not measured on a GPU yet
SPLIT_BLOCK = 1024
LOW_BITS = {torch.float32: 13, torch.float16: 13, torch.bfloat16: 16}
"""Bits of a float32 that its high part does without; float32 stands for TF32."""


def rows(
    x: Tensor,  # [B, P, C]
    dtype: torch.dtype,
    parts: int,
) -> Tensor:
    """x as [parts, B, P, C], contiguous: its copy in `dtype`, or its high and low part."""
    batch, pixels, channels = x.shape
    out = torch.empty(parts, batch, pixels, channels, dtype=dtype, device=x.device)
    blocks = triton.cdiv(pixels, BLOCK_P) * triton.cdiv(channels, BLOCK_C)
    rows_kernel[(batch * blocks,)](
        x, out, pixels, channels, *x.stride(), out.stride(0),
        PARTS=parts, LOW=LOW_BITS[dtype], BLOCK_P=BLOCK_P, BLOCK_C=BLOCK_C, num_warps=4,
    )  # fmt: skip
    return out


def split(
    u: Tensor,  # [M, C]
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:
    """High and low part of u [2, M, C]; and the scale of its rows [M] where the dtype needs one."""
    number, channels = u.shape
    parts = torch.empty(2, number, channels, dtype=dtype, device=u.device)
    scale, tiny = None, 2.0**-126
    if dtype == torch.float16:
        scale = torch.empty(number, dtype=torch.float32, device=u.device)
        tiny = 2.0**-24
    split_kernel[(number,)](
        u, parts, scale, channels, number * channels, *u.stride(),
        LOW=LOW_BITS[dtype], TINY=tiny, BLOCK=SPLIT_BLOCK, num_warps=4,
    )  # fmt: skip
    return parts, scale
