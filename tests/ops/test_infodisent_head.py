"""ops.infodisent_head: logits, every subset of gradients, options and errors."""

from __future__ import annotations

import itertools

import pytest
import torch

from infodisent import ops, reference
from infodisent.layout import to_bpc
from infodisent.testing import relative
from tests.ops.test_rotate_pool import rotation_like

NAMES = ("x", "U", "weight", "bias")


def arguments(shape=(5, 33, 4, 3), classes=7):
    c = shape[1]
    return (
        torch.randn(shape, dtype=torch.float64),
        rotation_like(c),
        torch.randn(classes, c, dtype=torch.float64),
        torch.randn(classes, dtype=torch.float64),
    )


def run(module, args, needs, **kwargs):
    leaves = [a.clone().requires_grad_(n) for a, n in zip(args, needs, strict=True)]
    logits, pool = module.infodisent_head(*leaves, return_pool=True, **kwargs)
    loss = logits.square().sum() + pool.pooled.sin().sum() + (pool.neg * pool.pos).sum()
    if loss.requires_grad:
        loss.backward()
    return logits, pool, [leaf.grad for leaf in leaves]


pytestmark = pytest.mark.usefixtures("backend")


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("nonneg", ["relu", "none"])
@pytest.mark.parametrize("needs", list(itertools.product([False, True], repeat=4)))
def test_every_subset_of_gradients(needs, nonneg):
    args = arguments()
    logits64, _, grads64 = run(reference, args, needs, nonneg=nonneg)
    logits, _, grads = run(ops, [a.float() for a in args], needs, nonneg=nonneg)
    assert relative(logits, logits64) < 1e-6
    for name, need, grad, truth in zip(NAMES, needs, grads, grads64, strict=True):
        assert (grad is not None) == need, name
        if need:
            assert relative(grad, truth) <= 1e-5, name


def test_layouts(layout):
    kwargs, build = layout
    x, u, w, b = arguments()
    _, _, truth = run(reference, (x, u, w, b), (True,) * 4)
    logits, _, grads = run(
        ops, (build(x.float()), u.float(), w.float(), b.float()), (True,) * 4, **kwargs
    )
    assert relative(logits, reference.infodisent_head(x, u, w, b)) < 1e-6
    assert relative(to_bpc(grads[0], **kwargs), truth[0].flatten(2).mT) <= 1e-5
    for grad, wanted in zip(grads[1:], truth[1:], strict=True):
        assert relative(grad, wanted) <= 1e-5


def test_negative_weights_count_as_zero_and_get_no_gradient():
    x, u, w, _ = (a.float() for a in arguments())
    w[0] = -1.0
    w[1, 0] = 0.0
    w.requires_grad_()
    logits = ops.infodisent_head(x, u, w)
    assert torch.equal(logits[:, 0], torch.zeros(5))
    logits.sum().backward()
    assert torch.equal(w.grad == 0, w <= 0)


def test_logits_keep_the_weights_dtype():
    x, u, w, b = (a.float() for a in arguments())
    for dtype in (torch.float16, torch.bfloat16):
        logits = ops.infodisent_head(x.to(dtype), u.to(dtype), w.to(dtype), b.to(dtype))
        truth = reference.infodisent_head(*(t.to(dtype).double() for t in (x, u, w, b)))
        assert logits.dtype == dtype
        assert relative(logits, truth) < torch.finfo(dtype).eps
    assert ops.infodisent_head(x.half(), u, w).dtype == torch.float32


def test_nan_reaches_the_logits_of_its_image_only():
    x, u, w, _ = (a.float() for a in arguments())
    x[2, 0, 0, 0] = float("nan")
    logits = ops.infodisent_head(x, u, w)
    assert logits[2].isnan().all()
    assert logits[[0, 1, 3, 4]].isfinite().all()


def test_empty_batch():
    x, u, w, b = (a.float().requires_grad_() for a in arguments((0, 9, 2, 2)))
    logits = ops.infodisent_head(x, u, w, b)
    assert logits.shape == (0, 7)
    logits.sum().backward()
    assert u.grad.abs().max() == w.grad.abs().max() == b.grad.abs().max() == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"weight": torch.zeros(7, 32)},
            ValueError,
            r"weight is \(7, 32\), must be \(classes, 33\)",
        ),
        ({"weight": torch.zeros(33)}, ValueError, r"weight is \(33,\)"),
        ({"bias": torch.zeros(6)}, ValueError, r"bias is \(6,\), must be \(7,\)"),
        ({"nonneg": "softplus"}, ValueError, "'softplus', allowed are relu, none"),
        ({"U": torch.zeros(33, 32)}, ValueError, r"U is \(33, 32\), must be \(33, 33\)"),
        ({"weight": torch.zeros(7, 33).long()}, TypeError, "weight is torch.int64"),
        ({"weight": torch.zeros(7, 33, device="meta")}, ValueError, "weight on meta"),
        ({"input_fmt": "HWC"}, ValueError, "allowed are NCHW"),
    ],
)
def test_bad_input(change, error, message):
    x, u, w, b = (a.float() for a in arguments())
    with pytest.raises(error, match=message):
        ops.infodisent_head(**{"x": x, "U": u, "weight": w, "bias": b, **change})


def test_opcheck_and_double_backward():
    x, u, w, b = (a.float().requires_grad_() for a in arguments((2, 6, 3, 2)))
    overload = torch.ops.infodisent.infodisent_head.default
    for bias in (b, None):
        torch.library.opcheck(overload, (x, u, w, bias, True, "NCHW", 0))
    logits = ops.infodisent_head(x, u, w, b)
    (g,) = torch.autograd.grad(logits.square().sum() + w.sum(), w, create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        g.sum().backward()
