"""Triton kernels of `rotation` on C x C float32 matrices, row-major.

Every launch of `product` and `combine` reads a number from device memory first and returns at once
where it is not above a level: so one fixed sequence of launches serves every norm, and the host
never waits to know which polynomial it was. What the numbers are: `infodisent.kernels.rotation`.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from .product import divisible


@triton.jit
def _triangle(p):
    """Program p of a lower triangle of tiles, row by row: its (row, column), row >= column."""
    row = ((tl.sqrt(8.0 * p + 1.0) - 1.0) * 0.5).to(tl.int32)
    row -= (row * (row + 1) // 2 > p).to(tl.int32)  # the root was rounded
    row += ((row + 1) * (row + 2) // 2 <= p).to(tl.int32)
    return row, p - row * (row + 1) // 2


@triton.jit
def tile_at(
    p,
    C,
    SYMMETRIC: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Row and column of program p's tile; with SYMMETRIC only those of the lower triangle."""
    if SYMMETRIC:
        i, j = _triangle(p)
    else:
        # down GROUP tiles, then to the right: programs that run together share rows and columns
        across = tl.cdiv(C, BLOCK)
        first = p // (GROUP * across) * GROUP
        height = tl.minimum(across - first, GROUP)
        i = first + p % (GROUP * across) % height
        j = p % (GROUP * across) // height
    return i, j


