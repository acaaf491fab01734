"""softmax_alignment in Triton: against float64 loops, and as compiled.

With a GPU the tests run on it. Without one, `test_in_the_interpreter` runs this file again in the
interpreter.
"""

from __future__ import annotations

import math
import re

import pytest
import torch
from infodisent.kernels import softmax_alignment as host

from tests.kernels import kernel_compile
from tests.kernels.marks import DEVICE, compiles, outside, runs

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
NAN, INF = math.nan, math.inf


def softmax(w):
    top = max(w)
    e = [math.exp(n - top) for n in w]
    return [n / sum(e) for n in e]


def truth(first, second):
    """Loss [B, P] and d(loss) of each side [B, P, C] in float64, by the formula in loops."""
    loss, sides = [], ([], [])
    for a, b in zip(first.double().flatten(0, 1).tolist(), second.double().flatten(0, 1).tolist(),
                    strict=True):  # fmt: skip
        p, q = softmax(a), softmax(b)
        common = sum(s * t for s, t in zip(p, q, strict=True))
        both = [s * t / common for s, t in zip(p, q, strict=True)]
        loss.append(-math.log(common))
        for side, own in zip(sides, (p, q), strict=True):
            side.append([s - t for s, t in zip(own, both, strict=True)])
    wide = (torch.tensor(side, dtype=torch.float64).view(first.shape) for side in sides)
    return torch.tensor(loss, dtype=torch.float64).view(first.shape[:2]), *wide


def maps(batch, pixels, channels, dtype=F32, other=None, scale=1.0):
    g = torch.Generator().manual_seed(batch + pixels + channels)
    first, second = scale * torch.randn(2, batch, pixels, channels, generator=g)
    return first.to(dtype), second.to(other or dtype)


def forward(first, second):
    return [t.cpu() for t in host.softmax_alignment(first.to(DEVICE), second.to(DEVICE))]


def backward(grad, first, second, statistics, need_first=True, need_second=True):
    first, second = first.to(DEVICE), second.to(DEVICE)
    sides = [
        torch.empty_like(x) if need else None
        for x, need in ((first, need_first), (second, need_second))
    ]
    host.softmax_alignment_backward(
        grad.to(DEVICE), first, second, statistics.to(DEVICE), *sides
    )  # fmt: skip
    return [None if d is None else d.cpu() for d in sides]


def check(first, second, tolerance=2e-6):
    """Loss and gradients against float64."""
    wanted, *slopes = truth(first, second)
    loss, statistics = forward(first, second)
    assert loss.dtype == statistics.dtype == F32
    assert float((loss - wanted).abs().max()) <= tolerance * float(1 + wanted.abs().max())
    grad = torch.randn(loss.shape, generator=torch.Generator().manual_seed(2))
    found = backward(grad, first, second, statistics)
    for one, slope, like in zip(found, slopes, (first, second), strict=True):
        true = grad.double()[:, :, None] * slope
        assert one.dtype == like.dtype
        allowed = 2 * tolerance + (torch.finfo(one.dtype).eps if one.dtype != F32 else 0)
        assert float((one - true).abs().max() / true.abs().max().clamp_min(1e-3)) <= allowed
    return loss, found


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("nchw", [False, True])
@pytest.mark.parametrize(
    ("dtype", "other"), [(F32, F32), (F16, F16), (BF16, BF16), (BF16, F32), (F32, F16)]
)
def test_against_float64(dtype, other, nchw):
    first, second = maps(2, 70, 40, dtype, other)
    if nchw:
        first = first.mT.contiguous().mT
    check(first, second)


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("size", [(1, 1, 1), (3, 7, 2), (2, 9, 257), (1, 65, 33)])
def test_sizes(size):
    """Around the pixels and the channels that a program has at a time."""
    check(*maps(*size))
    check(*(x.mT.contiguous().mT for x in maps(*size)))


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shift", [0.0, 3e4, -3e4])
def test_large_scores_lose_no_digits(shift):
    """What is common to a pixel's scores drops out before the two are added."""
    first, second = maps(2, 9, 300)
    first, second = ((x * 64).round() / 64 + shift for x in (first, second))  # exact, shifted too
    loss, _ = check(first, second)
    plain, _ = forward(first - shift, second - shift)
    assert torch.equal(loss, plain)


@runs
@pytest.mark.usefixtures("poisoned")
def test_far_from_each_other():
    """Two one-hot softmaxes that agree, and two that do not: 0, and the difference of scores."""
    first, second = torch.zeros(2, 2, 5, 20)
    first[:, :, 3] = second[0, :, 3] = second[1, :, 7] = 200.0
    loss, (d_first, d_second) = check(first, second)
    assert (loss[0] == 0).all()
    assert float((loss[1] - (200 - math.log(2))).abs().max()) <= 1e-4
    assert d_first.isfinite().all()
    assert d_second.isfinite().all()


