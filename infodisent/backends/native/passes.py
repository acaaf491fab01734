"""The passes between the rotation's products, compiled: one pass over the matrices a call."""

from __future__ import annotations

import torch
from torch import Tensor

from infodisent.backends.native import module
from infodisent.backends.sparse.passes import TorchPasses, boundaries

_COLUMNS = 64
"""Of a panel of the compiled product: a multiple of every processor's."""
_MIN_SPLIT = 256
"""Below this size a product is too short to gain from leaving half of it out."""


class CompiledPasses(TorchPasses):
    """As `TorchPasses`, for contiguous float32 and float64 matrices on the CPU."""

    def combine(
        self,
        inputs: list[Tensor],
        outputs: list[Tensor],
        coefficient: list[list[float]],
        parity: list[int],
    ) -> None:
        """See `TorchPasses.combine`."""
        module.combine(inputs, outputs, coefficient, parity)

    def product(self, a: Tensor, b: Tensor, out: Tensor, sign: int) -> None:
        """See `TorchPasses.product`: the lower half, mirrored.

        What that gains is the difference to "no compiled passes" in
        ``benchmarks/rotation_report.py``.
        """
        n = len(a)
        if n < _MIN_SPLIT:
            super().product(a, b, out, sign)
            return
        if module.has_product(a.dtype):
            module.matrix_product(a, b, out, parity=sign)
            return
        rows = -(-n // (4 if n < 768 else 6))
        for i in range(0, n, rows):
            end = min(n, i + rows)
            torch.mm(a[i:end], b[:, :end], out=out[i:end, :end])
        module.mirror(out, sign)

    def multiply(
        self, a: Tensor, b: Tensor, out: Tensor, addend: Tensor | None = None, scale: float = 1.0
    ) -> None:
        """See `TorchPasses.multiply`."""
        if len(a) >= _MIN_SPLIT and module.has_product(a.dtype):
            module.matrix_product(a, b, out, addend, scale)
        else:
            super().multiply(a, b, out, addend, scale)

    def rows(
        self,
        a: Tensor,
        b: Tensor,
        out: Tensor,
        which: tuple[int, int],
        addend: Tensor | None = None,
        scale: float = 1.0,
        parity: int = 0,
    ) -> None:
        """See `TorchPasses.rows`."""
        if len(a) >= _MIN_SPLIT and module.has_product(a.dtype):
            module.matrix_product(a, b, out, addend, scale, parity, which)
        else:
            super().rows(a, b, out, which, addend, scale, parity)

    def combine_share(
        self,
        inputs: list[Tensor],
        outputs: list[Tensor],
        coefficient: list[list[float]],
        parity: list[int],
        share: tuple[int, int],
    ) -> None:
        """See `TorchPasses.combine_share`."""
        module.combine(inputs, outputs, coefficient, parity, share)

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
        """See `TorchPasses.multiply_share`: by columns, so that no other process packs these of b.

        Of a transposed a it is the rows that are packed.
        """
        if len(a) < _MIN_SPLIT or not module.has_product(a.dtype):
            super().multiply_share(a, b, out, share, addend, scale, parity)
            return
        if a.is_contiguous():
            at = boundaries(len(out), share[1], unit=_COLUMNS, triangle=-1 if parity else 0)
            where = {"columns": (at[share[0]], at[share[0] + 1])}
        else:
            at = boundaries(len(out), share[1], triangle=1 if parity else 0)
            where = {"rows": (at[share[0]], at[share[0] + 1])}
        module.matrix_product(a, b, out, addend, scale, parity, mirrored=True, **where)

    def mirror(self, x: Tensor, sign: int) -> None:
        """See `TorchPasses.mirror`."""
        module.mirror(x, sign)
        if sign < 0:
            x.diagonal().zero_()

    def norms(self, x: Tensor) -> tuple[float, float]:
        """See `TorchPasses.norms`."""
        return module.norms(x)
