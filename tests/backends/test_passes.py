"""Shares of the passes between a rotation's products: together they are the whole."""

from __future__ import annotations

import itertools

import pytest
import torch

from infodisent.backends.native import module as native
from infodisent.backends.native.passes import CompiledPasses
from infodisent.backends.sparse.passes import TorchPasses, boundaries

PASSES = [
    TorchPasses(),
    pytest.param(
        CompiledPasses(),
        marks=pytest.mark.skipif(native.objection() is not None, reason="not built"),
    ),
]
SIZES = (1, 7, 64, 133, 300, 577)


def by_name(passes):
    return type(passes).__name__


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("passes", PASSES, ids=by_name)
def test_shares_of_sums(passes, n, count):
    inputs = [torch.randn(n, n) for _ in range(3)]
    coefficient, parity = [[1.0, -2.0, 0.0], [0.0, 0.5, 1.0], [2.0, 0.0, 3.0]], [0, 1, -1]
    outputs = [torch.full((n, n), torch.nan) for _ in parity]
    for number in torch.randperm(count).tolist():
        passes.combine_share(inputs, outputs, coefficient, parity, (number, count))
    for out, row, sign in zip(outputs, coefficient, parity, strict=True):
        truth = sum(c * x.double() for c, x in zip(row, inputs, strict=True))
        torch.testing.assert_close(out.double(), truth + sign * truth.mT, rtol=1e-6, atol=1e-5)
        assert not sign or torch.equal(out, sign * out.mT)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("passes", PASSES, ids=by_name)
def test_shares_of_products(passes, n, count):
    a, b, addend = (torch.randn(n, n) for _ in range(3))
    skew = a - a.mT
    square = skew @ skew
    for left, right, added, parity in (
        (a, b, None, 0), (a.mT, b, addend, 0), (a, b.mT, addend, 0),
        (skew, skew, None, 1), (skew, (square + square.mT) / 2, None, -1),
    ):  # fmt: skip
        out = torch.full((n, n), torch.nan) if added is None else added.clone()
        for number in torch.randperm(count).tolist():
            added_here = None if added is None else out  # in place
            passes.multiply_share(left, right, out, (number, count), added_here, 2.0, parity)
        truth = left.double() @ right.double() + (0 if added is None else 2 * added.double())
        assert (out - truth).abs().max() <= 2e-6 * truth.abs().max() * n**0.5 + 1e-6


@pytest.mark.parametrize("triangle", [0, 1, -1])
@pytest.mark.parametrize("parts", [1, 2, 3, 8])
@pytest.mark.parametrize("n", [1, 100, 2048])
def test_parts_are_about_equal(n, parts, triangle):
    at = boundaries(n, parts, unit=4, triangle=triangle)
    assert at == sorted(at)
    assert (at[0], at[-1], len(at)) == (0, n, parts + 1)
    assert all(end % 4 == 0 for end in at[:-1])
    rows = torch.arange(n)
    length = {0: torch.ones(n), 1: rows + 1, -1: n - rows}[triangle]
    sizes = [float(length[first:last].sum()) for first, last in itertools.pairwise(at)]
    assert max(sizes) - min(sizes) <= 4 * float(length.max()) * 1.5
