"""Random shapes, layouts and dtypes on a GPU against float64."""

from __future__ import annotations

import time

import torch

from benchmarks import gpu_cases
from infodisent import backends, ops
from infodisent.testing import (
    WrongResultError,
    check_close,
    check_extremes,
    gradient_truth,
    random_map,
)

IMAGES = ((7, 7), (14, 14), (1, 1), (5, 10), (12, 12), (24, 25), (3, 4))
"""Few distinct sizes: each is compiled once."""


def random_shapes(
    count: int = 2000, seed: int = 0, deadline: float = float("inf")
) -> gpu_cases.Report:
    """Forward and gradient of U of `count` random problems, as far as they go until `deadline`."""
    g = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=g))

    mismatches: list[str] = []
    done = 0
    for _ in range(count):
        if time.monotonic() > deadline:
            break
        h, w = IMAGES[draw(0, len(IMAGES))]
        c, batch = draw(1, 40) * (8 if draw(0, 3) else 1), draw(1, 9)
        dtype = list(gpu_cases.DTYPES.values())[draw(0, 3)]
        view, u, y = random_map(
            batch, h * w, c, dtype=dtype, device=gpu_cases.DEVICE, seed=draw(0, 1 << 30)
        )
        x = view.unflatten(1, (h, w)).permute(0, 3, 1, 2)  # channels last
        if not draw(0, 2):
            x = x.contiguous()
        # every third by the CUDA kernel, where it can read such a map
        by_cuda = gpu_cases.has_cuda() and done % 3 == 2 and c % 8 == 0
        u.requires_grad_()
        with backends.use_backend("cuda" if by_cuda else "triton"):
            pool = ops.rotate_pool(x, u)
        (du,) = torch.autograd.grad(pool.pooled.sum(), u)
        half = dtype != torch.float32
        try:
            check_extremes(pool, y, relative_tolerance=2**-12 if half else 1e-5)
            ones = torch.ones_like(pool.pooled)
            truth = gradient_truth(ones, ones, view, u, pool.pos_index, pool.neg_index).du
            check_close(du, truth, 2 * torch.finfo(dtype).eps if half else 1e-5, "dU")
        except WrongResultError as error:
            mismatches.append(f"{tuple(x.shape)} {dtype} {x.stride()}: {error}")
        done += 1
    return {"shapes": done, "mismatches": mismatches[:20], "wrong": len(mismatches)}
