"""Products with a dY that is made from its winners, in registers.

dY, the gradient of a rotated map, has an entry where the number of a pixel is that of the positive
winner of a channel, and one at the negative winner; see
`infodisent.kernels.rotate_pool_backward_kernels`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def multiply(
    total,  # [M, N]
    pos,  # index of the positive winner, -1 for none; broadcasts with p to three dimensions
    neg,
    g_pos,  # float32 gradient at it, of the shape of pos
    g_neg,
    p,  # number of the pixel
    operand,  # [K, N]
    M: tl.constexpr,
    K: tl.constexpr,
    TRANS: tl.constexpr,
    PRODUCTS: tl.constexpr,
    EMULATE: tl.constexpr,
):
    """Add ``dY · operand``, dY of the shape that pos and p broadcast to, as [M, K].

    But for "half", whose result is rounded more coarsely, the step's sum is made from zero and
    added in plain float32: see `infodisent.kernels.precision.RUN`. So does Triton for "tf32x3".
    """
    # one pixel on both sides counts once, with both gradients
    g_pos = tl.where(pos == neg, g_pos + g_neg, g_pos)
    if PRODUCTS == "tf32x3" or PRODUCTS == "ieee":
        dy = tl.where(pos == p, g_pos, tl.where(neg == p, g_neg, 0.0))
        total = tl.dot(_matrix(dy, M, K, TRANS), operand, total, input_precision=PRODUCTS)
    elif PRODUCTS == "bf16x3":
        # g x = (gh + gl) (xh + xl) without gl xl, the small terms first
        high = operand.to(tl.bfloat16)
        low = (operand - high.to(tl.float32)).to(tl.bfloat16)
        ph = g_pos.to(tl.bfloat16)
        nh = g_neg.to(tl.bfloat16)
        pl = (g_pos - ph.to(tl.float32)).to(tl.bfloat16)
        nl = (g_neg - nh.to(tl.float32)).to(tl.bfloat16)
        step = tl.zeros(total.shape, tl.float32)
        step = _dot_part(step, pos, neg, pl, nl, p, high, M, K, TRANS, EMULATE)
        step = _dot_part(step, pos, neg, ph, nh, p, low, M, K, TRANS, EMULATE)
        total += _dot_part(step, pos, neg, ph, nh, p, high, M, K, TRANS, EMULATE)
    elif PRODUCTS == "half":
        ph = g_pos.to(operand.dtype)
        nh = g_neg.to(operand.dtype)
        total = _dot_part(total, pos, neg, ph, nh, p, operand, M, K, TRANS, EMULATE)
    else:
        ph = g_pos.to(operand.dtype)
        nh = g_neg.to(operand.dtype)
        g_pos -= ph.to(tl.float32)
        g_neg -= nh.to(tl.float32)
        pm = g_pos.to(operand.dtype)
        nm = g_neg.to(operand.dtype)
        step = tl.zeros(total.shape, tl.float32)
        if PRODUCTS == "split3":
            pl = (g_pos - pm.to(tl.float32)).to(operand.dtype)
            nl = (g_neg - nm.to(tl.float32)).to(operand.dtype)
            step = _dot_part(step, pos, neg, pl, nl, p, operand, M, K, TRANS, EMULATE)
        step = _dot_part(step, pos, neg, pm, nm, p, operand, M, K, TRANS, EMULATE)
        total += _dot_part(step, pos, neg, ph, nh, p, operand, M, K, TRANS, EMULATE)
    return total


@triton.jit
def _matrix(dy, M: tl.constexpr, K: tl.constexpr, TRANS: tl.constexpr):
    """A tile of dY as [M, K]."""
    return tl.trans(tl.reshape(dy, (K, M))) if TRANS else tl.reshape(dy, (M, K))


@triton.jit
def _dot_part(
    total,  # [M, N]
    pos,
    neg,
    g_pos,  # of the dtype of operand
    g_neg,
    p,
    operand,  # [K, N] float16 or bfloat16
    M: tl.constexpr,
    K: tl.constexpr,
    TRANS: tl.constexpr,
    EMULATE: tl.constexpr,
):
    """`multiply` for gradients that are half numbers."""
    if EMULATE:  # Triton's interpreter multiplies the bits of bfloat16 as integers
        g_pos, g_neg = g_pos.to(tl.float32), g_neg.to(tl.float32)
        operand = operand.to(tl.float32)
    dy = tl.where(pos == p, g_pos, tl.where(neg == p, g_neg, 0.0))
    return tl.dot(_matrix(dy, M, K, TRANS), operand, total, input_precision="ieee")
