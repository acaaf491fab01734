"""The comparisons of `benchmarks.gpu_report`: what is timed, and against what."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from infodisent import reference
from infodisent.backends.cuda import module as cuda
from infodisent.bench import peers as ways
from infodisent.bench import shapes, timing
from infodisent.bench.labels import check_served
from infodisent.testing import compare_with_eager, relative

Report = dict[str, Any]
SIZES = {name: shapes.SHAPES[name] for name in shapes.EACH_SIZE}
"""A backbone of each map size: (C, H, W)."""
BATCHES = (256, 64, 8, 1, 1024)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
CLASSES = 1000
TUNED = ((256, "bf16"), (64, "bf16"), (256, "fp32"))
"""Batches and dtypes for which torch.compile is asked to search, a minute each."""
ROUNDS = 15
DEVICE = "cuda"  # tests run all this without one


@dataclass(frozen=True)
class Case:
    """Operator, map, batch and dtype; `layout` is how the map lies in memory."""

    op: str
    shape: str
    batch: int
    dtype: str
    layout: str = "NHWC"

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """x, channels last or not, as NCHW; U; weight."""
        c, h, w = SIZES[self.shape]
        kind = {"device": DEVICE, "dtype": DTYPES[self.dtype]}
        g = torch.Generator(device=DEVICE).manual_seed(0)
        x = torch.randn(self.batch, c, h, w, generator=g, device=DEVICE).to(DTYPES[self.dtype])
        if self.layout == "NHWC":
            x = x.contiguous(memory_format=torch.channels_last)
        u = torch.linalg.qr(torch.randn(c, c, generator=g, device=DEVICE))[0].contiguous()
        return x, u.to(DTYPES[self.dtype]), torch.rand(CLASSES, c, **kind)

    @property
    def flops(self) -> float:
        """Of the rotation's product."""
        c, h, w = SIZES[self.shape]
        return 2.0 * self.batch * h * w * c * c


def cases(part: str) -> Iterator[Case]:
    """Cases of a part, those the bars are about first."""
    for dtype in ("bf16", "fp32", "fp16"):
        for batch in BATCHES if part == "forward" else (256, 64, 8):
            if part != "forward" and dtype == "fp16":
                continue
            for shape in SIZES:
                yield Case(part, shape, batch, dtype)
    if part == "forward":
        for shape in SIZES:
            yield Case(part, shape, 256, "bf16", "NCHW")


OURS = {"triton": ("triton",), "cuda": ("cuda", "triton")}
"""Backends that are checked against eager's error, and who may serve a row of that name.

The first is what others are multiples of. The gradients that `cuda` has no kernel for are those of
`triton`.
"""


def has_cuda() -> bool:
    """Whether the CUDA module can be used here."""
    return cuda.device_objection(torch.device(DEVICE)) is None


def _one_launch(x: Tensor, u: Tensor, weight: Tensor) -> Tensor:
    return _head(x, u, weight, "one")


def _head(x: Tensor, u: Tensor, weight: Tensor, launches: str = "two") -> Tensor:
    from infodisent.kernels.infodisent_head import infodisent_head

    logits: Tensor = infodisent_head(x.flatten(2).mT, u, weight, None, True, launches)[0]
    return logits


def _compiled(function: Callable[..., Any], case: Case) -> Callable[..., Any] | None:
    if (case.batch, case.dtype) not in TUNED or case.layout != "NHWC":
        return None
    torch.compiler.reset()
    return torch.compile(function, mode="max-autotune-no-cudagraphs", dynamic=False)


def peers(case: Case) -> dict[str, Callable[..., Any]]:
    """Implementations of the case, ours first; those marked † are a part of the work."""
    compared: dict[str, Any]
    if case.op == "head":
        compared = {
            "triton, two launches": _head,
            "triton, one launch": _one_launch,
            "eager": ways.eager_head,
            "torch.compile": _compiled(ways.eager_head, case),
        }
    else:
        compared = {
            "triton": ways.by("triton", ways.pooled),
            "cuda": ways.by("cuda", ways.pooled) if has_cuda() else None,
            "eager": ways.eager_values,
            "torch.compile": _compiled(ways.eager_values, case),
            "conv2d + max-pool": ways.conv_max_pool,
            "GEMM + aminmax": ways.row_product_aminmax,
            "GEMM alone†": ways.row_product,
        }
    return {name: function for name, function in compared.items() if function is not None}


