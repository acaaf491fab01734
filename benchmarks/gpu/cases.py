"""The comparisons of `benchmarks.gpu_report`: what is timed, and against what."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from benchmarks.gpu.machine import Machine
from infodisent import ops, reference
from infodisent.backends.table import BY_NAME
from infodisent.bench import peers as ways
from infodisent.bench.labels import check_served
from infodisent.layout import to_bpc
from infodisent.testing import check_close, compare_with_eager, gradient_truth, relative

Report = dict[str, Any]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
FIRST = {name: DTYPES[name] for name in ("bf16", "fp32")}
"""Of the first minute."""
PARTS = ("forward", "backward", "head")
PRODUCT = "torch.mm"
"""Everything is a share of its rate: the bare product of the same map, in the same call."""
AMINMAX = "torch.mm + aminmax"
PLACES = "torch.mm + max, min"
SCATTER = "scatter dY + torch.mm"
COMPILED = "torch.compile max-autotune"
ONE_LAUNCH = "triton, one launch"
WHOLE_IMAGES = "triton, dU in whole images†"
DIRECT = (ONE_LAUNCH, WHOLE_IMAGES)
"""Rows that call a kernel's host code and no backend."""
JUDGED = 32
"""Images that are compared with float64."""


@dataclass(frozen=True)
class Case:
    """Operator, map, batch and dtype; `layout` is how the map lies in memory."""

    op: str
    shape: str
    batch: int
    dtype: str
    layout: str = "NHWC"

    def __str__(self) -> str:
        return f"{self.shape}, {self.batch}, {self.dtype}, {self.layout}"

    def inputs(self, machine: Machine) -> tuple[Tensor, Tensor, Tensor]:
        """x, channels last or not, as NCHW; U; weight."""
        (c, h, w), device = machine.sizes[self.shape], machine.device
        dtype = DTYPES[self.dtype]
        g = torch.Generator(device=device).manual_seed(0)
        x = torch.randn(self.batch, c, h, w, generator=g, device=device).to(dtype)
        if self.layout == "NHWC":
            x = x.contiguous(memory_format=torch.channels_last)
        u = torch.linalg.qr(torch.randn(c, c, generator=g, device=device))[0].contiguous()
        weight = torch.rand(machine.classes, c, generator=g, device=device)
        return x, u.to(dtype), weight.to(dtype)


def cases(part: str, machine: Machine, minutes: int) -> Iterator[Case]:
    """Cases of a part, those that the bars are about first; as many as go into 1, 10 or 30 minutes.

    One of the forward in the first minute; in ten every map at the usual batch in bfloat16 and
    float32, and in bfloat16 at two other batches; then the rest.
    """
    batches = machine.batches if part == "forward" else machine.batches[:3]
    for dtype in ("bf16", "fp32", "fp16"):
        for batch in batches:
            for number, shape in enumerate(machine.sizes):
                first = part == "forward" and dtype == "bf16" and batch == batches[0] and not number
                early = batch == batches[0] or (batch in batches[:3] and dtype == "bf16")
                least = 1 if first else 10 if early and dtype != "fp16" else 30
                if minutes >= least and (part == "forward" or dtype != "fp16"):
                    yield Case(part, shape, batch, dtype)
    if part == "forward" and minutes >= 30:
        for shape in machine.sizes:
            yield Case(part, shape, batches[0], "bf16", "NCHW")


def compiled_cases(machine: Machine) -> Iterator[Case]:
    """For which torch.compile searches, a minute each."""
    usual, fewer = machine.batches[:2]
    for batch, dtype in ((usual, "bf16"), (fewer, "bf16"), (usual, "fp32")):
        for part in ("forward", "head") if (batch, dtype) == (usual, "bf16") else ("forward",):
            for shape in machine.sizes:
                yield Case(part, shape, batch, dtype)


