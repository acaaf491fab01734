"""What figures were measured on."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from infodisent.backends.native import module as native
from infodisent.version import __version__


def machine(device: str = "cpu") -> dict[str, str | int]:
    """Processor, threads, versions, and what the native module was built for."""
    name = torch.cuda.get_device_name() if device == "cuda" else processor()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "infodisent": __version__,
        "native": native.describe(),
    }


def processor() -> str:
    """The CPU's name, and the instructions that torch uses of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{model} ({torch.backends.cpu.get_cpu_capability()})"
