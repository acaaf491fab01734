"""The products of a rotation divided over processes that share memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from infodisent import ranks
from infodisent.backends.sparse.divided import LedPasses
from infodisent.backends.sparse.passes import TorchPasses
from infodisent.shared_memory import Workspace


class SharedPasses(LedPasses):
    """Every process computes a part of each pass and writes it where all of them see it.

    All of them have to make the same calls in the same order, on the same numbers. One rotation and
    its adjoint have one of these. Nothing is written between two meetings that somebody else
    reads there: every pass ends with one, and no result is also an argument that is read elsewhere
    than where it is written.

    Args:
        passes: what a process does by itself.
        space: where results are.
    """

    def __init__(self, passes: TorchPasses, space: Workspace) -> None:
        super().__init__(passes)
        self._space, self._taken = space, 0

    def empty_like(self, x: Tensor) -> Tensor:
        """See `TorchPasses.empty_like`: shared, and somebody else's after `own`."""
        self._taken += 1
        return self._space.matrix(self._taken - 1)

    def empty_stack(self, x: Tensor, count: int) -> Tensor:
        """See `TorchPasses.empty_stack`: shared, and this object's as long as it lives."""
        return self._space.stack(count, self)

    def own(self, x: Tensor) -> Tensor:
        """See `TorchPasses.own`: a copy."""
        copied = x.clone()
        self._space.meet()
        self._taken = 0
        return copied

    def mean(self, x: Tensor) -> Tensor:
        """See `LedPasses.mean`."""
        world = ranks.world()
        theirs = [self.empty_like(x) for _ in range(world)]
        theirs[ranks.rank()].copy_(x)
        self._space.meet()
        out = self.empty_like(x)
        self.combine(theirs, [out], [[1 / world] * world], [0])
        return out

    def combine(
        self,
        inputs: list[Tensor],
        outputs: list[Tensor],
        coefficient: list[list[float]],
        parity: list[int],
    ) -> None:
        """See `TorchPasses.combine`."""
        self.passes.combine_share(inputs, outputs, coefficient, parity, self._share())
        self._space.meet()

    def product(self, a: Tensor, b: Tensor, out: Tensor, sign: int) -> None:
        """See `TorchPasses.product`."""
        self.passes.multiply_share(a, b, out, self._share(), parity=sign)
        self._space.meet()

    def multiply(
        self, a: Tensor, b: Tensor, out: Tensor, addend: Tensor | None = None, scale: float = 1.0
    ) -> None:
        """See `TorchPasses.multiply`."""
        self.passes.multiply_share(a, b, out, self._share(), addend, scale)
        self._space.meet()

    def told(self, count: int, find: Callable[[], Sequence[float]]) -> list[float]:
        """See `LedPasses.told`."""
        return self._space.told(count, find)

    @staticmethod
    def _share() -> tuple[int, int]:
        return ranks.rank(), ranks.world()
