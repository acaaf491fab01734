"""What happens between the large products: sums, transposes, norms, and products of known symmetry.

`TorchPasses` does it with torch's operators, one pass over the matrices an operation;
`infodisent.backends.native.passes` has the compiled form, one pass a call.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 6
"""Rows of a tile of the compiled product, ``kRows`` of ``csrc/cpu/rotate_pool_tiles.h``."""


class TorchPasses:
    """The passes of `SkewExponential`, for any device."""

    def combine(
        self,
        inputs: list[Tensor],  # each [C, C]
        outputs: list[Tensor],  # each [C, C]
        coefficient: list[list[float]],  # [outputs][inputs]
        parity: list[int],
    ) -> None:
        """``out_r = P_r(sum_k coefficient[r][k] in_k)`` for C x C matrices.

        ``P_r(M)`` is M, ``M + M^T`` or ``M - M^T`` for parity 0, 1, -1. An output may be an input.
        An input whose coefficient is zero is not read.
        """
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

    def product(
        self,
        a: Tensor,  # [C, C]
        b: Tensor,  # [C, C]
        out: Tensor,  # [C, C]
        sign: int,
    ) -> None:
        """``out = a b`` where the result is known to be symmetric (sign 1) or skew (-1)."""
        torch.mm(a, b, out=out)

    def multiply(
        self,
        a: Tensor,  # [C, C], or the transpose of such a matrix
        b: Tensor,  # [C, C], or the transpose of such a matrix
        out: Tensor,  # [C, C]
        addend: Tensor | None = None,  # [C, C], may be `out`
        scale: float = 1.0,
    ) -> None:
        """``out = a b + scale * addend``."""
        if addend is None:
            torch.mm(a, b, out=out)
        else:
            torch.addmm(addend, a, b, beta=scale, out=out)

    def rows(
        self,
        a: Tensor,  # [C, C], or the transpose of such a matrix
        b: Tensor,  # [C, C], or the transpose of such a matrix
        out: Tensor,  # [C, C]
        which: tuple[int, int],
        addend: Tensor | None = None,  # [C, C], may be `out`
        scale: float = 1.0,
        parity: int = 0,
    ) -> None:
        """Rows ``which[0] ... which[1] - 1`` of what `multiply` gives.

        With a parity, of what `product` gives; above the diagonal they then hold anything, until
        `mirror` has been there. Both ends are multiples of `ROWS`, or the end is C.
        """
        first, last = which
        columns = last if parity else len(b)
        own, factors = out[first:last, :columns], (a[first:last], b[:, :columns])
        if addend is None:
            torch.mm(*factors, out=own)
        else:
            torch.addmm(addend[first:last, :columns], *factors, beta=scale, out=own)

    def mirror(
        self,
        x: Tensor,  # [C, C]
        sign: int,
    ) -> None:
        """x becomes symmetric (1) or skew (-1) by what stands below its diagonal."""
        below, diagonal = x.tril(-1), x.diagonal().clone()
        torch.add(below, below.mT, alpha=sign, out=x)
        if sign > 0:
            x.diagonal().copy_(diagonal)

    def norms(self, x: Tensor) -> tuple[float, float]:
        """1-norm of a symmetric matrix [C, C], and its sum of squares; waits for the device."""
        one = torch.linalg.vector_norm(x, 1, dim=1).amax()
        squares = torch.linalg.vector_norm(x).square()
        both: list[float] = torch.stack([one, squares]).tolist()
        return both[0], both[1]

    def inner(self, x: Tensor, y: Tensor) -> float:
        """Sum over x · y, both [C, C]; waits for the device."""
        total: float = torch.dot(x.reshape(-1), y.reshape(-1)).item()
        return total
