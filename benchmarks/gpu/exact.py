"""Whole numbers, which every order of summation adds up exactly: values, places, ties, gradients.

A wrong descriptor, swizzle, parity or bound shows here at once, and no tolerance can hide it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.cases import DTYPES, FIRST, Report
from benchmarks.gpu.machine import Machine
from infodisent import ops
from infodisent.bench import peers as ways
from infodisent.bench.labels import check_served
from infodisent.testing import Kind, check_extremes, gradient_truth, random_map, require

SIZES = ((4, 49, 64), (4, 49, 512), (1, 196, 64), (3, 197, 192), (1, 49, 440))
"""(B, P, C): the smallest first; an image alone, tokens, channels that are no multiple of 16."""

KINDS: tuple[Kind, ...] = ("integers", "ties")


def items(machine: Machine, minutes: int) -> Iterator[tuple[str, Callable[[], Report]]]:
    """U = I first, where a wrong result tells which entry went where; then integers and ties.

    Every size and dtype is compiled first, which takes seconds: a first minute has room for few.
    """
    dtypes, sizes, kinds = DTYPES, SIZES, KINDS
    if minutes < 10:
        dtypes, sizes, kinds = FIRST, SIZES[:2], KINDS[:1]
    for name in machine.ours:
        yield f"{name}: identity", lambda name=name: identity(machine, name)
        for dtype in dtypes:
            for batch, pixels, channels in dict.fromkeys(
                (b, p, min(c, machine.wide)) for b, p, c in sizes
            ):
                for kind in kinds:
                    label = f"{name}: {kind}, {dtype}, {batch}x{pixels}x{channels}"
                    problem = batch, pixels, channels
                    yield (
                        label,
                        lambda name=name, p=problem, d=dtype, k=kind: integers(
                            machine, name, p, d, k
                        ),
                    )


def identity(machine: Machine, name: str) -> Report:
    """Distinct small numbers and U = I: what comes out where."""
    batch, pixels, channels = 4, 49, 64
    number = torch.arange(batch * pixels * channels) * 7919 % 251 - 125
    x = number.view(batch, pixels, channels).to(machine.device, torch.bfloat16)
    u = torch.eye(channels, device=machine.device, dtype=torch.bfloat16)
    run = _pool(name, x, u)
    check_served(name, run, machine.ours[name])
    check_extremes(run(), x.double(), exact=True, what=name)
    return {"ok": True}


def _pool(name: str, x: Tensor, u: Tensor) -> Callable[[], Any]:
    return lambda: ways.by(name, ops.rotate_pool)(x, u, input_fmt="NLC")


def integers(
    machine: Machine, name: str, problem: tuple[int, int, int], dtype: str, kind: Kind
) -> Report:
    """Values, places and both gradients of one problem, to the last bit."""
    x, u, y = random_map(*problem, dtype=DTYPES[dtype], device=machine.device, kind=kind, seed=3)
    x, u = x.detach().requires_grad_(), u.requires_grad_()
    pool = _pool(name, x, u)()
    # low parts of a split float32 U are never 0
    least = 1e-30 if dtype == "fp32" else 0.0
    check_extremes(pool, y, exact=True, least=least, signed_zeros=True, what=name)
    g = torch.Generator().manual_seed(1)
    grad = torch.randint(-2, 3, pool.pooled.shape, generator=g).to(machine.device).float()
    found = torch.autograd.grad(pool.pooled, (x, u), grad)
    truth = gradient_truth(grad, grad, x, u, pool.pos_index, pool.neg_index)
    for what, ours, right in zip(("dX", "dU"), found, truth, strict=True):
        require(torch.equal(ours, right.to(ours.dtype)), f"{name}: {what} is not exact")
    return {"ok": True}
