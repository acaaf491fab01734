"""ops.rotate_pool and ops.mx_pool against float64 truth and eager PyTorch, every layout."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infodisent import ops, reference
from infodisent.backends.native import module as _native
from infodisent.backends.native import rotate_pool as native_rotate_pool
from infodisent.backends.sparse import rotate_pool as sparse_rotate_pool
from infodisent.backends.sparse import winners
from infodisent.layout import to_bpc
from infodisent.testing import check_extremes, relative

pytestmark = pytest.mark.usefixtures("backend")

SHAPES = [
    (2, 1, 1, 1),
    (1, 5, 1, 1),
    (3, 33, 7, 7),
    (2, 123, 5, 10),
    (4, 64, 14, 14),
    (255, 7, 2, 2),
]


def rotation_like(c: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(c, c, dtype=torch.float64))[0].to(dtype)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_every_layout(shape, layout):
    kwargs, build = layout
    x64 = torch.randn(shape, dtype=torch.float64)
    u64 = rotation_like(shape[1])
    truth = reference.rotate_pool(x64, u64)
    pool = ops.rotate_pool(build(x64.float()), u64.float(), **kwargs)
    eager = reference.rotate_pool(x64.float(), u64.float())
    for name in ("pooled", "pos", "neg"):
        actual, wanted = getattr(pool, name), getattr(truth, name)
        assert actual.dtype == torch.float32
        error = (actual - wanted).abs().max()
        assert error <= (getattr(eager, name) - wanted).abs().max() + 1e-6 * wanted.abs().max()
    y = x64.flatten(2).mT @ u64.mT
    check_extremes(pool, y, tolerance=1e-5, signed_zeros=True)


@pytest.mark.parametrize("shape", SHAPES[2:])
def test_gradients_every_layout(shape, layout):
    kwargs, build = layout
    x64 = torch.randn(shape, dtype=torch.float64)
    u64 = rotation_like(shape[1])
    coefficients = torch.randn(3, shape[0], shape[1], dtype=torch.float64)

    def loss(pool):
        a, b, c = coefficients.to(pool.pos.dtype)
        return (pool.pooled * a).sum() + (pool.pos * b).sin().sum() + (pool.neg * c).square().sum()

    x, u = x64.clone().requires_grad_(), u64.clone().requires_grad_()
    loss(reference.rotate_pool(x, u)).backward()
    xb = build(x64.float()).detach().requires_grad_()
    ub = u64.float().requires_grad_()
    loss(ops.rotate_pool(xb, ub, **kwargs)).backward()
    assert relative(ub.grad, u.grad) <= 1e-5
    prefix = kwargs["num_prefix_tokens"]
    pixels = to_bpc(xb.grad, kwargs["input_fmt"], prefix)
    assert relative(pixels, x.grad.flatten(2).mT) <= 1e-5
    if prefix:  # prefix tokens get exactly nothing
        assert xb.grad.count_nonzero() == pixels.count_nonzero()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_no_worse_than_eager_half(dtype):
    x, u = torch.randn(4, 96, 7, 7).to(dtype), rotation_like(96, dtype)
    truth = reference.rotate_pool(x.double(), u.double())
    pool = ops.rotate_pool(x, u)
    y = torch.einsum("ck,bkp->bcp", u, x.flatten(2))  # eager at the same precision
    eager = y.relu().amax(-1).float(), (-y).relu().amax(-1).float()
    for actual, wanted, peer in zip(pool[1:3], truth[1:3], eager, strict=True):
        assert actual.dtype == torch.float32
        assert (actual - wanted).abs().max() <= (peer - wanted).abs().max()
        assert (actual - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    xg, ug = x.clone().requires_grad_(), u.clone().requires_grad_()
    ops.rotate_pool(xg, ug).pooled.sum().backward()
    assert xg.grad.dtype == ug.grad.dtype == dtype
    x64, u64 = x.double().requires_grad_(), u.double().requires_grad_()
    reference.rotate_pool(x64, u64).pooled.sum().backward()
    assert relative(ug.grad, u64.grad) < torch.finfo(dtype).eps
    assert relative(xg.grad, x64.grad) < torch.finfo(dtype).eps


def test_half_features_with_float32_rotation():
    x, u = torch.randn(2, 16, 3, 3).half(), rotation_like(16, torch.float32)
    got, wanted = ops.rotate_pool(x, u), reference.rotate_pool(x.double(), u.double())
    assert relative(got.pooled, wanted.pooled) < 1e-6


@pytest.mark.parametrize(("need_x", "need_u"), [(True, False), (False, True), (False, False)])
def test_partial_gradients(need_x, need_u, monkeypatch, backend):
    calls = []
    for owner, name in (
        (_native, "grad_x"),
        (_native, "grad_u"),
        (sparse_rotate_pool, "pixels_of_sums"),
        (sparse_rotate_pool, "sum_of_pixels"),
    ):
        plain = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda *a, _f=plain, _n=name: (calls.append(_n), _f(*a))[1]
        )
    x = torch.randn(3, 8, 2, 2, requires_grad=need_x)
    u = rotation_like(8, torch.float32).requires_grad_(need_u)
    pooled = ops.rotate_pool(x, u).pooled
    assert pooled.requires_grad == (need_x or need_u)
    if pooled.requires_grad:
        pooled.sum().backward()
    of_x, of_u = {
        "native": ("grad_x", "grad_u"),
        "sparse": ("pixels_of_sums", "sum_of_pixels"),
    }[backend]
    assert sorted(calls) == sorted([of_u] * need_u + [of_x] * need_x)


def test_no_dense_gradient_is_formed(monkeypatch):
    """Nothing of the rotated map's size B·P·C (or larger) is allocated in backward."""
    batch, channels, side = 16, 64, 14
    x = torch.randn(batch, side * side, channels)
    u = rotation_like(channels, torch.float32).requires_grad_()
    pooled = ops.rotate_pool(x, u, input_fmt="NLC").pooled
    with torch.profiler.profile(profile_memory=True) as prof:
        pooled.sum().backward()
    largest = max((e.cpu_memory_usage for e in prof.events()), default=0)
    assert 0 < largest < x.numel() * 4 / 2


