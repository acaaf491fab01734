"""ops.similarity_pool against float64 truth and eager PyTorch: values, places, gradients."""

from __future__ import annotations

import itertools
from unittest import mock

import pytest
import torch
from torch.autograd import gradcheck

from infodisent import ops, reference
from infodisent.backends.sparse import winners
from infodisent.layout import to_bpc
from infodisent.testing import relative

pytestmark = pytest.mark.usefixtures("backend")

SIMILARITIES = ("dot", "cosine", "l2")
SHAPES = [  # B, C, H, W, M
    (2, 1, 1, 1, 1),
    (1, 5, 1, 1, 3),
    (3, 33, 7, 7, 70),
    (2, 123, 5, 10, 9),
    (4, 64, 14, 14, 130),
    (40, 7, 2, 2, 65),
]


def problem(shape, dtype=torch.float64):
    b, c, h, w, m = shape
    return torch.randn(b, c, h, w, dtype=dtype), torch.randn(m, c, dtype=dtype)


def scores(x, v, similarity):
    """[B, P, M] in float64; distances by differences."""
    x, v = x.double(), v.double()
    if similarity == "dot":
        return x @ v.mT
    if similarity == "cosine":
        return reference.unit(x) @ reference.unit(v).mT
    return (x[:, :, None] - v).square().sum(3)


def check(value, index, x, v, similarity, tolerance, valid=None):
    """Values against the truth; places by what is there; both by the lowest-tie rule if exact."""
    assert value.dtype == torch.float32 if x.dtype != torch.float64 else torch.float64
    assert index.dtype == torch.int32
    truth = scores(x, v, similarity)
    sign = -1 if similarity == "l2" else 1
    if valid is not None:
        truth = truth.masked_fill(~valid[:, :, None], -sign * torch.inf)
        assert torch.gather(valid, 1, index.long()).all()
    best = (sign * truth).amax(1) * sign
    scale = truth[truth.isfinite()].abs().max()
    assert (value.double() - best).abs().max() <= tolerance * scale
    there = truth.gather(1, index[:, None].long())[:, 0]
    assert (there - best).abs().max() <= tolerance * scale
    if tolerance == 0:
        first = (truth == best[:, None]).to(torch.uint8).argmax(1)
        assert torch.equal(index.long(), first)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_every_layout(shape, similarity, layout):
    kwargs, build = layout
    x, v = problem(shape, torch.float32)
    pool = ops.similarity_pool(build(x), v, similarity=similarity, **kwargs)
    check(pool.value, pool.index, to_bpc(x, "NCHW"), v, similarity, 2e-6)
    assert pool.second_value is pool.second_index is pool.mean is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_error_no_larger_than_eager(similarity, dtype):
    x, v = (t.to(dtype) for t in problem((4, 96, 7, 7, 50)))
    pool = ops.similarity_pool(x, v, similarity=similarity)
    rows = to_bpc(x, "NCHW")
    truth = scores(rows, v, similarity)
    truth = truth.amin(1) if similarity == "l2" else truth.amax(1)
    s = rows @ v.mT
    square = rows.square().sum(2, keepdim=True)
    eager = {
        "dot": lambda: s.amax(1),
        "cosine": lambda: (s / square.sqrt()).amax(1) / v.norm(dim=1),
        "l2": lambda: (square - 2 * s + v.square().sum(1)).relu().amin(1),
    }[similarity]()
    error, theirs = ((t.double() - truth).abs().max() for t in (pool.value, eager))
    assert error <= theirs + 1e-7 * truth.abs().max()
    if dtype in (torch.float16, torch.bfloat16):
        assert error < theirs / 100  # nothing is rounded to half


@pytest.mark.parametrize("similarity", ["dot", "l2"])
def test_integers_are_exact_and_ties_go_to_the_lowest(similarity):
    x = torch.randint(-2, 3, (7, 5, 6, 6)).float()
    v = torch.randint(-2, 3, (40, 5)).float()
    pool = ops.similarity_pool(x, v, similarity=similarity)
    check(pool.value, pool.index, to_bpc(x, "NCHW"), v, similarity, 0)
    if similarity == "l2":
        assert (pool.value == 0).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_distance_to_itself_is_zero(dtype, scale):
    """After a projection: ProtoPNet's similarity log((d + 1) / (d + 1e-4)) reaches 9.21."""
    x = (torch.rand(6, 128, 7, 7) * scale).to(dtype)
    x[:, :, 3, 3] = x[:, :, 3, 2] * (1 + 2 * torch.finfo(dtype).eps)  # near twins
    rows = to_bpc(x, "NCHW").reshape(-1, 128)
    pool = ops.similarity_pool(x, rows, similarity="l2")
    own = torch.arange(6).repeat_interleave(49)
    value = pool.value[own, torch.arange(len(rows))]
    assert (value == 0).all()
    log = torch.log((value + 1) / (value + 1e-4))
    assert (log > 9.21).all()
    found = rows.view(6, 49, 128)[own, pool.index[own, torch.arange(len(rows))].long()]
    assert torch.equal(found, rows)


