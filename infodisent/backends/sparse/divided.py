"""The products of a rotation divided by rows over the processes of a job."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from infodisent import ranks
from infodisent.backends.sparse.passes import ROWS, TorchPasses


def boundaries(rows: int, parts: int, triangle: bool) -> list[int]:
    """Where the parts of a matrix's rows begin, and `rows`: ``[parts + 1]``, ascending.

    Args:
        rows: of the matrix.
        parts: how many; some are empty where there are few rows.
        triangle: the parts are to have as much below the diagonal, not as many rows.
    """
    shares = [k / parts for k in range(parts + 1)]
    if triangle:
        shares = [math.sqrt(share) for share in shares]
    return [min(rows, round(rows * share / ROWS) * ROWS) for share in shares[:-1]] + [rows]


class DividedPasses(TorchPasses):
    """Every process computes rows of each product, and they tell each other.

    All of them have to make the same calls in the same order, on the same numbers. Products are the
    same bits in all of them; so is every decision that depends on a norm, which is the leading
    process's: another processor may round another way.

    Args:
        passes: what a process does by itself.
    """

    def __init__(self, passes: TorchPasses) -> None:
        self.passes = passes

    def combine(
        self,
        inputs: list[Tensor],
        outputs: list[Tensor],
        coefficient: list[list[float]],
        parity: list[int],
    ) -> None:
        """See `TorchPasses.combine`; short beside a product, so everybody does all of it."""
        self.passes.combine(inputs, outputs, coefficient, parity)

    def product(self, a: Tensor, b: Tensor, out: Tensor, sign: int) -> None:
        """See `TorchPasses.product`."""
        self._divided(a, b, out, parity=sign)
        self.passes.mirror(out, sign)

    def multiply(
        self, a: Tensor, b: Tensor, out: Tensor, addend: Tensor | None = None, scale: float = 1.0
    ) -> None:
        """See `TorchPasses.multiply`."""
        self._divided(a, b, out, addend, scale)

    def norms(self, x: Tensor) -> tuple[float, float]:
        """See `TorchPasses.norms`."""
        one, squares = self._told(*self.passes.norms(x))
        return one, squares

    def inner(self, x: Tensor, y: Tensor) -> float:
        """See `TorchPasses.inner`."""
        return self._told(self.passes.inner(x, y))[0]

    def _divided(
        self,
        a: Tensor,
        b: Tensor,
        out: Tensor,
        addend: Tensor | None = None,
        scale: float = 1.0,
        parity: int = 0,
    ) -> None:
        at, me = boundaries(len(out), ranks.world(), parity != 0), ranks.rank()
        if at[me] < at[me + 1]:
            self.passes.rows(a, b, out, (at[me], at[me + 1]), addend, scale, parity)
        ranks.exchange(out, at)

    def _told(self, *numbers: float) -> list[float]:
        both = torch.tensor(numbers, dtype=torch.float64)
        ranks.exchange(both, [0, *[len(numbers)] * ranks.world()])
        told: list[float] = both.tolist()
        return told
