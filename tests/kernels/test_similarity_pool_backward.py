"""Gradients of similarity_pool in Triton: against float64 loops, and as compiled.

With a GPU the tests run on it. Without one, `test_in_the_interpreter` runs this file again in the
interpreter.
"""

from __future__ import annotations

import math
import re

import pytest
import torch
from infodisent.kernels import similarity_pool as forward
from infodisent.kernels import similarity_pool_backward as host

from infodisent.contract import Best
from tests.kernels import kernel_compile
from tests.kernels.marks import DEVICE, compiles, outside, runs

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
VIEWS = (("dot",), ("l2",), ("cosine",), ("cosine", "dot"), ("dot", "l2"))
NAN, INF = math.nan, math.inf


def slopes(x, v, similarity):
    """d(value)/dx and d(value)/dv of one pixel and one prototype, lists of numbers."""
    if similarity == "dot":
        return v, x
    if similarity == "l2":
        away = [2 * (a - b) for a, b in zip(x, v, strict=True)]
        return away, [-d for d in away]
    x_norm, v_norm = (math.sqrt(sum(a * a for a in t)) for t in (x, v))
    if x_norm == 0 or v_norm == 0:
        return [0.0] * len(x), [0.0] * len(x)
    dot = sum(a * b for a, b in zip(x, v, strict=True))
    value = dot / x_norm / v_norm
    return tuple(
        [(b / b_norm - value * a / a_norm) / a_norm for a, b in zip(one, two, strict=True)]
        for one, two, a_norm, b_norm in ((x, v, x_norm, v_norm), (v, x, v_norm, x_norm))
    )


def truth(grads, places, x, v, similarities):
    """dX and dV in float64, by the formula in loops."""
    rows, vectors = x.double().tolist(), v.double().tolist()
    dx = [[[0.0] * x.shape[2] for _ in image] for image in rows]
    dv = [[0.0] * x.shape[2] for _ in vectors]
    for grad, place, similarity in zip(grads, places, similarities, strict=True):
        for b, image in enumerate(place.tolist()):
            for m, p in enumerate(image):
                g = float(grad[b, m])
                of_x, of_v = slopes(rows[b][p], vectors[m], similarity)
                for k in range(x.shape[2]):
                    dx[b][p][k] += g * of_x[k]
                    dv[m][k] += g * of_v[k]
    return torch.tensor(dx, dtype=torch.float64), torch.tensor(dv, dtype=torch.float64)


def maps(batch, pixels, channels, prototypes, dtype=F32, v_dtype=None):
    g = torch.Generator().manual_seed(batch + pixels + channels + prototypes)
    x, v = (
        torch.randn(s, generator=g) for s in ((batch, pixels, channels), (prototypes, channels))
    )
    return x.to(dtype), v.to(v_dtype or dtype)


def random_grads(best):
    g = torch.Generator().manual_seed(2)
    return tuple(torch.randn(one.value.shape, generator=g).to(DEVICE) for one in best)


def run(x, v, similarities, valid=None, grads=None, need_x=True, need_v=True):
    """Gradients at the places that the forward finds, and what they were asked at."""
    x, v = x.to(DEVICE), v.to(DEVICE)
    best = forward.similarity_pool(x, v, None if valid is None else valid.to(DEVICE), similarities)
    grads = random_grads(best) if grads is None else grads
    found = host.similarity_pool_backward(grads, best, x, v, similarities, need_x, need_v)
    return [None if d is None else d.cpu() for d in found], grads, [b.index.cpu() for b in best]


