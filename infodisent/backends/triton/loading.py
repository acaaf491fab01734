"""Whether the Triton kernels load and run here, and the reason where they do not."""

from __future__ import annotations

import functools

import torch

STEMS = (
    "rotation",
    "rotate_pool",
    "infodisent_head",
    "similarity_pool",
    "softmax_pool",
    "softmax_alignment",
)
"""Operators that have kernels."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LEAST_CAPABILITY = (8, 0)


@functools.cache
def missing() -> str | None:
    """Why the kernels cannot be loaded, or None."""
    try:
        from infodisent.kernels import (  # noqa: F401
            infodisent_head,
            rotate_pool,
            rotate_pool_backward,
            rotation,
            similarity_pool,
            similarity_pool_backward,
            softmax_alignment,
            softmax_pool,
        )
    except ImportError as error:
        if error.name == "infodisent.kernels":
            return "the kernels are not there: this is a checkout that is not installed"
        return f"the kernels do not load: {error}"
    return None


KNOWN = (
    (
        (12, 0),
        "compiled for sm_120 in 99 KB of shared memory; never run",
    ),
    ((10, 0), "compiled for sm_100; never run"),
    ((9, 0), "compiled for sm_90 and run by a simulator of its instructions"),
    (
        (8, 1),
        "compiled for sm_80 in the shared memory of sm_89, and run by a simulator",
    ),
    ((8, 0), "compiled for sm_80 and run by a simulator of its instructions"),
)
"""What was tried of the kernels for GPUs from a compute capability on, none of it on a GPU."""


def known(capability: tuple[int, int]) -> str:
    """What is known of the kernels on GPUs of this compute capability, in words."""
    name = f"compute capability {capability[0]}.{capability[1]}"
    if capability < LEAST_CAPABILITY:
        return f"{name}: too old, the kernels need 8.0"
    return f"{name}: " + next(text for least, text in KNOWN if capability >= least)


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
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        return f"compute capability {capability[0]}.{capability[1]}, the kernels need 8.0"
    return None