@runs
@pytest.mark.usefixtures("poisoned")
def test_pixels_without_a_softmax():
    first, second = maps(3, 9, 300)
    first[0, 0, 280], second[0, 1, 3] = NAN, NAN
    first[0, 2, 299] = INF
    second[0, 3] = -INF
    first[0, 4, 1:], second[0, 4, 0] = -INF, -INF  # nothing in common
    first[0, 5, :7] = -INF  # as if there were fewer
    loss, statistics = forward(first, second)
    assert loss[0, :4].isnan().all()
    assert loss[0, 4] == INF
    assert loss.isfinite().sum() == 27 - 5
    d_first, d_second = backward(torch.ones(3, 9), first, second, statistics)
    for d in (d_first, d_second):
        assert d[0, :4].isnan().any(1).all()
        assert d[0, 5:].isfinite().all()
        assert d[1:].isfinite().all()
    wanted, _, _ = truth(first[:1, 5:6, 7:], second[:1, 5:6, 7:])
    rest = second[0, 5, 7:].logsumexp(0) - second[0, 5].logsumexp(0)  # what second has there
    assert float((loss[0, 5] - (wanted[0, 0] - rest)).abs()) <= 1e-5
    assert (d_first[0, 5, :7] == 0).all()
    check(first[1:], second[1:])


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("need_first", [False, True])
@pytest.mark.parametrize("need_second", [False, True])
def test_only_the_gradients_asked_for(need_first, need_second):
    first, second = maps(2, 9, 40)
    loss, statistics = forward(first, second)
    both = backward(loss, first, second, statistics)
    found = backward(loss, first, second, statistics, need_first, need_second)
    for one, wanted, need in zip(found, both, (need_first, need_second), strict=True):
        assert (one is not None) == need
        assert one is None or torch.equal(one, wanted)


@runs
def test_gradients_have_their_own_layout():
    first, second = (x.to(DEVICE) for x in maps(2, 9, 40))
    loss, statistics = host.softmax_alignment(first, second)
    call = loss.mT.contiguous().mT, first, second, statistics
    rows, columns = torch.empty_like(first), torch.empty(2, 40, 9, device=DEVICE).mT
    host.softmax_alignment_backward(*call, rows, None)
    host.softmax_alignment_backward(*call, columns, rows)
    again = torch.empty_like(first)
    host.softmax_alignment_backward(*call, again, None)
    assert torch.equal(columns, again)


@runs
def test_nothing_to_do():
    loss, statistics = forward(*maps(0, 4, 8))
    assert loss.shape == (0, 4)
    assert statistics.shape == (6, 0, 4)
    backward(loss, *maps(0, 4, 8), statistics)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (torch.ones(2, 4, 8), torch.ones(2, 4, 9), r"second is \(2, 4, 9\)"),
        (torch.ones(2, 0, 8), torch.ones(2, 0, 8), "no pixels"),
        (torch.ones(2, 4, 8), torch.ones(2, 4, 8).double(), "second is torch.float64"),
    ],
)
def test_what_is_refused(first, second, message):
    with pytest.raises(ValueError, match=message):
        host.softmax_alignment(first, second)


@compiles
def test_launches():
    """One each way, in either layout, and none where no gradient is asked for."""
    for x in (torch.empty(8, 676, 768, device="meta"), torch.empty(8, 768, 676, device="meta").mT):
        with kernel_compile.recorder() as launches:
            loss, statistics = host.softmax_alignment(x, x)
            host.softmax_alignment_backward(loss, x, x, statistics, x, None)
            host.softmax_alignment_backward(loss, x, x, statistics, None, None)
        names = [kernel.__name__ for kernel, _ in launches]
        assert names == ["alignment_kernel", "alignment_gradient_kernel"]


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90, 100, 120])
def test_compiles_without_spills(arch):
    sizes, products = [768, 2048], ["half", "split", "tf32x3"]
    results = kernel_compile.run("softmax_alignment", [arch], sizes, products, maps=[(8, 676)])
    assert {r["kernel"] for r in results} == {"alignment_kernel", "alignment_gradient_kernel"}
    for r in results:
        assert "error" not in r, r
        assert r["spills"] == 0, r
        assert r["registers"] <= 80, r  # six programs of 128 threads a multiprocessor, at least


@outside
@pytest.mark.slow
def test_in_the_interpreter():
    passed = re.search(r"(\d+) passed", kernel_compile.interpret(__file__))
    assert int(passed[1]) >= 24
