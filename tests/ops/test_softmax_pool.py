"""ops.softmax_pool against float64 truth and eager PyTorch: every layout, masks, NaN, gradients."""

from __future__ import annotations

import pytest
import torch

from infodisent import ops, reference
from infodisent.backends.sparse import winners
from infodisent.layout import to_bpc
from infodisent.testing import compare_with_eager, relative
from tests.conftest import BACKENDS, LAYOUTS

pytestmark = pytest.mark.usefixtures("backend")

NAN, INF = float("nan"), float("inf")
SHAPES = [(1, 1, 1, 1), (2, 1, 3, 3), (2, 5, 1, 1), (3, 33, 7, 7), (2, 123, 5, 10), (2, 40, 14, 14)]


def probabilities(x, v, b, temperature):
    """Of every pixel of x [B, C, H, W], [B, P, M]."""
    z = x.flatten(2).mT
    z = (z if v is None else z @ v.mT) / temperature
    return (z if b is None else z + b).softmax(2)


def check(pool, x64, v64=None, *, tolerance=1e-6, **options):
    """Values against float64 formulas, places by what is there."""
    wanted = reference.softmax_pool(x64, v64, **options)
    assert pool.index.dtype == torch.int32
    torch.testing.assert_close(pool.value.double(), wanted.value, rtol=1e-5, atol=tolerance)
    z = to_bpc(x64, options.get("input_fmt", "NCHW"))
    if v64 is not None:
        z = z @ v64.mT
    z = z / options.get("temperature", 1.0)
    if options.get("bias") is not None:
        z = z + options["bias"]
    there = z.softmax(2).gather(1, pool.index.long()[:, None])[:, 0]
    assert (there >= wanted.value - 2 * tolerance).all()
    return wanted


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_every_layout(shape, layout):
    kwargs, build = layout
    x64 = torch.randn(shape, dtype=torch.float64) * 3
    x = x64.float()
    pool = ops.softmax_pool(build(x), **kwargs)
    assert pool.value.dtype == torch.float32
    assert pool.second_value is pool.second_index is pool.mean is None
    wanted = check(pool, x.double())
    eager = torch.softmax(x, 1).amax((2, 3))
    compare_with_eager(pool.value, eager, wanted.value, rounding=2**-22, what="value")


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", SHAPES[1:])
def test_gradients_every_layout(shape, layout):
    kwargs, build = layout
    x64 = (torch.randn(shape, dtype=torch.float64) * 3).float().double().requires_grad_()
    cotangent = torch.randn(shape[:2], dtype=torch.float64)
    reference.softmax_pool(x64).value.backward(cotangent)
    x = build(x64.detach().float()).detach().requires_grad_()
    ops.softmax_pool(x, **kwargs).value.backward(cotangent.float())
    prefix = kwargs["num_prefix_tokens"]
    pixels = to_bpc(x.grad, kwargs["input_fmt"], prefix)
    wanted = x64.grad.flatten(2).mT
    torch.testing.assert_close(pixels.double(), wanted, rtol=1e-5, atol=1e-6)
    if prefix:  # prefix tokens get exactly nothing
        assert x.grad.count_nonzero() == pixels.count_nonzero()


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_no_further_from_the_truth_than_eager(scale, memory_format):
    x = (torch.randn(4, 200, 9, 9) * scale).contiguous(memory_format=memory_format)
    g = torch.randn(4, 200)
    results = []
    for f in (ops.softmax_pool, lambda x: reference.softmax_pool(x)):
        leaf = x.clone().requires_grad_()
        value = f(leaf).value
        value.backward(g)
        results.append((value, leaf.grad))
    leaf = x.double().requires_grad_()
    value = reference.softmax_pool(leaf).value
    value.backward(g.double())
    for name, ours, eager, truth in zip(("value", "dx"), *results, (value, leaf.grad), strict=True):
        compare_with_eager(ours, eager, truth, rounding=2**-22, what=name)
        compare_with_eager(ours, eager, truth, rounding=2**-22, what=name, by="norm")


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("temperature", [1.0, 0.1, 3.0])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("count", [1, 31, 70])
def test_prototypes(temperature, with_bias, count, layout, monkeypatch):
    kwargs, build = layout
    monkeypatch.setattr(winners, "CHUNK_BYTES", 35 * count * 4 * 2)  # two images
    x, v, b = torch.randn(5, 24, 5, 7), torch.randn(count, 24) * 0.3, torch.randn(count)
    options = {"temperature": temperature}
    x64, v64, b64 = (t.double().requires_grad_() for t in (x, v, b))
    xs, vs, bs = build(x).detach().requires_grad_(), v.requires_grad_(), b.requires_grad_()
    pool = ops.softmax_pool(xs, vs, bias=bs if with_bias else None, **options, **kwargs)
    wanted = reference.softmax_pool(x64, v64, bias=b64 if with_bias else None, **options)
    torch.testing.assert_close(pool.value.double(), wanted.value, rtol=1e-4, atol=1e-6)
    # many probabilities are near 1: any of them may be the place
    every = probabilities(x64, v64, b64 if with_bias else None, temperature)
    there = every.gather(1, pool.index.long()[:, None])[:, 0]
    assert (there >= wanted.value - 2e-6).all()
    cotangent = torch.randn(pool.value.shape)
    pool.value.backward(cotangent)
    there.backward(cotangent.double())
    pixels = to_bpc(xs.grad, kwargs["input_fmt"], kwargs["num_prefix_tokens"])
    scale = 1 / temperature
    torch.testing.assert_close(
        pixels.double(), x64.grad.flatten(2).mT, rtol=1e-4, atol=2e-6 * scale
    )
    torch.testing.assert_close(vs.grad.double(), v64.grad, rtol=1e-4, atol=1e-5 * scale)
    if with_bias:
        torch.testing.assert_close(bs.grad.double(), b64.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_no_worse_than_eager_half(dtype, layout):
    kwargs, build = layout
    x = (torch.randn(4, 96, 7, 7) * 2).to(dtype)
    g = torch.randn(4, 96)
    leaf = build(x).detach().requires_grad_()
    pool = ops.softmax_pool(leaf, **kwargs)
    assert pool.value.dtype == torch.float32
    pool.value.backward(g)
    truth, eager = x.double().requires_grad_(), x.clone().requires_grad_()
    wanted = reference.softmax_pool(truth).value
    wanted.backward(g.double())
    peer = torch.softmax(eager, 1).amax((2, 3))
    peer.backward(g.to(dtype))
    compare_with_eager(pool.value, peer, wanted, rounding=0.0, what="value")
    torch.testing.assert_close(pool.value.double(), wanted, rtol=1e-5, atol=1e-6)
    assert leaf.grad.dtype == dtype
    pixels = to_bpc(leaf.grad, kwargs["input_fmt"], kwargs["num_prefix_tokens"])
    assert relative(pixels, truth.grad.flatten(2).mT) <= torch.finfo(dtype).eps / 2


def test_float64_and_mixed_dtypes():
    x, v = torch.randn(2, 6, 3, 3), torch.randn(4, 6)
    wide = ops.softmax_pool(x.double())
    assert wide.value.dtype == torch.float64
    torch.testing.assert_close(
        wide.value, reference.softmax_pool(x.double()).value, rtol=1e-14, atol=0
    )
    x64 = (torch.randn(2, 10, 3, 3, dtype=torch.float64) * 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ops.softmax_pool(x, temperature=1.5).value, (x64,))
    for a, b in ((x, v.double()), (x.half(), v), (x.bfloat16(), v.half()), (x.double(), v.half())):
        a, b = a.requires_grad_(), b.requires_grad_()
        pool = ops.softmax_pool(a, b)
        dtype = torch.float64 if torch.float64 in (a.dtype, b.dtype) else torch.float32
        assert pool.value.dtype == dtype
        wanted = reference.softmax_pool(a.double(), b.double()).value
        torch.testing.assert_close(pool.value, wanted.to(dtype), rtol=1e-5, atol=1e-6)
        da, db = torch.autograd.grad(pool.value.square().sum(), (a, b))
        assert (da.dtype, db.dtype) == (a.dtype, b.dtype)


@pytest.mark.parametrize("with_prototypes", [False, True])
def test_valid_hides_what_is_behind_it(with_prototypes, layout):
    kwargs, build = layout
    x, valid = torch.randn(3, 20, 4, 5), torch.rand(3, 20) < 0.5
    valid[0] = False
    valid[0, 17] = True  # one pixel alone
    v = torch.randn(9, 20, requires_grad=True) if with_prototypes else None
    x64 = x.double().requires_grad_()
    v64 = None if v is None else v.detach().double().requires_grad_()
    wanted = reference.softmax_pool(x64, v64, valid=valid)
    truths = torch.autograd.grad(wanted.value.square().sum(), (x64,) if v is None else (x64, v64))
    hidden = ~valid.view(3, 1, 4, 5)
    for junk in (0.0, 1e30, NAN, INF):
        xs = build(torch.where(hidden, junk, x)).detach().requires_grad_()
        pool = ops.softmax_pool(xs, v, valid=valid, **kwargs)
        torch.testing.assert_close(pool.value.double(), wanted.value, rtol=1e-4, atol=1e-6)
        assert torch.equal(pool.index, wanted.index)
        grads = torch.autograd.grad(pool.value.square().sum(), (xs,) if v is None else (xs, v))
        pixels = to_bpc(grads[0], kwargs["input_fmt"], kwargs["num_prefix_tokens"])
        assert pixels[~valid].abs().max() == 0
        for ours, truth in zip((pixels, *grads[1:]), (truths[0].flatten(2).mT, *truths[1:])):
            torch.testing.assert_close(ours.double(), truth, rtol=1e-4, atol=1e-5)


def test_valid_of_every_stride():
    x, valid = torch.randn(2, 5, 3, 4), torch.rand(2, 12) < 0.7
    valid[:, 3] = True
    wanted = ops.softmax_pool(x, valid=valid)
    for other in (valid.mT.contiguous().mT, torch.stack([valid, ~valid], -1)[..., 0]):
        assert torch.equal(ops.softmax_pool(x, valid=other).value, wanted.value)
    one = valid[:1].expand(2, 12)
    assert torch.equal(
        ops.softmax_pool(x, valid=one).value, ops.softmax_pool(x, valid=one.contiguous()).value
    )


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("value", [NAN, INF])
def test_a_pixel_without_a_softmax_is_where_its_image_is(value, memory_format):
    x = torch.randn(3, 20, 5, 5)
    x[1, 7, 1, 2] = x[1, 3, 4, 4] = value
    x = x.contiguous(memory_format=memory_format).requires_grad_()
    pool, wanted = ops.softmax_pool(x), reference.softmax_pool(x.detach())
    assert pool.value[1].isnan().all()
    assert (pool.index[1] == 7).all()
    torch.testing.assert_close(pool.value, wanted.value, equal_nan=True)
    assert torch.equal(pool.index, wanted.index)
    (dx,) = torch.autograd.grad(pool.value.sum(), x)
    assert dx[1, :, 1, 2].isnan().all()
    assert dx.isnan().sum() == 20


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_scores_of_minus_infinity(memory_format):
    x = torch.randn(2, 20, 5, 5)
    x[0, 4] = -INF  # a prototype that is nowhere: 0, at the lowest pixel
    x[0, 5:9, 2] = -INF
    x[1, :, 3, 3] = -INF  # no softmax
    x = x.contiguous(memory_format=memory_format)
    pool, wanted = ops.softmax_pool(x), reference.softmax_pool(x)
    torch.testing.assert_close(pool.value, wanted.value, equal_nan=True)
    assert pool.value[0, 4] == 0
    assert torch.equal(pool.index, wanted.index)
    leaf = x[:1].clone().requires_grad_()
    (dx,) = torch.autograd.grad(ops.softmax_pool(leaf).value.sum(), leaf)
    truth = x[:1].double().requires_grad_()
    (true,) = torch.autograd.grad(reference.softmax_pool(truth).value.sum(), truth)
    torch.testing.assert_close(dx.double(), true, rtol=1e-5, atol=1e-6)
    valid = torch.ones(2, 25, dtype=torch.bool)
    valid[:, :3] = False
    assert ops.softmax_pool(x, valid=valid).index[0, 4] == 3


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_ties_go_to_the_lowest_pixel(memory_format):
    x = torch.randint(0, 2, (4, 3, 9, 9)).float()
    x = x.contiguous(memory_format=memory_format)
    pool = ops.softmax_pool(x)
    # equal pixels have equal probabilities whatever the rounding
    every = x.flatten(2).mT.double().softmax(2)
    first = (every >= every.amax(1, keepdim=True) - 1e-12).int().argmax(1)
    assert torch.equal(pool.index, first.int())
    same = torch.zeros(2, 40, 7, 7).contiguous(memory_format=memory_format)
    assert ops.softmax_pool(same).index.abs().max() == 0
    assert torch.equal(ops.softmax_pool(same).value, torch.full((2, 40), 1 / 40))


def test_underflow_still_has_a_place():
    x = torch.zeros(1, 2, 1, 3)
    x[0, 0, 0] = torch.tensor([-90.0, -400.0, -95.0])
    pool = ops.softmax_pool(x)
    truth = reference.softmax_pool(x.double()).value
    torch.testing.assert_close(pool.value.double(), truth, rtol=1e-2, atol=0)  # 8e-40 is denormal
    assert pool.index.tolist() == [[0, 1]] or pool.index[0, 0] == 0
    x[0, 0, 0] = torch.tensor([-300.0, -250.0, -400.0])
    assert ops.softmax_pool(x).value[0, 0] == 0
    assert ops.softmax_pool(x).index[0, 0] == 1


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("count", [None, 4])
def test_empty_batch(count):
    x = torch.randn(0, 6, 3, 3, requires_grad=True)
    v = None if count is None else torch.randn(count, 6, requires_grad=True)
    pool = ops.softmax_pool(x, v)
    assert pool.value.shape == pool.index.shape == (0, count or 6)
    pool.value.sum().backward()
    assert x.grad.shape == x.shape
    assert v is None or v.grad.abs().max() == 0


@pytest.mark.parametrize("needs", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 0, 0)])
def test_partial_gradients(needs):
    tensors = torch.randn(3, 8, 2, 2), torch.randn(5, 8), torch.randn(5)
    x, v, b = (t.requires_grad_(bool(n)) for t, n in zip(tensors, needs, strict=True))
    value = ops.softmax_pool(x, v, bias=b).value
    assert value.requires_grad == any(needs)
    if not any(needs):
        return
    value.square().sum().backward()
    x64, v64, b64 = (t.detach().double().requires_grad_() for t in tensors)
    reference.softmax_pool(x64, v64, bias=b64).value.square().sum().backward()
    for leaf, true, need in zip((x, v, b), (x64, v64, b64), needs, strict=True):
        assert (leaf.grad is not None) == bool(need)
        if need:
            torch.testing.assert_close(leaf.grad.double(), true.grad, rtol=1e-4, atol=1e-6)


