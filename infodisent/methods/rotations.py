"""Which rotations of a head training moves beside its parameters."""

from __future__ import annotations

from collections.abc import Sequence

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
