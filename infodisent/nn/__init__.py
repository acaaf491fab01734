"""Modules: `Rotation`, `MxPool`, `NonNegativeLinear`, and the whole head, `InfoDisentHead`."""

from infodisent.nn.head import InfoDisentHead
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
