"""The comparisons of `benchmarks.gpu_report`: what is timed, against what, and how it is shown."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from infodisent import backends, ops, reference
from infodisent.backends.cuda import module as _native_cuda
from infodisent.bench import cases as bench

Report = dict[str, Any]
SIZES = {  # a backbone of each size: (C, H, W), layout, prefix tokens
    "resnet34": (512, 7, 7),
    "swin_small_patch4_window7_224": (768, 7, 7),
    "vit_base_patch16_224": (768, 14, 14),
    "densenet121": (1024, 7, 7),
    "convnext_large": (1536, 7, 7),
    "resnet50": (2048, 7, 7),
}
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


OURS = ("triton", "cuda")
"""Backends that are checked against eager's error; the first is what others are multiples of."""


def _by(backend: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        with backends.use_backend(backend):
            return function(*arguments)

    return run


def _has_cuda() -> bool:
    return _native_cuda.device_objection(torch.device(DEVICE)) is None


def _rows(x: Tensor) -> Tensor:
    return x.flatten(2).mT.reshape(-1, x.shape[1])


def _product(x: Tensor, u: Tensor) -> Tensor:
    return torch.mm(_rows(x), u.mT)


def _product_aminmax(x: Tensor, u: Tensor) -> Tensor:
    low, high = _product(x, u).view(len(x), -1, len(u)).aminmax(dim=1)
    return F.relu(high) - F.relu(-low)


def _eager(x: Tensor, u: Tensor) -> Tensor:
    y = torch.matmul(u, x.flatten(2))
    return F.relu(y).amax(2) - F.relu(-y).amax(2)


def _pooled(x: Tensor, u: Tensor) -> Tensor:
    return ops.rotate_pool(x, u).pooled


def _one_launch(x: Tensor, u: Tensor, weight: Tensor) -> Tensor:
    return _head(x, u, weight, "one")


def _head(x: Tensor, u: Tensor, weight: Tensor, launches: str = "two") -> Tensor:
    from infodisent.kernels.infodisent_head import infodisent_head

    logits: Tensor = infodisent_head(x.flatten(2).mT, u, weight, None, True, launches)[0]
    return logits


def _eager_head(x: Tensor, u: Tensor, weight: Tensor) -> Tensor:
    return F.linear(_eager(x, u), F.relu(weight))


def _compiled(function: Callable[..., Any], case: Case) -> Callable[..., Any] | None:
    if (case.batch, case.dtype) not in TUNED or case.layout != "NHWC":
        return None
    torch.compiler.reset()
    return torch.compile(function, mode="max-autotune-no-cudagraphs", dynamic=False)


def peers(case: Case) -> dict[str, Callable[..., Any]]:
    """Implementations of the case, ours first; those marked † are a part of the work."""
    if case.op == "head":
        found: dict[str, Any] = {
            "triton, two launches": _head,
            "triton, one launch": _one_launch,
            "eager": _eager_head,
            "torch.compile": _compiled(_eager_head, case),
        }
    else:
        found = {
            "triton": _by("triton", _pooled),
            "cuda": _by("cuda", _pooled) if _has_cuda() else None,
            "eager": _eager,
            "torch.compile": _compiled(_eager, case),
            "conv2d + max-pool": bench._conv_max_pool,
            "GEMM + aminmax": _product_aminmax,
            "GEMM alone†": _product,
        }
    return {name: function for name, function in found.items() if function is not None}


def _truth(case: Case, inputs: tuple[Tensor, ...]) -> Tensor:
    """In float64, a few images at a time."""
    x, u, weight = (t.double() for t in (inputs[0][:32], *inputs[1:]))
    pooled = reference.rotate_pool(x, u).pooled
    return F.linear(pooled, F.relu(weight)) if case.op == "head" else pooled


def check(case: Case, functions: dict[str, Callable[..., Any]], inputs: Any) -> dict[str, float]:
    """Relative errors; ours must not exceed eager's by more than rounding."""
    truth = _truth(case, inputs)
    arguments = inputs if case.op == "head" else inputs[:2]
    errors = {}
    for name, function in functions.items():
        if "†" not in name:
            with torch.no_grad():
                found = function(*arguments)[:32].double()
            errors[name] = ((found - truth).norm() / truth.norm()).item()
    limit = errors["eager"] + (1e-4 if case.dtype != "fp32" else 1e-6)
    for name, error in errors.items():
        if name.startswith(OURS) and not error <= limit:
            raise AssertionError(
                f"{case}: {name} is off by {error:.1e}, eager {errors['eager']:.1e}"
            )
    return errors


_FLUSH: list[Tensor] = []


def _flush() -> None:
    if not _FLUSH:
        _FLUSH.append(torch.empty(1 << 27, device=DEVICE))
    _FLUSH[0].zero_()


def timed(runs: dict[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median microseconds of each, cold, in turn."""
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        for _ in range(3):
            run()
    for _ in range(rounds):
        for name, run in runs.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            _flush()
            start.record()
            run()
            end.record()
            torch.cuda.synchronize()
            samples[name].append(1e3 * start.elapsed_time(end))
    return {name: round(statistics.median(values), 2) for name, values in samples.items()}


def _graph(run: Callable[[], Any]) -> Callable[[], Any]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def _peak(run: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20, 2)


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
    dy = torch.randn(_rows(x).shape, device=DEVICE, dtype=x.dtype)
    rows = _rows(x)
    runs["dense dU alone†"] = lambda: torch.mm(dy.mT, rows)
    with backends.use_backend("triton"):
        out = _pooled(x, u)
    runs["triton, backward alone"] = lambda: torch.autograd.grad(out, u, grad, retain_graph=True)
    return runs


def compare(case: Case) -> Report:
    """Check, then time all implementations in turn; microseconds, and MiB of memory."""
    inputs = case.inputs()
    functions = peers(case)
    errors = check(case, functions, inputs)
    arguments = inputs if case.op == "head" else inputs[:2]
    if case.op == "backward":
        runs = _backward_runs(case, functions, inputs)
    else:
        runs = {
            name: (lambda function=function: function(*arguments))
            for name, function in functions.items()
        }
        with torch.no_grad():
            for name in [n for n in runs if n.startswith((*OURS, "eager"))]:
                runs[f"{name}, graph"] = _graph(runs[name])
    if case.op == "backward":
        found = timed(runs)
        memory = {name: _peak(runs[name]) for name in ("triton", "eager")}
    else:
        with torch.no_grad():
            found = timed(runs)
            memory = {
                name: _peak(run)
                for name, run in runs.items()
                if name.startswith((*OURS, "eager")) and "graph" not in name
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
        "microseconds": found,
        "errors": errors,
        "peak_mib": memory,
    }


def line(row: Report) -> str:
    """One result in one line."""
    times = ", ".join(f"{name} {us:.1f}" for name, us in row["microseconds"].items())
    return f"{row['op']} {row['size']} B={row['batch']} {row['dtype']} {row['layout']}: {times} us"


def ceilings() -> Report:
    """What the machine gives a large product and a copy: TFLOP/s and TB/s."""
    found: Report = {}
    for name, dtype in DTYPES.items():
        n = 8192
        a, b = (torch.randn(n, n, device=DEVICE).to(dtype) for _ in range(2))
        us = timed({"product": lambda a=a, b=b: torch.mm(a, b)}, 7)["product"]
        found[f"{name}_tflops"] = round(2 * n**3 / us / 1e6, 1)
    x = torch.empty(1 << 28, dtype=torch.float32, device=DEVICE)
    y = torch.empty_like(x)
    us = timed({"copy": lambda: y.copy_(x)}, 7)["copy"]
    found["copy_tbs"] = round(8 * x.numel() / us / 1e6, 2)
    return found


def overhead() -> Report:
    """Microseconds of Python and launch of a call whose work is nothing, by the host's clock."""
    x, u = (
        torch.randn(1, 64, 2, 2, device=DEVICE).bfloat16(),
        torch.eye(64, device=DEVICE).bfloat16(),
    )
    weight = torch.rand(8, 64, device=DEVICE)
    a = torch.zeros(64, 64, device=DEVICE)
    runs: dict[str, Callable[[], Any]] = {
        "rotate_pool": lambda: ops.rotate_pool(x, u),
        "infodisent_head": lambda: ops.infodisent_head(x, u, weight),
        "rotation": lambda: ops.rotation(a),
        "torch.mm": lambda: torch.mm(u, u),
        "eager": lambda: _eager(x, u),
    }
    found = {}
    with torch.no_grad(), backends.use_backend("triton"):
        for name, run in runs.items():
            for _ in range(20):
                run()
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(200):
                run()
            torch.cuda.synchronize()
            found[name] = round((time.perf_counter() - start) / 200 * 1e6, 1)
    return found


def random_shapes(count: int = 2000, seed: int = 0, deadline: float = float("inf")) -> Report:
    """Random shapes, layouts and dtypes against float64, forward and gradient of U."""
    g = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=g))

    mismatches: list[str] = []
    done = 0
    # few distinct sizes of image: each is compiled once
    pixels = [(7, 7), (14, 14), (1, 1), (5, 10), (12, 12), (24, 25), (3, 4)]
    for _ in range(count):
        if time.monotonic() > deadline:
            break
        h, w = pixels[draw(0, len(pixels))]
        c, batch = draw(1, 40) * (8 if draw(0, 3) else 1), draw(1, 9)
        dtype = list(DTYPES.values())[draw(0, 3)]
        x = torch.randn(batch, c, h, w, device=DEVICE).to(dtype)
        if draw(0, 2):
            x = x.contiguous(memory_format=torch.channels_last)
        u = (torch.randn(c, c, device=DEVICE) / c**0.5).to(dtype).requires_grad_()
        # every third by the CUDA kernel, where it can read such a map
        by_cuda = _has_cuda() and done % 3 == 2 and c % 8 == 0
        with backends.use_backend("cuda" if by_cuda else "triton"):
            pool = ops.rotate_pool(x, u)
            (du,) = torch.autograd.grad(pool.pooled.sum(), u)
        y = torch.matmul(u.detach().double(), x.double().flatten(2))
        half = dtype != torch.float32
        bad = []
        for value, index, signed in (
            (pool.pos, pool.pos_index, y),
            (pool.neg, pool.neg_index, -y),
        ):
            best = signed.amax(2).clamp_min(0)
            there = signed.gather(2, index.clamp_min(0).long()[..., None])[..., 0]
            slack = (2**-12 if half else 1e-5) * best.amax()
            if not ((value.double() - best).abs() <= slack).all():
                bad.append("value")
            if not (torch.where(index >= 0, best - there, best) <= 2 * slack).all():
                bad.append("place")
        dy = torch.zeros_like(y)
        for index in (pool.pos_index, pool.neg_index):
            one = (index >= 0).double()[..., None]
            dy.scatter_add_(2, index.clamp_min(0).long()[..., None], one)
        truth = torch.einsum("bcp,bkp->ck", dy, x.double().flatten(2))
        error = ((du.double() - truth).norm() / truth.norm().clamp_min(1e-9)).item()
        if not error <= (2 * torch.finfo(dtype).eps if half else 1e-5):
            bad.append(f"dU {error:.1e}")
        done += 1
        if bad:
            mismatches.append(f"{tuple(x.shape)} {dtype} {x.stride()}: {', '.join(bad)}")
    return {"shapes": done, "mismatches": mismatches[:20], "wrong": len(mismatches)}


def markdown(report: Report) -> str:
    """The report as tables: microseconds of ours, and the others as multiples of it."""
    lines = [", ".join(f"{k} {v}" for k, v in report["about"].items()), ""]
    for part in ("ceilings", "tests", "random", "overhead", "rotation", "sanitizer"):
        if part in report:
            shown = {k: v for k, v in report[part].items() if k not in ("tail", "files")}
            lines += [f"**{part}**: {shown}", ""]
    for part in ("forward", "backward", "head"):
        rows = report.get(part, [])
        if not rows:
            continue
        lines += [
            f"## {part}",
            "",
            "| map, batch, dtype, layout | ours, us | TFLOP/s | of ceiling | others, multiples |",
            "|---|---|---|---|---|",
        ]
        for row in rows:
            times = row["microseconds"]
            name = next(iter(times))
            ours = times[name]
            rate = row["gflop"] / ours * 1e3 * (2 if part == "backward" else 1)
            top = report.get("ceilings", {}).get(f"{row['dtype']}_tflops")
            share = f"{100 * rate / top:.0f}%" if top else ""
            others = ", ".join(f"{k} {v / ours:.2f}×" for k, v in times.items() if k != name)
            c, h, w = row["size"]
            what = f"{c}×{h}×{w}, {row['batch']}, {row['dtype']}, {row['layout']}"
            lines.append(f"| {what} | {ours:.1f} | {rate:.0f} | {share} | {others} |")
        lines.append("")
    return "\n".join(lines)


def plot(report: Report, path: Path) -> None:
    """Roofline: arithmetic intensity of the forward against what was reached."""
    rows = [r for r in report.get("forward", []) if r["dtype"] == "bf16" and r["layout"] == "NHWC"]
    if not rows or "ceilings" not in report:
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    top, bandwidth = report["ceilings"]["bf16_tflops"], report["ceilings"]["copy_tbs"]
    figure, axes = plt.subplots(figsize=(8, 5.5), layout="constrained")
    intensities = [2**k for k in range(3, 13)]
    axes.plot(intensities, [min(top, bandwidth * i) for i in intensities], "k-", lw=1)
    for name, marker in (("triton", "o"), ("cuda", "s"), ("GEMM alone†", "x"), ("eager", ".")):
        points = []
        for row in rows:
            c, h, w = row["size"]
            moved = 2 * (row["batch"] * h * w * c + c * c) + 16 * row["batch"] * c
            us = row["microseconds"].get(name)
            if us:
                points.append((row["gflop"] * 1e9 / moved, row["gflop"] / us * 1e3))
        if points:
            axes.scatter(*zip(*points, strict=True), marker=marker, label=name, s=28, alpha=0.8)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="FLOP a byte that must be moved",
        ylabel="TFLOP/s of the rotation's product",
        title=f"rotate_pool forward, bfloat16, {report['about']['device']}",
    )
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)
