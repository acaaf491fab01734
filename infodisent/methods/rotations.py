"""The rotations of a head, as training meets them: what moves, how far, and who computes them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from infodisent.methods.base import Head
from infodisent.nn.rotation import Rotation


def moved_rotations(
    head: Head,
    trained: Sequence[nn.Parameter],
) -> list[Rotation]:
    """Those of parametrization "lie" whose parameter is in `trained`: their base is what moves."""
    return [
        module
        for module in head.modules()
        if isinstance(module, Rotation)
        and module.parametrization == "lie"
        and any(module.A is parameter for parameter in trained)
    ]


def turn_rotations(head: nn.Module, norm: float) -> None:
    """Turn rotations under "exp" in a random plane of channels, in place, from zero.

    What the exponential costs depends on how far; under "lie" the parameter returns to zero.

    Args:
        head: whose rotations they are.
        norm: spectral norm of ``A - A^T`` then.
    """
    with torch.no_grad():
        for module in head.modules():
            if isinstance(module, Rotation) and module.parametrization == "exp":
                a = module.A
                first, second = torch.linalg.qr(torch.randn(len(a), 2)).Q.T.to(a)
                a.add_((first.outer(second) - second.outer(first)) * (norm / 2))


@contextlib.contextmanager
def divided_rotations(head: Head) -> Iterator[None]:
    """The processes of a job compute the head's rotations together in the block.

    All of them must do the same with the head there, see `infodisent.ops.divided`.
    """
    rotations = [module for module in head.modules() if isinstance(module, Rotation)]
    before = [rotation.divided for rotation in rotations]
    try:
        for rotation in rotations:
            rotation.divided = True
        yield
    finally:
        for rotation, was in zip(rotations, before, strict=True):
            rotation.divided = was
