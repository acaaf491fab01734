"""What happens between the large products: sums, transposes, norms, and products of known symmetry.

`TorchPasses` does it with torch's operators, one pass over the matrices an operation;
`infodisent.backends.native.passes` has the compiled form, one pass a call.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ROWS = 6
"""Rows of a tile of the compiled product, ``kRows`` of ``csrc/cpu/rotate_pool_tiles.h``."""


def boundaries(count: int, parts: int, *, unit: int = ROWS, triangle: int = 0) -> list[int]:
    """Where the parts of a matrix's rows or columns begin, and `count`: ``[parts + 1]``, ascending.

    Args:
        count: rows or columns of the matrix.
        parts: how many; some are empty where there are few rows.
        unit: every part but the last has a multiple of it.
        triangle: 0: the parts have about as many rows each. 1: they have as much of the triangle
            below the diagonal by rows, of which the last are the longest; -1: by columns, of which
            the first are.
    """
    shares = [k / parts for k in range(parts + 1)]
    if triangle > 0:
        shares = [math.sqrt(share) for share in shares]
    elif triangle < 0:
        shares = [1 - math.sqrt(1 - share) for share in shares]
    return [min(count, round(count * share / unit) * unit) for share in shares[:-1]] + [count]


class TorchPasses:
    """The passes of `SkewExponential`, for any device."""

    def empty_like(self, x: Tensor) -> Tensor:
        """Where a result goes, uninitialised: [C, C]."""
        return torch.empty_like(x, memory_format=torch.contiguous_format)

    def empty_stack(self, x: Tensor, count: int) -> Tensor:
        """Where results go that backward needs, uninitialised: [count, C, C]."""
        return x.new_empty(count, *x.shape)

    def own(self, x: Tensor) -> Tensor:
        """The last result of a rotation or its adjoint, the caller's from now on."""
        return x

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

    def combine_share(
        self,
        inputs: list[Tensor],
        outputs: list[Tensor],
        coefficient: list[list[float]],
        parity: list[int],
        share: tuple[int, int],
    ) -> None:
        """Share ``share[0]`` of ``share[1]`` of what `combine` does: together they do all of it.

        They may run at once: each writes other elements. An output with a parity is no input then.
        """
        at = boundaries(len(outputs[0]), share[1])
        first, last = at[share[0]], at[share[0] + 1]
        for out, row, sign in zip(outputs, coefficient, parity, strict=True):
            own = out[first:last]
            results = []
            for part in ([x[first:last] for x in inputs], [x[:, first:last].mT for x in inputs]):
                total = torch.zeros_like(own)
                for c, x in zip(row, part, strict=True):
                    if c != 0:
                        total.add_(x, alpha=c)
                results.append(total)
                if not sign:
                    break
            own.copy_(results[0].add_(results[1], alpha=sign) if sign else results[0])

    def multiply_share(
        self,
        a: Tensor,
        b: Tensor,
        out: Tensor,
        share: tuple[int, int],
        addend: Tensor | None = None,
        scale: float = 1.0,
        parity: int = 0,
    ) -> None:
        """Share ``share[0]`` of ``share[1]`` of what `multiply` gives, `product` with a parity.

        All shares together are the whole, and they may run at once: each writes other elements.
        """
        at = boundaries(len(out), share[1])
        self.rows(a, b, out, (at[share[0]], at[share[0] + 1]), addend, scale)

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

    def trace(self, x: Tensor) -> float:
        """Sum of the diagonal of x [C, C], in double precision; waits for the device."""
        total: float = x.diagonal().sum(dtype=torch.float64).item()
        return total
