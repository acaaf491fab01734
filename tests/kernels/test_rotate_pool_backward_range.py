"""rotate_pool's gradients where numbers are not finite, huge or tiny.

With a GPU the tests run on it. Without one, `test_in_the_interpreter` runs this file again in the
interpreter, where half numbers are multiplied as float32 ones (its bfloat16 product is wrong) and
rounding to bfloat16 cuts digits off.
"""

from __future__ import annotations

import math
import re

import pytest
import torch

from infodisent.testing import relative
from tests.kernels import kernel_compile
from tests.kernels.marks import outside, runs
from tests.kernels.rotate_pool_backward_cases import (
    DTYPES,
    compare,
    exact,
    run,
    winners,
)


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_only_winners_carry_what_is_not_finite(value, dtype):
    """Through 0 · Inf in the dense product everything would be NaN."""
    shape = 3, 50, 40
    given = grad_pos, _, pos_index, neg_index = winners(*shape)
    x, u = torch.randn(shape).to(dtype), torch.randn(40, 40).to(dtype)
    for index in (pos_index, neg_index):
        index[index == 7] = 8
    x[1, 7] = value  # no channel's winner
    dx, du = run(given, x, u)
    assert du.isfinite().all()
    compare((dx, du), given, x.nan_to_num(0, 0, 0), u)

    pos_index[2, 5], grad_pos[2, 5] = 11, 1.5
    x[2, 11, 30] = value  # reaches column 30 of the channels that chose it
    for products in (None, "split", "bf16x3"):
        actual, truth = run(given, x, u, products)[1], exact(given, x, u)[1]
        finite = truth.isfinite()
        assert not finite[5, 30]
        assert finite.sum() >= finite.numel() - 40
        assert torch.equal(actual[~finite], truth[~finite].to(dtype)) or truth.isnan().any()
        assert torch.equal(actual.isnan(), truth.isnan())
        # parts of the batch without it are products
        slack = 2.0**-13 if products == "bf16x3" else 0.0
        assert relative(actual[finite], truth[finite]) <= 2 * torch.finfo(dtype).eps + slack


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rotation_that_is_not_finite(value, dtype):
    given = winners(3, 50, 40)
    x, u = torch.randn(3, 50, 40).to(dtype), torch.randn(40, 40).to(dtype)
    u[4, 9] = value
    actual, truth = run(given, x, u)[0], exact(given, x, u)[0]
    finite = truth.isfinite()
    assert finite.sum() >= finite.numel() - 6
    assert torch.equal(actual.isnan(), truth.isnan())
    assert torch.equal(actual.isinf(), truth.isinf())
    assert relative(actual[finite], truth[finite]) <= 2 * torch.finfo(dtype).eps


@runs
@pytest.mark.usefixtures("poisoned")
def test_gradient_that_is_not_finite():
    given = winners(3, 49, 24, absent=0)
    given[0][1, 3] = math.inf
    given[1][2, 4] = math.nan
    for dtype in DTYPES:
        x, u = torch.rand(3, 49, 24).to(dtype) + 1, torch.rand(24, 24).to(dtype) + 1
        dx, du = run(given, x, u)
        assert torch.equal((~du.isfinite()).any(1).nonzero().flatten(), torch.tensor([3, 4]))
        assert (du[3] == math.inf).all()
        where = [[1, int(given[2][1, 3])], [2, int(given[3][2, 4])]]
        assert torch.equal((~dx.isfinite()).any(2).nonzero(), torch.tensor(where))


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("scale", [65536.0**2, 65536.0, 2.0**-30, 2.0**-90])
def test_float16_takes_gradients_of_any_size(scale):
    """Rows of very different size, each as exact as at scale 1; all in float32 beside float16."""
    shape = 3, 49, 24
    grad_pos, grad_neg, *index = winners(*shape)
    sizes = 10.0 ** torch.arange(-3, 3).repeat(4)
    given = (grad_pos * sizes * scale, grad_neg * sizes * scale, *index)
    half, single = torch.float16, torch.float32
    x, u = torch.randn(shape), torch.randn(24, 24)
    for products, limit in (("half", 2**-10), ("split", 2**-20)):
        du = run(given, x.to(half), u, products, need_x=False)[1]
        truth = exact(given, x.to(half), u)[1]
        assert ((du - truth).norm(dim=1) <= limit * truth.norm(dim=1)).all()
        dx = run(given, x.to(single), u.to(half), products, need_u=False)[0]
        truth = exact(given, x, u.to(half))[0]
        assert relative(dx, truth) <= limit
    # the scale is exact: results differ by it alone
    one = run((grad_pos * sizes, grad_neg * sizes, *index), x.to(half), u, "half", need_x=False)[1]
    du = run(given, x.to(half), u, "half", need_x=False)[1]
    assert torch.equal(du, one * scale)


@outside
def test_in_the_interpreter():
    passed = re.search(r"(\d+) passed", kernel_compile.interpret(__file__))
    assert int(passed[1]) >= 20
