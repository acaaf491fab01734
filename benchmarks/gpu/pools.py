"""The pools of prototypes on a GPU: times beside the published forms, at their methods' sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.cases import COMPILED, DTYPES, JUDGED, PRODUCT, Report
from benchmarks.gpu.machine import Machine
from infodisent import ops, reference
from infodisent.backends.table import BY_NAME
from infodisent.bench import peers as ways
from infodisent.bench import pools
from infodisent.bench.labels import check_served
from infodisent.bench.shapes import PoolSize
from infodisent.testing import compare_with_eager, relative, require

MODES = ("forward", "forward+backward")
COPY = "copy of the map"
"""The measure of what has no product: the scores are the map."""
EAGER = ("published", "best eager")


@dataclass(frozen=True)
class PoolCase:
    """A size of `infodisent.bench.shapes.POOLS`, what is timed, and the dtype."""

    shape: str
    mode: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.shape}, {self.mode}, {self.dtype}"

    def inputs(self, size: PoolSize, machine: Machine) -> tuple[Tensor, ...]:
        """Map, channels last, and prototypes or second map; the first prototype is a pixel."""
        given = pools.inputs(size, size.batch, DTYPES[self.dtype], machine.device)
        first, *more = (t.detach() for t in given)
        lasting = [first.contiguous(memory_format=torch.channels_last)]
        for t in more:
            if t.ndim == 4:
                lasting.append(t.contiguous(memory_format=torch.channels_last))
            else:
                t[0] = first[0, :, -1, -1]
                lasting.append(t)
        return tuple(t.requires_grad_() for t in lasting)


def cases(machine: Machine, minutes: int) -> Iterator[PoolCase]:
    """In ten minutes every size in bfloat16; then in float32."""
    for dtype, least in (("bf16", 10), ("fp32", 30)):
        for mode in MODES:
            for shape in machine.pools if minutes >= least else ():
                yield PoolCase(shape, mode, dtype)


def items(machine: Machine, minutes: int) -> Iterator[tuple[str, Callable[[], Report]]]:
    """The cases, and in the end those in which torch.compile searches, too."""
    for case in cases(machine, minutes):
        if _ours(machine.pools[case.shape], machine):
            yield str(case), lambda case=case: compare(case, machine)
    if minutes >= 30:
        for mode in MODES:
            for shape, size in machine.pools.items():
                case = PoolCase(shape, mode, "bf16")
                if _ours(size, machine):
                    yield (
                        f"{case}, compiled",
                        lambda case=case: compare(case, machine, compile_too=True),
                    )


def _ours(size: PoolSize, machine: Machine) -> Mapping[str, tuple[str, ...]]:
    """Backends that have the operator, and who may serve a row of that name."""
    return {k: served for k, served in machine.ours.items() if size.op in BY_NAME[k].stems}


def check(
    case: PoolCase,
    size: PoolSize,
    functions: Mapping[str, Callable[..., Tensor]],
    inputs: tuple[Tensor, ...],
    ours: Mapping[str, Any],
) -> dict[str, float]:
    """Relative errors in float64; ours must not exceed eager's by more than rounding.

    Raises:
        WrongResultError: one of ours is further off, in values or in a gradient, or the distance of
            the prototype that is a pixel is not 0.
    """
    own = {name: functions[name] for name in ours}
    pools.check(str(case), size, inputs, own, case.mode)
    more = [t[:JUDGED] if t.ndim == 4 else t for t in inputs[1:]]
    some = [t.detach() for t in (inputs[0][:JUDGED], *more)]
    truth = pools.fused(reference, size)(*(t.double() for t in some))
    with torch.no_grad():
        results = {name: function(*some) for name, function in functions.items()}
    for name in own:
        compare_with_eager(
            results[name],
            results["best eager"],
            truth,
            rounding=1e-4 if case.dtype != "fp32" else 1e-5,
            what=f"{case}: {name}",
            by="norm",
        )
        if size.similarities == ("l2",):
            require(results[name][0, 0] == 0, f"{case}: {name}: the distance of a pixel to itself")
    return {name: relative(result, truth) for name, result in results.items()}


def _runs(
    case: PoolCase,
    functions: Mapping[str, Callable[..., Tensor]],
    inputs: tuple[Tensor, ...],
) -> dict[str, Callable[[], object]]:
    """The works, and the product or the copy that they are measured by."""
    forward = case.mode == "forward"
    with torch.no_grad():
        grad = torch.randn_like(functions["best eager"](*inputs), dtype=torch.float32)

    def run_of(function: Callable[..., Tensor]) -> Callable[[], object]:
        def run() -> None:
            if forward:
                with torch.no_grad():
                    function(*inputs)
            else:
                out = function(*inputs)
                torch.autograd.grad(out, inputs, grad.to(out.dtype))

        return run

    runs = {name: run_of(function) for name, function in functions.items()}
    x = inputs[0].detach()
    v = next((t.detach() for t in inputs[1:] if t.ndim == 2), None)
    if v is None:
        other = torch.empty_like(x)
        runs[COPY] = lambda: other.copy_(x)
        return runs
    rows = ways.rows(x)

    def products() -> None:
        dy = torch.mm(rows, v.mT)
        if not forward:
            torch.mm(dy, v)
            torch.mm(dy.mT, rows)

    runs[PRODUCT] = products
    return runs


def compare(case: PoolCase, machine: Machine, compile_too: bool = False) -> Report:
    """Check, then time all implementations in turn; microseconds, and MiB of memory.

    compile_too: ours, torch.compile of the best eager form after its own search, and the measure.
    """
    size = machine.pools[case.shape]
    ours = _ours(size, machine)
    inputs = case.inputs(size, machine)
    published, best = pools.forms(size)
    fused = pools.fused(ops, size)
    functions: dict[str, Callable[..., Tensor]] = {name: ways.by(name, fused) for name in ours}
    functions |= dict(zip(EAGER, (published, best), strict=True))
    errors = check(case, size, functions, inputs, ours)
    runs = _runs(case, functions, inputs)
    if compile_too:
        compiled = _runs(case, {"best eager": machine.compiled(best)}, inputs)["best eager"]
        runs = {name: run for name, run in runs.items() if name not in EAGER}
        runs[COMPILED] = compiled
    for name, served in ours.items():
        check_served(f"{case}: {name}", runs[name], served)
    times = machine.times(runs)
    memory = {
        name: round(machine.peak_memory(run), 2)
        for name, run in runs.items()
        if name in ours or name in EAGER
    }
    measure = next(name for name in (PRODUCT, COPY) if name in times.seconds)
    _, _, batch, prototypes, c, h, w = size
    share = {name: round(times.seconds[measure] / s, 4) for name, s in times.seconds.items()}
    products = 1 if case.mode == "forward" else 3
    return {
        "op": size.op,
        "shape": case.shape,
        "title": size.title,
        "size": [batch, prototypes or c, c, h * w],
        "mode": case.mode,
        "dtype": case.dtype,
        "layout": "NHWC",
        "ours": list(ours),
        "measure": measure,
        "gflop": 2e-9 * batch * h * w * c * (prototypes or 0) * products,
        **times.figures(),
        "share": share,
        "errors": errors,
        "peak_mib": memory,
        "ok": True,
    }
