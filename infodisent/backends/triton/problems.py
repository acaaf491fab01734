"""What the checks of the Triton kernels are run on."""

from __future__ import annotations

import torch
from torch import Tensor

SIZES = ((64, 49, 512), (9, 197, 768), (2, 577, 192), (1, 49, 2048), (5, 50, 72))
"""(B, P, C) with the tiles that are chosen for them, in the layouts that maps have."""
REPEATS = 5
"""Times that a problem is run where blocks meet; the bits must be the same."""


def random_numbers(device: torch.device, *shape: int) -> Tensor:
    """Normal numbers that leave the caller's generators alone."""
    generator = torch.Generator("cpu").manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, device="cpu").to(device)


def other_dtypes(dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """Dtypes of u beside maps of `dtype`: its own, and for half maps float32."""
    return (dtype,) if dtype == torch.float32 else (dtype, torch.float32)
