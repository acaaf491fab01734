"""Memory that work takes, as the system tells it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path

import torch

STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
"""Of this process; Linux."""


def peak_bytes(
    run: Callable[[], object],
    device: torch.device,
    before: Callable[[], object] = lambda: None,
) -> int | None:
    """Bytes that a run holds at most, beyond what was held before; on a GPU of its memory.

    Args:
        run: the work.
        device: it is done on.
        before: work that goes before: small, of the same kind, so that code is loaded and threads
            are started.

    Returns:
        The bytes; None where the system does not tell: it is neither a GPU of CUDA nor Linux.
    """
    before()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        held = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - held
    if device.type != "cpu" or sys.platform != "linux":
        return None
    try:
        # what was given back to the allocator alone is given to the system first
        ctypes.CDLL(None).malloc_trim(0)
        FORGET.write_text("5", encoding="ascii")
    except (AttributeError, OSError):  # another C library, or a system that forbids it
        return None
    held = process_bytes("VmRSS")
    run()
    return max(0, process_bytes("VmHWM") - held)


def process_bytes(field: str) -> int:
    """A size of this process by its name in `STATUS`, such as ``RssAnon``; Linux."""
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
