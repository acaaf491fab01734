"""Stages of `benchmarks.gpu_cuda` that judge results; each returns rows with "ok"."""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.gpu.cuda_problems import HALF, Row, call, make, make_gradients, variants, wrong
from infodisent.backends.cuda import float8 as emulation
from infodisent.backends.cuda import module as cuda
from infodisent.backends.cuda.channels_last import channels_last
from infodisent.backends.cuda.rotate_pool_backward import grad_u
from infodisent.contract import Extremes
from infodisent.testing import poisoned_memory


def smoke(_: argparse.Namespace) -> list[Row]:
    """Every kernel once: a small problem, then one of several tiles a block; also the layout's."""
    rows: list[Row] = []
    for pixels in (49, 64, 144, 196, 197, 60, 1100):
        for batch, channels in ((5, 192), (36000 // pixels, 512)):
            for dtype in (*HALF, torch.float32):
                x, u, y = make(batch, pixels, channels, dtype)
                laid_out = torch.equal(channels_last(x.mT.contiguous().mT), x)
                rows.append({"layout": (batch, channels, pixels, str(dtype)), "ok": laid_out})
                for variant in variants(x):
                    print(batch, channels, pixels, dtype, *variant, end=" ", flush=True)
                    reason = wrong(call(x, u, variant), x, u, y)
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
    draw = random.Random(0)
    rows = []
    for number in range(options.problems):
        pixels = draw.choice([49, 49, 49, 144, 196, 197, 1, 7, 50, 64, 200, 256, 576, 577, 1100])
        batch = draw.choice([1, 2, 3, 4, 5, 9, 33, 70])
        if batch * pixels > 9000:
            batch = 3
        channels = draw.choice([8, 16, 40, 64, 120, 128, 192, 256, 264, 384, 512, 768])
        dtype = draw.choice([torch.bfloat16, torch.bfloat16, torch.float16, torch.float32])
        kind = draw.choice(["normal", "normal", "normal", "integers", "ties", "nan", "inf"])
        gaps = draw.random() < 0.3
        x, u, y = make(batch, pixels, channels, dtype, gaps, kind, number)
        variant = draw.choice([None, *variants(x)])
        with poisoned_memory():
            result = call(x, u, variant)
        reason = wrong(result, x, u, y, kind)
        if reason:
            problem = {"number": number, "B": batch, "P": pixels, "C": channels, "gaps": gaps}
            problem |= {"dtype": str(dtype), "kind": kind, "variant": variant, "reason": reason}
            print(problem, flush=True)
            rows.append({**problem, "ok": False})
    return [*rows, {"problems": options.problems, "wrong": len(rows), "ok": not rows}]


def triton(_: argparse.Namespace) -> list[Row]:
    """The same problems by the Triton kernels: how many values and locations are the same."""
    from infodisent.kernels.rotate_pool import rotate_pool

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
        for kind in ("normal", "integers"):
            x, u, y = make(batch, pixels, channels, dtype, kind=kind)
            ours = call(x, u)
            theirs = Extremes(*rotate_pool(x, u, "bf16x3" if dtype == torch.float32 else None))
            same = [(a == b).float().mean().item() for a, b in zip(ours, theirs)]
            reasons = wrong(ours, x, u, y, kind), wrong(theirs, x, u, y, kind)
            # sums in another order can settle a near tie otherwise; whole numbers cannot
            ok = not any(reasons) and min(same[2:]) >= (1.0 if kind == "integers" else 0.999)
            row = {"B": batch, "P": pixels, "C": channels, "dtype": str(dtype), "kind": kind}
            row |= {"same": same, "reasons": reasons, "ok": ok}
            print(row, flush=True)
            rows.append(row)
    return rows


def float8(_: argparse.Namespace) -> list[Row]:
    """The float8 option beside its emulation: the same casts, and the same results of integers."""
    rows = []
    for pixels in (49, 64, 144, 196, 197, 60, 1000):
        for batch, channels in ((5, 208), (36000 // pixels, 512)):
            for dtype in (*HALF, torch.float32):
                for kind in ("normal", "integers", "nan", "inf"):
                    x, u, _ = make(batch, pixels, channels, dtype, kind == "nan", kind)
                    wanted = emulation.rotate_pool(x, u)
                    same_cast = True
                    for values, given in ((x, x), (u, u[:, None])):
                        codes, scale = cuda._to_float8(given)
                        right, right_scale = emulation.cast(values)
                        same_cast &= torch.equal(scale, right_scale)
                        wide, right_wide = codes.view(values.shape).float(), right.float()
                        same_cast &= torch.equal(wide.nan_to_num(7e7), right_wide.nan_to_num(7e7))
                    # of sums of as few bits as 14, and of the packed key
                    size = (x.float().nan_to_num(0, 0, 0).abs() @ u.float().abs().mT).amax(1)
                    bound = 1.2 * size * ((channels // 32 + 2) * 2.0**-13)
                    for variant in variants(x):
                        with poisoned_memory():
                            result = cuda.rotate_pool(
                                x, u, fp8=True, tile=variant[0], cluster=variant[1]
                            )
                        torch.cuda.synchronize()
                        same = [
                            (a.nan_to_num(7e7) == b.nan_to_num(7e7)).float().mean().item()
                            for a, b in zip(result, wanted)
                        ]
                        close = all(
                            torch.equal(result[i].isnan(), wanted[i].isnan())
                            and bool(((result[i] - wanted[i]).abs().nan_to_num() <= bound).all())
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
        x, u, _ = make(40, pixels, 512, dtype)
        wanted = call(x, u)
        same = all(all(torch.equal(a, b) for a, b in zip(call(x, u), wanted)) for _ in range(50))
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            static = cuda.rotate_pool(x, u)
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
    """The problems that run under compute-sanitizer."""
    rows = []
    for pixels, dtype, gaps in (
        (49, torch.bfloat16, False),
        (197, torch.float16, True),
        (577, torch.bfloat16, False),
        (49, torch.float32, False),
    ):
        x, u, _ = make(6, pixels, 136, dtype, gaps)
        for variant in variants(x):
            result = cuda.rotate_pool(x, u, tile=variant[0], cluster=variant[1])
            rows.append({"variant": variant, "ok": bool((result.pos >= 0).all())})
        if dtype == torch.float32:
            continue
        g = make_gradients(x)
        for cluster, splits in ((1, 1), (2, 1), (1, 3), (2, 2)):
            du = grad_u(*g[:2], x, *g[2:], dtype, cluster=cluster, splits=splits)
            variant = f"dU, cluster {cluster}, splits {splits}"
            rows.append({"variant": variant, "ok": bool(du.isfinite().all())})
    return rows
