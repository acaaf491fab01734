"""The products of a rotation divided by rows over the processes of a job."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from infodisent import ranks
from infodisent.backends.sparse.passes import TorchPasses, boundaries


class LedPasses(TorchPasses):
    """Passes of several processes whose decisions are the leading one's.

    They depend on sums, and another processor may round another way.

    Args:
        passes: what a process does by itself.
    """

    def __init__(self, passes: TorchPasses) -> None:
        self.passes = passes

    def mean(self, x: Tensor) -> Tensor:
        """The mean of what the processes have as x [C, C], in all of them."""
        return ranks.total(x.contiguous()).div_(ranks.world())

    def norms(self, x: Tensor) -> tuple[float, float]:
        """See `TorchPasses.norms`."""
        one, squares = self.told(2, lambda: self.passes.norms(x))
        return one, squares

    def inner(self, x: Tensor, y: Tensor) -> float:
        """See `TorchPasses.inner`."""
        return self.told(1, lambda: (self.passes.inner(x, y),))[0]

    def trace(self, x: Tensor) -> float:
        """See `TorchPasses.trace`."""
        return self.told(1, lambda: (self.passes.trace(x),))[0]

    def told(self, count: int, find: Callable[[], Sequence[float]]) -> list[float]:
        """So many numbers that the leading process finds; the others wait."""
        numbers = torch.zeros(count, dtype=torch.float64)
        if ranks.leads():
            numbers.copy_(torch.tensor(find(), dtype=torch.float64))
        ranks.exchange(numbers, [0, *[count] * ranks.world()])
        told: list[float] = numbers.tolist()
        return told


class DividedPasses(LedPasses):
    """Every process computes rows of each product, and they tell each other.

    All of them have to make the same calls in the same order, on the same numbers. Products are the
    same bits in all of them.

    Args:
        passes: what a process does by itself.
    """

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

    def _divided(
        self,
        a: Tensor,
        b: Tensor,
        out: Tensor,
        addend: Tensor | None = None,
        scale: float = 1.0,
        parity: int = 0,
    ) -> None:
        at, me = boundaries(len(out), ranks.world(), triangle=parity != 0), ranks.rank()
        if at[me] < at[me + 1]:
            self.passes.rows(a, b, out, (at[me], at[me + 1]), addend, scale, parity)
        ranks.exchange(out, at)
