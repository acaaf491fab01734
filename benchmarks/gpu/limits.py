"""What a GPU can do, and what a call costs when there is nothing to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks import gpu_cases
from infodisent import backends, ops
from infodisent.bench import peers, timing


def _seconds(run: Callable[[], Any], rounds: int = 7) -> float:
    return timing.medians({"run": run}, rounds, timing.event_clock(), warmup=3)["run"]


def ceilings() -> gpu_cases.Report:
    """What the machine gives a large product and a copy: TFLOP/s and TB/s."""
    device, n = gpu_cases.DEVICE, 8192
    rates: gpu_cases.Report = {}
    for name, dtype in gpu_cases.DTYPES.items():
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        seconds = _seconds(lambda a=a, b=b: torch.mm(a, b))
        rates[f"{name}_tflops"] = round(2 * n**3 / seconds / 1e12, 1)
    x = torch.empty(1 << 28, dtype=torch.float32, device=device)
    y = torch.empty_like(x)
    rates["copy_tbs"] = round(8 * x.numel() / _seconds(lambda: y.copy_(x)) / 1e12, 2)
    return rates


def overhead() -> gpu_cases.Report:
    """Microseconds of Python and launch of a call whose work is nothing, by the host's clock."""
    device = gpu_cases.DEVICE
    x = torch.randn(1, 64, 2, 2, device=device).bfloat16()
    u = torch.eye(64, device=device).bfloat16()
    weight, a = torch.rand(8, 64, device=device), torch.zeros(64, 64, device=device)
    runs: dict[str, Callable[[], Any]] = {
        "rotate_pool": lambda: ops.rotate_pool(x, u),
        "infodisent_head": lambda: ops.infodisent_head(x, u, weight),
        "rotation": lambda: ops.rotation(a),
        "torch.mm": lambda: torch.mm(u, u),
        "eager": lambda: peers.eager_values(x, u),
    }
    clock = timing.host_clock(device, calls=70)
    with torch.no_grad(), backends.use_backend("triton"):
        seconds = timing.medians(runs, 3, clock, warmup=10)
    return {name: round(value * 1e6, 1) for name, value in seconds.items()}