def test_ties_go_to_the_lowest_pixel():
    x = torch.zeros(1, 2, 2, 3)
    x[0, 0, 0, 1] = x[0, 0, 1, 2] = 4.0
    x[0, 1] = -1.0
    pool = ops.mx_pool(x)
    assert pool.pos_index.tolist() == [[1, -1]]
    assert pool.neg_index.tolist() == [[-1, 0]]
    assert pool.pos.tolist() == [[4.0, 0.0]]
    assert pool.pooled.tolist() == [[4.0, -1.0]]


@pytest.mark.parametrize("op", ["mx_pool", "rotate_pool"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nonfinite_follows_the_formula(op, value):
    x = torch.randn(3, 5, 2, 2)
    x[1, 2, 0, 1] = value
    args = (x,) if op == "mx_pool" else (x, rotation_like(5, torch.float32))
    got, wanted = getattr(ops, op)(*args), getattr(reference, op)(*args)
    for name in ("pooled", "pos", "neg"):
        torch.testing.assert_close(getattr(got, name), getattr(wanted, name), equal_nan=True)
    assert not got.pooled[0].isnan().any()
    if value != value:
        assert got.pooled[1].isnan().any()


@pytest.mark.usefixtures("poisoned")
def test_empty_batch():
    u = rotation_like(6, torch.float32).requires_grad_()
    x = torch.randn(0, 6, 3, 3, requires_grad=True)
    pool = ops.rotate_pool(x, u)
    assert [tuple(t.shape) for t in pool] == [(0, 6)] * 5
    pool.pooled.sum().backward()
    assert u.grad.abs().max() == 0
    assert x.grad.shape == x.shape
    assert ops.mx_pool(x).pooled.shape == (0, 6)


@pytest.mark.parametrize(
    ("x", "u", "kwargs", "error", "message"),
    [
        (
            (8, 512, 7, 7),
            (768, 768),
            {},
            ValueError,
            r"x is \(8, 512, 7, 7\) \[NCHW\] but U is \(768",
        ),
        ((8, 5, 7), (5, 5), {}, ValueError, "NCHW has 4 dimensions"),
        ((2, 5, 0, 3), (5, 5), {}, ValueError, "no pixels"),
        ((2, 0, 3, 3), (0, 0), {}, ValueError, "no channels"),
        ((2, 4, 5), (5, 5), {"input_fmt": "NLC", "num_prefix_tokens": 4}, ValueError, "no pixels"),
        ((2, 4, 5), (5, 5), {"input_fmt": "NLC", "num_prefix_tokens": 9}, ValueError, "no pixels"),
        ((2, 5, 3, 3), (5, 5), {"num_prefix_tokens": 1}, ValueError, "only in the token layouts"),
        ((2, 5, 3, 3), (5, 5), {"num_prefix_tokens": -1}, ValueError, "must be >= 0"),
        ((2, 5, 3, 3), (5, 5), {"num_prefix_tokens": 1.0}, TypeError, "must be an int"),
        ((2, 5, 3, 3), (5, 5), {"input_fmt": "NWHC"}, ValueError, "'NWHC', allowed are NCHW"),
    ],
)
def test_bad_input(x, u, kwargs, error, message):
    with pytest.raises(error, match=message):
        ops.rotate_pool(torch.zeros(x), torch.zeros(u), **kwargs)


def test_bad_types_and_devices():
    with pytest.raises(TypeError, match="int64"):
        ops.rotate_pool(torch.zeros(1, 2, 1, 1, dtype=torch.int64), torch.eye(2))
    with pytest.raises(TypeError, match=r"must be a torch\.Tensor"):
        ops.mx_pool([1.0])
    with pytest.raises(ValueError, match="x on cpu, U on meta"):
        ops.rotate_pool(torch.zeros(1, 2, 1, 1), torch.eye(2, device="meta"))


def test_gradcheck():
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    u = rotation_like(3).requires_grad_()
    for index in range(3):
        assert torch.autograd.gradcheck(lambda x, u, i=index: ops.rotate_pool(x, u)[i], (x, u))
        assert torch.autograd.gradcheck(lambda x, i=index: ops.mx_pool(x)[i], (x,))


@pytest.mark.parametrize("op", ["mx_pool", "rotate_pool"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC strided", "NLC prefix"], indirect=True)
def test_opcheck(op, layout):
    kwargs, build = layout
    x = build(torch.randn(2, 6, 3, 2)).detach().requires_grad_()
    args = [x] if op == "mx_pool" else [x, rotation_like(6, torch.float32).requires_grad_()]
    overload = getattr(torch.ops.infodisent, op).default
    torch.library.opcheck(overload, (*args, kwargs["input_fmt"], kwargs["num_prefix_tokens"]))


def test_double_backward_says_so():
    u = rotation_like(3, torch.float32).requires_grad_()
    pooled = ops.rotate_pool(torch.randn(1, 3, 2, 2), u).pooled
    (g,) = torch.autograd.grad(pooled.square().sum() + u.sum(), u, create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        g.sum().backward()


def test_mx_pool_gradient_every_layout(layout):
    kwargs, build = layout
    x64 = torch.randn(3, 9, 4, 5, dtype=torch.float64)
    x = x64.clone().requires_grad_()
    (reference.mx_pool(x).pooled.sin().sum() + reference.mx_pool(x).neg.sum()).backward()
    xb = build(x64).detach().requires_grad_()
    pool = ops.mx_pool(xb, **kwargs)
    (pool.pooled.sin().sum() + pool.neg.sum()).backward()
    assert relative(to_bpc(xb.grad, **kwargs), x.grad.flatten(2).mT) < 1e-12


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(0, 5),
    channels=st.integers(1, 40),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    chunk=st.sampled_from([1, 1000, 10**8]),
    quantise=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_shape(batch, channels, height, width, chunk, quantise, seed):
    """Random shapes, chunk sizes, and maps full of ties and zeros."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, channels, height, width, generator=generator, dtype=torch.float64)
    u = torch.randn(channels, channels, generator=generator, dtype=torch.float64)
    if quantise:
        x, u = x.round(), torch.eye(channels, dtype=torch.float64)
    leaves = []
    with (
        mock.patch.object(native_rotate_pool, "CHUNK_ROWS", chunk),
        mock.patch.object(winners, "CHUNK_BYTES", chunk),
    ):
        for module in (ops, reference):
            xl, ul = x.clone().requires_grad_(), u.clone().requires_grad_()
            pool = module.rotate_pool(xl, ul)
            (pool.pos.square().sum() + pool.pooled.sum()).backward()
            leaves.append((*pool, xl.grad, ul.grad))
    for ours, plain in zip(*leaves, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)
