"""The judge finds planted faults, each of the kind that it names, and passes what is right."""

from __future__ import annotations

import random

import pytest
import torch

from infodisent import reference
from infodisent.contract import Extremes, SparsePool, empty_extremes
from infodisent.testing import (
    WrongResultError,
    check_close,
    check_extremes,
    compare_with_eager,
    eager_tolerance,
    gradient_truth,
    poisoned_memory,
    random_map,
    relative,
    untouched_generators,
)

KINDS = ("normal", "integers", "ties", "nan", "inf")
HALF = (torch.float16, torch.bfloat16)


def pooled(y: torch.Tensor) -> Extremes:
    """What a right kernel of float32 values makes of y [B, P, C]."""
    return unsigned(reference.mx_pool(y.float(), input_fmt="NLC"))


def unsigned(pool: SparsePool) -> Extremes:
    """Without the negative zeros of the formula, ``ReLU(-0)``."""
    return Extremes(pool.pos + 0.0, pool.neg + 0.0, *pool[3:])


def spoilt(extremes: Extremes, name: str, where, value) -> Extremes:
    """A copy with another entry (or several) in one tensor."""
    tensor = getattr(extremes, name).clone()
    tensor[where] = value
    return extremes._replace(**{name: tensor})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF])
@pytest.mark.parametrize("size", [(3, 7, 24), (2, 1, 5), (1, 50, 1), (4, 20, 33)])
def test_right_results_pass(kind, dtype, size):
    x, u, y = random_map(*size, dtype=dtype, kind=kind, seed=sum(size))
    result = unsigned(reference.rotate_pool(x, u, input_fmt="NLC"))
    wide = unsigned(reference.rotate_pool(x.double(), u.double(), input_fmt="NLC"))
    exact = kind in ("integers", "ties")
    check_extremes(wide, y, tolerance=1e-12, exact=exact, dtype=torch.float64)
    check_extremes(pooled(y), y, relative_tolerance=2**-23, exact=exact)
    if dtype == torch.float32:
        check_extremes(result, y, tolerance=eager_tolerance(x, u, rounding=2**-22), exact=exact)


def test_right_results_of_nothing_pass():
    x, u, y = random_map(0, 7, 24)
    check_extremes(reference.rotate_pool(x, u, input_fmt="NLC"), y)
    assert eager_tolerance(x, u, rounding=1.0) == (0, 0)
    assert compare_with_eager(x, x, x.double(), rounding=0, what="x") == 0
    assert gradient_truth(x[:, 0], x[:, 0], x, u, *empty_extremes(0, 24, x.dtype, "cpu")[2:])


@pytest.fixture
def problem():
    """Whole numbers with ties, and the right result; channel 0 of image 0 has both sides."""
    _, _, y = random_map(4, 20, 33, kind="integers", seed=3)
    y[0, :, 0] = 0.0
    y[0, :5, 0] = torch.tensor([7, -9, 7, -9, 0])
    y[1, :, 1] = y[1, :, 1].abs()  # nothing negative
    y[2, :, 2] = 0.0
    return y, pooled(y)


