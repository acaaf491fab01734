"""Random shapes, layouts and dtypes on a GPU against float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from benchmarks.gpu.cases import DTYPES, Report
from benchmarks.gpu.machine import Machine
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


def items(machine: Machine, minutes: int) -> Iterator[tuple[str, Callable[[], Report]]]:
    """So many as go into the time."""
    return in_parts(machine, minutes, several)


def in_parts(
    machine: Machine, minutes: int, several: Callable[[Machine, int, int], Report]
) -> Iterator[tuple[str, Callable[[], Report]]]:
    """Numbers of problems that go into the time, some at a time: what is done stays done."""
    for start in range(0, machine.shapes[minutes], machine.together):
        stop = start + machine.together
        yield f"{start} to {stop - 1}", lambda a=start, b=stop: several(machine, a, b)


def several(machine: Machine, start: int, stop: int) -> Report:
    """The problems of these numbers."""
    return outcome(machine, start, stop, mismatch)


def outcome(
    machine: Machine, start: int, stop: int, mismatch: Callable[[Machine, int], str]
) -> Report:
    """What `mismatch` says of the problems of these numbers."""
    mismatches = [wrong for number in range(start, stop) if (wrong := mismatch(machine, number))]
    return {"shapes": stop - start, "mismatches": mismatches, "ok": not mismatches}


def mismatch(machine: Machine, number: int) -> str:
    """What is wrong with the forward or the gradient of U of one problem, or nothing."""
    g = torch.Generator().manual_seed(number)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=g))

    h, w = IMAGES[draw(0, len(IMAGES))]
    c, batch = draw(1, 40) * (8 if draw(0, 3) else 1), draw(1, 9)
    dtype = list(DTYPES.values())[draw(0, 3)]
    view, u, y = random_map(
        batch, h * w, c, dtype=dtype, device=machine.device, seed=draw(0, 1 << 30)
    )
    x = view.unflatten(1, (h, w)).permute(0, 3, 1, 2)  # channels last
    if not draw(0, 2):
        x = x.contiguous()
    # every third by the second backend, where that can read such a map
    names = list(machine.ours)
    second = len(names) > 1 and number % 3 == 2 and c % 8 == 0
    u.requires_grad_()
    half = dtype != torch.float32
    try:
        with backends.use_backend(names[second]):
            pool = ops.rotate_pool(x, u)
        (du,) = torch.autograd.grad(pool.pooled.sum(), u)
        check_extremes(pool, y, relative_tolerance=2**-12 if half else 1e-5, signed_zeros=True)
        ones = torch.ones_like(pool.pooled)
        truth = gradient_truth(ones, ones, view, u, pool.pos_index, pool.neg_index).du
        check_close(du, truth, 2 * torch.finfo(dtype).eps if half else 1e-5, "dU")
    except WrongResultError as error:
        return f"{number}: {tuple(x.shape)} {dtype} {x.stride()}, {names[second]}: {error}"
    return ""
