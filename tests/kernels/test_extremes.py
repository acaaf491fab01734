"""The epilogue of rotate_pool: ties, zeros, NaN, Inf and the largest numbers.

With a GPU the tests run on it. Without one, `test_in_the_interpreter` runs this file again in the
interpreter, where products of bfloat16 and TF32 parts are computed in float32.
"""

from __future__ import annotations

import math
import re

import pytest
import torch

from infodisent import reference
from tests.kernels import kernel_compile
from tests.kernels.marks import outside, runs
from tests.kernels.rotate_pool_cases import BF16, F16, F32, check, rotation_like, run


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("pixels", [49, 300])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_ties_go_to_the_lowest_pixel(pixels, dtype):
    x = torch.randint(-1, 2, (3, pixels, 24)).to(dtype)
    u = torch.randint(-1, 2, (24, 24)).to(dtype)
    y = (x.double() @ u.double().mT).float()
    pos, neg, pos_index, neg_index = run(x, u)
    for value, index, sign in ((pos, pos_index, y), (neg, neg_index, -y)):
        best = sign.amax(1)
        assert torch.equal(value, best.clamp_min(0))
        first = (sign == best.unsqueeze(1)).int().argmax(1)
        assert torch.equal(index.long(), torch.where(best > 0, first, -1))


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("pixels", [20, 300])
@pytest.mark.parametrize("dtype", [F32, F16])
@pytest.mark.parametrize("value", [0.0, -0.0, 2.0, -2.0])
def test_constant_maps(pixels, dtype, value):
    x = torch.full((2, pixels, 24), value).to(dtype)
    pos, neg, pos_index, neg_index = run(x, torch.eye(24, dtype=dtype))
    for actual, index, wanted in ((pos, pos_index, value), (neg, neg_index, -value)):
        assert torch.all(actual == max(wanted, 0.0))
        assert not torch.signbit(actual).any()
        assert torch.all(index == (0 if wanted > 0 else -1))


NEGATIVE_NAN = {F32: (torch.int32, -0x400000), F16: (torch.int16, -0x200), BF16: (torch.int16, -64)}


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("pixels", [20, 300])
@pytest.mark.parametrize(
    ("dtype", "u_dtype", "products"),
    [
        (F32, F32, "tf32x3"),
        (F32, F32, "bf16x3"),
        (F32, F32, "ieee"),
        (F16, F16, "half"),
        (BF16, BF16, "half"),
        (F16, F32, "split"),
        (BF16, F32, "split"),
    ],
)
def test_nan(pixels, dtype, u_dtype, products):
    """A NaN of either sign reaches both sides of all channels of its image, and of no other."""
    x, u = torch.randn(4, pixels, 24).to(dtype), rotation_like(24).to(u_dtype)
    kind, bits = NEGATIVE_NAN[dtype]
    x[0, 7, 3] = math.nan
    x.view(kind)[1, 5, 2] = bits
    x[2, 9, 0] = math.nan
    x.view(kind)[2, 11, 20] = bits
    assert x[1:3].isnan().sum() == 3
    pos, neg, pos_index, neg_index = run(x, u, products)
    for value, index in ((pos, pos_index), (neg, neg_index)):
        assert value[:3].isnan().all()
        assert index[:3].tolist() == [[7] * 24, [5] * 24, [9] * 24]
    check(x[3:], u, tuple(t[3:] for t in (pos, neg, pos_index, neg_index)), products)


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("pixels", [20, 300])
@pytest.mark.parametrize(
    ("dtype", "u_dtype", "products"),
    [
        (F32, F32, "tf32x3"),
        (F32, F32, "bf16x3"),
        (F16, F16, "half"),
        (BF16, BF16, "half"),
        (F16, F32, "split"),
        (BF16, F32, "split"),
    ],
)
def test_infinity(pixels, dtype, u_dtype, products):
    """Inf times U is as in the formula, also where U has no or a tiny low part, or is 0."""
    x, u = torch.randn(3, pixels, 24), rotation_like(24).to(u_dtype)
    u[:, 4] = torch.randint(0, 2, (24,)) * 2.0 - 1
    u[:, 5] = torch.where(u[:, 5] < 0, -1e-4, 1e-4)
    u[:9, 6] = 0
    x = x.to(dtype)
    x[0, 3, 4], x[0, 12, 5] = math.inf, -math.inf
    x[1, 6, 6] = math.inf  # NaN where U is 0
    x[2, 2, 4] = x[2, 2, 5] = math.inf  # Inf - Inf in some channels
    actual = run(x, u, products)
    truth = reference.rotate_pool(x.double(), u.double(), input_fmt="NLC")
    for value, index, side in ((actual[0], actual[2], 0), (actual[1], actual[3], 1)):
        true, places = truth[1 + side], truth[3 + side]
        assert torch.equal(value.isnan(), true.isnan())
        assert torch.equal(value.isinf(), true.isinf())
        special = ~true.isfinite()
        assert torch.equal(index[special], places[special])
        torch.testing.assert_close(value.double()[~special], true[~special], rtol=0.01, atol=0.01)


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("products", ["tf32x3", "bf16x3"])
def test_the_largest_numbers_do_not_overflow_in_parts(products):
    x = torch.full((1, 3, 16), torch.finfo(F32).max)
    pos, _, pos_index, _ = run(x, torch.eye(16) * 0.5, products)
    assert torch.allclose(pos, torch.tensor(torch.finfo(F32).max / 2), rtol=1e-4)
    assert torch.all(pos_index == 0)


@outside
def test_in_the_interpreter():
    passed = re.search(r"(\d+) passed", kernel_compile.interpret(__file__))
    assert int(passed[1]) >= 40