FAULTS = {
    "a wrong value": ("pos", (0, 0), 8.0, "pos values: off by 1, allowed"),
    "a wrong value below zero": ("neg", (0, 0), 10.0, "neg values: off by 1, allowed"),
    "a wrong place": ("pos_index", (0, 0), 1, "pos places: 16 below the maximum"),
    "a wrong place of neg": ("neg_index", (0, 0), 4, "neg places: 9 below the maximum"),
    "a tie at a higher pixel": ("pos_index", (0, 0), 2, "pos places: a tie at a higher pixel"),
    "a tie of neg": ("neg_index", (0, 0), 3, "neg places: a tie at a higher pixel"),
    "a place where the value is 0": ("neg_index", (1, 1), 0, "neg places: one where the value"),
    "no place of a value": ("pos_index", (0, 0), -1, "pos places: one where the value is 0, or no"),
    "a place outside": ("pos_index", (3, 5), 20, "pos places: outside of 20 pixels"),
    "a place below -1": ("pos_index", (2, 2), -2, "pos places: outside"),
    "a NaN": ("neg", (2, 2), float("nan"), "neg values: NaN in other places"),
    "an infinity": ("pos", (3, 1), float("inf"), "pos values: Inf in other places"),
    "a negative zero": ("neg", (1, 1), -0.0, "neg values: below zero, or negative zero"),
    "a negative value": ("pos", (2, 2), -1.0, "pos values: below zero"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults(problem, fault):
    y, right = problem
    check_extremes(right, y, exact=True)
    name, where, value, message = FAULTS[fault]
    with pytest.raises(WrongResultError, match=message):
        check_extremes(spoilt(right, name, where, value), y, exact=True, what="planted")
    with pytest.raises(WrongResultError, match=r"^planted: "):
        check_extremes(spoilt(right, name, where, value), y, exact=True, what="planted")


def test_negative_zeros_of_the_formula(problem):
    y, right = problem
    negative = spoilt(right, "neg", (1, 1), -0.0)
    check_extremes(negative, y, exact=True, signed_zeros=True)
    with pytest.raises(WrongResultError, match="neg values: below zero"):
        check_extremes(spoilt(right, "neg", (1, 1), -1e-30), y, signed_zeros=True)


def test_a_tie_may_go_anywhere_where_values_are_rounded(problem):
    y, right = problem
    check_extremes(spoilt(right, "pos_index", (0, 0), 2), y)


@pytest.mark.parametrize("side", ["pos", "neg"])
def test_tolerances(side):
    _, _, y = random_map(3, 20, 9, seed=1)
    right = pooled(y)
    truth = reference.mx_pool(y, input_fmt="NLC")
    biggest = getattr(truth, side).amax().item()
    off = spoilt(right, side, (1, 4), getattr(truth, side)[1, 4] + 0.01)
    check_extremes(off, y, tolerance=0.0101)
    check_extremes(off, y, relative_tolerance=0.0101 / biggest)
    each = torch.full((3, 9), 1e-6)
    each[1, 4] = 0.0101
    check_extremes(off, y, tolerance=each)
    pair = (each, 1e-6) if side == "pos" else (1e-6, each)
    check_extremes(off, y, tolerance=pair)
    for options in (
        {"tolerance": 0.0099},
        {"relative_tolerance": 0.0099 / biggest},
        {"tolerance": each.roll(1)},
        {"tolerance": pair[::-1]},
    ):
        with pytest.raises(WrongResultError, match=f"{side} values: off by 0.01, allowed"):
            check_extremes(off, y, **options)


def test_a_place_may_cost_twice_the_error_of_a_value():
    y = torch.tensor([[[1.0], [0.99], [-1.0]]], dtype=torch.float64)
    near = spoilt(pooled(y), "pos_index", (0, 0), 1)
    check_extremes(near, y, tolerance=0.0051)
    with pytest.raises(WrongResultError, match=r"pos places: 0.01 below the maximum"):
        check_extremes(near, y, tolerance=0.0049)


@pytest.mark.parametrize("side", ["pos", "neg"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite(side, value):
    _, _, y = random_map(3, 20, 9, seed=2)
    y[1, 11, 4] = y[1, 13, 4] = value
    right = pooled(y)
    check_extremes(right, y, relative_tolerance=2**-23)
    if value == (-float("inf") if side == "pos" else float("inf")):
        return  # that is on the other side
    for name, wrong, message in (
        (side, 1.0, "in other places"),
        (f"{side}_index", 13, "places: of a"),
        (f"{side}_index", 3, "places: of a"),
        (f"{side}_index", -1, "places: "),
    ):
        with pytest.raises(WrongResultError, match=message):
            check_extremes(spoilt(right, name, (1, 4), wrong), y, relative_tolerance=2**-23)


def test_values_too_small_to_count(problem):
    """What a split operand leaves where a sum should be nothing."""
    y, right = problem
    faint = spoilt(spoilt(right, "neg", (1, 1), 1e-35), "neg_index", (1, 1), 9)
    check_extremes(faint, y, exact=True, least=1e-30)
    with pytest.raises(WrongResultError, match="neg values: off by 1e-35"):
        check_extremes(faint, y, exact=True)
    with pytest.raises(WrongResultError, match="neg places: one where the value is 0"):
        check_extremes(spoilt(faint, "neg_index", (1, 1), -1), y, exact=True, least=1e-30)


def test_types_and_sizes(problem):
    y, right = problem
    for wrong, message in (
        (right._replace(pos=right.pos.double()), "pos is torch.float64, not torch.float32"),
        (right._replace(neg_index=right.neg_index.long()), "neg_index is torch.int64"),
        (right._replace(neg=right.neg[:, :1]), r"neg is \(4, 1\), not \(4, 33\)"),
        (right[:3], "3 tensors"),
    ):
        with pytest.raises(WrongResultError, match=message):
            check_extremes(wrong, y)
    whole = right.pooled()
    check_extremes(whole, y)
    with pytest.raises(WrongResultError, match="pooled is not pos - neg"):
        check_extremes(SparsePool(whole.pooled + 1e-6, *whole[1:]), y)


@pytest.mark.parametrize("name", Extremes._fields)
def test_an_output_that_was_not_written(name):
    _, _, y = random_map(4, 20, 33, kind="integers", seed=3)
    right = pooled(y)
    before = torch.empty
    with poisoned_memory():
        memory = getattr(empty_extremes(4, 33, torch.float32, "cpu"), name)
    assert torch.empty is before
    memory[:-1] = getattr(right, name)[:-1]  # the last image is left
    with pytest.raises(WrongResultError, match=r"NaN in other places|outside of 20 pixels"):
        check_extremes(right._replace(**{name: memory}), y)
    memory[-1] = getattr(right, name)[-1]
    check_extremes(right._replace(**{name: memory}), y)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.complex64, torch.int32, torch.int64, torch.uint8]
)
def test_poison(dtype):
    x = torch.zeros(3, dtype=dtype)
    with poisoned_memory():
        memory = [
            torch.empty(3, dtype=dtype),
            torch.empty_like(x),
            torch.empty_strided((3,), (2,), dtype=dtype),
            x.new_empty(3),
            x.new_empty_strided((3,), (2,)),
        ]
        torch.empty(3, dtype=dtype, device="meta")
        torch.empty(3, dtype=torch.bool)
        if dtype.is_floating_point:
            assert torch.empty(3, dtype=dtype, requires_grad=True).is_leaf
    for t in memory:
        if dtype.is_floating_point or dtype.is_complex:
            assert t.isnan().all()
        else:
            assert (t == (torch.iinfo(dtype).min or torch.iinfo(dtype).max)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_random_maps(kind):
    random.seed(0)
    with untouched_generators(), torch.device("meta"):
        x, u, y = random_map(3, 20, 9, kind=kind, seed=5, dtype=torch.bfloat16)
        again = random_map(3, 20, 9, kind=kind, seed=5, dtype=torch.bfloat16, prefix=2)
        other = random_map(3, 20, 9, kind=kind, seed=6, u_dtype=torch.float64)
    assert x.dtype == u.dtype == torch.bfloat16
    assert (other.x.dtype, other.u.dtype) == (torch.float32, torch.float64)
    assert y.dtype == torch.float64
    assert x.device.type == "cpu"
    assert torch.equal(again.x.view(torch.int16), x.view(torch.int16))
    assert torch.equal(again.u, u)
    assert again.x.stride(0) == 22 * 9
    assert again.x.as_strided((3, 2, 9), (22 * 9, 9, 1), 0).isnan().all()
    assert not torch.equal(other.x.nan_to_num(), x.float().nan_to_num())
    torch.testing.assert_close(y, x.double() @ u.double().mT, equal_nan=True)
    if kind in ("nan", "inf"):
        assert 1 <= (~x.isfinite()).sum() <= 3
    if kind in ("integers", "ties"):
        assert torch.equal(y, y.round())
        assert y.abs().max() < 2**8  # exact also at bfloat16
        best = y.amax(1, keepdim=True)
        assert ((y == best).sum(1) > 1).any()
        assert (best <= 0).any() or kind == "integers"


def test_unknown_kind():
    with pytest.raises(ValueError, match="kind is 'zero', allowed: normal, integers, ties"):
        random_map(1, 1, 1, kind="zero")


@pytest.mark.parametrize("draw", [lambda: torch.rand(1), lambda: torch.manual_seed(1)])
def test_a_generator_that_was_disturbed(draw):
    with pytest.raises(WrongResultError, match="the generator of torch was drawn from"):
        with untouched_generators():
            draw()
    with pytest.raises(WrongResultError, match="the generator of random was drawn from"):
        with untouched_generators():
            random.random()
    with untouched_generators():
        torch.rand(1, generator=torch.Generator().manual_seed(0))


def test_close():
    truth = torch.randn(4, 5, dtype=torch.float64)
    off = truth + 0.01 * truth.norm() / 20**0.5
    assert check_close(off, truth, 0.0101, "it") == pytest.approx(0.01)
    for wrong, message in (
        (off, r"^it is off by 1.0e-02, allowed 9.0e-03$"),
        (truth * float("nan"), "it is off by nan"),
        (truth[:1], r"it is \(1, 5\), not \(4, 5\)"),  # would broadcast
    ):
        with pytest.raises(WrongResultError, match=message):
            check_close(wrong, truth, 0.009, "it")
    nothing = torch.zeros(2)
    assert check_close(nothing, nothing.double(), 0, "nothing") == 0
    with pytest.raises(WrongResultError):
        check_close(nothing + 1e-30, nothing.double(), 1, "nothing")
    assert relative(truth.float(), truth) < 1e-7


@pytest.mark.parametrize("by", ["largest", "norm"])
def test_compared_with_eager(by):
    truth = torch.full((4, 5), 2.0, dtype=torch.float64)
    eager, worse = truth + 0.2, truth + 0.3
    assert compare_with_eager(eager, eager, truth, rounding=0, what="it", by=by) > 0.09
    compare_with_eager(worse, eager, truth, rounding=0.0501, what="it", by=by)
    for wrong, allowance in ((worse, 0.0499), (truth * float("nan"), 1.0)):
        with pytest.raises(WrongResultError, match=r"it is off by .*, eager .*, allowed "):
            compare_with_eager(wrong, eager, truth, rounding=allowance, what="it", by=by)
    with pytest.raises(WrongResultError, match=r"it is \(1, 5\), not"):
        compare_with_eager(eager[:1], eager, truth, rounding=0, what="it", by=by)


@pytest.mark.parametrize("dtype", HALF)
def test_allowance_of_eager(dtype):
    x, u, y = random_map(3, 20, 33, dtype=dtype, seed=7)
    coarse = reference.rotate_pool(x, u, input_fmt="NLC")  # of a product that is rounded
    check_extremes(coarse, y, tolerance=eager_tolerance(x, u, rounding=0))
    with pytest.raises(WrongResultError, match="values: off by"):
        check_extremes(coarse, y, relative_tolerance=2**-20)
    pos, neg = eager_tolerance(x, u, rounding=0.5)
    assert min(pos, neg) >= 0.5 * y.abs().max()
    x[0, 0, 0] = float("nan")
    assert eager_tolerance(x, u, rounding=0)[0] < 1  # judged by the rest


def test_gradients_of_winners():
    x, u, _ = random_map(3, 20, 9, dtype=torch.float64, seed=4)
    x[:, 5] = -20 * x[:, 5].abs()
    u[2] = u[2].abs()  # largest at pixel 5 on its negative side
    leaves = x.requires_grad_(), u.requires_grad_()
    pool = reference.rotate_pool(*leaves, input_fmt="NLC")
    grads = torch.randn(2, 3, 9, dtype=torch.float64)
    wanted = torch.autograd.grad((pool.pos * grads[0] - pool.neg * grads[1]).sum(), leaves)
    result = gradient_truth(*grads, *leaves, *pool[3:])
    torch.testing.assert_close(result.dx, wanted[0])
    torch.testing.assert_close(result.du, wanted[1])
    # what no pixel has chosen counts nothing, whatever its gradient, and no other row is read
    absent = pool.pos_index.clone()
    absent[1, 3] = -1
    grads[0, 1, 3] = float("nan")
    chosen = torch.cat([absent[2], pool.neg_index[2]])
    unread = next(p for p in range(20) if p not in chosen)
    x = x.detach().clone()
    x[2, unread] = float("nan")
    some = gradient_truth(*grads, x, u, absent, pool.neg_index)
    assert some.dx.isfinite().all()
    assert some.du.isfinite().all()
    assert not torch.equal(some.du[3], result.du[3])
    assert torch.equal(some.du[4], result.du[4])
