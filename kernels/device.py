"""What the host code asks about the machine it launches on."""

from __future__ import annotations

import functools

import torch
import triton


@functools.lru_cache
def capability(device: torch.device) -> int:
    """Compute capability times 10; 90 where there is no GPU."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@functools.lru_cache
def processors(device: torch.device) -> int:
    """How many multiprocessors the device has; those of an H100 where there is no GPU."""
    if device.type != "cuda":
        return 132
    return torch.cuda.get_device_properties(device).multi_processor_count


def _nothing() -> None:
    pass


# Triton decides when a kernel is decorated, which is when its module is imported
_EMULATED = not isinstance(triton.jit(_nothing), triton.JITFunction)


def emulated() -> bool:
    """Whether Triton's interpreter runs the kernels."""
    return _EMULATED