def test_the_gradient_keeps_the_memory_format():
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 5, 3, 4).contiguous(memory_format=memory_format).requires_grad_()
        (dx,) = torch.autograd.grad(ops.softmax_pool(x).value.sum(), x)
        assert dx.stride() == x.stride()


@pytest.mark.slow
@pytest.mark.parametrize("backend", [*BACKENDS, "reference"], indirect=True)
@pytest.mark.parametrize("seed", [pytest.param(s, id=f"seed{s}") for s in range(50)])
def test_sweep(seed, monkeypatch):
    """200 random problems a seed."""
    g = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return int(torch.randint(low, high, (), generator=g))

    for _ in range(200):
        shape = (draw(0, 6), draw(1, 100), draw(1, 15), draw(1, 15))
        dtype = (torch.float32, torch.float16, torch.bfloat16, torch.float64)[draw(0, 4)]
        fmt, prefix, build = list(LAYOUTS.values())[draw(0, len(LAYOUTS))]
        monkeypatch.setattr(winners, "CHUNK_BYTES", (1, 50_000, 8 << 20)[draw(0, 3)])
        count, temperature = draw(1, 60), (1.0, 0.1, 7.0)[draw(0, 3)]
        x = (torch.randn(shape, generator=g) * 2).to(dtype)
        v = b = valid = None
        if draw(0, 2):
            v = (torch.randn(count, shape[1], generator=g) / shape[1] ** 0.5).to(dtype)
            b = torch.randn(count, generator=g).to(dtype) if draw(0, 2) else None
        if draw(0, 2):
            valid = torch.rand(shape[0], shape[2] * shape[3], generator=g) < 0.6
            valid[:, draw(0, valid.shape[1])] = True
        leaves = [None if t is None else t.clone().requires_grad_() for t in (build(x), v, b)]
        truths = [None if t is None else t.double().requires_grad_() for t in (x, v, b)]
        options = {"temperature": temperature, "valid": valid}
        layout = {"input_fmt": fmt, "num_prefix_tokens": prefix}
        pool = ops.softmax_pool(leaves[0], leaves[1], bias=leaves[2], **options, **layout)
        wanted = reference.softmax_pool(truths[0], truths[1], bias=truths[2], **options)
        tolerance = 1e-12 if dtype == torch.float64 else 1e-6
        torch.testing.assert_close(pool.value.double(), wanted.value, rtol=0, atol=10 * tolerance)
        every = probabilities(*truths, temperature)
        there = every.gather(1, pool.index.long()[:, None])[:, 0]
        assert (there >= wanted.value - 20 * tolerance).all()
        if valid is not None:
            assert valid.gather(1, pool.index.long()).all()
        # near ties may go either way, and then gradients legitimately differ: take the places given
        cotangent = torch.randn(pool.value.shape, generator=g)
        given = [t for t in leaves if t is not None]
        true = [t for t in truths if t is not None]
        ours = torch.autograd.grad(pool.value, given, cotangent.to(pool.value.dtype))
        plain = torch.autograd.grad(there, true, cotangent.double())
        eps = torch.finfo(dtype).eps
        pixels = to_bpc(ours[0], fmt, prefix)
        for a, c in zip((pixels, *ours[1:]), (plain[0].flatten(2).mT, *plain[1:]), strict=True):
            scale = float(c.abs().max()) if c.numel() else 0.0
            error = float((a.double() - c).abs().max()) if c.numel() else 0.0
            assert error <= (eps + 20 * tolerance) * scale + tolerance / temperature