def implementations(case: Case, machine: Machine) -> dict[str, Callable[..., Any]]:
    """Of the forward of the case, ours first; those marked † are a part of the work."""
    ours = {
        name: ways.by(name, ops.infodisent_head if case.op == "head" else ways.pooled)
        for name in machine.ours
    }
    if case.op == "head":
        if "triton" in ours:
            ours[ONE_LAUNCH] = _one_launch
        return {**ours, "eager": ways.eager_head}
    others: dict[str, Callable[..., Any]] = {"eager": ways.eager_values}
    if case.op == "forward":
        others["conv2d + max-pool"] = ways.conv_max_pool
        others[AMINMAX] = ways.row_product_aminmax
        others[PLACES] = ways.library_pool
    else:
        others[f"{PLACES}, {SCATTER}"] = ways.library_pool
    return {**ours, **others}


def _one_launch(x: Tensor, u: Tensor, weight: Tensor) -> Tensor:
    from infodisent.kernels.infodisent_head import infodisent_head

    logits: Tensor = infodisent_head(x.flatten(2).mT, u, weight, None, True, "one")[0]
    return logits


def _ours(name: str, machine: Machine) -> str | None:
    """The backend of a row, or None for a peer's."""
    backend = name.split(",")[0]
    return backend if backend in machine.ours else None


