"""The pools of prototypes, given what a plain test does not give them: each is right or refused."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch.autograd import forward_ad

from infodisent import backends, ops, reference
from tests.conftest import BACKENDS

SIMILARITIES = ("dot", "cosine", "l2")
softmax_pool = importlib.import_module("infodisent.ops.softmax_pool")
INF, NAN = float("inf"), float("nan")


def problem(b=3, p=6, c=5, m=4, dtype=torch.float32):
    return torch.randn(b, p, c, dtype=dtype), torch.randn(m, c, dtype=dtype)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("offset", [0.0, 10.0, 1000.0])
def test_mean_distance_where_it_cancels(offset):
    """Off by what rounding of the mean pixel does to a distance; not by that of its square."""
    x, v = (t + offset for t in problem(2, 49, 64, 6))
    truth = (x.double()[:, :, None] - v.double()).square().sum(3).mean(1)
    options = {"similarity": "l2", "input_fmt": "NLC", "mean": True}
    mean = ops.similarity_pool(x, v, **options).mean
    size = truth.sqrt().max()
    bound = 4 * torch.finfo(torch.float32).eps * size * (size + 8 * offset)
    assert (mean.double() - truth).abs().max() <= bound
    one = ops.similarity_pool(x[:, :1], x[:, 0], **options)
    assert one.mean.diagonal().tolist() == one.value.diagonal().tolist() == [0, 0]


def test_gradient_of_a_mean_distance_can_be_differentiated():
    x, v = (t.requires_grad_() for t in problem(1, 2, 2, 2, dtype=torch.float64))

    def mean(x, v):
        return ops.similarity_pool(x, v, similarity="l2", input_fmt="NLC", mean=True).mean

    assert torch.autograd.gradcheck(mean, (x, v))
    assert torch.autograd.gradgradcheck(mean, (x, v))


@pytest.mark.parametrize("junk", [NAN, INF])
@pytest.mark.parametrize("backend", [*BACKENDS, "reference"], indirect=True)
def test_what_does_not_count_has_no_gradient(backend, junk):
    x, v = problem()
    valid = torch.ones(3, 6, dtype=torch.bool)
    valid[:, 2] = False
    x[:, 2] = junk
    x.requires_grad_(), v.requires_grad_()
    options = {"input_fmt": "NLC", "valid": valid}
    losses = [ops.softmax_pool(x, v, **options).value.sum()]
    for similarity in SIMILARITIES:
        pool = ops.similarity_pool(x, v, similarity=similarity, mean=True, **options)
        losses.append(pool.value.sum() + pool.mean.sum())
    for loss in losses:
        for gradient in torch.autograd.grad(loss, (x, v)):
            assert gradient.isfinite().all()


def test_formulas_have_a_tangent():
    """As the error of the kernels says; cdist, which finds the nearest pixel, has none."""
    x, v = problem()
    tangent = torch.randn_like(x)
    with backends.use_backend("reference"), forward_ad.dual_level():
        for similarity in SIMILARITIES:
            dual = forward_ad.make_dual(x, tangent)
            pool = ops.similarity_pool(dual, v, similarity=similarity, input_fmt="NLC")
            found = forward_ad.unpack_dual(pool.value).tangent
            leaf = x.clone().requires_grad_()
            value = reference.similarity_pool(leaf, v, similarity=similarity, input_fmt="NLC").value
            for i, m in ((0, 0), (2, 3)):
                (row,) = torch.autograd.grad(value[i, m], leaf, retain_graph=True)
                torch.testing.assert_close(found[i, m], (row * tangent).sum())


@pytest.mark.usefixtures("backend")
def test_compiled_with_any_temperature():
    """With sizes that change a temperature may be a symbol, even the default."""
    torch.compiler.reset()
    x = torch.randn(2, 6, 3, 3)
    plain = torch.compile(
        lambda x: ops.softmax_pool(x).value, fullgraph=True, backend="eager", dynamic=True
    )
    torch.testing.assert_close(plain(x), ops.softmax_pool(x).value)
    pool = torch.compile(
        lambda x, t: ops.softmax_pool(x, temperature=t).value,
        fullgraph=True,
        backend="eager",
        dynamic=True,
    )
    for temperature in (0.5, 0.7):
        wanted = ops.softmax_pool(x, temperature=temperature).value
        torch.testing.assert_close(pool(x, temperature), wanted)


@pytest.mark.usefixtures("backend")
def test_gradients_in_batches(monkeypatch):
    """Products that are kept are no operator; torch takes gradients of operators apart."""
    monkeypatch.setattr(softmax_pool, "KEPT_BYTES", (0, 1 << 30))
    x, v = (t.requires_grad_() for t in problem())
    bias = torch.randn(4, requires_grad=True)
    value = ops.softmax_pool(x, v, bias=bias, input_fmt="NLC").value
    cotangents, leaves = torch.randn(3, *value.shape), (x, v, bias)
    found = torch.autograd.grad(value, leaves, cotangents, is_grads_batched=True, retain_graph=True)
    for i, cotangent in enumerate(cotangents):
        wanted = torch.autograd.grad(value, leaves, cotangent, retain_graph=True)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a[i], b)


@pytest.mark.filterwarnings("ignore:.*state", "ignore:.*prototype stage")
def test_tensors_that_are_not_dense_are_refused_by_name():
    x, v = problem()
    valid = torch.ones(3, 6, dtype=torch.bool)
    nested = torch.nested.nested_tensor([x[0], x[1, :3]])
    cases = [
        ("x is of layout torch.sparse_coo", (x.to_sparse(), v), None),
        ("x is of layout torch._mkldnn", (x.to_mkldnn(), v), None),
        ("x is a nested tensor", (nested, v), None),
        ("prototypes is of layout torch.sparse_csr", (x, v.to_sparse_csr()), None),
        ("valid is of layout torch.sparse_coo", (x, v), valid.to_sparse()),
    ]
    for told, given, mask in cases:
        for op in (ops.similarity_pool, ops.softmax_pool):
            with pytest.raises(TypeError, match=f"{op.__name__}: {told}, must be a dense tensor"):
                op(*given, valid=mask, input_fmt="NLC")
