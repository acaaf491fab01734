"""Polynomials that stand for exp on skew-symmetric matrices, each with the fewest products.

A skew matrix S is normal with eigenvalues ``i y``, so a polynomial p may replace exp with an error
of ``max |p(i y) - e^(i y)|`` over ``|y| <= ||S||_2``, and nothing else. Three facts set the price:

- ``S^2`` and every polynomial in it are symmetric: such a product costs half, and its square
  sends back half of what another product does (1 product in backward, not 2);
- products of general polynomials, ``L M`` with L and M sums of what is there already, double the
  degree at 1 product forward and 2 backward;
- best approximation on the interval needs a far lower degree than Taylor's series.

The form is ``U = I + last + L_k M_k``, where every L, M and `last` is a sum over
``S, S^2, S^4 [, Q] [, P_1]`` with ``Q = q^2``, q a sum over ``S^2, S^4``, and ``P_1 = L_1 M_1``.
No factor holds a multiple of I: a product of matrices close to I would add small terms to sums
close to 1 and lose their digits. Squaring keeps to that: with ``V = I + W``, ``V^2 = I + (2 W +
W W)``. The coefficients were fitted by ``benchmarks/fit_polynomials.py``. For float64 the form is
that of Bader, Blanes and Casas (Mathematics 2019, 7(12), 1174) for Taylor's polynomial of degree
18, with the multiples of I multiplied out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from infodisent.polynomials.coefficients import FULL, HALF, TAYLOR18

Row = tuple[float, ...]

PRECISIONS = ("full", "half")


@dataclass(frozen=True)
class Plan:
    """One polynomial.

    Attributes:
        name: how it is shown.
        theta: largest spectral norm it serves.
        error: largest ``|p(i y) - e^(i y)|`` over ``|y| <= theta``.
        cube: the powers are ``S^2, S^3, S^6`` and not ``S^2, S^4 [, Q]``.
        q: coefficients of q over ``S, S^2, S^4``, or None where there is no Q.
        products: pairs of coefficients (L, M) over the basis so far.
        last: coefficients of what is added to the last product.

    All coefficients are for ``S / theta``.
    """

    name: str
    theta: float
    error: float
    cube: bool
    q: Row | None
    products: tuple[tuple[Row, Row], ...]
    last: Row

    @property
    def degrees(self) -> tuple[int, ...]:
        """Degree of each basis element before the first product."""
        if self.cube:
            return 1, 2, 3, 6
        return (1, 2, 4, 8) if self.q else (1, 2, 4)

    def scaled(self, squarings: int) -> Plan:
        """The same with coefficients for S itself, standing for ``exp(S / 2^squarings)``."""
        factor = 2.0**-squarings / self.theta
        scale = [factor**degree for degree in self.degrees]
        if self.q:
            scale[3] = 1.0  # Q is formed from q, whose coefficients are scaled

        def row(values: Row) -> Row:
            # beyond the powers come products, which are scaled through their factors
            return tuple(v * (scale[i] if i < len(scale) else 1.0) for i, v in enumerate(values))

        return Plan(
            self.name,
            1.0,
            self.error,
            self.cube,
            row(self.q) if self.q else None,
            tuple((row(left), row(right)) for left, right in self.products),
            row(self.last),
        )

    @property
    def cost(self) -> tuple[float, float]:
        """Products of C x C forward and backward, without squarings; half a product counts 0.5."""
        forward = 0.5 * (3 if self.cube or self.q else 2) + len(self.products)
        backward = (4 if self.cube else 3 if self.q else 2) + 2 * len(self.products)
        return forward, backward


def _plans(table: Sequence[tuple[str, float, float, Row | None, tuple[Row, ...]]]) -> list[Plan]:
    made = []
    for name, theta, error, q, rows in table:
        pairs = tuple((rows[i], rows[i + 1]) for i in range(0, len(rows) - 1, 2))
        made.append(Plan(name, theta, error, name.endswith("float64"), q, pairs, rows[-1]))
    return made


_FULL, _HALF, _WIDE = _plans(FULL), _plans(HALF), _plans(TAYLOR18)


def plans(dtype: torch.dtype, precision: str = "full") -> list[Plan]:
    """The plans for a dtype, cheapest first; float64 has one."""
    if dtype == torch.float64:
        return _WIDE
    return _HALF if precision == "half" else _FULL


def choose(bound: float, dtype: torch.dtype, precision: str = "full") -> tuple[int, int]:
    """Number of the plan, and of the squarings, that serve a spectral norm up to `bound`.

    A bound that is NaN or infinite takes the last plan and no squaring: NaN and Inf run through it
    once and come out as NaN.
    """
    table = plans(dtype, precision)
    if not math.isfinite(bound):
        return len(table) - 1, 0
    best = (math.inf, 0, 0)
    for index, plan in enumerate(table):
        squarings = max(0, math.ceil(math.log2(bound / plan.theta))) if bound > 0 else 0
        # a squaring is one product forward and two backward, and doubles the rounding error
        best = min(best, (sum(plan.cost) + 3 * squarings, index, squarings))
    return best[1], best[2]


def norm_bound(*powers: tuple[int, float, float]) -> float:
    """An upper bound of ``||S||_2`` from norms of its powers.

    Args:
        powers: (k, 1-norm, sum of squares) of ``S^k``. ``||S^k||_2`` is at most the 1-norm, and,
            since the singular values of a skew matrix come in pairs, at most
            ``sqrt(sum of squares / 2)``.
    """
    bounds = []
    for k, one, squares in powers:
        if math.isnan(one) or math.isnan(squares):
            return math.nan
        bounds += [one ** (1 / k), (squares / 2) ** (1 / (2 * k))]
    # the norms are sums in working precision
    smallest: float = min(bounds)
    return smallest * (1 + 1e-5)


def moment_bound(moments: Sequence[float]) -> float:
    """An upper bound of ``||S||_2``, S skew, from five moments of its spectrum.

    With ``x = |eigenvalue|^2``, every x > 0 comes twice, and no x with ``2 K(x) > 1`` can be there:
    ``1 / K(x)`` is the Christoffel function, the most that a measure of these moments can have in
    one point (Akhiezer, "The classical moment problem", 1965). ``K(x) = v^T H^-1 v`` with
    ``v = (1, x, x^2)`` and the Hankel matrix H of the moments.

    Args:
        moments: sums of x^k over the spectrum, k = 0 ... 4, which are C and the inner products
            ``<S, S>, <S^2, S^2>, |<S^2, S^4>|, <S^4, S^4>``. Errors of 1e-6, relative to the norms
            in an inner product, are allowed for.

    Returns:
        At most ``(moments[4] / 2)^(1/8)``, and closer the fewer large eigenvalues there are: within
        1e-3 for A after training, 1.3 times the norm for independent normal entries (where that
        simpler bound is 1.6 times it). NaN from NaN, Inf where it does not exist.
    """
    if any(math.isnan(m) for m in moments):
        return math.nan
    largest = (moments[4] / 2) ** 0.25  # of x
    if not 0 < largest < math.inf:
        return math.sqrt(largest)
    m = [value / largest**k for k, value in enumerate(moments)]
    if not all(math.isfinite(value) for value in m):
        return math.sqrt(largest)
    hankel = [[m[i + j] * (1 + 1e-5 * (i == j)) for j in range(3)] for i in range(3)]
    inverse = _inverse(hankel)
    if inverse is None:
        return math.sqrt(largest)

    def excess(x: float) -> float:
        v = (1.0, x, x * x)
        return 2 * sum(inverse[i][j] * v[i] * v[j] for i in range(3) for j in range(3)) - 1

    # K grows from the last zero of the orthogonal polynomial of degree 2 on
    c, b, a = inverse[2]
    low = (-b + math.sqrt(max(b * b - 4 * a * c, 0.0))) / (2 * a)
    high = 1 + 1e-4  # there 2 K >= 1, since 1 / K(x) <= moments[4] / x^4
    if not 0 <= low <= high or not excess(high) >= 0:
        return math.sqrt(largest)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if excess(middle) > 0 else (middle, high)
    return math.sqrt(high * largest) * (1 + 1e-5)


def _inverse(h: list[list[float]]) -> list[list[float]] | None:
    """Of a symmetric positive definite 3 x 3 matrix; None where rounding leaves no such thing."""
    rows = [
        [
            h[(j + 1) % 3][(i + 1) % 3] * h[(j + 2) % 3][(i + 2) % 3]
            - h[(j + 1) % 3][(i + 2) % 3] * h[(j + 2) % 3][(i + 1) % 3]
            for j in range(3)
        ]
        for i in range(3)
    ]
    determinant = sum(h[0][j] * rows[j][0] for j in range(3))
    if not determinant > 0:
        return None
    return [[value / determinant for value in row] for row in rows]