def _arguments(case: Case, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return inputs if case.op == "head" else inputs[:2]


def check(
    case: Case, functions: dict[str, Callable[..., Any]], inputs: Any, machine: Machine
) -> dict[str, float]:
    """Relative errors in float64; ours must not exceed eager's by more than rounding.

    Raises:
        WrongResultError: one of ours is further off, in values or in the gradient of U.
    """
    x, u, weight = (t.detach().double() for t in (inputs[0][:JUDGED], *inputs[1:]))
    truth = reference.rotate_pool(x, u).pooled
    if case.op == "head":
        truth = F.linear(truth, F.relu(weight))
    results = {}
    for name, function in functions.items():
        with torch.no_grad():
            results[name] = function(*_arguments(case, inputs))[:JUDGED]
    rounding = 1e-4 if case.dtype != "fp32" else 1e-6
    for name, result in results.items():
        if _ours(name, machine):
            what = f"{case}: {name}"
            compare_with_eager(
                result, results["eager"], truth, rounding=rounding, what=what, by="norm"
            )
            if case.op == "backward":
                _check_gradient(case, name, inputs)
    return {name: relative(result, truth) for name, result in results.items()}


def _check_gradient(case: Case, backend: str, inputs: tuple[Tensor, ...]) -> None:
    x, u = inputs[0][:JUDGED], inputs[1].detach().requires_grad_()
    pool = ways.by(backend, ops.rotate_pool)(x, u)
    grad = torch.randn_like(pool.pooled)
    (du,) = torch.autograd.grad(pool.pooled, u, grad)
    truth = gradient_truth(grad, grad, to_bpc(x, "NCHW", 0), u, pool.pos_index, pool.neg_index).du
    rounding = 2 * torch.finfo(u.dtype).eps if u.dtype != torch.float32 else 1e-5
    check_close(du, truth, rounding, f"{case}: {backend}: dU")


def _forward_runs(
    case: Case, functions: dict[str, Callable[..., Any]], inputs: tuple[Tensor, ...]
) -> dict[str, Callable[[], Any]]:
    def run_of(function: Callable[..., Any]) -> Callable[[], Any]:
        def run() -> None:
            with torch.no_grad():
                function(*_arguments(case, inputs))

        return run

    runs = {name: run_of(function) for name, function in functions.items()}
    runs[PRODUCT] = run_of(lambda x, u, *_: ways.row_product(x, u))
    return runs


def _backward_runs(
    case: Case,
    functions: dict[str, Callable[..., Any]],
    inputs: tuple[Tensor, ...],
    machine: Machine,
) -> dict[str, Callable[[], Any]]:
    """Forward and backward for U, and the gradient of U alone."""
    x, u = inputs[0], inputs[1].detach()
    leaf = u.clone().requires_grad_()
    grad = torch.randn(case.batch, len(u), device=x.device)
    runs: dict[str, Callable[[], Any]] = {}
    for name, function in functions.items():

        def both(function: Callable[..., Any] = function) -> None:
            out = function(x, leaf)
            torch.autograd.grad(out, leaf, grad.to(out.dtype))

        runs[name] = both
    rows = ways.rows(x)
    dy = torch.randn_like(rows)

    def products() -> None:
        torch.mm(rows, u.mT)
        torch.mm(dy.mT, rows)

    runs[PRODUCT] = products
    runs["dense dU alone†"] = lambda: torch.mm(dy.mT, rows)
    found = ways.row_product_extremes(x, u)
    places = found.pos_index, found.neg_index
    runs[f"{SCATTER} alone†"] = lambda: ways.scatter_product(grad, grad, x, *places)
    laid_out = to_bpc(x, "NCHW", 0)
    for name in machine.ours:

        def alone(backend: Any = BY_NAME[name]) -> None:
            backend.rotate_pool_backward(grad, grad, laid_out, u, *places, False, True)

        runs[f"{name}, dU alone†"] = alone
    if "triton" in machine.ours:
        runs[WHOLE_IMAGES] = _whole_images(grad, places, laid_out, u)
    return runs


def _whole_images(
    grad: Tensor, places: tuple[Tensor, Tensor], x: Tensor, u: Tensor
) -> Callable[[], Any]:
    """The gradient of u in steps that end with an image, whose last rows are empty."""
    from infodisent.kernels import device
    from infodisent.kernels import rotate_pool_backward as host
    from infodisent.kernels.tiles import rotate_pool_backward as tiles
    from infodisent.kernels.tiles.blocks import pick

    products = host.default_products(x.dtype, u.dtype)
    tile = pick(tiles.GRAD_U, x.shape[2], products, device.capability(x.device))
    cut = tiles.cut_u(x.shape[1], products, tile, alone=True)
    winners = (grad.float(), grad.float(), *places)
    return lambda: host.grad_u(winners, x, u.dtype, cut=cut)


def compare(case: Case, machine: Machine, compile_too: bool = False) -> Report:
    """Check, then time all implementations in turn; microseconds, and MiB of memory.

    compile_too: ours, torch.compile after its own search, and the bare product, nothing else.
    """
    inputs = case.inputs(machine)
    functions = implementations(case, machine)
    errors = check(case, functions, inputs, machine)
    if compile_too:
        functions = {name: f for name, f in functions.items() if _ours(name, machine)}
        plain = ways.eager_head if case.op == "head" else ways.eager_values
        functions[COMPILED] = machine.compiled(plain)
    if case.op == "backward":
        runs = _backward_runs(case, functions, inputs, machine)
    else:
        runs = _forward_runs(case, functions, inputs)
    for name, run in runs.items():
        backend = _ours(name, machine)
        if backend and name not in DIRECT:
            check_served(f"{case}: {name}", run, machine.ours[backend])
    times = machine.times(runs)
    memory = {
        name: round(machine.peak_memory(run), 2)
        for name, run in runs.items()
        if _ours(name, machine) or name == "eager"
    }
    c, h, w = machine.sizes[case.shape]
    return {
        "op": case.op,
        "size": [c, h, w],
        "shape": case.shape,
        "batch": case.batch,
        "dtype": case.dtype,
        "layout": case.layout,
        "ours": list(machine.ours),
        "gflop": 2e-9 * case.batch * h * w * c * c * (2 if case.op == "backward" else 1),
        **times.figures(),
        "of_mm": {
            name: round(times.seconds[PRODUCT] / value, 4) for name, value in times.seconds.items()
        },
        "errors": errors,
        "peak_mib": memory,
        "ok": True,
    }