def _truth(case: Case, inputs: tuple[Tensor, ...]) -> Tensor:
    """In float64, a few images at a time."""
    x, u, weight = (t.double() for t in (inputs[0][:32], *inputs[1:]))
    pooled = reference.rotate_pool(x, u).pooled
    return F.linear(pooled, F.relu(weight)) if case.op == "head" else pooled


def check(case: Case, functions: dict[str, Callable[..., Any]], inputs: Any) -> dict[str, float]:
    """Relative errors; ours must not exceed eager's by more than rounding.

    Raises:
        WrongResultError: one of ours is further off.
    """
    truth = _truth(case, inputs)
    arguments = inputs if case.op == "head" else inputs[:2]
    results = {}
    for name, function in functions.items():
        if "†" not in name:
            with torch.no_grad():
                results[name] = function(*arguments)[:32]
    rounding = 1e-4 if case.dtype != "fp32" else 1e-6
    for name, result in results.items():
        if name.startswith(tuple(OURS)):
            what = f"{case}: {name}"
            compare_with_eager(
                result, results["eager"], truth, rounding=rounding, what=what, by="norm"
            )
    return {name: relative(result, truth) for name, result in results.items()}


def _backward_runs(
    case: Case, functions: dict[str, Callable[..., Any]], inputs: Any
) -> dict[str, Callable[[], Any]]:
    """Forward and backward for U, and backward alone."""
    x, u = inputs[0], inputs[1].requires_grad_()
    grad = torch.randn(case.batch, len(u), device=DEVICE)
    runs: dict[str, Callable[[], Any]] = {}
    for name, function in functions.items():
        if "†" in name:
            continue

        def both(function: Callable[..., Any] = function) -> None:
            out = function(x, u)
            torch.autograd.grad(out, u, grad.to(out.dtype))

        runs[name] = both
    dy = torch.randn(ways.rows(x).shape, device=DEVICE, dtype=x.dtype)
    rows = ways.rows(x)
    runs["dense dU alone†"] = lambda: torch.mm(dy.mT, rows)
    out = functions["triton"](x, u)
    runs["triton, backward alone"] = lambda: torch.autograd.grad(out, u, grad, retain_graph=True)
    return runs


def _check_labels(case: Case, runs: dict[str, Callable[[], Any]]) -> None:
    """Raise unless the rows of our backends run these. The head's rows call their kernels."""
    if case.op != "head":
        for name, run in runs.items():
            backend = name.split(",")[0]
            if backend in OURS:
                check_served(f"{case}: {name}", run, OURS[backend])


def compare(case: Case) -> Report:
    """Check, then time all implementations in turn; microseconds, and MiB of memory."""
    inputs = case.inputs()
    functions = peers(case)
    errors = check(case, functions, inputs)
    arguments = inputs if case.op == "head" else inputs[:2]
    backward = case.op == "backward"
    if backward:
        runs = _backward_runs(case, functions, inputs)
    else:
        runs = {
            name: (lambda function=function: function(*arguments))
            for name, function in functions.items()
        }
    with torch.set_grad_enabled(backward):
        _check_labels(case, runs)
        plain = dict(runs)
        if not backward:
            for name in [n for n in runs if n.startswith((*OURS, "eager"))]:
                runs[f"{name}, graph"] = timing.captured(runs[name])
        seconds = timing.medians(runs, ROUNDS, timing.event_clock(), warmup=3)
        measured = ("triton", "eager") if backward else (*OURS, "eager")
        memory = {
            name: round(timing.peak_memory(run), 2)
            for name, run in plain.items()
            if (name in measured if backward else name.startswith(measured))
        }
    return {
        "case": str(case),
        "op": case.op,
        "size": list(SIZES[case.shape]),
        "shape": case.shape,
        "batch": case.batch,
        "dtype": case.dtype,
        "layout": case.layout,
        "gflop": case.flops / 1e9,
        "microseconds": {name: round(value * 1e6, 2) for name, value in seconds.items()},
        "errors": errors,
        "peak_mib": memory,
    }


def line(row: Report) -> str:
    """One result in one line."""
    times = ", ".join(f"{name} {us:.1f}" for name, us in row["microseconds"].items())
    return f"{row['op']} {row['size']} B={row['batch']} {row['dtype']} {row['layout']}: {times} us"