def check(x, v, similarities, *, seen=None, tolerance=2e-6, **options):
    found, grads, places = run(x, v, similarities, **options)
    wanted = truth(grads, places, x if seen is None else seen, v, similarities)
    for one, true, like in zip(found, wanted, (x, v), strict=True):
        assert one.dtype == like.dtype
        assert one.shape == like.shape
        assert one.is_contiguous()
        allowed = tolerance + (torch.finfo(one.dtype).eps if one.dtype != F32 else 0)
        assert float((one - true).abs().max() / true.abs().max()) <= allowed
    return found


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("similarities", VIEWS)
@pytest.mark.parametrize(
    ("dtype", "v_dtype"), [(F32, F32), (F16, F16), (BF16, BF16), (BF16, F32), (F32, F16)]
)
def test_against_float64(dtype, v_dtype, similarities):
    check(*maps(3, 30, 20, 40, dtype, v_dtype), similarities)


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("batch", "pixels", "channels", "prototypes"),
    [(1, 1, 1, 1), (9, 7, 8, 3), (1, 9, 130, 5), (2, 8, 24, 300), (5, 16, 16, 17)],
)
def test_sizes(batch, pixels, channels, prototypes):
    """Around the rows of a program, its channels, and the prototypes that are sorted at a time."""
    check(*maps(batch, pixels, channels, prototypes), ("l2", "dot"))


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("similarities", VIEWS)
def test_pixels_that_win_nothing_are_not_read(similarities):
    """Whatever those that do not count hold; and an infinite gradient stays with its winner."""
    x, v = maps(3, 30, 16, 20)
    valid = torch.rand(3, 30, generator=torch.Generator().manual_seed(1)) < 0.5
    valid[:, 4] = True
    seen = x.masked_fill(~valid[:, :, None], 0)
    x[~valid] = NAN
    dx, _ = check(x, v, similarities, seen=seen, valid=valid)
    assert (dx[~valid] == 0).all()
    grads = tuple(torch.ones(3, 20, device=DEVICE) for _ in similarities)
    grads[0][1, 7] = INF
    (dx, dv), _, (place, *_) = run(x, v, similarities, valid=valid, grads=grads)
    assert not dv[7].isfinite().all()
    assert dv[torch.arange(20) != 7].isfinite().all()
    wrong = ~dx.isfinite().all(2)
    assert wrong.sum() == 1
    assert wrong[1, place[1, 7]]


@runs
@pytest.mark.usefixtures("poisoned")
def test_a_pixel_at_distance_0_has_no_gradient():
    x, v = maps(2, 9, 20, 4, BF16)
    x, v = 10 + x / 8, 10 + v / 8
    v[1] = x[1, 5]
    v[2] = x[1, 5]
    (dx, dv), _, (place,) = run(x, v, ("l2",))
    assert (place[1, 1:3] == 5).all()
    assert dx.any()
    grads = (torch.zeros(2, 4, device=DEVICE),)
    grads[0][1, 1:3] = 3.0
    for d in run(x, v, ("l2",), grads=grads)[0]:
        assert (d == 0).all()
    assert dv[0].any()


@runs
@pytest.mark.usefixtures("poisoned")
def test_a_vector_of_zeros_has_no_gradient_by_cosine():
    x, v = maps(2, 9, 16, 5)
    x[0], v[2] = 0, 0
    dx, dv = check(x, v, ("cosine",))
    assert (dx[0] == 0).all()
    assert (dv[2] == 0).all()
    x[1, :] = INF
    (dx, dv), _, _ = run(x, v, ("cosine",))
    assert (dx[0] == 0).all()
    assert dv[[0, 1, 3, 4]].isnan().all()


@runs
@pytest.mark.usefixtures("poisoned")
def test_one_pixel_may_win_everything():
    """In the order of the prototypes: the sum of many in one place is that of float64."""
    x, v = maps(2, 9, 16, 600)
    place = torch.full((2, 600), 8, dtype=torch.int32)
    best = (Best(torch.ones(2, 600, device=DEVICE), place.to(DEVICE)),)
    grads = random_grads(best)
    call = grads, best, x.to(DEVICE), v.to(DEVICE), ("dot",), True, True
    found = [d.cpu() for d in host.similarity_pool_backward(*call)]
    for one, true in zip(found, truth(grads, [place], x, v, ("dot",)), strict=True):
        assert float((one - true).abs().max() / true.abs().max()) <= 2e-6


