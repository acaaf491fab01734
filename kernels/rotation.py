"""exp of a skew-symmetric matrix and its adjoint on the GPU, without waiting for the device.

The mathematics of `infodisent.backends.sparse.rotation` for the plans of powers
``S, S^2, S^4 [, Q]``, in one sequence of launches that is the same for every matrix: a kernel on
the device bounds the norm, takes the plan and the squarings, and writes the coefficients; launches
which that plan has no use for return at once. So a call can be captured in a CUDA graph (after one
call that compiles), and a replay takes the polynomial that fits the norm of that moment. No tensor
outlives a call: the numbers of the plans are constants of a kernel.

Up to `MOST` squarings are launched: ``||S||_2`` up to 1638 (full) or 3276 (half). Beyond, or with
NaN or Inf in A, or where S^4 overflows, U and dA are all NaN: never a wrong U.

Memory, in matrices of C x C beside A, U and their gradients: forward 3 while it runs, and it keeps
13, as the number of squarings is not known when they are allocated; backward 9 while it runs.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from infodisent.polynomials.plans import Plan, Row, plans

from . import device as gpu
from . import rotation_kernels as kernels
from . import rotation_parts as apart
from .precision import ROTATION
from .product import common_multiple
from .tiles import rotation as tiles
from .tiles.blocks import Block

PRODUCTS = ROTATION
"""How a product is computed, see `infodisent.kernels.precision`."""
MOST = 8
"""Squarings that are launched; what is not needed returns at once."""
BLOCKS = 4 + MOST + 1
"""Matrices kept: S^2, S^4, Q, P_1, and W_0 ... W_MOST with ``U = I + W``."""

# The numbers on the device, float32. First a header of small integers and the poison:
ZERO, ALWAYS, PLAN, SQUARINGS, ODD, USES_Q, USES_P1, POISON = range(8)
THETA, COST = ODD, POISON  # in the table of plans, where the decision is not made yet
# Then coefficients, each block in the order of one call of `_combine`:
_SIZES = {
    "q": 3,  # q over S, S^2, S^4
    "first": 8,  # L_1, M_1 over S, S^2, S^4, Q
    "second": 15,  # L_2, M_2, last over S, S^2, S^4, Q, P_1
    "p1": 3,  # P_1's gradient, over G, dL_2, dM_2
    "g_q": 5,  # half of Q's gradient, over G, dL_2, dM_2, dL_1, dM_1
    "g_fourth": 6,  # half of S^4's, and over one more matrix
    "g_square": 7,  # half of that of S^2, and over two more
    "g_s": 6,  # that of S, and over one more
}
AT = {name: 8 + sum(list(_SIZES.values())[:i]) for i, name in enumerate(_SIZES)}
WIDTH = 64


def _row(values: Row, width: int) -> list[float]:
    return [*values, *[0.0] * (width - len(values))]


def _coefficients(plan: Plan) -> list[float]:
    """Those of `_SIZES`. A plan's only product is made the last one: L_1, M_1 are 0 then."""
    first = plan.products[0] if len(plan.products) > 1 else ((), ())
    (l1, m1), (l2, m2) = first, plan.products[-1]
    q = _row(plan.q or (), 3)
    if not plan.q and len(plan.products) > 1:  # P_1 is the fourth column where there is no Q
        l2, m2, last = ((*row[:3], 0.0, *row[3:]) for row in (l2, m2, plan.last))
    else:
        last = plan.last
    rows = [_row(row, 5) for row in (last, l2, m2, l1, m1)]
    column = [[row[j] for row in rows] for j in range(5)]
    half = [[value / 2 for value in values] for values in column]
    return [
        *q,
        *rows[3][:4],
        *rows[4][:4],
        *rows[1],
        *rows[2],
        *rows[0],
        *column[4][:3],
        *half[3],
        *half[2],
        q[2],
        *half[1],
        q[1],
        1.0,
        *column[0],
        -2.0,
    ]


def _degrees() -> list[int]:
    """The degree in S of what each coefficient multiplies; Q and P_1 are scaled through factors."""
    basis = [1, 2, 4, 0, 0]
    return [
        *basis[:3],
        *basis[:4] * 2,
        *basis * 3,
        *[0] * 3,
        *[0] * 5,
        *[4] * 6,
        *[2] * 6,
        0,
        *[1] * 5,
        0,
    ]


def table(precision: str) -> tuple[list[list[float]], list[int]]:
    """The numbers of each plan for no squaring, [plans, WIDTH], and their degrees [WIDTH].

    With s squarings, coefficient i is multiplied by ``2^(-s degree[i])``.
    """
    numbers = []
    for number, plan in enumerate(plans(torch.float32, precision)):
        header = [0.0] * 8
        header[ALWAYS], header[PLAN] = 1.0, number
        header[THETA], header[COST] = plan.theta, sum(plan.cost)
        header[USES_Q], header[USES_P1] = plan.q is not None, len(plan.products) > 1
        numbers.append(_row((*header, *_coefficients(plan.scaled(0))), WIDTH))
    degrees = [*[0] * 8, *_degrees()]
    return numbers, degrees + [0] * (WIDTH - len(degrees))


