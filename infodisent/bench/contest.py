"""Backends against each other on one map: judged by float64, then timed, for `infodisent tune`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from infodisent import ops
from infodisent.backends.choices import Map, Timing
from infodisent.bench import peers, timing
from infodisent.bench.labels import check_served
from infodisent.layout import to_bpc
from infodisent.testing import WrongResultError, check_close, check_extremes, gradient_truth

JUDGED = 8
"""Images that are compared with float64, the first and the last among them."""
ROUNDS = 15
ALLOWED = {torch.float32: 2.0**-14, torch.bfloat16: 2.0**-9, torch.float16: 2.0**-9}
"""Of the largest value: what products of the coarsest operands and packed keys leave."""


class Stopwatch(NamedTuple):
    """How works are timed: what makes one of a function, and the clock."""

    captured: Callable[[timing.Work], timing.Work]
    clock: timing.Clock


def stopwatch() -> Stopwatch:
    """Of a GPU: replays of CUDA graphs by CUDA events."""
    return Stopwatch(timing.captured, timing.event_clock())


def contest(
    size: tuple[int, int, int],  # C, H, W
    batch: int,
    dtype: torch.dtype,
    device: torch.device,
    contestants: dict[str, tuple[str, ...]],
    watch: Stopwatch,
) -> tuple[Timing, dict[str, str]]:
    """Microseconds of every backend that is right, and what is wrong with the others.

    Args:
        size: of a map, channels last.
        batch: images.
        dtype: of the map and of U.
        device: where.
        contestants: by name the backends that may serve its calls, its stand-in's among them.
        watch: how to time.
    """
    channels, height, width = size
    g = torch.Generator("cpu").manual_seed(0)
    x = torch.randn(batch, channels, height, width, generator=g).to(device, dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    u = torch.linalg.qr(torch.randn(channels, channels, generator=g))[0].to(device, dtype)
    leaf = u.contiguous().requires_grad_()
    grad = torch.randn(batch, channels, generator=g).to(device)
    works: dict[tuple[str, int], timing.Work] = {}
    wrong: dict[str, str] = {}
    for name, served in contestants.items():
        try:
            _judge(name, x, leaf)
            runs = _runs(name, x, leaf, grad)
            for run in runs:
                check_served(name, run, served)
        except (WrongResultError, RuntimeError) as error:
            wrong[name] = str(error).splitlines()[0]
            continue
        for number, run in enumerate(runs):
            works[name, number] = watch.captured(run)
    seconds = timing.medians(works, ROUNDS, watch.clock, warmup=3)
    times = {
        name: (seconds[name, 0] * 1e6, seconds[name, 1] * 1e6)
        for name in contestants
        if name not in wrong
    }
    of = Map(str(dtype).removeprefix("torch."), channels, height * width)
    return Timing(of, batch, times), wrong


def _runs(name: str, x: Tensor, leaf: Tensor, grad: Tensor) -> Sequence[Callable[[], Any]]:
    """The forward; forward and backward for U."""
    pooled = peers.by(name, peers.pooled)

    def forward() -> None:
        with torch.no_grad():
            pooled(x, leaf)

    def step() -> None:
        torch.autograd.grad(pooled(x, leaf), leaf, grad)

    return forward, step


def _judge(name: str, x: Tensor, leaf: Tensor) -> None:
    """Raise unless values, places and the gradient of U are right.

    Raises:
        WrongResultError: they are not.
        BackendError: the backend does not serve this.
    """
    some = torch.linspace(0, len(x) - 1, min(JUDGED, len(x))).long().unique().to(x.device)
    pool = peers.by(name, ops.rotate_pool)(x, leaf)
    rows, u = to_bpc(x, "NCHW")[some], leaf.detach()
    allowed = ALLOWED[x.dtype]
    check_extremes(
        tuple(t[some] for t in pool),
        rows.double() @ u.double().mT,
        relative_tolerance=allowed,
        signed_zeros=True,
        what=name,
    )
    fewer = peers.by(name, ops.rotate_pool)(x[some], leaf)
    (du,) = torch.autograd.grad(fewer.pooled.sum(), leaf)
    ones = torch.ones_like(fewer.pooled)
    truth = gradient_truth(ones, ones, rows, u, fewer.pos_index, fewer.neg_index).du
    check_close(du, truth, 4 * allowed, f"{name}: dU")