@runs
def test_any_strides_and_the_same_bits_again():
    x, v = maps(2, 30, 24, 20)
    for similarities in VIEWS:
        plain, grads, _ = run(x, v, similarities)
        apart = tuple(torch.stack([g, g], 2)[:, :, 0] for g in grads)
        other = run(x.mT.contiguous().mT, v.mT.contiguous().mT, similarities, grads=apart)[0]
        wider = torch.cat([torch.full((2, 1, 24), NAN), x], 1)[:, 1:]  # a token that is no pixel
        prefixed = run(wider, v, similarities, grads=grads)[0]
        for again in (other, prefixed):
            assert all(map(torch.equal, plain, again))


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("need_x", [False, True])
@pytest.mark.parametrize("need_v", [False, True])
def test_only_the_gradients_asked_for(need_x, need_v):
    x, v = maps(2, 30, 24, 20)
    both = run(x, v, ("cosine", "l2"))[0]
    found = run(x, v, ("cosine", "l2"), need_x=need_x, need_v=need_v)[0]
    for one, wanted, need in zip(found, both, (need_x, need_v), strict=True):
        assert (one is not None) == need
        assert one is None or torch.equal(one, wanted)


@runs
def test_nothing_to_do():
    for batch, number in ((0, 3), (2, 0)):
        (dx, dv), _, _ = run(torch.ones(batch, 4, 8), torch.ones(number, 8), ("cosine",))
        assert dx.shape == (batch, 4, 8)
        assert dv.shape == (number, 8)
        assert not dx.any()
        assert not dv.any()


@compiles
@pytest.mark.parametrize(
    ("similarities", "need_x", "need_v", "wanted"),
    [
        (("dot",), True, True, ["lists_kernel", "grad_x_kernel", "grad_v_kernel"]),
        (("l2",), False, True, ["grad_v_kernel"]),
        (("l2",), True, False, ["lists_kernel", "grad_x_kernel"]),
        (
            ("cosine", "dot"), True, True,
            ["norms_kernel"] * 2 + ["lists_kernel"] * 2 + ["grad_x_kernel", "grad_v_kernel"],
        ),
        (("cosine", "dot"), False, False, []),
    ],
)  # fmt: skip
def test_launches(similarities, need_x, need_v, wanted):
    """At the size of ProtoPNet's training on CUB, where the operations of torch are 250."""
    x = torch.empty(80, 49, 128, device="meta")
    v = torch.empty(2000, 128, device="meta")
    best = tuple(
        Best(torch.empty(80, 2000, device="meta"),
             torch.empty(80, 2000, dtype=torch.int32, device="meta"))
        for _ in similarities
    )  # fmt: skip
    grads = tuple(one.value for one in best)
    with kernel_compile.recorder() as launches:
        host.similarity_pool_backward(grads, best, x, v, similarities, need_x, need_v)
    assert [kernel.__name__ for kernel, _ in launches] == wanted


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90, 100, 120])
@pytest.mark.parametrize("size", [64, 128, 888])
def test_compiles_without_spills(arch, size):
    results = kernel_compile.run(
        "similarity_pool_backward", [arch], [size], ["half", "split", "tf32x3"], maps=[(80, 49)]
    )
    assert {r["kernel"] for r in results} >= {"lists_kernel", "grad_x_kernel", "grad_v_kernel"}
    for r in results:
        assert "error" not in r, r
        assert r["spills"] == 0, r
        assert r["registers"] <= 128, r  # four programs of 128 threads a multiprocessor, at least
        assert r["shared"] <= 32 << 10, r


@outside
@pytest.mark.slow
def test_in_the_interpreter():
    passed = re.search(r"(\d+) passed", kernel_compile.interpret(__file__))
    assert int(passed[1]) >= 45