@functools.cache
def _table(precision: str) -> kernels.Table:
    rows, degrees = table(precision)
    return kernels.Table(tuple(map(tuple, rows)), tuple(degrees))


def product(
    a: Tensor,  # [C, C]
    b: Tensor,  # [C, C]
    out: Tensor,  # [C, C]
    numbers: Tensor,  # [WIDTH]
    products: str,
    *,
    flag: int = ALWAYS,
    level: int = 0,
    trans_a: bool = False,
    trans_b: bool = False,
    symmetric: bool = False,
    both: bool = False,
    add: Tensor | None = None,  # [C, C]
    beta: float = 1.0,
    chosen: Block | None = None,
) -> None:
    """``out = op(a) op(b) [+ op(b) op(a) where both] [+ beta add]`` if numbers[flag] > level.

    symmetric: the result is known to be; chosen: the tile, by default the model's choice.
    """
    n = out.shape[-1]
    machine = gpu.capability(out.device), gpu.processors(out.device)
    block = chosen or tiles.choose(n, products, symmetric, *machine)
    if products == "parts":
        gate = apart.Gate(numbers, flag, level)
        operands = apart.of_operands(
            a, b, block, gate, trans_a=trans_a, trans_b=trans_b, both=both
        )  # fmt: skip
        apart.multiply(
            *operands, out, block, gate, trans_a=trans_a, trans_b=trans_b,
            symmetric=symmetric, both=both, add=add, beta=beta,
        )  # fmt: skip
        return
    kernels.product_kernel[(tiles.count(block, n, symmetric),)](
        a, b, add, out, numbers, flag, level, beta, n,
        TRANS_A=trans_a, TRANS_B=trans_b, SYMMETRIC=symmetric, BOTH=both,
        MULTIPLE=common_multiple(n),
        PRODUCTS=products, EMULATE=gpu.emulated(),
        BLOCK=block.block_m, BLOCK_K=block.block_k, GROUP=tiles.GROUP,
        num_warps=block.num_warps, num_stages=block.num_stages,
    )  # fmt: skip


