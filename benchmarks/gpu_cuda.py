"""The CUDA module of rotate_pool on a Hopper GPU: correctness first, then times.

    python setup.py build_ext --inplace && python -m benchmarks.gpu_cuda --out /tmp/gpu-cuda.json

From the repository root. Every stage is a process with a time limit, so that a kernel that hangs
ends its stage alone; later stages are skipped once one has failed. The stages: every kernel once;
1,000 random problems against float64; locations and values of the Triton kernels; float8 beside its
emulation; a CUDA graph and the same bits in every run; compute-sanitizer; times beside a bare
product and Triton, by CUDA events, medians of interleaved runs over inputs that do not fit in L2.
"""

from __future__ import annotations

import argparse
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infodisent.backends.cuda import float8 as _float8
from infodisent.backends.cuda import module as _native_cuda
from infodisent.files import read_json, write_json
from tests.kernels.kernel_compile import kernels_module

Row = dict[str, Any]
Outputs = tuple[Tensor, Tensor, Tensor, Tensor]

LIMITS = {
    "smoke": 70,
    "random": 100,
    "triton": 100,
    "float8": 60,
    "graph": 40,
    "sanitize": 100,
    "times": 170,
}
"""Stages and the seconds that they may take."""
MAPS = {  # C, P
    "ResNet-50": (2048, 49),
    "ResNet-34": (512, 49),
    "DenseNet-121": (1024, 49),
    "ConvNeXt-L": (1536, 49),
    "Swin-S": (768, 49),
    "ViT-B/16": (768, 196),
    "ViT-B/16 with class token": (768, 197),
    "ConvNeXt-L at 384": (1536, 144),
    "ResNet-50 at 448": (2048, 196),
    "ViT-B/16 at 384": (768, 576),
}
DEVICE = "cuda"
HALF = (torch.bfloat16, torch.float16)
PRODUCT_ERROR = {torch.float32: 2.0**-14, torch.bfloat16: 2.0**-16, torch.float16: 2.0**-16}
"""Of a sum of products, relative to the sum of their magnitudes."""


def make(
    batch: int, pixels: int, channels: int, dtype: torch.dtype, gaps: bool = False, kind: str = ""
) -> tuple[Tensor, Tensor]:
    """A map x [B, P, C], with other rows between its images if asked to, and u [C, C]."""
    prefix = 1 if gaps else 0
    x = torch.randn(batch, pixels + prefix, channels, device=DEVICE)
    u = torch.randn(channels, channels, device=DEVICE) / channels**0.5
    if kind == "integers":  # exact in any order of summation, and many ties
        x, u = x.round().clamp(-2, 2), torch.randint(-1, 2, u.shape, device=DEVICE).float()
    if kind in ("nan", "inf"):
        value = float(kind)
        for _ in range(3):
            at = [random.randrange(size) for size in x.shape]
            x[tuple(at)] = value if random.random() < 0.5 else -value
    if gaps:
        x[:, 0] = float("nan")  # must not be read into any result
    return x.to(dtype)[:, prefix:], u.to(dtype)


