"""Modules that hold parameters: `Rotation`, `MxPool`, `NonNegativeLinear`."""

from __future__ import annotations

from typing import Any

from infodisent.nn.linear import NONNEG, NonNegativeLinear
from infodisent.nn.mx_pool import MxPool
from infodisent.nn.rotation import PARAMETRIZATIONS, Rotation

__all__ = [
    "NONNEG",
    "PARAMETRIZATIONS",
    "InfoDisentHead",
    "MxPool",
    "NonNegativeLinear",
    "Rotation",
]


def __getattr__(name: str) -> Any:
    # version 0.1 had the head here, and people import it from here
    if name == "InfoDisentHead":
        from infodisent.methods.infodisent import InfoDisentHead

        return InfoDisentHead
    raise AttributeError(f"module 'infodisent.nn' has no attribute {name!r}")