@pytest.mark.parametrize(("first", "second"), itertools.permutations(SIMILARITIES, 2))
def test_two_similarities_from_one_product(first, second):
    x, v = problem(SHAPES[2], torch.float32)
    both = ops.similarity_pool(x, v, similarity=first, second=second)
    for name, value, index in ((first, *both[:2]), (second, *both[2:4])):
        alone = ops.similarity_pool(x, v, similarity=name)
        assert torch.equal(alone.index, index)
        assert torch.equal(alone.value, value)
    if "dot" in (first, second):  # the long pixel is not the one in the same direction
        assert not torch.equal(both.index, both.second_index)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_mean(similarity, masked, layout):
    kwargs, build = layout
    x, v = problem((3, 20, 4, 5, 11), torch.float32)
    valid = torch.rand(3, 20) < 0.6 if masked else None
    if masked:
        valid[:, 7] = True
        x.flatten(2).masked_fill_(~valid[:, None], torch.nan)
    built = build(x).detach().clone(memory_format=torch.preserve_format).requires_grad_()
    leaf = v.clone().requires_grad_()
    pool = ops.similarity_pool(built, leaf, similarity=similarity, mean=True, valid=valid, **kwargs)
    truth = scores(to_bpc(x, "NCHW"), v, similarity)
    counted = torch.ones(3, 20, dtype=torch.bool) if valid is None else valid
    truth = torch.stack([t[w].mean(0) for t, w in zip(truth, counted, strict=True)])
    assert relative(pool.mean, truth) < 1e-6
    if not masked:
        x64, v64 = x.double().requires_grad_(), v.double().requires_grad_()
        weight = torch.randn(3, 11)
        (pool.mean * weight).sum().backward()
        (scores(to_bpc(x64, "NCHW"), v64, similarity).mean(1) * weight).sum().backward()
        assert relative(leaf.grad, v64.grad) < 1e-5
        got = to_bpc(built.grad, kwargs["input_fmt"], kwargs["num_prefix_tokens"])
        assert relative(got, to_bpc(x64.grad, "NCHW")) < 1e-5


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_valid_pixels_alone_count(similarity, layout):
    kwargs, build = layout
    x, v = problem((5, 12, 3, 4, 30), torch.float32)
    valid = torch.rand(5, 12) < 0.4
    valid[:, 5] = True
    plain = x.flatten(2)
    hidden = plain.masked_fill(~valid[:, None], torch.nan).view_as(x)
    pool = ops.similarity_pool(build(hidden), v, similarity=similarity, valid=valid, **kwargs)
    check(pool.value, pool.index, to_bpc(x, "NCHW"), v, similarity, 2e-6, valid)


def test_valid_pixels_at_the_end_of_the_range():
    """What does not count is not taken for a tie where everything is as bad as can be."""
    x = torch.full((1, 2, 1, 4), -torch.inf)
    valid = torch.tensor([[False, False, True, True]])
    for similarity in ("dot", "l2"):
        pool = ops.similarity_pool(x, torch.ones(1, 2), similarity=similarity, valid=valid)
        assert pool.index.item() == 2
        assert pool.value.item() == (-torch.inf if similarity == "dot" else torch.inf)


def test_zero_pixels_and_prototypes_have_cosine_zero():
    x = -torch.rand(2, 6, 2, 3)
    x[0, :, 1, 1] = 0
    v = torch.rand(3, 6)
    v[1] = 0
    x.requires_grad_(), v.requires_grad_()
    pool = ops.similarity_pool(x, v, similarity="cosine")
    assert pool.value[0].tolist() == [0, 0, 0]  # the others are negative
    assert pool.index[0].tolist() == [4, 0, 4]
    assert pool.value[1, 1] == 0
    assert (pool.value[1, [0, 2]] < 0).all()
    pool.value.sum().backward()
    assert (x.grad[0] == 0).all()
    assert (v.grad[1] == 0).all()
    assert v.grad.isfinite().all()
    assert (v.grad[[0, 2]] != 0).any()


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_nan_reaches_what_it_reaches_in_the_formula(similarity):
    x, v = problem((3, 8, 2, 3, 5), torch.float32)
    x[1, 2, 1, 0] = torch.nan
    pool = ops.similarity_pool(x, v, similarity=similarity)
    assert pool.value.isnan().tolist() == [[False] * 5, [True] * 5, [False] * 5]
    assert (pool.index[1] == 3).all()


