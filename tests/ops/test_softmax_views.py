"""ops.softmax_views against float64 formulas, and that the compiled form is the one that runs."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from infodisent import ops
from infodisent.backends.native import softmax_views as compiled
from infodisent.ops.softmax_views import _Compiled
from infodisent.testing import compare_with_eager

pytestmark = pytest.mark.usefixtures("backend")


def drawn(pairs=3, pixels=14, channels=9, prototypes=21, dtype=torch.float32):
    shapes = (2 * pairs, pixels, channels), (prototypes, channels), (prototypes,)
    return [torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes]


def eager(x, weight=None, bias=None):
    """Softmaxes held; the other view's is a constant, as PIP-Net's loss has it."""
    scores = x if weight is None else torch.nn.functional.linear(x, weight, bias)
    shares = scores.log_softmax(2)
    one, other = shares.chunk(2)
    sides = (one + other.detach(), one.detach() + other)
    aligned = [-side.logsumexp(2) for side in sides]
    return shares.exp().amax(1), torch.cat(aligned)


def gradients(function, given, cotangents):
    leaves = [t.detach().to(cotangents[0].dtype).requires_grad_() for t in given]
    value, *_, alignment = function(*leaves)
    found = torch.autograd.grad((value, alignment), leaves, cotangents)
    return value, alignment, *found


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("chunk", [1, 2 * 14 * 21 * 4 * 2, 8 << 20])
@pytest.mark.parametrize("rows_alike", [True, False])
@pytest.mark.parametrize("layer", ["none", "weight", "weight and bias"])
def test_values_and_gradients(monkeypatch, chunk, rows_alike, layer):
    """In chunks of one pair, of two with one left over, and of all."""
    monkeypatch.setattr(compiled, "CHUNK_BYTES", chunk)
    given = drawn()[: 1 + ("weight" in layer) + ("bias" in layer)]
    count = given[0].shape[2] if layer == "none" else 21
    own = torch.randn(3, 14)
    cotangents = (torch.randn(6, count), own.repeat(2, 1) if rows_alike else torch.randn(6, 14))
    truth = gradients(eager, given, tuple(c.double() for c in cotangents))
    ours = gradients(ops.softmax_views, given, cotangents)
    peer = gradients(eager, given, cotangents)
    names = ("value", "alignment", "dx", "dweight", "dbias")
    for name, a, b, wanted in zip(names, ours, peer, truth, strict=False):
        compare_with_eager(a, b, wanted, rounding=2**-21, what=name)


def test_compiled_where_it_can_be(backend, monkeypatch):
    def asked(*given):
        run, seen = _Compiled.apply, []
        with monkeypatch.context() as patch:
            patch.setattr(_Compiled, "apply", lambda *a: (seen.append(1), run(*a))[1])
            ops.softmax_views(*given)
        return bool(seen)

    x, weight, bias = drawn()
    assert asked(x, weight, bias) == (backend == "native")
    assert not asked(x.bfloat16(), weight.bfloat16(), bias.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not asked(x, weight, bias)


@pytest.mark.parametrize("needed", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_partial_gradients(needed):
    given, wanted = drawn(), drawn()
    for one, other, need in zip(given, wanted, needed, strict=True):
        other.data.copy_(one.data)
        one.requires_grad_(bool(need))
    for function, leaves in ((ops.softmax_views, given), (eager, wanted)):
        value, *_, alignment = function(*leaves)
        (value.square().sum() + alignment.mean()).backward()
    for one, other, need in zip(given, wanted, needed, strict=True):
        assert (one.grad is not None) == bool(need)
        if need:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_nothing_is_kept_by_a_cycle():
    """Scores of a real step are hundreds of MB, which must not wait for the garbage collector."""
    gc.disable()
    try:
        value = ops.softmax_views(*drawn()).value
        node = weakref.ref(value.grad_fn)
        del value
        assert node() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda x, w, b: (x[:5], w, b), r"x is \(5, 14, 9\), must be"),
        (
            lambda x, w, b: (x, w[:, :8], b),
            r"x is .* but weight is \(21, 8\), must be \(prototypes, 9\)",
        ),
        (lambda x, w, b: (x, w, b[:3]), r"bias is \(3,\), must be \(21,\)"),
        (lambda x, w, b: (x, None, b), r"bias is \(21,\), must be None"),
        (
            lambda x, w, b: (x, w[:0], None),
            r"x is .* but weight is \(0, 9\), must be .* one prototype",
        ),
        (lambda x, w, b: (x[:, :0], w, b), "x is .*: no pixels"),
        (lambda x, w, b: (x[..., :0], w[:, :0], b), "x is .*: no channels"),
        (lambda x, w, b: (x, w.to("meta"), b), ".* x on cpu, weight on meta, bias on cpu"),
        (lambda x, w, b: ([1.0], w, b), "x must be a torch.Tensor, got list"),
        (lambda x, w, b: (x.long(), w, b), "x is torch.int64, allowed are"),
        (lambda x, w, b: (x, [1.0], b), "weight must be a torch.Tensor, got list"),
        (lambda x, w, b: (x, w.double(), b), "x is torch.float32 but weight is torch.float64"),
        (lambda x, w, b: (x, w, b.half()), "x is torch.float32 but bias is torch.float16"),
    ],
)
def test_wrong_arguments(change, told):
    with pytest.raises((ValueError, TypeError), match=f"softmax_views: {told}"):
        ops.softmax_views(*change(*drawn()))


def test_gradients_in_batches_are_refused_by_name(backend):
    x, *layer = drawn()
    value = ops.softmax_views(x, *layer).value
    batch = torch.randn(2, *value.shape)
    if backend == "native":
        with pytest.raises(NotImplementedError, match=r"softmax_views: .*is_grads_batched"):
            torch.autograd.grad(value, x, batch, is_grads_batched=True)
        return
    both = torch.autograd.grad(value, x, batch, is_grads_batched=True, retain_graph=True)[0]
    (one,) = torch.autograd.grad(value, x, batch[1])
    torch.testing.assert_close(both[1], one)


def test_differentiates_once():
    x, *layer = drawn()
    value = ops.softmax_views(x, *layer).value
    (first,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        first.square().sum().backward()
