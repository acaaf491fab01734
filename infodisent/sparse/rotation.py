"""exp of a skew-symmetric matrix and its adjoint: 5 + 8 products, + 1 + 3 per squaring.

Forward: the degree-18 Taylor polynomial in the five-product form of Bader, Blanes and Casas,
"Computing the Matrix Exponential with an Optimized Taylor Polynomial Approximation", Mathematics
2019, 7(12), 1174. A skew matrix S is normal, so the polynomial's error depends on its spectral norm
alone, and ``min(||S^2||_1^(1/2), ||S^6||_1^(1/6))`` bounds that norm with powers the polynomial
forms anyway. The 1-norm of S, which `torch.matrix_exp` goes by, is far larger for
large C and costs it several squarings in which it loses accuracy.

Backward: reverse mode through the same products. Even powers of S are symmetric and odd ones skew,
so only the symmetric or skew part of each power's gradient matters, which saves half the products.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

# Row r: the coefficients of S, S^2, S^3, S^6 in the r-th polynomial; beside it the multiple of I.
_COEFFICIENTS = (
    (-0.100365581030144618291, -0.00802924648241156932449, -0.000892138498045729985177, 0.0),
    (0.397849749499645077844, 1.36783778460411720168, 0.498289622525382669416,
     -0.000637898194594723280150),
    (1.68015813878906206114, 0.0571779846478865511061, -0.00698210122488052056106,
     0.0000334975017086070470649),
    (-0.0676404519071381882256, 0.0675961301770459654925, 0.0295552570429315521194,
     -0.0000139180257516060693404),
    (0.0, -0.0923364619367118555360, -0.0169364939002081722752, -0.0000140086798182036094347),
)  # fmt: skip
_IDENTITY = (0.0, 0.0, -10.9676396052962061844, -0.0904316832390810593223, 0.0)

THETA = {torch.float32: 3.0, torch.float64: 1.0}
"""Largest spectral norm whose truncation error theta^19/19! is below the dtype's rounding."""


@cache
def _table(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(_COEFFICIENTS, dtype=dtype, device=device)


def squarings(powers: Tensor) -> int:
    """How many squarings the bound asks for; `powers` as left by `_powers`, unscaled."""
    square, _, sixth = powers[1:].unbind()
    bound = min(
        square.abs().sum(0).max().item() ** (1 / 2), sixth.abs().sum(0).max().item() ** (1 / 6)
    )
    theta = THETA[powers.dtype]
    if not math.isfinite(bound) or bound <= theta:
        return 0  # NaN and Inf run through the polynomial once and come out as NaN
    return math.ceil(math.log2(bound / theta))


def _powers(s: Tensor) -> Tensor:
    """S, S^2, S^3, S^6 as one [4, C, C] block, so that every combination of them is one product."""
    powers = torch.empty(4, *s.shape, dtype=s.dtype, device=s.device)
    powers[0] = s
    torch.mm(s, s, out=powers[1])
    torch.mm(s, powers[1], out=powers[2])
    torch.mm(powers[2], powers[2], out=powers[3])
    return powers


def _combine(table: Tensor, blocks: Tensor) -> Tensor:
    """Linear combinations of C x C blocks in one pass: [r, k] x [k, C, C] -> [r, C, C]."""
    n = blocks.shape[-1]
    return torch.mm(table, blocks.reshape(blocks.shape[0], n * n)).view(-1, n, n)


def _polynomials(powers: Tensor) -> Tensor:
    polynomials = _combine(_table(powers.dtype, powers.device), powers)
    for row, multiple in enumerate(_IDENTITY):
        if multiple:
            polynomials[row].diagonal().add_(multiple)
    return polynomials


def rotation(a: Tensor) -> tuple[Tensor, Tensor]:
    """Forward.

    Args:
        a: [C, C] float32 or float64.

    Returns:
        U = exp(a - a^T) [C, C], and the scaled powers [4, C, C] that the backward starts from.
    """
    s = a - a.mT
    largest = s.abs().sum(0).max().item() if s.numel() else 0.0
    # S^6 must not overflow: beyond this, scale by the 1-norm before any power is formed.
    early = math.ceil(math.log2(largest)) if 1e4 < largest < math.inf else 0
    if early:
        s = s * 2.0**-early
    powers = _powers(s)
    late = squarings(powers)
    if late:
        factor = 2.0**-late
        for block, degree in zip(powers, (1, 2, 3, 6), strict=True):
            block.mul_(factor**degree)
    u = _evaluate(_polynomials(powers))[0]
    for _ in range(early + late):
        u = u @ u
    return u, powers


def _evaluate(p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The last two products: U = p1 + (p2 + p9) p9 with p9 = p0 p4 + p3."""
    p9 = torch.addmm(p[3], p[0], p[4])
    left = p[2] + p9
    return torch.addmm(p[1], left, p9), p9, left


def rotation_backward(grad: Tensor, a: Tensor, powers: Tensor) -> Tensor:
    """dA [C, C] = Sbar - Sbar^T, Sbar the adjoint of exp at S = a - a^T applied to grad = dL/dU."""
    table = _table(powers.dtype, powers.device)
    s, square, cube, _ = powers.unbind()
    p = _polynomials(powers)
    u, p9, left = _evaluate(p)
    # a - a^T = 2^k s exactly, so the number of squarings can be read off any nonzero entry's ratio.
    k = _squarings_done(a, s)
    chain = []
    for _ in range(k):
        chain.append(u)
        u = u @ u
    for v in reversed(chain):
        grad = torch.addmm(grad @ v.mT, v.mT, grad)
    g = torch.empty_like(p)
    g[1] = grad
    torch.mm(grad, p9.mT, out=g[2])
    torch.addmm(g[2], left.mT, grad, out=g[3])
    torch.mm(g[3], p[4].mT, out=g[0])
    torch.mm(p[0].mT, g[3], out=g[4])
    g_s, g_square, g_cube, g_sixth = _combine(table.mT.contiguous(), g).unbind()
    # S^6 = S^3 S^3: with X the symmetric part, S^3 X = -(X S^3)^T, so one product gives both terms.
    t = _symmetric(g_sixth) @ cube
    g_cube = _skew(g_cube - t + t.mT)
    # S^3 = S S^2
    g_square = _symmetric(torch.addmm(g_square, s, g_cube, alpha=-1))
    g_s = torch.addmm(g_s, g_cube, square)
    # S^2 = S S
    t = g_square @ s
    g_s = g_s - t + t.mT
    return (g_s - g_s.mT).mul_(2.0**-k)


def _squarings_done(a: Tensor, s: Tensor) -> int:
    largest = s.abs().max().item() if s.numel() else 0.0
    if not 0 < largest < math.inf:
        return 0
    return round(math.log2((a - a.mT).abs().max().item() / largest))


def _symmetric(x: Tensor) -> Tensor:
    return (x + x.mT).mul_(0.5)


def _skew(x: Tensor) -> Tensor:
    return (x - x.mT).mul_(0.5)
