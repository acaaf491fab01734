"""exp of a skew-symmetric matrix and its adjoint: at most 3.5 + 8 products, + 1 + 2 a squaring.

Forward: the cheapest polynomial of `infodisent.polynomials.plans` whose interval holds a bound of
the spectral norm, read off ``S^2`` and ``S^4``, which every one of them forms anyway. The
1-norm of S, which `torch.matrix_exp` goes by, is far larger for large C and costs it several
squarings in which it loses accuracy.

Backward: reverse mode through the same products. Even powers of S are symmetric and odd ones skew,
so only that part of each power's gradient matters, which saves half the products there.

Memory, in matrices of C x C beside A, U and their gradients: forward 3 while it runs, and it keeps
3 or 4 and one more per squaring, up to 4; backward 8 while it runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from infodisent.backends.sparse.passes import TorchPasses
from infodisent.polynomials.plans import Plan, choose, moment_bound, norm_bound, plans

Terms = list[tuple[float, Tensor]]
Gather = Callable[[int, int, Tensor, Sequence[tuple[float, Tensor]]], Tensor]

BLOCKS = 8
"""Matrices in what forward keeps: three powers, one product, and `CHAIN` results to be squared."""
CHAIN = 4
"""Squarings whose inputs are kept. From the fifth on, backward squares again: + 1 product each."""
CAPTURED_SQUARINGS = 4
"""Squarings while a CUDA graph is captured, when nothing may be read back from the device."""


def _capturing(a: Tensor) -> bool:
    return a.device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _blocks(kept: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    blocks = list(kept.unbind())
    return blocks[: BLOCKS - CHAIN], blocks[BLOCKS - CHAIN :]


def _basis(plan: Plan, s: Tensor, powers: list[Tensor]) -> list[Tensor]:
    """The matrices that coefficients refer to."""
    basis = [s, powers[0], powers[1]]
    if plan.cube or plan.q:
        basis.append(powers[2])
    if len(plan.products) > 1:
        basis.append(powers[3])
    return basis


class SkewExponential:
    """``exp(A - A^T)`` and its adjoint, over some passes.

    Args:
        passes: what happens between the products; see `infodisent.backends.sparse.passes`.
    """

    def __init__(self, passes: TorchPasses) -> None:
        self.passes = passes

    def empty_rotation(self, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Uninitialised results of `forward`, for tracing."""
        return (
            torch.empty_like(a, memory_format=torch.contiguous_format),
            a.new_empty(BLOCKS, *a.shape),
            torch.empty(2, dtype=torch.int64, device="cpu"),
        )

    def rotation(self, a: Tensor, precision: str) -> tuple[Tensor, Tensor, Tensor]:
        """Forward.

        Args:
            a: [C, C] float32 or float64, contiguous.
            precision: see `infodisent.ops.rotation`.

        Returns:
            U = exp(a - a^T) [C, C]; what backward needs, [BLOCKS, C, C], of which it reads the part
            it needs (the rest is never written and, on the CPU, takes no memory); and the
            decisions, [2] int64 on the CPU: number of the plan, squarings.
        """
        kept = self.passes.empty_stack(a, BLOCKS)
        powers, chain = _blocks(kept)
        s, u = self.passes.empty_like(powers[0]), self.passes.empty_like(powers[0])
        left, right = self.passes.empty_like(s), self.passes.empty_like(s)
        self._skew(a, s)
        poison = None
        table = plans(a.dtype, precision)
        if _capturing(a):
            number, squarings = len(table) - 1, CAPTURED_SQUARINGS
            served = self._device_bound(s, powers) <= table[number].theta * 2**squarings
            poison = torch.where(served, 0.0, math.nan).to(a.dtype)
        else:
            bound = self._bound(s, powers)
            number, squarings = choose(bound, a.dtype, precision)
        plan = table[number].scaled(squarings)
        current = chain[0] if squarings else u
        self._base(plan, s, powers, (left, right), current)
        for k in range(1, squarings + 1):
            spare = right if current is left else left
            target = u if k == squarings else chain[k] if k < CHAIN else spare
            self.passes.multiply(current, current, target, current, 2.0)
            current = target
        u = self.passes.own(u)
        u.diagonal().add_(1)
        if poison is not None:
            u.add_(poison)
        return u, kept, torch.tensor([number, squarings], device="cpu")

    def rotation_backward(
        self,
        grad: Tensor,  # [C, C]
        a: Tensor,  # [C, C]
        kept: Tensor,  # [BLOCKS, C, C]
        decisions: Tensor,  # [2]
        precision: str,
    ) -> Tensor:
        """dA = Sbar - Sbar^T, Sbar the adjoint of exp at S = a - a^T applied to grad = dL/dU.

        `kept` and `decisions` are what forward returned. [C, C].
        """
        number, squarings = decisions.tolist()
        plan = plans(a.dtype, precision)[number].scaled(squarings)
        powers, chain = _blocks(kept)
        while len(chain) < squarings:
            chain.append(self.passes.empty_like(a))
            self.passes.multiply(chain[-2], chain[-2], chain[-1], chain[-2], 2.0)
        s, g, spare = self.passes.empty_like(a), grad.contiguous(), self.passes.empty_like(a)
        self._skew(a, s)
        for k in reversed(range(squarings)):  # 2 W + W W: dW = 2 g + g W^T + W^T g
            target = self.passes.empty_like(a) if g is grad else spare
            self.passes.multiply(g, chain[k].mT, target, g, 2.0)
            self.passes.multiply(chain[k].mT, g, target, target)
            g, spare = target, (spare if target is not spare else g)
        return self.passes.own(self._base_backward(plan, s, powers, g))

    def _skew(self, a: Tensor, out: Tensor) -> None:
        self.passes.combine([a], [out], [[1.0]], [-1])

    def _form_powers(self, s: Tensor, powers: list[Tensor]) -> list[tuple[int, Tensor]]:
        """Form the powers that every plan of the dtype has; those whose norms bound that of S."""
        square, second, third = powers[:3]
        self.passes.product(s, s, square, 1)
        if plans(s.dtype)[0].cube:
            self.passes.product(s, square, second, -1)
            self.passes.product(second, second, third, 1)
            return [(2, square), (6, third)]
        self.passes.product(square, square, second, 1)
        return [(2, square), (4, second)]

    def _bound(self, s: Tensor, powers: list[Tensor]) -> float:
        formed = self._form_powers(s, powers)
        norms = [self.passes.norms(power) for _, power in formed]
        bound = norm_bound(*((k, *norm) for (k, _), norm in zip(formed, norms, strict=True)))
        if formed[1][0] != 4 or not math.isfinite(bound) or bound <= plans(s.dtype)[0].theta:
            return bound  # the cheapest polynomial serves it already
        square, fourth = powers[:2]
        mixed = abs(self.passes.inner(square, fourth))
        second = -self.passes.trace(square)  # S is skew: tr S^2 = -<S, S>
        return min(bound, moment_bound((len(s), second, norms[0][1], mixed, norms[1][1])))

    def _device_bound(self, s: Tensor, powers: list[Tensor]) -> Tensor:
        """The same without reading anything back from the device."""
        bounds = []
        for k, power in self._form_powers(s, powers):
            wide = power.double()
            bounds += [
                torch.linalg.vector_norm(wide, 1, dim=1).amax().pow(1 / k),
                (torch.linalg.vector_norm(wide).square() / 2).pow(1 / (2 * k)),
            ]
        return torch.stack(bounds).amin()

    def _sum(
        self, rows: list[tuple[float, ...]], basis: list[Tensor], outputs: list[Tensor]
    ) -> None:
        """Several sums over the basis in one pass."""
        coefficient = [[*row, *[0.0] * (len(basis) - len(row))] for row in rows]
        self.passes.combine(basis, outputs, coefficient, [0] * len(rows))

    def _base(
        self,
        plan: Plan,
        s: Tensor,
        powers: list[Tensor],
        work: tuple[Tensor, Tensor],
        out: Tensor,
    ) -> None:
        """``out = p(S) - I``, leaving Q and P_1 in `powers`."""
        left, right = work
        if plan.q:
            self._sum([plan.q], [s, *powers[:2]], [left])
            self.passes.product(left, left, powers[2], 1)
        basis = _basis(plan, s, powers)
        if len(plan.products) > 1:
            self._sum(list(plan.products[0]), basis[:-1], [left, right])
            self.passes.multiply(left, right, powers[3])
        self._sum([*plan.products[-1], plan.last], basis, [left, right, out])
        self.passes.multiply(left, right, out, out)

    def _base_backward(self, plan: Plan, s: Tensor, powers: list[Tensor], g: Tensor) -> Tensor:
        """The adjoint of `_base`, as dA."""
        basis = _basis(plan, s, powers)
        left, right = self.passes.empty_like(s), self.passes.empty_like(s)
        grads, rows = [g], [plan.last]
        for k in reversed(range(len(plan.products))):
            if k < len(plan.products) - 1:  # dP_1; nothing but the sums after it holds P_1
                g = self.passes.empty_like(s)
                weights = [row[-1] for row in rows]
                self.passes.combine(grads, [g], [weights], [0])
                rows = [row[:-1] for row in rows]
            pair = plan.products[k]
            self._sum(list(pair), basis[: len(pair[0])], [left, right])
            for factor in (0, 1):
                out = self.passes.empty_like(s)
                if factor == 0:
                    self.passes.multiply(g, right.mT, out)
                else:
                    self.passes.multiply(left.mT, g, out)
                grads.append(out)
                rows.append(pair[factor])

        def gather(
            j: int, parity: int, into: Tensor, extra: Sequence[tuple[float, Tensor]]
        ) -> Tensor:
            """The symmetric or skew part of basis element j's gradient, and of twice `extra`."""
            weights = [row[j] / 2 for row in rows] + [c for c, _ in extra]
            sources = grads + [x for _, x in extra]
            self.passes.combine(sources, [into], [weights], [parity])
            return into

        powers_backward = self._cube_backward if plan.cube else self._square_backward
        extra = powers_backward(plan, s, powers, gather, (left, right))
        # dA = Sbar - Sbar^T, and of Sbar only the skew part counts
        weights = [row[0] for row in rows] + [c for c, _ in extra]
        sources = [*grads, *(x for _, x in extra)]
        out = self.passes.empty_like(s)
        self.passes.combine(sources, [out], [weights], [-1])
        return out

    def _square_backward(
        self,
        plan: Plan,
        s: Tensor,
        powers: list[Tensor],
        gather: Gather,
        work: tuple[Tensor, Tensor],
    ) -> Terms:
        """Reverse of ``X = S S, S^4 = X X, q = sum over S, X, S^4, Q = q q``."""
        square, fourth = powers[:2]
        left, right = work
        q = self.passes.empty_like(s)
        of_square: Terms = []
        of_fourth: Terms = []
        if plan.q:
            t = self.passes.empty_like(s)
            self._sum([plan.q], [s, square, fourth], [q])
            self.passes.multiply(gather(3, 1, left, ()), q, t)  # dq = dQ q + q dQ
            of_square, of_fourth = [(plan.q[1], t)], [(plan.q[2], t)]
        self.passes.multiply(gather(2, 1, left, of_fourth), square, q)
        self.passes.multiply(gather(1, 1, left, [*of_square, (1.0, q)]), s, right)
        return [(-2.0, right)]  # S is skew: dS = -(dX S + S dX)

    def _cube_backward(
        self,
        plan: Plan,
        s: Tensor,
        powers: list[Tensor],
        gather: Gather,
        work: tuple[Tensor, Tensor],
    ) -> Terms:
        """Reverse of ``X = S S, S^3 = S X, S^6 = S^3 S^3``."""
        square, cube = powers[:2]
        left, right = work
        t = self.passes.empty_like(s)
        self.passes.multiply(gather(3, 1, left, ()), cube, t)  # S^3 is skew: -(dS^6 S^3 + S^3 dS^6)
        g_cube = gather(2, -1, left, [(-1.0, t)])
        self.passes.multiply(s, g_cube, t)  # dX = -S dS^3
        g_square = gather(1, 1, right, [(-0.5, t)])
        self.passes.multiply(g_cube, square, t)  # dS = dS^3 X
        self.passes.multiply(g_square, s, left)
        return [(1.0, t), (-2.0, left)]
