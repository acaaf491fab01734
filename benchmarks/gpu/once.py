"""Every operator once, forward and gradients, by each of our backends, against float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.cases import DTYPES, FIRST, Report
from benchmarks.gpu.machine import Machine
from infodisent import ops, reference
from infodisent.backends.table import BY_NAME
from infodisent.bench import peers as ways
from infodisent.bench.labels import check_served
from infodisent.contract import Pool
from infodisent.testing import check_close, random_map

ROUNDING = {"fp32": 1e-5, "bf16": 2.0**-6, "fp16": 2.0**-9}
"""Of results against float64 on the same inputs; dtypes as results have them."""


def items(machine: Machine, minutes: int) -> Iterator[tuple[str, Callable[[], Report]]]:
    """By backend, operator and dtype; those without a kernel are left to their stand-ins."""
    dtypes = DTYPES if minutes >= 10 else FIRST
    for name in machine.ours:
        for op in ARGUMENTS:
            if op not in BY_NAME[name].stems:
                continue
            for dtype in ("fp32",) if op == "rotation" else dtypes:
                yield (
                    f"{name}: {op}, {dtype}",
                    lambda name=name, op=op, dtype=dtype: once(machine, name, op, dtype),
                )


def _rotation(machine: Machine, dtype: torch.dtype) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    return ((torch.randn(72, 72, generator=g) * 0.1).to(machine.device, dtype),)


def _map(machine: Machine, dtype: torch.dtype) -> tuple[Tensor, ...]:
    x, _, _ = random_map(3, 49, 72, dtype=dtype, device=machine.device, seed=4)
    return (x.unflatten(1, (7, 7)).permute(0, 3, 1, 2),)


def _rotated(machine: Machine, dtype: torch.dtype) -> tuple[Tensor, ...]:
    u = random_map(3, 49, 72, dtype=dtype, device=machine.device, seed=4).u
    return (*_map(machine, dtype), u)


def _head(machine: Machine, dtype: torch.dtype) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    return (*_rotated(machine, dtype), torch.rand(10, 72, generator=g).to(machine.device, dtype))


def _prototypes(machine: Machine, dtype: torch.dtype) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    return (*_map(machine, dtype), torch.randn(130, 72, generator=g).to(machine.device, dtype))


def _two_maps(machine: Machine, dtype: torch.dtype) -> tuple[Tensor, ...]:
    (first,) = _map(machine, dtype)
    return first, first.flip(0)


ARGUMENTS: dict[str, Callable[[Machine, torch.dtype], tuple[Tensor, ...]]] = {
    "rotation": _rotation,
    "mx_pool": _map,
    "rotate_pool": _rotated,
    "infodisent_head": _head,
    "similarity_pool": _prototypes,
    "softmax_pool": _prototypes,
    "softmax_alignment": _two_maps,
}
"""What each operator is called with."""


def _tensor(result: Any) -> Tensor:
    tensor: Tensor = result.value if isinstance(result, Pool) else getattr(result, "pooled", result)
    return tensor


def once(machine: Machine, name: str, op: str, dtype: str) -> Report:
    """One call and its gradients.

    The gradient of the maximum is compared where float64 chooses the same pixels: with maps whose
    entries are far apart it does.
    """
    inputs = [t.detach().requires_grad_() for t in ARGUMENTS[op](machine, DTYPES[dtype])]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    function = ways.by(name, getattr(ops, op))
    stands_in = {name, *machine.ours[name], BY_NAME[name].stand_in} - {""}

    def run() -> tuple[Tensor, ...]:
        out = _tensor(function(*inputs))
        return out.detach(), *torch.autograd.grad(out, inputs, torch.ones_like(out))

    check_served(f"{name}: {op}", run, tuple(stands_in))
    out = _tensor(getattr(reference, op)(*exact))
    truth = out.detach(), *torch.autograd.grad(out, exact, torch.ones_like(out))
    names = ("result", *(f"gradient {number}" for number in range(len(inputs))))
    errors = {}
    for what, found, right in zip(names, run(), truth, strict=True):
        # a near tie that goes to another pixel moves one of thousands of gradients
        allowed = ROUNDING[dtype] if what == "result" else max(8 * ROUNDING[dtype], 0.05)
        errors[what] = check_close(found, right, allowed, f"{name}: {op}, {dtype}: {what}")
    return {"errors": errors, "ok": True}
