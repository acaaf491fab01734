"""The stage "gradient" of `benchmarks.gpu_cuda`: dU by every kernel, against float64."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from benchmarks.gpu.cuda_problems import (
    HALF,
    Gradients,
    Row,
    make,
    make_gradients,
    wrong_gradient,
)
from infodisent.backends.cuda.rotate_pool_backward import grad_u
from infodisent.testing import poisoned_memory

PIXELS = (1, 7, 31, 49, 64, 144, 196, 197, 256, 577)
"""Every piece of `csrc/sm90/grad_u_schedule.h`, with and without images that share one."""
SIZES = ((5, 136), (9, 512), (3, 2048))
"""(B, C): tiles that are not full, several of them, the largest."""
KINDS = ("normal", "integers", "nan", "inf")


def gradient(_: argparse.Namespace) -> list[Row]:
    """Pieces, clusters, parts of the batch, dtypes, gaps, NaN and Inf; wrong ones are listed."""
    rows: list[Row] = []
    done = 0
    for number, pixels in enumerate(PIXELS):
        for batch, channels in SIZES:
            for dtype in HALF:
                for kind in KINDS:
                    seed = done
                    gaps = (number + seed) % 3 == 0
                    x = make(batch, pixels, channels, dtype, gaps, kind, seed)[0]
                    g = make_gradients(x, kind, seed)
                    found = wrong_variants(x, g, kind)
                    problem: Row = {"B": batch, "P": pixels, "C": channels, "dtype": str(dtype)}
                    problem |= {"kind": kind, "gaps": gaps}
                    done += found.pop("calls")
                    for variant, reason in found.items():
                        row = {**problem, "variant": variant, "reason": reason, "ok": False}
                        print(row, flush=True)
                        rows.append(row)
    return [*rows, {"problems": done, "wrong": len(rows), "ok": not rows}]


def wrong_variants(
    x: Tensor,  # [B, P, C]
    g: Gradients,
    kind: str,
) -> Row:
    """Of one problem: "calls", and for each cluster and number of parts what is wrong, if any."""
    found: Row = {"calls": 0}
    for cluster in (None, 1, 2):
        for splits in (None, 1, 2, len(x)):
            # both results in turn: in the dtype of x, and float32
            out = x.dtype if found["calls"] % 2 else torch.float32
            with poisoned_memory():
                du = grad_u(*g[:2], x, *g[2:], out, cluster=cluster, splits=splits)
            reason = wrong_gradient(du, x, g, kind)
            if reason:
                found[f"cluster {cluster}, splits {splits}, {out}"] = reason
            found["calls"] += 1
    return found
