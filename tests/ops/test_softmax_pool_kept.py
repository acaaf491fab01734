"""softmax_pool with prototypes, products kept for the gradient: the same results as without."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from infodisent import backends, ops
from infodisent.backends.native import module
from infodisent.ops.softmax_pool import _Kept

pytestmark = pytest.mark.skipif(
    module.objection() is not None, reason=module.objection() or "built"
)
softmax_pool = sys.modules["infodisent.ops.softmax_pool"]  # the module; ops has the function


@pytest.fixture
def runs(monkeypatch):
    """How often a call kept its products."""
    seen, run = [], _Kept.apply
    monkeypatch.setattr(_Kept, "apply", lambda *a: (seen.append(1), run(*a))[1])
    return seen


def drawn(dtype=torch.float32):
    g = torch.Generator().manual_seed(3)
    shapes = (3, 7, 4, 5), (33, 7), (33,)
    return [torch.randn(s, generator=g).to(dtype).requires_grad_() for s in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("needed", [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_the_same_bits(monkeypatch, runs, dtype, needed, masked):
    valid = torch.arange(60).view(3, 20) % 3 > 0 if masked else None
    results = []
    for fewest in (1, 1 << 20):
        monkeypatch.setattr(softmax_pool, "KEPT_BYTES", (fewest, 64 << 20))
        given = drawn(dtype)
        for leaf, need in zip(given, needed, strict=True):
            leaf.requires_grad_(bool(need))
        x, v, bias = given
        pool = ops.softmax_pool(x, v, temperature=0.7, bias=bias, valid=valid)
        pool.value.square().sum().backward()
        results.append([pool.value, pool.index, *(leaf.grad for leaf in given)])
    assert len(runs) == 1
    for kept, again in zip(*results, strict=True):
        assert (kept is None) == (again is None)
        assert kept is None or torch.equal(kept, again)


def test_makes_no_product_again(monkeypatch, runs):
    monkeypatch.setattr(softmax_pool, "KEPT_BYTES", (1, 3 * 33 * 20 * 4))
    compiled = sys.modules["infodisent.backends.native.softmax_pool"]
    products, make = [], compiled._scores
    monkeypatch.setattr(compiled, "_scores", lambda *a: (products.append(1), make(*a))[1])
    for most, wanted in ((3 * 33 * 20 * 4, 1), (3 * 33 * 20 * 4 - 1, 2)):
        monkeypatch.setattr(softmax_pool, "KEPT_BYTES", (1, most))
        products.clear()
        x, v, bias = drawn()
        ops.softmax_pool(x, v, bias=bias).value.sum().backward()
        assert len(products) == wanted
    with torch.no_grad():
        ops.softmax_pool(x, v)
    assert len(runs) == 1


def test_refuses_a_second_derivative_and_is_checkpointed(monkeypatch, runs):
    monkeypatch.setattr(softmax_pool, "KEPT_BYTES", (1, 64 << 20))
    x, v, _ = drawn()
    (first,) = torch.autograd.grad(ops.softmax_pool(x, v).value.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        first.sum().backward()
    with backends.use_backend("native"):
        value = checkpoint(
            lambda x, v: ops.softmax_pool(x, v).value,
            x,
            v,
            use_reentrant=False,
            context_fn=backends.checkpoint_contexts,
        )
    value.sum().backward()
    assert len(runs) == 3
    assert torch.equal(x.grad, first)
