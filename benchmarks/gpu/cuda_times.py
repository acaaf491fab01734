"""The times of `benchmarks.gpu_cuda`: every kernel beside torch.mm and Triton."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.cuda_problems import Row, call, make, variants, wrong
from infodisent.backends.cuda import module as cuda
from infodisent.bench import timing
from infodisent.bench.shapes import AT_224, OTHERS
from infodisent.files import write_json

MAPS = [
    AT_224[name]
    for name in (
        "resnet50",
        "resnet34",
        "densenet121",
        "convnext_large",
        "swin_small_patch4_window7_224",
        "vit_base_patch16_224",
    )
] + list(OTHERS.values())
"""The bars' maps first, then those that take other tiles."""


PRODUCT = "torch.mm"


def runners(x: Tensor, u: Tensor, y: Tensor) -> dict[str, timing.Work]:
    """What is timed, by name: replays of CUDA graphs. A wrong variant is left out.

    A call from Python can take the host longer than the device takes for it, and longer than the
    device is busy with flushing L2 before it; a replay is launched at once.
    """
    from infodisent.kernels.rotate_pool import rotate_pool

    def of(function: Callable[..., Any], *rest: Any, **options: Any) -> timing.Work:
        return timing.captured(lambda: function(x, *rest, **options))

    runs = {
        "cuda": of(cuda.rotate_pool, u),
        "triton": of(rotate_pool, u),
        PRODUCT: of(lambda x: torch.mm(x.flatten(0, 1), u.mT)),
    }
    if x.dtype == torch.float32:
        runs["triton bf16x3"] = of(rotate_pool, u, "bf16x3")
    for tile, cluster in variants(x):
        reason = wrong(call(x[:4], u, (tile, cluster)), x[:4], u, y[:4])
        if reason:
            print(tile, cluster, reason, flush=True)
        else:
            runs[f"cuda {tile} {cluster}"] = of(cuda.rotate_pool, u, tile=tile, cluster=cluster)
    return runs


def times(options: argparse.Namespace) -> list[Row]:
    """Medians of interleaved runs by CUDA events; L2 is flushed before each.

    "of torch.mm": the rate, in parts of that of the bare product in the same call.
    """
    rows: list[Row] = []
    for batch in options.batch:
        for size in MAPS:
            channels, pixels = size.channels, size.pixels
            for dtype in (torch.bfloat16, torch.float32):
                if dtype == torch.float32 and (batch != 256 or channels * pixels > 2048 * 100):
                    continue
                runs = runners(*make(batch, pixels, channels, dtype))
                seconds = timing.medians(runs, options.rounds, timing.event_clock(), warmup=3)
                flops = 2.0 * batch * pixels * channels**2
                row: Row = {"map": size.title, "B": batch, "C": channels, "P": pixels}
                row |= {"dtype": str(dtype), "ok": True}
                row["us"] = {k: round(v * 1e6, 2) for k, v in seconds.items()}
                row["tflops"] = {k: round(flops / v / 1e12, 1) for k, v in seconds.items()}
                row["of torch.mm"] = {k: round(seconds[PRODUCT] / v, 3) for k, v in seconds.items()}
                print(row, flush=True)
                rows.append(row)
                if options.out:  # what there is if time runs out
                    write_json(options.out, {"rows": rows})
    return rows