def wrong(found: Outputs, x: Tensor, u: Tensor, kind: str = "") -> str:
    """What is wrong with the results, or nothing."""
    pixels = x.shape[1]
    bits = (pixels - 1).bit_length() if x.dtype in HALF and pixels <= 1024 else 0
    y = x.double() @ u.double().mT  # [B, P, C]
    size = (x.double().nan_to_num(0, 0, 0).abs() @ u.double().abs().mT).amax(1)
    nan = y.isnan().any(1)
    infinite = y.isinf().any(1) & ~nan
    number = torch.arange(pixels, device=x.device)[None, :, None]
    first_nan = torch.where(y.isnan(), number, pixels).amin(1)
    for name, side, value, index in (
        ("pos", y, found[0], found[2]),
        ("neg", -y, found[1], found[3]),
    ):
        if torch.signbit(value[~nan]).any():
            return f"{name}: a sign"
        if not torch.equal(value.isnan(), nan):
            return f"{name}: NaN in {int((value.isnan() != nan).sum())} other places"
        if not torch.equal(index.long()[nan], first_nan[nan]):
            return f"{name}: the location of a NaN"
        truth = side.amax(1).clamp_min(0)
        at_infinity = infinite & truth.isinf()
        if not torch.equal((value.isinf() & ~nan), at_infinity):
            return f"{name}: Inf elsewhere"
        plain = ~nan & ~at_infinity
        bound = PRODUCT_ERROR[x.dtype] * size + truth.nan_to_num() * (2.0 ** (bits - 23))
        error = (value.double() - truth).abs()
        if not bool((error[plain] <= bound[plain] + 1e-30).all()):
            return f"{name}: error {error[plain].max().item():.3g}"
        if not torch.equal((index < 0)[plain], (value == 0)[plain]):
            return f"{name}: a location where the value is 0, or none where it is not"
        if not bool(((index >= -1) & (index < pixels)).all()):
            return f"{name}: a location outside"
        there = side.gather(1, index.clamp_min(0).long()[:, None])[:, 0]
        has = plain & (index >= 0)
        if not bool((there[has] >= truth[has] - 2 * bound[has] - 1e-30).all()):
            return f"{name}: a location that has less"
        if kind == "integers":
            first = torch.where(side == truth[:, None], number, pixels).amin(1)
            first = torch.where(truth > 0, first, -1)
            if x.dtype == torch.float32:  # low parts of U are never 0, see split_rotation
                value = torch.where(value < 1e-30, 0, value)
                index = torch.where(value > 0, index, -1)
            if not torch.equal(value.double(), truth) or not torch.equal(index.long(), first):
                return f"{name}: a tie"
    return ""


def variants(x: Tensor) -> list[tuple[str, int]]:
    """Tile and cluster of every kernel that can serve x."""
    gaps = x.dtype != torch.float32 and len(x) > 1 and x.stride(0) != x.shape[1] * x.stride(1)
    return [
        (tile, cluster)
        for tile in _native_cuda.tiles(x)
        for cluster in (1, 2)
        if not (gaps and cluster == 2 and tile[0] in "34")
    ]


def call(x: Tensor, u: Tensor, variant: tuple[str, int] | None = None) -> Outputs:
    options = {} if variant is None else {"tile": variant[0], "cluster": variant[1]}
    found = _native_cuda.rotate_pool(x, u, **options)
    torch.cuda.synchronize()
    return found