def _combine(
    inputs: Sequence[Tensor],  # N times [C, C]
    outputs: Sequence[Tensor],  # R times [C, C]
    numbers: Tensor | None,  # [WIDTH]; None: always, and all coefficients are 1
    row: int,
    *,
    flag: int = ALWAYS,
    parity: int = 0,
) -> None:
    """``out_r = P(sum_k numbers[row + r N + k] in_k)`` if numbers[flag] > 0."""
    n = outputs[0].shape[-1]
    across = triton.cdiv(n, tiles.COMBINE_BLOCK)
    kernels.combine_kernel[(across * (across + 1) // 2,)](
        tuple(inputs), tuple(outputs), numbers, flag, row, n,
        PARITY=parity, BLOCK=tiles.COMBINE_BLOCK, num_warps=4,
    )  # fmt: skip


def _move(
    source: Tensor, target: Tensor, numbers: Tensor, slots: tuple[int, int], eye: bool
) -> None:
    """``target[slot] = source[slot] + poison [+ I]``; slots: where in `numbers` their indices are.

    source: [slots, C, C]; target: [slots, C, C]; either may be a single [C, C], of slot ZERO.
    """
    n = source.shape[-1]
    kernels.move_kernel[(triton.cdiv(n * n, tiles.MOVE_BLOCK),)](
        source, target, numbers, *slots, POISON, n, IDENTITY=eye, BLOCK=tiles.MOVE_BLOCK
    )


def _decide(powers: Tensor, numbers: Tensor, precision: str) -> None:
    """Write `numbers` [WIDTH] for the norm that S^2 and S^4, powers [2, C, C], show."""
    n = powers.shape[-1]
    constants = _table(precision)
    blocks = triton.cdiv(n, tiles.NORM_ROWS)
    partial = torch.empty(2, 2, blocks, dtype=torch.float32, device=powers.device)
    kernels.norms_kernel[(blocks, 2)](
        powers, partial, n, blocks, ROWS=tiles.NORM_ROWS, COLS=tiles.NORM_COLS
    )
    kernels.decide_kernel[(1,)](
        partial, numbers, blocks,
        TABLE=constants, PLANS=len(constants.rows), WIDTH=WIDTH,
        BLOCK=triton.next_power_of_2(blocks), MOST=MOST,
        SQUARINGS=SQUARINGS, ODD=ODD, POISON=POISON, THETA=THETA, COST=COST,
    )  # fmt: skip


def _empty(a: Tensor, *count: int) -> Tensor:
    return torch.empty(*count, *a.shape, dtype=torch.float32, device=a.device)


def _skew(a: Tensor, out: Tensor) -> None:
    _combine([a], [out], None, ALWAYS, parity=-1)


def rotation(a: Tensor, precision: str, products: str) -> tuple[Tensor, Tensor, Tensor]:
    """Forward.

    Args:
        a: [C, C] float32, contiguous.
        precision: see `infodisent.ops.rotation`.
        products: one of `PRODUCTS`; "ieee", "tf32" and "parts" are experimental. With "parts" what
            is known to be symmetric is multiplied as "tf32x3": there a triangle of tiles of 64 has
            more to load than it spares (`benchmarks/results/modelled-times.md`).

    Returns:
        U = exp(a - a^T) [C, C]; what backward needs, [BLOCKS, C, C], partly never written; and
        [WIDTH] float32 on the device: plan, squarings, coefficients (see `ZERO` ff.).
    """
    with torch.cuda.device_of(a):
        kept, u = _empty(a, BLOCKS), _empty(a)
        # zeros until it is decided, which are above a level of -1
        numbers = torch.zeros(WIDTH, dtype=torch.float32, device=a.device)
        (s, left, right), chain = _empty(a, 3), kept[4:]
        square, fourth, q, p1 = kept[:4]
        _skew(a, s)
        triangle = "tf32x3" if products == "parts" else products
        product(s, s, square, numbers, triangle, level=-1, symmetric=True)
        product(square, square, fourth, numbers, triangle, level=-1, symmetric=True)
        _decide(kept[:2], numbers, precision)
        _combine([s, square, fourth], [left], numbers, AT["q"], flag=USES_Q)
        product(left, left, q, numbers, triangle, flag=USES_Q, symmetric=True)
        _combine([s, square, fourth, q], [left, right], numbers, AT["first"], flag=USES_P1)
        product(left, right, p1, numbers, products, flag=USES_P1)
        w = chain[0]
        _combine([s, square, fourth, q, p1], [left, right, w], numbers, AT["second"])
        product(left, right, w, numbers, products, add=w)
        for k in range(MOST):  # with V = I + W: V V = I + (2 W + W W)
            product(
                chain[k], chain[k], chain[k + 1], numbers, products,
                flag=SQUARINGS, level=k, add=chain[k], beta=2.0,
            )  # fmt: skip
        _move(chain, u, numbers, (SQUARINGS, ZERO), eye=True)
    return u, kept, numbers


def rotation_backward(
    grad: Tensor, a: Tensor, kept: Tensor, info: Tensor, precision: str, products: str
) -> Tensor:
    """dA [C, C] = Sbar - Sbar^T, Sbar the adjoint of exp at S = a - a^T applied to grad = dL/dU.

    `kept` and `info` are what forward returned; grad and a are contiguous.
    """
    with torch.cuda.device_of(a):
        square, fourth, q, p1 = kept[:4]
        chain, numbers = kept[4:], info
        g, out = _empty(a, 2), _empty(a)
        s, left, right, d_l1, d_m1, d_l2, d_m2 = _empty(a, 7)
        _skew(a, s)
        # Squaring k reads g[(k + 1) % 2] and writes g[k % 2], so the first of them, which is known
        # on the device only, finds the gradient in g[squarings % 2]; the last leaves it in g[0].
        _move(grad, g, numbers, (ZERO, ODD), eye=False)
        for k in reversed(range(MOST)):  # of 2 W + W W: dW = 2 G + G W^T + W^T G
            before = g[(k + 1) % 2]
            product(
                before, chain[k], g[k % 2], numbers, products,
                flag=SQUARINGS, level=k, trans_b=True, both=True, add=before, beta=2.0,
            )  # fmt: skip
        g, spare = g
        basis = [s, square, fourth, q, p1]
        grads = [g, d_l2, d_m2, d_l1, d_m1]
        _combine(basis, [left, right], numbers, AT["second"])
        product(g, right, d_l2, numbers, products, trans_b=True)
        product(left, g, d_m2, numbers, products, trans_a=True)
        _combine(grads[:3], [spare], numbers, AT["p1"], flag=USES_P1)
        _combine(basis[:4], [left, right], numbers, AT["first"], flag=USES_P1)
        product(spare, right, d_l1, numbers, products, trans_b=True, flag=USES_P1)
        product(left, spare, d_m1, numbers, products, trans_a=True, flag=USES_P1)
        # Q = q q, S^4, S^2 and q are symmetric: of their gradients only that part matters
        _combine(basis[:3], [right], numbers, AT["q"], flag=USES_Q)
        _combine(grads, [left], numbers, AT["g_q"], parity=1, flag=USES_Q)
        product(left, right, spare, numbers, products, flag=USES_Q)  # dq = dQ q + q dQ
        _combine([*grads, spare], [left], numbers, AT["g_fourth"], parity=1)
        product(left, square, right, numbers, products)
        _combine([*grads, spare, right], [left], numbers, AT["g_square"], parity=1)
        product(left, s, right, numbers, products)  # S is skew: dS = -(dX S + S dX)
        _combine([*grads, right], [out], numbers, AT["g_s"], parity=-1)
    return out


__all__ = ["BLOCKS", "MOST", "PRODUCTS", "WIDTH", "product", "rotation", "rotation_backward"]
