"""The Triton backend of rotation on a GPU: correctness, graph capture, no waiting, and times.

    python -m benchmarks.gpu_rotation
    python -m benchmarks.gpu_rotation --sizes 512 1024 --norm 5 --out /tmp/gpu-rotation.json

From the repository root. Everything is checked against float64 before it is timed, and an
implementation that is wrong is not timed. Times are medians of interleaved runs by CUDA events.
"""

from __future__ import annotations

import argparse
import functools
import platform
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.rotation import Triton
from infodisent import ops
from infodisent.bench import peers as ways
from infodisent.bench import timing
from infodisent.bench.labels import check_served
from infodisent.bench.shapes import CHANNELS
from infodisent.files import write_json

NORMS = (0.0, 0.3, 1.5, 2.5, 5.0, 12.0, 100.0)
EPS = torch.finfo(torch.float32).eps
OURS = {"tf32x3": "full", "parts": "full", "ieee": "full", "bf16x3": "half", "tf32": "half"}
"""The precision of the plan that goes with each way to compute a product."""
LIMIT = {"bf16x3": 1e-3, "tf32": 3e-2}
"""Largest error of U and relative error of dA where that of eager float32 is not the measure."""

Function = Callable[[Tensor], Tensor]
Row = dict[str, Any]


def kernels() -> Any:
    """The module of the kernels, which needs Triton."""
    from infodisent.kernels import rotation

    return rotation


@functools.lru_cache(maxsize=2)
def unit(n: int) -> Tensor:
    """A float64 matrix A for which ``||A - A^T||_2`` is 1."""
    a = torch.randn(n, n, generator=torch.Generator().manual_seed(0)).double().cuda()
    return a / torch.linalg.matrix_norm(a - a.mT, 2)


def matrix(n: int, norm: float) -> Tensor:
    return (unit(n) * norm).float()


def reference(a: Tensor) -> Tensor:
    return torch.matrix_exp(a - a.mT)


