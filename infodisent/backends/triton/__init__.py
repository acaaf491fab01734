"""The Triton kernels as a backend: loaded when first asked for, or the reason why they are not."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

STEMS = ("rotation", "rotate_pool", "infodisent_head")
"""Operators that have kernels."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LEAST_CAPABILITY = (8, 0)
PRODUCTS = {"full": "tf32x3", "half": "bf16x3"}
"""How the rotation multiplies, by its precision."""

Four = tuple[Tensor, Tensor, Tensor, Tensor]


@functools.cache
def module(name: str) -> ModuleType:
    """``infodisent.kernels.<name>``; ImportError without Triton, or without an installation."""
    return importlib.import_module(f"infodisent.kernels.{name}")


@functools.cache
def missing() -> str | None:
    """Why the kernels cannot be loaded, or None."""
    try:
        for stem in STEMS:
            module(stem)
    except ImportError as error:
        if error.name == "infodisent.kernels":
            return "the kernels are not there: this is a checkout that is not installed"
        return f"the kernels do not load: {error}"
    return None


def objection(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels cannot serve operator `op` on such a tensor, or None."""
    if op not in STEMS:
        return f"there is no Triton kernel for {op}"
    if device.type != "cuda":
        return f"the Triton kernels run on cuda only, not on {device.type}"
    allowed = DTYPES[:1] if op == "rotation" else DTYPES
    if dtype not in allowed:
        names = ", ".join(str(d).removeprefix("torch.") for d in allowed)
        return f"the kernel takes {names}, not {str(dtype).removeprefix('torch.')}"
    if torch.version.hip is not None:
        return "the kernels were never tried on this kind of GPU"
    reason = missing()
    if reason is not None:
        return reason
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    found = torch.cuda.get_device_capability(device)
    if found < LEAST_CAPABILITY:
        return f"compute capability {found[0]}.{found[1]}, the kernels need 8.0"
    return None


def rotation(a: Tensor, precision: str) -> tuple[Tensor, Tensor, Tensor]:
    """U [C, C], and what backward needs: ``[BLOCKS, C, C]`` and numbers on the device."""
    found: tuple[Tensor, Tensor, Tensor] = module("rotation").rotation(
        a, precision, PRODUCTS[precision]
    )
    return found


def rotation_backward(
    grad: Tensor, a: Tensor, kept: Tensor, numbers: Tensor, precision: str
) -> Tensor:
    """dA [C, C]."""
    found: Tensor = module("rotation").rotation_backward(
        grad, a, kept, numbers, precision, PRODUCTS[precision]
    )
    return found


def rotate_pool(x: Tensor, u: Tensor) -> Four:
    """As `infodisent.backends.native.rotate_pool.rotate_pool`."""
    found: Four = module("rotate_pool").rotate_pool(x, u)
    return found


def rotate_pool_backward(*arguments: Any) -> tuple[Tensor | None, Tensor | None]:
    """As `infodisent.backends.native.rotate_pool.rotate_pool_backward`."""
    found: tuple[Tensor | None, Tensor | None] = module(
        "rotate_pool_backward"
    ).rotate_pool_backward(*arguments)
    return found


def infodisent_head(
    x: Tensor, u: Tensor, weight: Tensor, bias: Tensor | None, relu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """logits [B, K] in weight's dtype; pos, neg, pos_index, neg_index [B, C]; x is [B, P, C]."""
    found: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = module(
        "infodisent_head"
    ).infodisent_head(x, u, weight, bias, relu)
    return found
