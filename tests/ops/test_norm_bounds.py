"""Bounds of ||S||_2 that decide which polynomial stands for the exponential: never below it."""

from __future__ import annotations

import math

import pytest
import torch

from infodisent.polynomials.plans import moment_bound


def _skew(kind: str, n: int) -> torch.Tensor:
    a = torch.randn(n, n, dtype=torch.float64)
    if kind == "trained":  # a few directions of large norm
        few = torch.randn(n, 3).sign().double() @ torch.randn(3, n).sign().double()
        a = few + 0.02 * a
    elif kind == "one plane":
        a = torch.zeros_like(a)
        a[0, -1] = 1
    elif kind == "chain":
        a = torch.ones(n - 1, dtype=torch.float64).diag(1)
    elif kind == "one norm":  # all eigenvalues of one size
        a = torch.zeros_like(a)
        a[range(0, n - 1, 2), range(1, n, 2)] = 1
    elif kind == "graded":
        a *= torch.logspace(0, -6, n, dtype=torch.float64)[:, None]
    return a - a.mT


def _moments(s: torch.Tensor) -> list[float]:
    square = s @ s
    fourth = square @ square
    pairs = ((s, s), (square, square), (square, fourth), (fourth, fourth))
    return [len(s), *(abs((x * y).sum().item()) for x, y in pairs)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("n", [2, 3, 40, 301])
@pytest.mark.parametrize("kind", ["normal", "trained", "one plane", "chain", "one norm", "graded"])
def test_never_below_the_norm_and_never_above_the_simple_bound(kind, n, dtype):
    for scale in (1e-3, 1.0, 40.0):
        s = _skew(kind, n) * scale
        norm = torch.linalg.matrix_norm(s, 2).item()
        moments = _moments(s.to(dtype))
        bound = moment_bound(moments)
        assert norm <= bound * (1 + 1e-6)
        assert bound <= (moments[4] / 2) ** 0.125 * (1 + 2e-4)


def test_close_where_few_eigenvalues_are_large():
    s = _skew("trained", 600)
    norm = torch.linalg.matrix_norm(s, 2).item()
    assert moment_bound(_moments(s)) <= 1.05 * norm
    assert moment_bound(_moments(_skew("one plane", 600))) == pytest.approx(1, rel=1e-3)


def test_what_is_not_a_number_is_not_hidden():
    assert moment_bound([4, 0.0, 0.0, 0.0, 0.0]) == 0
    assert math.isnan(moment_bound([4, 1.0, math.nan, 1.0, 1.0]))
    assert moment_bound([4, 1.0, 1.0, math.inf, math.inf]) == math.inf