def gradient(function: Function, a: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    leaf = a.detach().clone().requires_grad_()
    u = function(leaf)
    (d_a,) = torch.autograd.grad(u, leaf, grad)
    return u.detach(), d_a


sparse = ways.by("sparse", ops.rotation)


def triton_function(products: str) -> Function:
    return lambda a: Triton.apply(a, OURS[products], products)


def peers(n: int) -> dict[str, Function]:
    return {
        **{f"triton {products}": triton_function(products) for products in OURS},
        "sparse": sparse,
        "matrix_exp": reference,
        **{
            f"orthogonal {kind}": ways.orthogonal(n, kind, "cuda")
            for kind in ("matrix_exp", "cayley", "householder")
        },
    }


def check(n: int) -> tuple[list[Row], set[str]]:
    """Errors at several norms, and the names of the implementations that are wrong."""
    rows, wrong = [], set()
    one, ones = matrix(n, 1.0), torch.ones(n, n, device="cuda")
    check_served("sparse", lambda: gradient(sparse, one, ones), ("sparse",))
    identity = torch.eye(n, device="cuda", dtype=torch.float64)
    for norm in NORMS:
        a, grad = matrix(n, norm), torch.randn(n, n, device="cuda")
        truth = gradient(reference, a.double(), grad.double())
        errors = {}
        for name, function in peers(n).items():
            u, d_a = gradient(function, a, grad)
            errors[name] = (
                (u - truth[0]).abs().max().item(),
                ((d_a - truth[1]).norm() / truth[1].norm()).item(),
                (u.double() @ u.double().mT - identity).abs().max().item(),
            )
        eager = errors["matrix_exp"]
        for name, measured in errors.items():
            limit = LIMIT.get(name.split()[-1])
            bounds = [2 * e + 16 * EPS * n**0.5 for e in eager]
            if limit:
                bounds = [limit * max(1.0, norm)] * 3
            # other maps are only asked to be orthogonal; written so that NaN is wrong
            pairs = list(zip(measured, bounds))[2 if "orthogonal" in name else 0 :]
            ok = all(error <= bound for error, bound in pairs)
            if not ok:
                wrong.add(name)
            row = {"C": n, "norm": norm, "implementation": name, "ok": ok}
            row.update(zip(("error_u", "error_d_a", "orthogonality"), measured))
            rows.append(row)
    return rows, wrong


def captured(n: int, products: str, backward: bool = True) -> tuple[timing.Work, Tensor]:
    """A graph of one call, and the static tensors [4, C, C]: A, dL/dU, U, dA."""
    static = torch.zeros(4, n, n, device="cuda")
    a, grad, u, d_a = static

    def step() -> None:
        result, kept, info = kernels().rotation(a, OURS[products], products)
        u.copy_(result)
        if backward:
            d_a.copy_(kernels().rotation_backward(grad, a, kept, info, OURS[products], products))

    return timing.captured(step, warmup=1), static


def check_graph(n: int) -> Row:
    """Replay one graph while the norm grows; past the largest everything must be NaN."""
    replay, (a, grad, u, d_a) = captured(n, "tf32x3")
    grad.copy_(torch.randn(n, n, device="cuda"))
    worst, ok = 0.0, True
    for norm in (0.0, 1e-3, 0.4, 1.2, 2.5, 6.0, 20.0, 150.0, 1.0):
        a.copy_(matrix(n, norm))
        replay()
        true_u, true_d_a = gradient(reference, a.double(), grad.double())
        eager_u, eager_d_a = gradient(reference, a, grad)
        for result, true, eager in ((u, true_u, eager_u), (d_a, true_d_a, eager_d_a)):
            error = ((result - true).norm() / true.norm()).item()
            limit = 2 * ((eager - true).norm() / true.norm()).item() + 16 * EPS
            worst, ok = max(worst, error), ok and error <= limit
    a.copy_(matrix(n, 1e4))
    replay()
    nan = bool(u.isnan().all() and d_a.isnan().all())
    return {"C": n, "graph_error": worst, "nan_past_the_largest_norm": nan, "ok": ok and nan}


def check_no_waiting(n: int) -> Row:
    """A step under CUDA's error mode for synchronisation."""
    a, grad = matrix(n, 1.0), torch.randn(n, n, device="cuda")
    gradient(triton_function("tf32x3"), a, grad)  # compiles, and copies the table of plans
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        gradient(triton_function("tf32x3"), a, grad)
        reason = ""
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {"C": n, "no_synchronisation": not reason, "reason": reason, "ok": not reason}


def runners(n: int, a: Tensor, grad: Tensor, skip: set[str]) -> dict[tuple[str, str], timing.Work]:
    """What is timed, by (implementation, mode)."""
    runs: dict[tuple[str, str], timing.Work] = {}
    for name, function in peers(n).items():
        if name in skip:
            continue
        leaf = a.clone().requires_grad_()

        def forward(function: Function = function) -> None:
            with torch.no_grad():
                function(a)

        def both(function: Function = function, leaf: Tensor = leaf) -> None:
            torch.autograd.grad(function(leaf), leaf, grad)

        runs[name, "forward"], runs[name, "forward+backward"] = forward, both
    for products in OURS:
        if f"triton {products}" in skip:
            continue
        for mode in ("forward", "forward+backward"):
            replay, static = captured(n, products, mode != "forward")
            static[0].copy_(a)
            static[1].copy_(grad)
            runs[f"triton {products}, graph", mode] = replay
    return runs


def times(n: int, norm: float, rounds: int, skip: set[str]) -> list[Row]:
    """Medians in milliseconds; the implementations take turns, so that a drift hits all of them."""
    a, grad = matrix(n, norm), torch.randn(n, n, device="cuda")
    runs = runners(n, a, grad, skip)
    for key, run in list(runs.items()):
        try:
            run()
            torch.cuda.synchronize()
        except (RuntimeError, NotImplementedError) as error:  # a peer without a CUDA kernel
            print(f"C = {n}: {' '.join(key)}: {str(error).splitlines()[0]}", file=sys.stderr)
            del runs[key]
    seconds = timing.samples(runs, rounds, timing.event_clock(), warmup=3)
    return [
        {
            "C": n,
            "norm": norm,
            "implementation": name,
            "mode": mode,
            "ms": 1e3 * statistics.median(values),
            "min_ms": 1e3 * min(values),
            "rounds": rounds,
        }
        for (name, mode), values in seconds.items()
    ]


def show(rows: list[Row]) -> None:
    """A line for each implementation and mode, a column for each size."""
    sizes = sorted({row["C"] for row in rows})
    print(f"\n{'milliseconds, C =':44}" + "".join(f"{n:>10}" for n in sizes))
    for key in dict.fromkeys((row["mode"], row["implementation"]) for row in rows):
        at = {r["C"]: r["ms"] for r in rows if (r["mode"], r["implementation"]) == key}
        cells = (f"{at[n]:10.3f}" if n in at else f"{'-':>10}" for n in sizes)
        print(f"{key[1]:26} {key[0]:17}" + "".join(cells))


def versions() -> dict[str, str | None]:
    import triton

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=CHANNELS)
    parser.add_argument("--norm", type=float, default=1.5, help="||A - A^T||_2 when timed")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "gpu-rotation.json"
    )
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu_rotation: there is no CUDA GPU here; nothing was measured", file=sys.stderr)
        return 2
    torch.backends.cuda.matmul.allow_tf32 = False  # the peers, in float32
    torch.manual_seed(0)
    device = {
        "name": torch.cuda.get_device_name(),
        "capability": list(torch.cuda.get_device_capability()),
    }
    checks: list[Row] = []
    rows: list[Row] = []
    failed = False
    for n in options.sizes:
        errors, wrong = check(n)
        checks += [*errors, check_graph(n), check_no_waiting(n)]
        for row in checks[-len(errors) - 2 :]:
            if not row["ok"]:
                failed = True
                print("WRONG", row, file=sys.stderr)
        rows += times(n, options.norm, options.rounds, wrong)
        # after every size: a job that is cut off leaves what it has
        write_json(
            options.out,
            {"device": device, "versions": versions(), "checks": checks, "rows": rows},
        )
        worst = {
            name: max(e["error_u"] for e in errors if e["implementation"] == name)
            for name in dict.fromkeys(e["implementation"] for e in errors)
        }
        print(f"C = {n}: largest error of U " + ", ".join(f"{k} {v:.1e}" for k, v in worst.items()))
    show(rows)
    print(f"\n{options.out}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
