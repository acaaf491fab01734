"""What a GPU can do, and what a call costs when there is nothing to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.cases import DTYPES, Report
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.rotation import by_parts
from infodisent import backends, ops
from infodisent.bench import peers, timing
from infodisent.testing import check_close

BY_PARTS = "triton, parts"
"""The form of the products that a GPU is to judge; it calls host code and no backend."""


def ceilings(machine: Machine) -> Report:
    """What the machine gives a large product and a copy: TFLOP/s and TB/s."""
    device, n = machine.device, machine.large
    rates: Report = {}
    for name, dtype in DTYPES.items():
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        times = machine.times({"torch.mm": lambda a=a, b=b: torch.mm(a, b)}, 7)
        rates[f"{name}_tflops"] = round(2 * n**3 / times.seconds["torch.mm"] / 1e12, 4)
        rates["clocks"] = times.clocks
    x = torch.empty(machine.copied, dtype=torch.float32, device=device)
    y = torch.empty_like(x)
    seconds = machine.times({"copy": lambda: y.copy_(x)}, 7).seconds["copy"]
    rates["copy_tbs"] = round(8 * x.numel() / seconds / 1e12, 4)
    return {**rates, "ok": True}


def overhead(machine: Machine) -> Report:
    """Microseconds of Python and launch of a call whose work is nothing, by the host's clock."""
    device = machine.device
    x = torch.randn(1, 64, 2, 2, device=device).bfloat16()
    u = torch.eye(64, device=device).bfloat16()
    leaf = u.clone().requires_grad_()
    weight, a = torch.rand(8, 64, device=device), torch.zeros(64, 64, device=device)

    def step() -> None:
        torch.autograd.grad(ops.rotate_pool(x, leaf).pooled.sum(), leaf)

    runs: dict[str, Callable[[], Any]] = {
        "rotate_pool": lambda: ops.rotate_pool(x, u),
        "rotate_pool, forward + backward": step,
        "infodisent_head": lambda: ops.infodisent_head(x, u, weight),
        "rotation": lambda: ops.rotation(a),
        "torch.mm": lambda: torch.mm(u, u),
        "eager": lambda: peers.eager_values(x, u),
    }
    clock = timing.host_clock(device, calls=5 * machine.rounds)
    with backends.use_backend(next(iter(machine.ours))):
        seconds = timing.medians(runs, 3, clock, warmup=10)
    return {"microseconds": {k: round(v * 1e6, 1) for k, v in seconds.items()}, "ok": True}


def rotation(machine: Machine, channels: int) -> Report:
    """Forward and backward of the rotation beside `torch.matrix_exp`, both judged by float64."""
    g = torch.Generator().manual_seed(0)
    a = torch.randn(channels, channels, generator=g)
    # of the size at which training ends: ||A - A^T||_2 = 5
    a = (a * (5 / torch.linalg.matrix_norm(a - a.mT, 2))).to(machine.device)
    leaf, grad = a.clone().requires_grad_(), torch.randn(a.shape, generator=g).to(machine.device)
    exact = a.double().requires_grad_()

    def eager(a: torch.Tensor) -> torch.Tensor:
        return torch.matrix_exp(a - a.mT)

    truth = eager(exact)
    (d_truth,) = torch.autograd.grad(truth, exact, grad.double())
    name = next(iter(machine.ours))
    functions = {
        name: peers.by(name, ops.rotation),
        "sparse": peers.by("sparse", ops.rotation),
        "torch.matrix_exp": eager,
    }
    if "triton" in machine.ours:
        functions[BY_PARTS] = by_parts
    runs: dict[str, Callable[[], Any]] = {}
    errors = {}
    for label, function in functions.items():
        u = function(leaf)
        (d_a,) = torch.autograd.grad(u, leaf, grad)
        errors[label] = [
            check_close(u, truth, 1e-4, f"{label}: U"),
            check_close(d_a, d_truth, 1e-3, f"{label}: dA"),
        ]

        def forward(function: Callable[..., Any] = function) -> None:
            with torch.no_grad():
                function(a)

        def both(function: Callable[..., Any] = function) -> None:
            torch.autograd.grad(function(leaf), leaf, grad)

        runs[f"{label}, forward"], runs[f"{label}, forward + backward"] = forward, both
    # matrix_exp asks the device for norms
    times = machine.times(runs, launched=[name for name in runs if "matrix_exp" in name])
    return {
        "channels": channels,
        "ours": name,
        **times.figures(),
        "errors": errors,
        "ok": True,
    }