def test_an_infinite_pixel_is_infinitely_far():
    x, v = problem((2, 8, 2, 3, 5), torch.float32)
    x[0, 1, 0, 1] = torch.inf
    x[1, 1, 0, 1] = 1e30  # its square is beyond the range
    pool = ops.similarity_pool(x, v, similarity="l2")
    assert pool.value.isfinite().all()
    assert (pool.index != 1).all()
    rest = torch.cat([x[..., :1, [0, 2]].flatten(2), x[:, :, 1]], 2)
    assert torch.equal(
        pool.value, ops.similarity_pool(rest, v, similarity="l2", input_fmt="NCL")[0]
    )
    both = ops.similarity_pool(torch.full((1, 8, 1, 2), torch.inf), v, similarity="l2")
    assert (both.value == torch.inf).all()
    assert (both.index == 0).all()


@pytest.mark.parametrize("second", [None, *SIMILARITIES])
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("shape", SHAPES[2:])
def test_gradients_every_similarity(shape, similarity, second):
    if similarity == second:
        pytest.skip("one similarity twice is refused")
    x64, v64 = problem(shape)
    g, h = torch.randn(2, shape[0], shape[-1], dtype=torch.float64)

    def loss(pool):
        total = (pool.value * g.to(pool.value.dtype)).sum()
        return (
            total
            if second is None
            else total + (pool.second_value * h.to(total.dtype) / 64).sin().sum()
        )

    kwargs = {"similarity": similarity, "second": second}
    x, v = x64.clone().requires_grad_(), v64.clone().requires_grad_()
    loss(reference.similarity_pool(x, v, **kwargs)).backward()
    x32, v32 = x64.float().requires_grad_(), v64.float().requires_grad_()
    loss(ops.similarity_pool(x32, v32, **kwargs)).backward()
    assert relative(x32.grad, x.grad) < 1e-5
    assert relative(v32.grad, v.grad) < 1e-5


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_gradients_every_layout(similarity, layout):
    kwargs, build = layout
    x64, v64 = problem((3, 33, 4, 5, 21))
    g = torch.randn(3, 21, dtype=torch.float64)
    x, v = x64.clone().requires_grad_(), v64.clone().requires_grad_()
    (reference.similarity_pool(x, v, similarity=similarity).value * g).sum().backward()
    xb, vb = build(x64.float()).detach().requires_grad_(), v64.float().requires_grad_()
    pool = ops.similarity_pool(xb, vb, similarity=similarity, **kwargs)
    (pool.value * g.float()).sum().backward()
    assert relative(vb.grad, v.grad) < 1e-5
    pixels = to_bpc(xb.grad, kwargs["input_fmt"], kwargs["num_prefix_tokens"])
    assert relative(pixels, to_bpc(x.grad, "NCHW")) < 1e-5
    if kwargs["num_prefix_tokens"]:
        assert xb.grad.count_nonzero() == pixels.count_nonzero()


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_float64_gradcheck(similarity):
    x, v = (t.requires_grad_() for t in problem((2, 4, 2, 3, 3)))
    assert gradcheck(
        lambda x, v: ops.similarity_pool(x, v, similarity=similarity, mean=True)[::4], (x, v)
    )


def test_gradient_of_a_distance_of_zero_is_zero():
    x = torch.rand(2, 16, 3, 3) * 7
    v = x[0].flatten(1).mT.clone().requires_grad_()
    x.requires_grad_()
    pool = ops.similarity_pool(x, v, similarity="l2")
    (pool.value[0] * 1e4).sum().backward()
    assert (v.grad == 0).all()
    assert (x.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("needs", [(True, False), (False, True)])
def test_partial_gradients_and_their_dtypes(needs, dtype):
    x, v = problem((2, 9, 2, 2, 5), torch.float32)
    x, v = x.to(dtype).requires_grad_(needs[0]), v.requires_grad_(needs[1])
    ops.similarity_pool(x, v, similarity="l2", second="cosine").second_value.sum().backward()
    assert (x.grad is not None, v.grad is not None) == needs
    if needs[0]:
        assert x.grad.dtype == dtype


def test_chunks_do_not_matter():
    x, v = problem((9, 10, 3, 3, 12), torch.float32)
    x.requires_grad_(), v.requires_grad_()

    def run():
        pool = ops.similarity_pool(x, v, similarity="l2", second="dot")
        return *pool[:4], *torch.autograd.grad(pool.value.sum() + pool.second_value.sum(), (x, v))

    whole = run()
    with mock.patch.object(winners, "CHUNK_BYTES", 3 * 12 * 10 * 4):
        parts = run()
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b)


def test_empty_batch():
    v = torch.randn(4, 6, requires_grad=True)
    pool = ops.similarity_pool(torch.randn(0, 6, 2, 2), v, similarity="l2", second="dot", mean=True)
    assert [tuple(t.shape) for t in pool] == [(0, 4)] * 5
    pool.value.sum().backward()
    assert (v.grad == 0).all()


def test_double_backward_is_refused():
    x, v = (t.requires_grad_() for t in problem((2, 4, 2, 2, 3), torch.float32))
    (grad,) = torch.autograd.grad(
        ops.similarity_pool(x, v, similarity="l2").value.sum(), v, create_graph=True
    )
    with pytest.raises(RuntimeError, match="twice"):
        grad.sum().backward()
