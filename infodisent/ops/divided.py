"""`rotation` by all processes of a job together, see `infodisent.ranks`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from infodisent import ranks
from infodisent.backends.selection import implementation, select
from infodisent.backends.sparse.divided import DividedPasses, LedPasses
from infodisent.backends.sparse.passes import TorchPasses
from infodisent.backends.sparse.rotation import SkewExponential
from infodisent.backends.sparse.shared import SharedPasses
from infodisent.ops.register import no_autocast, once
from infodisent.shared_memory import workspace

DIVIDED_FROM = 384
"""Channels from which processes on the CPUs of one machine, which share memory, are faster together
than each by itself, as ``torchrun -m benchmarks.divided_rotation`` has it. On GPUs, where nothing
was measured, never."""
DIVIDED_BY_MESSAGES_FROM = 768
"""The same where they share none and tell each other by messages."""


def divides(A: Tensor) -> bool:
    """Whether `divided_rotation` is the faster one here; the same in all processes of a job.

    They have to ask at the same time: the first time they see whether they share memory.

    Args:
        A: ``[C, C]``.
    """
    if ranks.world() == 1 or A.device.type != "cpu" or len(A) < DIVIDED_FROM:
        return False
    return len(A) >= DIVIDED_BY_MESSAGES_FROM or workspace(_wide(A)) is not None


def divided_rotation(A: Tensor, *, precision: str = "full") -> Tensor:
    """As `infodisent.ops.rotation`, every process computing rows of each product.

    Every process of the job has to call it with the same A, and backward as often and in the same
    order, or they wait for each other for ever. Results are the same bits in all of them.

    The gradient of A is that of the mean over the processes of their gradients of U, since only
    then can the products behind it be divided: `infodisent.ranks.average_gradients` leaves it as it
    is, up to rounding.

    Args:
        A, precision: as there; no transformation of ``torch.func`` and no compiler looks on.

    Returns:
        U: ``[C, C]`` in A's dtype.

    Raises:
        RankError: another process has ended.
        RuntimeError: a second derivative is asked for.
    """
    wide = _wide(A)
    backend = implementation(select("rotation", wide), "rotation", wide)
    whole = backend.kernels.rotation
    if not isinstance(whole, SkewExponential):
        from infodisent.ops.rotation import rotation

        return rotation(A, precision=precision)
    with no_autocast(A):
        u: Tensor = _Divided.apply(wide, SkewExponential(_passes(whole.passes, wide)), precision)
    return u.to(A.dtype)


def _wide(a: Tensor) -> Tensor:
    return a.float() if a.dtype in (torch.float16, torch.bfloat16) else a


def _passes(alone: TorchPasses, a: Tensor) -> LedPasses:
    """Those of all processes: by memory they share, or, on several machines, by messages."""
    space = workspace(a)
    return DividedPasses(alone) if space is None else SharedPasses(alone, space)


class _Divided(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, exponential: SkewExponential, precision: str) -> Tensor:
        u, *kept = exponential.rotation(a.contiguous(), precision)
        ctx.save_for_backward(a, *kept)
        ctx.exponential, ctx.precision = exponential, precision
        return u

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        a, kept, decisions = ctx.saved_tensors
        with no_autocast(a):
            mean = ctx.exponential.passes.mean(grad)
            da = ctx.exponential.rotation_backward(
                mean, a.contiguous(), kept, decisions, ctx.precision
            )
        return da, None, None
