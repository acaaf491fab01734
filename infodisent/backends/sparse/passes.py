"""What happens between the large products: sums, transposes, norms, and products of known symmetry.

The compiled module does each in one pass over the matrices where it is there (`native`); otherwise
torch does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from infodisent.backends.native import module as _native

_MIN_SPLIT = 256
"""Below this size a product is too short to gain from leaving half of it out."""


def combine(
    native: bool,
    inputs: list[Tensor],
    outputs: list[Tensor],
    coefficient: list[list[float]],
    parity: list[int],
) -> None:
    """``out_r = P_r(sum_k coefficient[r][k] in_k)`` for C x C matrices.

    ``P_r(M)`` is M, ``M + M^T`` or ``M - M^T`` for parity 0, 1, -1. An output may be an input. An
    input whose coefficient is zero is not read.
    """
    if native:
        _native.combine(inputs, outputs, coefficient, parity)
        return
    results = []
    for row, sign in zip(coefficient, parity, strict=True):
        total: Tensor | None = None
        for c, x in zip(row, inputs, strict=True):
            if c != 0:
                total = x * c if total is None else total.add_(x, alpha=c)
        if total is None:
            total = torch.zeros_like(outputs[0])
        results.append(total.add(total.mT, alpha=sign) if sign else total)
    for out, result in zip(outputs, results, strict=True):
        out.copy_(result)


def product(native: bool, a: Tensor, b: Tensor, out: Tensor, sign: int) -> None:
    """``out = a b`` where the result is known to be symmetric (sign 1) or skew (-1).

    Only the lower half is multiplied, in a few block rows, and then mirrored. What that gains is
    the difference to "no compiled passes" in ``benchmarks/rotation_report.py``.
    """
    n = len(a)
    if not native or n < _MIN_SPLIT:
        torch.mm(a, b, out=out)
        return
    rows = -(-n // (4 if n < 768 else 6))
    for i in range(0, n, rows):
        end = min(n, i + rows)
        torch.mm(a[i:end], b[:, :end], out=out[i:end, :end])
    _native.mirror(out, sign)


def norms(native: bool, x: Tensor) -> tuple[float, float]:
    """1-norm of a symmetric matrix, and its sum of squares; waits for the device."""
    if native:
        return _native.norms(x)
    one = torch.linalg.vector_norm(x, 1, dim=1).amax()
    squares = torch.linalg.vector_norm(x).square()
    found: list[float] = torch.stack([one, squares]).double().tolist()
    return found[0], found[1]