def smoke(_: argparse.Namespace) -> list[Row]:
    """Every kernel once: a small problem, then one of several tiles a block."""
    rows = []
    for pixels in (49, 144, 196, 197, 60, 1100):
        for batch, channels in ((5, 192), (36000 // pixels, 512)):
            for dtype in (*HALF, torch.float32):
                x, u = make(batch, pixels, channels, dtype)
                for variant in variants(x):
                    print(batch, channels, pixels, dtype, *variant, end=" ", flush=True)
                    reason = wrong(call(x, u, variant), x, u)
                    print(reason or "ok", flush=True)
                    rows.append(
                        {
                            "B": batch, "C": channels, "P": pixels, "dtype": str(dtype),
                            "variant": variant, "reason": reason, "ok": not reason,
                        }
                    )  # fmt: skip
    return rows


def randomly(options: argparse.Namespace) -> list[Row]:
    """Random problems of every kind, with outputs and scratch memory full of NaN at first."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills what torch.empty returns
    random.seed(0)
    torch.manual_seed(0)
    rows = []
    for number in range(options.problems):
        pixels = random.choice([49, 49, 49, 144, 196, 197, 1, 7, 50, 64, 200, 256, 576, 577, 1100])
        batch = random.choice([1, 2, 3, 4, 5, 9, 33, 70])
        if batch * pixels > 9000:
            batch = 3
        channels = random.choice([8, 16, 40, 64, 120, 128, 192, 256, 264, 384, 512, 768])
        dtype = random.choice([torch.bfloat16, torch.bfloat16, torch.float16, torch.float32])
        kind = random.choice(["", "", "", "integers", "nan", "inf"])
        gaps = random.random() < 0.3
        x, u = make(batch, pixels, channels, dtype, gaps, kind)
        variant = random.choice([None, *variants(x)])
        reason = wrong(call(x, u, variant), x, u, kind)
        if reason:
            problem = {"number": number, "B": batch, "P": pixels, "C": channels, "gaps": gaps}
            problem |= {"dtype": str(dtype), "kind": kind, "variant": variant, "reason": reason}
            print(problem, flush=True)
            rows.append({**problem, "ok": False})
    return [*rows, {"problems": options.problems, "wrong": len(rows), "ok": not rows}]


def triton(_: argparse.Namespace) -> list[Row]:
    """The same problems by the Triton kernels: how many values and locations are the same."""
    kernels = kernels_module("rotate_pool")
    rows = []
    for batch, pixels, channels, dtype in (
        (64, 49, 512, torch.bfloat16),
        (64, 49, 2048, torch.bfloat16),
        (64, 49, 512, torch.float16),
        (32, 196, 768, torch.bfloat16),
        (32, 197, 768, torch.bfloat16),
        (16, 577, 768, torch.bfloat16),
        (64, 49, 512, torch.float32),
    ):
        for kind in ("", "integers"):
            x, u = make(batch, pixels, channels, dtype, kind=kind)
            ours = call(x, u)
            if dtype == torch.float32:
                theirs = kernels.rotate_pool(x, u, "bf16x3")
            else:
                theirs = kernels.rotate_pool(x, u)
            same = [(a == b).float().mean().item() for a, b in zip(ours, theirs)]
            reasons = wrong(ours, x, u, kind), wrong(theirs, x, u, kind)
            # sums in another order can settle a near tie otherwise; whole numbers cannot
            ok = not any(reasons) and min(same[2:]) >= (1.0 if kind == "integers" else 0.999)
            row = {"B": batch, "P": pixels, "C": channels, "dtype": str(dtype), "kind": kind}
            row |= {"same": same, "reasons": reasons, "ok": ok}
            print(row, flush=True)
            rows.append(row)
    return rows


def float8(_: argparse.Namespace) -> list[Row]:
    """The float8 option beside its emulation: the same casts, and the same results of integers."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills what torch.empty returns
    random.seed(0)
    torch.manual_seed(0)
    rows = []
    for pixels in (49, 144, 196, 197, 60, 1000):
        for batch, channels in ((5, 208), (36000 // pixels, 512)):
            for dtype in (*HALF, torch.float32):
                for kind in ("", "integers", "nan", "inf"):
                    x, u = make(batch, pixels, channels, dtype, kind == "nan", kind)
                    wanted = _float8.rotate_pool(x, u)
                    same_cast = True
                    for values, given in ((x, x), (u, u[:, None])):
                        codes, scale = _native_cuda._to_float8(given)
                        right, right_scale = _float8.cast(values)
                        same_cast &= torch.equal(scale, right_scale)
                        wide, right_wide = codes.view(values.shape).float(), right.float()
                        same_cast &= torch.equal(wide.nan_to_num(7e7), right_wide.nan_to_num(7e7))
                    # of sums of as few bits as 14, and of the packed key
                    size = (x.float().nan_to_num(0, 0, 0).abs() @ u.float().abs().mT).amax(1)
                    bound = 1.2 * size * ((channels // 32 + 2) * 2.0**-13)
                    for variant in variants(x):
                        found = _native_cuda.rotate_pool(
                            x, u, fp8=True, tile=variant[0], cluster=variant[1]
                        )
                        torch.cuda.synchronize()
                        same = [
                            (a.nan_to_num(7e7) == b.nan_to_num(7e7)).float().mean().item()
                            for a, b in zip(found, wanted)
                        ]
                        close = all(
                            torch.equal(found[i].isnan(), wanted[i].isnan())
                            and bool(((found[i] - wanted[i]).abs().nan_to_num() <= bound).all())
                            for i in (0, 1)
                        )
                        ok = same_cast and close and (kind != "integers" or min(same) == 1.0)
                        row = {"B": batch, "P": pixels, "C": channels, "dtype": str(dtype)}
                        row |= {"kind": kind, "variant": variant, "cast": same_cast}
                        row |= {"same": same, "close": close, "ok": ok}
                        if not ok:
                            print(row, flush=True)
                        rows.append(row)
    return rows


def graph(_: argparse.Namespace) -> list[Row]:
    """Replays of a captured call on changing inputs; and one call 50 times over."""
    rows = []
    for pixels, dtype in ((49, torch.bfloat16), (577, torch.bfloat16), (196, torch.float32)):
        x, u = make(40, pixels, 512, dtype)
        wanted = call(x, u)
        same = all(all(torch.equal(a, b) for a, b in zip(call(x, u), wanted)) for _ in range(50))
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            static = _native_cuda.rotate_pool(x, u)
        replayed = True
        for _ in range(5):
            x.copy_(torch.randn_like(x))
            captured.replay()
            torch.cuda.synchronize()
            replayed &= all(torch.equal(a, b) for a, b in zip(static, call(x, u)))
        ok = same and replayed
        rows.append({"P": pixels, "dtype": str(dtype), "same": same, "graph": replayed, "ok": ok})
    return rows


def sanitize(_: argparse.Namespace) -> list[Row]:
    """compute-sanitizer over a few problems of this file."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(program).exists():
        return [{"skipped": "no compute-sanitizer", "ok": True}]
    rows = []
    for check in ("memcheck", "synccheck"):
        command = [program, "--tool", check, "--error-exitcode", "9", sys.executable, "-m"]
        command += ["benchmarks.gpu_cuda", "--stage", "few"]
        began = time.monotonic()
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=45)
            code, tail = done.returncode, (done.stdout + done.stderr)[-1500:]
        except subprocess.TimeoutExpired:
            code, tail = -1, "too slow to finish"
        seconds = time.monotonic() - began
        # too slow under the tool is no fault of the kernel
        rows.append(
            {"tool": check, "code": code, "seconds": seconds, "tail": tail, "ok": code in (0, -1)}
        )
    return rows


def few(_: argparse.Namespace) -> list[Row]:
    rows = []
    for pixels, dtype, gaps in (
        (49, torch.bfloat16, False),
        (197, torch.float16, True),
        (577, torch.bfloat16, False),
        (49, torch.float32, False),
    ):
        x, u = make(6, pixels, 136, dtype, gaps)
        for variant in variants(x):
            found = _native_cuda.rotate_pool(x, u, tile=variant[0], cluster=variant[1])
            rows.append({"variant": variant, "ok": bool((found[0] >= 0).all())})
    return rows


def medians(run: dict[str, Callable[[int], Any]], rounds: int) -> dict[str, float]:
    """Microseconds; the implementations take turns, so that a drift hits all of them."""
    for function in run.values():
        for i in range(3):
            function(i)
    torch.cuda.synchronize()
    found: dict[str, list[float]] = {name: [] for name in run}
    for i in range(rounds):
        for name, function in run.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            function(i)
            end.record()
            end.synchronize()
            found[name].append(1000 * start.elapsed_time(end))
    return {name: statistics.median(times) for name, times in found.items()}


def runners(x: Tensor, u: Tensor) -> dict[str, Callable[[int], Any]]:
    """What is timed, by name; calls rotate through copies of x."""
    kernels = kernels_module("rotate_pool")
    copies = max(1, min(8, (200 << 20) // (x.numel() * x.element_size())))  # L2 holds 50 MB
    inputs = [x, *(torch.randn_like(x) for _ in range(copies - 1))]

    def of(function: Callable[..., Any], *rest: Any, **options: Any) -> Callable[[int], Any]:
        return lambda i: function(inputs[i % copies], *rest, **options)

    run = {
        "cuda": of(_native_cuda.rotate_pool, u),
        "triton": of(kernels.rotate_pool, u),
        "torch.mm": of(lambda x: torch.mm(x.flatten(0, 1), u.mT)),
    }
    if x.dtype == torch.float32:
        run["triton bf16x3"] = of(kernels.rotate_pool, u, "bf16x3")
    for tile, cluster in variants(x):
        reason = wrong(call(x[:4], u, (tile, cluster)), x[:4], u)
        if reason:
            print(tile, cluster, reason, flush=True)
        else:
            options = {"tile": tile, "cluster": cluster}
            run[f"cuda {tile} {cluster}"] = of(_native_cuda.rotate_pool, u, **options)
    return run


def times(options: argparse.Namespace) -> list[Row]:
    """Every kernel beside torch.mm and Triton."""
    rows: list[Row] = []
    for batch in options.batch:
        for name, (channels, pixels) in MAPS.items():
            for dtype in (torch.bfloat16, torch.float32):
                if dtype == torch.float32 and (batch != 256 or channels * pixels > 2048 * 100):
                    continue
                x, u = make(batch, pixels, channels, dtype)
                found = medians(runners(x, u), options.rounds)
                flops = 2.0 * batch * pixels * channels**2
                row: Row = {"map": name, "B": batch, "C": channels, "P": pixels}
                row |= {"dtype": str(dtype), "ok": True}
                row["us"] = {k: round(v, 2) for k, v in found.items()}
                row["tflops"] = {k: round(flops / v / 1e6, 1) for k, v in found.items()}
                print(row, flush=True)
                rows.append(row)
                if options.out:  # what there is if time runs out
                    write_json(options.out, {"rows": rows})
    return rows


STAGES: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "smoke": smoke,
    "random": randomly,
    "triton": triton,
    "float8": float8,
    "graph": graph,
    "sanitize": sanitize,
    "times": times,
    "few": few,
}


def main() -> int:
    """Run the stages and write what they found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--stage", choices=STAGES, help="this one only, in this process")
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--batch", type=int, nargs="+", default=[256, 64, 8])
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    if options.stage:
        reason = _native_cuda.device_objection(torch.device("cuda"))
        if reason:
            sys.exit(reason)
        rows = STAGES[options.stage](options)
        if options.out:
            write_json(options.out, {"rows": rows})
        return 0 if all(row["ok"] for row in rows) else 1
    report: Row = {"module": _native_cuda.describe(), "torch": torch.__version__}
    report["python"] = platform.python_version()
    if torch.cuda.is_available():
        report["device"] = torch.cuda.get_device_name()
    failed = ""
    for stage, limit in LIMITS.items():
        if failed:
            report[stage] = {"skipped": f"{failed} failed"}
            continue
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "rows.json"
            command = [sys.executable, "-m", "benchmarks.gpu_cuda", "--stage", stage]
            command += ["--out", str(out), "--problems", str(options.problems), "--rounds"]
            command += [str(options.rounds), "--batch", *map(str, options.batch)]
            began = time.monotonic()
            try:
                code = subprocess.run(command, timeout=limit).returncode
            except subprocess.TimeoutExpired:
                code = -1
            seconds = round(time.monotonic() - began, 1)
            rows = read_json(out)["rows"] if out.exists() else []
        report[stage] = {"code": code, "seconds": seconds, "rows": rows}
        print(f"--- {stage}: {'ok' if code == 0 else f'failed ({code})'}, {seconds} s", flush=True)
        if code:
            failed = failed or stage
        if options.out:
            write_json(options.out, report)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
