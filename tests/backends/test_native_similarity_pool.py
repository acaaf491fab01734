"""similarity_pool of the native backend by its own functions, against float64 formulas."""

from __future__ import annotations

import random

import pytest
import torch

from infodisent import reference
from infodisent.backends.native import module
from infodisent.backends.native import similarity_pool as native
from infodisent.backends.sparse import similarity_pool as sparse
from infodisent.contract import Best, empty_best

pytestmark = pytest.mark.skipif(
    module.objection() is not None or not module.is_fused(), reason="no fused native module here"
)

SIMILARITIES = ("dot", "cosine", "l2")
VIEWS = [(s,) for s in SIMILARITIES] + [(s, t) for s in SIMILARITIES for t in SIMILARITIES]
HALVES = (torch.float16, torch.bfloat16)
LAYOUTS = ("rows", "planes", "prefix", "reversed channels", "apart")


def laid_out(x, layout):
    """x [B, P, C], its numbers at other addresses."""
    if layout == "rows":
        return x
    if layout == "planes":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "prefix":
        return torch.cat([torch.full_like(x[:, :1], torch.nan), x], dim=1)[:, 1:]
    if layout == "reversed channels":
        return x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    wide = torch.full((*x.shape[:2], 2 * x.shape[2] + 1), torch.nan, dtype=x.dtype)
    wide[:, :, 1::2] = x
    return wide[:, :, 1::2]


def forward(x, v, valid, similarities, instructions):
    """By the compiled code, or with `instructions` None by the sparse backend, or by formulas."""
    if instructions is None:
        return sparse.similarity_pool(x, v, valid, similarities)
    if instructions == "reference":
        options = {"valid": valid, "input_fmt": "NLC"}
        pools = [reference.similarity_pool(x, v, similarity=s, **options) for s in similarities]
        return tuple(Best(pool.value, pool.index) for pool in pools)
    if instructions == 0 or torch.float64 in (x.dtype, v.dtype):
        return native.similarity_pool(x, v, valid, similarities)
    outputs = tuple(empty_best(len(x), len(v), torch.float32, "cpu") for _ in similarities)
    module.similarity_pool(x, v.float().contiguous(), valid, similarities, outputs, instructions)
    return outputs


def scores(x, v, similarity):
    """[B, P, M] float64, the larger the better."""
    x, v = x.double(), v.double()
    if similarity == "l2":
        return -(x[:, :, None] - v).square().sum(dim=3)
    if similarity == "cosine":
        x, v = reference.unit(x), reference.unit(v)
    return x @ v.mT


def check(x, v, valid, similarities, *, exact=False, instructions=0):
    """Values within rounding of the best; the place holds the best; the lowest one, if exact."""
    result = forward(x, v, valid, similarities, instructions)
    double = torch.float64 in (x.dtype, v.dtype)
    unit = 2.0**-50 if double else 2.0**-21
    for best, similarity in zip(result, similarities, strict=True):
        truth = scores(x, v, similarity)
        if valid is not None:
            truth = truth.masked_fill(~valid[:, :, None], -torch.inf)
        expected, first = truth.max(dim=1)
        assert best.value.dtype == (torch.float64 if double else torch.float32)
        assert best.index.dtype == torch.int32
        value = best.value.double() * (-1 if similarity == "l2" else 1)
        there = truth.gather(1, best.index[:, None].long())[:, 0]
        if exact:
            assert torch.equal(best.index.long(), first), similarity
            assert torch.equal(value, expected), similarity
            continue
        norm = x.double().square().sum(2)
        if valid is not None:
            norm = norm.masked_fill(~valid, 0)
        x_norm, v_norm = norm.amax(1)[:, None].sqrt(), v.double().norm(dim=1)
        size = {"dot": x_norm * v_norm, "cosine": 1.0, "l2": (x_norm + v_norm).square()}[similarity]
        bound = unit * (4 + x.shape[2] ** 0.5) * (size + 1e-30)
        assert ((there - expected).abs() <= bound).all(), similarity
        assert ((value - expected).abs() <= bound).all(), similarity
        if similarity == "l2":  # the pair's own numbers: relative to the distance itself
            assert ((value - there).abs() <= unit * (4 + x.shape[2] ** 0.5) * there.abs()).all()


@pytest.mark.parametrize("instructions", [0, 1])
@pytest.mark.parametrize("similarities", VIEWS, ids="-".join)
@pytest.mark.parametrize("m", [1, 15, 16, 17, 63, 64, 65, 130])
def test_values(similarities, m, instructions):
    torch.manual_seed(m)
    for p, c in ((1, 1), (49, 33), (7, 130)):
        x = torch.randn(3, p, c)
        check(x, torch.randn(m, c), None, similarities, instructions=instructions)
        valid = torch.rand(3, p) < 0.5
        valid[:, -1] = True
        hidden = x.masked_fill(~valid[:, :, None], torch.nan)
        v = torch.randn(m, c)
        found = forward(hidden, v, valid, similarities, instructions)
        shown = forward(x, v, valid, similarities, instructions)
        assert all(
            torch.equal(a, b)
            for f, s in zip(found, shown, strict=True)
            for a, b in zip(f, s, strict=True)
        )
        check(x, v, valid, similarities, instructions=instructions)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES, torch.float64])