@triton.jit
def store_tile(
    total,  # [BLOCK, BLOCK]
    d,  # [C, C] or None
    out,  # [C, C]
    beta,
    i,
    j,
    C,
    SYMMETRIC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write ``total [+ beta d]`` to tile (i, j); with SYMMETRIC to its mirror image, too."""
    down = tl.arange(0, BLOCK)[:, None]
    right = tl.arange(0, BLOCK)[None, :]
    mask = (down < C - i * BLOCK) & (right < C - j * BLOCK)
    corner = i.to(tl.int64) * BLOCK * C + j * BLOCK
    if d is not None:
        total += beta * tl.load(d + corner + (down * C + right), mask=mask, other=0.0)
    if SYMMETRIC:
        # on the diagonal each element is written once: the two roundings of a pair may differ
        below = (i - j) * BLOCK + down - right
        mirrored = out + (j.to(tl.int64) * BLOCK * C + i * BLOCK)
        tl.store(mirrored + (right * C + down), total, mask=mask & (below > 0))
        mask = mask & (below >= 0)
    tl.store(out + corner + (down * C + right), total, mask=mask)


@triton.jit
def _accumulate(
    total,  # [BLOCK, BLOCK]
    a,  # [C, C]
    b,  # [C, C]
    i,
    j,
    C,
    TRANS_A: tl.constexpr,
    TRANS_B: tl.constexpr,
    PRODUCTS: tl.constexpr,
    EMULATE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Add tile (i, j) of ``op(a) op(b)``, op the transpose or nothing."""
    step_a = C if TRANS_A else 1  # from op(a)[m, k] to op(a)[m, k + 1]
    step_b = 1 if TRANS_B else C
    outer = tl.arange(0, BLOCK)
    inner = tl.arange(0, BLOCK_K)
    # a 64-bit address for the tile and 32-bit offsets in it: half the registers
    a += i.to(tl.int64) * BLOCK * (1 if TRANS_A else C)
    b += j.to(tl.int64) * BLOCK * (C if TRANS_B else 1)
    a_at = outer[:, None] * (1 if TRANS_A else C) + inner[None, :] * step_a
    b_at = outer[None, :] * (C if TRANS_B else 1) + inner[:, None] * step_b
    a_mask = outer[:, None] < C - i * BLOCK
    b_mask = outer[None, :] < C - j * BLOCK
    for start in range(0, C, BLOCK_K):
        x = tl.load(a + a_at, mask=a_mask & (inner[None, :] < C - start), other=0.0)
        y = tl.load(b + b_at, mask=b_mask & (inner[:, None] < C - start), other=0.0)
        if PRODUCTS == "bf16x3":
            # x y = (xh + xl) (yh + yl) without xl yl, the small terms first
            xh = x.to(tl.bfloat16)
            xl = (x - xh.to(tl.float32)).to(tl.bfloat16)
            yh = y.to(tl.bfloat16)
            yl = (y - yh.to(tl.float32)).to(tl.bfloat16)
            if EMULATE:  # Triton's interpreter multiplies the bits of bfloat16 as integers
                xh, xl = xh.to(tl.float32), xl.to(tl.float32)
                yh, yl = yh.to(tl.float32), yl.to(tl.float32)
            # from zero, and then added in plain float32, as Triton does for tf32x3: see
            # `infodisent.kernels.precision.RUN`
            step = tl.dot(xl, yh)
            step = tl.dot(xh, yl, step)
            total += tl.dot(xh, yh, step)
        else:
            total = tl.dot(x, y, total, input_precision=PRODUCTS)
        a += BLOCK_K * step_a
        b += BLOCK_K * step_b
    return total


@triton.jit(do_not_specialize=["flag", "level"])
def product_kernel(
    a,  # [C, C]
    b,  # [C, C]
    d,  # [C, C] or None; may be out
    out,  # [C, C], none of a and b
    numbers,  # [WIDTH]
    flag,  # the product is needed where numbers[flag] > level
    level,
    beta,
    C,
    TRANS_A: tl.constexpr,
    TRANS_B: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    BOTH: tl.constexpr,
    MULTIPLE: tl.constexpr,
    PRODUCTS: tl.constexpr,
    EMULATE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """``out = op(a) op(b) [+ op(b) op(a)] [+ beta d]``.

    BOTH adds the product in the other order, in the same sum. SYMMETRIC: the result is known to be
    symmetric; only the tiles of the lower triangle are launched, and each is written twice.
    """
    if tl.load(numbers + flag) <= level:
        return
    C = divisible(C, MULTIPLE)
    i, j = tile_at(tl.program_id(0), C, SYMMETRIC, BLOCK, GROUP)
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    total = _accumulate(
        total, a, b, i, j, C, TRANS_A, TRANS_B, PRODUCTS, EMULATE, BLOCK, BLOCK_K
    )  # fmt: skip
    if BOTH:
        total = _accumulate(
            total, b, a, i, j, C, TRANS_B, TRANS_A, PRODUCTS, EMULATE, BLOCK, BLOCK_K
        )  # fmt: skip
    store_tile(total, d, out, beta, i, j, C, SYMMETRIC, BLOCK)


@triton.jit(do_not_specialize=["flag", "row"])
def combine_kernel(
    inputs,  # tuple of N [C, C]
    outputs,  # tuple of R [C, C]; may be inputs
    numbers,  # [WIDTH], or None: the sums are needed, and all coefficients are 1
    flag,  # they are where numbers[flag] > 0
    row,  # numbers[row + r * N + k] is the coefficient of input k in output r
    C,
    PARITY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``out_r = P(sum_k c_rk in_k)``, P(M) = M, ``M + M^T``, ``M - M^T`` for PARITY 0, 1, -1.

    A program makes a tile of the lower triangle and its mirror image, so it reads all that it
    overwrites. An input whose coefficient is 0 is not read: it may never have been written.
    """
    if numbers is not None:  # noqa: SIM102  (known to the compiler)
        if tl.load(numbers + flag) <= 0:
            return
    i, j = _triangle(tl.program_id(0))
    high = i * BLOCK + tl.arange(0, BLOCK)
    left = j * BLOCK + tl.arange(0, BLOCK)
    # 64-bit addresses of the two corners; the offsets in both tiles are the same
    corner = i.to(tl.int64) * BLOCK * C + j * BLOCK
    mirror = j.to(tl.int64) * BLOCK * C + i * BLOCK
    at = tl.arange(0, BLOCK)[:, None] * C + tl.arange(0, BLOCK)[None, :]
    N: tl.constexpr = len(inputs)
    lower = ()
    upper = ()
    for r in tl.static_range(len(outputs)):
        low = tl.zeros((BLOCK, BLOCK), tl.float32)
        up = tl.zeros((BLOCK, BLOCK), tl.float32)
        for k in tl.static_range(N):
            c = 1.0
            if numbers is not None:
                c = tl.load(numbers + row + r * N + k)
            end = tl.where(c != 0, C, 0)  # of the rows to read
            low_mask = (high < end)[:, None] & (left < C)[None, :]
            up_mask = (left < end)[:, None] & (high < C)[None, :]
            low += c * tl.load(inputs[k] + corner + at, mask=low_mask, other=0.0)
            up += c * tl.load(inputs[k] + mirror + at, mask=up_mask, other=0.0)
        if PARITY != 0:
            low = low + PARITY * tl.trans(up)
            up = PARITY * tl.trans(low)
        lower = lower + (low,)  # noqa: RUF005  (Triton has no starred tuples)
        upper = upper + (up,)  # noqa: RUF005
    tl.debug_barrier()  # every thread has read before one writes
    low_mask = (high < C)[:, None] & (left < C)[None, :]
    up_mask = (left < C)[:, None] & (high < C)[None, :]
    for r in tl.static_range(len(outputs)):
        tl.store(outputs[r] + corner + at, lower[r], mask=low_mask)
        tl.store(outputs[r] + mirror + at, upper[r], mask=up_mask)


@triton.jit
def norms_kernel(
    powers,  # [2, C, C]: S^2, S^4
    partial,  # [2, 2, blocks]: of each power the largest 1-norm of a row, and the sum of squares
    C,
    blocks,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """First stage of the norms of the two powers; what is left is one number a block of rows."""
    block, power = tl.program_id(0), tl.program_id(1)
    rows = block * ROWS + tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, COLS)[None, :]
    at = powers + power.to(tl.int64) * C * C + rows.to(tl.int64) * C + columns
    one = tl.zeros((ROWS, COLS), tl.float32)
    squares = tl.zeros((ROWS, COLS), tl.float32)
    for start in range(0, C, COLS):
        x = tl.load(at + start, mask=(rows < C) & (columns < C - start), other=0.0)
        one += tl.abs(x)
        squares += x * x
    tl.store(partial + power * 2 * blocks + block, tl.max(tl.sum(one, 1), 0))
    tl.store(partial + (power * 2 + 1) * blocks + block, tl.sum(tl.sum(squares, 1), 0))


@dataclass(frozen=True, eq=False)
class Table:
    """The numbers of all plans, a constant of `decide_kernel`: no tensor outlives a call.

    Attributes:
        rows: of each plan ``[WIDTH]``, for S itself, with theta and cost in the header.
        degrees: ``[WIDTH]``: number i is to be multiplied by ``2^(-squarings * degrees[i])``.
    """

    rows: tuple[tuple[float, ...], ...]
    degrees: tuple[int, ...]


@triton.jit
def _power_of_two(n):
    """2^n, exactly, for whole n between -126 and 127: `exp2` is an approximation on GPUs."""
    return ((n + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def decide_kernel(
    partial,  # [2, 2, blocks], see norms_kernel
    numbers,  # [WIDTH], written
    blocks,
    TABLE: tl.constexpr,  # `Table`: the numbers of each plan
    PLANS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    MOST: tl.constexpr,
    SQUARINGS: tl.constexpr,
    ODD: tl.constexpr,
    POISON: tl.constexpr,
    THETA: tl.constexpr,
    COST: tl.constexpr,
):
    """Bound ||S||_2, take the cheapest plan and write its numbers: one program.

    As `norm_bound` and `choose` of `infodisent.polynomials.plans`: ``||S^k||_2`` is at most the
    1-norm and, singular values coming in pairs, at most ``sqrt(sum of squares / 2)``. A plan serves
    with the fewest squarings for which ``bound <= theta 2^squarings``, which is what ceil(log2)
    says, without its rounding.
    """
    i = tl.arange(0, BLOCK)
    inside = i < blocks
    one2 = tl.max(tl.load(partial + i, mask=inside, other=0.0), 0)
    squares2 = tl.sum(tl.load(partial + blocks + i, mask=inside, other=0.0), 0)
    one4 = tl.max(tl.load(partial + 2 * blocks + i, mask=inside, other=0.0), 0)
    squares4 = tl.sum(tl.load(partial + 3 * blocks + i, mask=inside, other=0.0), 0)
    bound2 = tl.minimum(tl.sqrt(one2), tl.sqrt(tl.sqrt(squares2 / 2)))
    bound4 = tl.minimum(tl.sqrt(one4), tl.sqrt(tl.sqrt(squares4 / 2)))
    bound = tl.minimum(bound2, tl.sqrt(bound4)) * (1 + 1e-5)
    # a NaN anywhere is in both sums of squares; minimum and maximum may drop it
    finite = (squares2 == squares2) & (squares4 == squares4) & (bound < float("inf"))

    count = tl.arange(0, 16)
    best_cost = float("inf")
    plan = PLANS - 1
    squarings = 0
    served = False
    for index in tl.static_range(PLANS):
        theta = TABLE.rows[index][THETA]
        needed = tl.sum((bound > theta * _power_of_two(count)).to(tl.int32), 0)
        cost = TABLE.rows[index][COST] + 3.0 * needed
        better = finite & (needed <= MOST) & (cost < best_cost)
        best_cost = tl.where(better, cost, best_cost)
        plan = tl.where(better, index, plan)
        squarings = tl.where(better, needed, squarings)
        served = served | better

    at = tl.arange(0, WIDTH)
    degree = tl.zeros((WIDTH,), tl.int32)
    chosen = tl.zeros((WIDTH,), tl.float32)
    for i in tl.static_range(WIDTH):
        value = 0.0
        for index in tl.static_range(PLANS):
            value = tl.where(plan == index, TABLE.rows[index][i], value)
        chosen = tl.where(at == i, value, chosen)
        degree = tl.where(at == i, TABLE.degrees[i], degree)
    chosen *= _power_of_two(-squarings * degree)
    chosen = tl.where(at == SQUARINGS, squarings.to(tl.float32), chosen)
    chosen = tl.where(at == ODD, (squarings % 2).to(tl.float32), chosen)
    chosen = tl.where(at == POISON, tl.where(served, 0.0, float("nan")), chosen)
    tl.store(numbers + at, chosen)


@triton.jit(do_not_specialize=["source_slot", "target_slot"])
def move_kernel(
    source,  # [slots, C, C]
    target,  # [slots, C, C]
    numbers,  # [WIDTH]
    source_slot,  # numbers[source_slot] is the slot to read
    target_slot,
    poison,  # numbers[poison] is 0 or NaN
    C,
    IDENTITY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``target[slot] = source[slot] + numbers[poison] [+ I]``, the slots read on the device."""
    size = tl.cast(C, tl.int64) * C
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    source += tl.load(numbers + source_slot).to(tl.int64) * size
    target += tl.load(numbers + target_slot).to(tl.int64) * size
    x = tl.load(source + at, mask=at < size, other=0.0) + tl.load(numbers + poison)
    if IDENTITY:
        # one division of 64 bits a program, and none of them an element
        first = (tl.program_id(0).to(tl.int64) * BLOCK % (C + 1)).to(tl.int32)
        x += ((first + tl.arange(0, BLOCK)) % (C + 1) == 0).to(tl.float32)
    tl.store(target + at, x, mask=at < size)