def test_ties_of_integers_go_to_the_lowest_pixel_in_every_layout(layout, dtype):
    torch.manual_seed(0)
    x = laid_out(torch.randint(-2, 3, (5, 50, 6)).to(dtype), layout)
    for v_dtype in (dtype, torch.float32):
        v = torch.randint(-2, 3, (70, 6)).to(v_dtype)
        for similarities in (("dot", "l2"), ("l2",), ("dot",)):
            check(x, v, None, similarities, exact=True)
            check(x, v, None, similarities, exact=True, instructions=1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_a_prototype_that_is_a_pixel_has_distance_zero_at_the_lowest_one(layout, dtype):
    torch.manual_seed(1)
    pixels = (100 + torch.randn(4, 49, 128)).to(dtype)  # norms far above the distances
    pixels[:, 40] = pixels[:, 7]
    best = native.similarity_pool(laid_out(pixels, layout), pixels[2], None, ("l2",))[0]
    assert (best.value[2] == 0).all()
    equal = (pixels[2][:, None] == pixels[2]).all(dim=2)  # [M, P]
    assert torch.equal(best.index[2].long(), equal.to(torch.uint8).argmax(dim=1))
    check(pixels, pixels[2], None, ("l2", "dot"))


def test_zero_pixels_and_prototypes_have_cosine_zero_and_no_gradient():
    x, v = torch.zeros(2, 9, 5), torch.randn(4, 5)
    x[1, 3] = -v[0]
    v[1] = 0
    best = native.similarity_pool(x, v, None, ("cosine",))
    assert (best[0].value[:, 1] == 0).all()
    assert (best[0].value[0] == 0).all()
    assert (best[0].index[0] == 0).all()
    dx, dv = native.similarity_pool_backward(
        (torch.ones(2, 4),), best, x, v, ("cosine",), True, True
    )
    assert (dx[0] == 0).all()
    assert (dv[1] == 0).all()
    assert dx.isfinite().all()
    assert dv.isfinite().all()


def test_nan_wins_and_infinite_pixels_are_infinitely_far():
    x, v = torch.randn(1, 20, 8), torch.randn(3, 8)
    x[0, 4, 2] = torch.inf
    near = native.similarity_pool(x, v, None, ("l2",))[0]
    assert near.value.isfinite().all()
    assert (near.index != 4).all()
    x[0, 9, 1] = x[0, 15, 1] = torch.nan
    for similarity in SIMILARITIES:
        y = x.clone()
        y[0, 4] = 0
        best = native.similarity_pool(y, v, None, (similarity,))[0]
        assert best.value.isnan().all(), similarity
        assert (best.index == 9).all(), similarity
    only = torch.full((1, 3, 8), torch.inf)
    best = native.similarity_pool(only, v, None, ("l2",))[0]
    assert (best.value == torch.inf).all()
    assert (best.index == 0).all()


def test_no_images():
    x, v = torch.empty(0, 4, 3), torch.randn(5, 3)
    best = native.similarity_pool(x, v, None, ("l2", "cosine"))
    assert best[1].value.shape == (0, 5)
    grads = (torch.empty(0, 5),) * 2
    dx, dv = native.similarity_pool_backward(grads, best, x, v, ("l2", "cosine"), True, True)
    assert dx.shape == x.shape
    assert (dv == 0).all()


def gradients(x, v, similarities, best, grads):
    """Those of the float64 formula, at the places of `best`."""
    x = x.double().requires_grad_()
    v = v.double().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for b, similarity, g in zip(best, similarities, grads, strict=True):
        y = torch.take_along_dim(x, b.index[:, :, None].long(), dim=1)  # [B, M, C]
        if similarity == "l2":
            value = (y - v).square().sum(2)
        elif similarity == "cosine":
            value = (reference.unit(y) * reference.unit(v)).sum(2)
        else:
            value = (y * v).sum(2)
        total = total + (g.double() * value).sum()
    return torch.autograd.grad(total, (x, v))


def check_gradient(x, v, similarities):
    best = native.similarity_pool(x, v, None, similarities)
    grads = tuple(torch.randn(len(x), len(v)) for _ in similarities)
    want = gradients(x, v, similarities, best, grads)
    both = native.similarity_pool_backward(grads, best, x, v, similarities, True, True)
    for got, true, t, only in zip(both, want, (x, v), (True, False), strict=True):
        assert got.dtype == t.dtype
        assert got.shape == t.shape
        unit = {torch.float64: 1e-12, torch.float32: 3e-6}.get(t.dtype, torch.finfo(t.dtype).eps)
        if x.dtype in HALVES or v.dtype in HALVES:
            unit = max(unit, 3e-6)
        assert (got.double() - true).abs().max() <= 4 * unit * (true.abs().max() + 1e-6)
        alone = native.similarity_pool_backward(grads, best, x, v, similarities, only, not only)
        assert alone[only] is None
        assert torch.equal(alone[not only], got)


@pytest.mark.parametrize("similarities", VIEWS, ids="-".join)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients(similarities, layout):
    torch.manual_seed(2)
    for dtype, v_dtype in (
        (torch.float32, torch.float32),
        (torch.float64, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float16),
    ):
        x = laid_out(torch.randn(3, 12, 19).to(dtype), layout)
        check_gradient(x, torch.randn(23, 19).to(v_dtype), similarities)


def test_distance_zero_has_gradient_zero():
    x = torch.randn(1, 30, 17)
    best = native.similarity_pool(x, x[0], None, ("l2",))
    grads = (torch.randn(1, 30),)
    for gradient in native.similarity_pool_backward(grads, best, x, x[0], ("l2",), True, True):
        assert (gradient == 0).all()


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_a_nan_that_does_not_count_has_no_gradient(similarity):
    x, v = torch.randn(2, 6, 8), torch.randn(5, 8)
    x[:, 2] = torch.nan
    valid = torch.ones(2, 6, dtype=torch.bool)
    valid[:, 2] = False
    best = native.similarity_pool(x, v, valid, (similarity,))
    grads = (torch.randn(2, 5),)
    dx, dv = native.similarity_pool_backward(grads, best, x, v, (similarity,), True, True)
    assert (dx[:, 2] == 0).all()
    assert dx.isfinite().all()
    assert dv.isfinite().all()


@pytest.mark.parametrize("similarities", [*VIEWS[:3], ("dot", "cosine")], ids="-".join)
@pytest.mark.parametrize("layout", ["rows", "planes"])
def test_bits_depend_neither_on_threads_nor_on_the_batch(similarities, layout):
    torch.manual_seed(3)
    x, v = laid_out(torch.randn(33, 49, 40), layout), torch.randn(150, 40)
    grads = tuple(torch.randn(33, 150) for _ in similarities)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            best = native.similarity_pool(x, v, None, similarities)
            back = native.similarity_pool_backward(grads, best, x, v, similarities, True, True)
            results.append([*(t for b in best for t in b), *back])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    one = native.similarity_pool(x[5:6], v, None, similarities)
    for i, t in enumerate(t for b in one for t in b):
        assert torch.equal(t[0], results[0][i][5])
    some = tuple(g[5:6] for g in grads)
    dx, _ = native.similarity_pool_backward(some, one, x[5:6], v, similarities, True, False)
    assert torch.equal(dx[0], results[0][-2][5])


def test_one_prototype_and_many_images_are_summed_in_one_order():
    torch.manual_seed(4)
    x, v, grads = torch.randn(40_000, 1, 8), torch.randn(1, 8), (torch.randn(40_000, 1),)
    best = native.similarity_pool(x, v, None, ("cosine",))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            back = native.similarity_pool_backward(grads, best, x, v, ("cosine",), False, True)
            results.append(back[1])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


def sweep(count, seed, instructions=(0, 1)):
    draw = random.Random(seed)
    torch.manual_seed(seed)
    for _ in range(count):
        b, p = draw.choice((1, 2, 3, 7)), draw.choice((1, 2, 5, 6, 7, 13, 49, 50))
        c, m = draw.choice((1, 2, 3, 15, 16, 17, 40, 129)), draw.choice((1, 2, 7, 16, 63, 65, 131))
        dtype = draw.choice((torch.float32, torch.float32, *HALVES, torch.float64))
        exact = draw.random() < 0.5
        numbers = (lambda *s: torch.randint(-3, 4, s)) if exact else torch.randn
        x = laid_out(numbers(b, p, c).to(dtype), draw.choice(LAYOUTS))
        v = numbers(m, c).to(draw.choice((torch.float32, dtype)))
        valid = None
        if draw.random() < 0.4:
            valid = torch.rand(b, p) < 0.6
            valid[:, draw.randrange(p)] = True
        views = draw.choice(VIEWS)
        check(
            x,
            v,
            valid,
            views,
            exact=exact and "cosine" not in views,
            instructions=draw.choice(instructions),
        )


@pytest.mark.parametrize(
    "instructions", [(0, 1), (None,), ("reference",)], ids=["native", "sparse", "reference"]
)
def test_random_shapes(instructions):
    sweep(200, 0, instructions)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
@pytest.mark.parametrize(
    "instructions", [(0, 1), (None,), ("reference",)], ids=["native", "sparse", "reference"]
)
def test_ten_thousand_random_shapes(seed, instructions):
    sweep(1000, seed, instructions)
