"""ops.softmax_alignment against float64 truth and eager PyTorch, and PIP-Net's loss made of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from infodisent import backends, ops, reference
from infodisent.layout import to_bpc
from infodisent.testing import compare_with_eager
from tests.conftest import BACKENDS, LAYOUTS

pytestmark = pytest.mark.usefixtures("backend")

NAN, INF = float("nan"), float("inf")
SHAPES = [(1, 1, 1, 1), (2, 1, 3, 3), (2, 5, 1, 1), (3, 33, 7, 7), (2, 123, 5, 10), (2, 40, 14, 14)]


def both(shape, scale=3.0, dtype=torch.float32):
    return [(torch.randn(shape) * scale).to(dtype) for _ in range(2)]


def truth_of(a, b, cotangent=None):
    a, b = a.double().requires_grad_(), b.double().requires_grad_()
    loss = reference.softmax_alignment(a, b)
    if cotangent is None:
        return loss
    return loss, *torch.autograd.grad(loss, (a, b), cotangent.double())


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", SHAPES)
def test_every_layout(shape, layout):
    kwargs, build = layout
    a, b = both(shape)
    cotangent = torch.randn(shape[0], shape[2] * shape[3])
    loss, *grads = truth_of(a, b, cotangent)
    x, y = build(a).detach().requires_grad_(), build(b).detach().requires_grad_()
    ours = ops.softmax_alignment(x, y, **kwargs)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), loss, rtol=1e-6, atol=2e-6)
    ours.backward(cotangent)
    for leaf, true in zip((x, y), grads, strict=True):
        pixels = to_bpc(leaf.grad, kwargs["input_fmt"], kwargs["num_prefix_tokens"])
        torch.testing.assert_close(pixels.double(), true.flatten(2).mT, rtol=1e-5, atol=2e-6)
        assert leaf.grad.count_nonzero() == pixels.count_nonzero()  # none at prefix tokens


@pytest.mark.parametrize("pair", [("NCHW", "NCHW channels-last"), ("NCHW channels-last", "NCHW")])
def test_two_layouts_and_two_dtypes(pair):
    a, b = both((2, 40, 6, 7))
    cotangent = torch.randn(2, 42)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        loss, *grads = truth_of(a, b.to(dtype), cotangent)
        leaves = [LAYOUTS[n][2](t).detach() for n, t in zip(pair, (a, b.to(dtype)), strict=True)]
        x, y = (t.requires_grad_() for t in leaves)
        ours = ops.softmax_alignment(x, y)
        assert ours.dtype == (dtype if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(ours.double(), loss, rtol=1e-6, atol=2e-6)
        ours.backward(cotangent.to(ours.dtype))
        assert (x.grad.dtype, y.grad.dtype) == (torch.float32, dtype)
        assert (x.grad.stride(), y.grad.stride()) == (x.stride(), y.stride())
        torch.testing.assert_close(x.grad.double(), grads[0], rtol=1e-5, atol=2e-6)
        rounding = 1e-5 if dtype != torch.bfloat16 else 2**-8
        torch.testing.assert_close(y.grad.double(), grads[1], rtol=rounding, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half(dtype, layout):
    kwargs, build = layout
    a, b = both((3, 50, 5, 7), dtype=dtype)
    cotangent = torch.randn(3, 35)
    loss, *grads = truth_of(a, b, cotangent)
    x, y = build(a).detach().requires_grad_(), build(b).detach().requires_grad_()
    ours = ops.softmax_alignment(x, y, **kwargs)
    torch.testing.assert_close(ours.double(), loss, rtol=1e-6, atol=2e-6)
    ours.backward(cotangent)
    for leaf, true in zip((x, y), grads, strict=True):
        pixels = to_bpc(leaf.grad, kwargs["input_fmt"], kwargs["num_prefix_tokens"])
        assert pixels.dtype == dtype
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(pixels.double(), true.flatten(2).mT, rtol=eps, atol=1e-5)


@pytest.mark.parametrize("scale", [0.1, 3.0, 1e4])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_no_further_from_the_truth_than_eager(scale, memory_format):
    """Eager as PIP-Net writes it, with softmaxes, where it is finite; and by log-softmaxes."""
    a, b = (t.contiguous(memory_format=memory_format) for t in both((4, 200, 9, 9), scale))
    cotangent = torch.randn(4, 81)
    loss, *grads = truth_of(a, b, cotangent)

    def published(a, b):
        return -(a.softmax(1) * b.softmax(1)).sum(1).flatten(1).log()

    for peer in (reference.softmax_alignment, published):
        if peer is published and scale == 1e4:
            continue  # its products underflow
        results = []
        for f in (ops.softmax_alignment, peer):
            x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
            value = f(x, y)
            value.backward(cotangent)
            results.append((value, x.grad, y.grad))
        for name, ours, eager, truth in zip(("loss", "da", "db"), *results, (loss, *grads)):
            compare_with_eager(ours, eager, truth, rounding=2**-22, what=name)


def test_pip_nets_loss():
    """Half of both directions, one side detached in each: the gradient is that of one call."""
    a, b = (t.requires_grad_() for t in both((3, 20, 4, 4)))
    loss = 0.5 * (
        ops.softmax_alignment(a, b.detach()).mean() + ops.softmax_alignment(a.detach(), b).mean()
    )
    loss.backward()
    x, y = (t.detach().double().requires_grad_() for t in (a, b))
    p, q = x.softmax(1), y.softmax(1)
    wanted = -0.5 * ((p * q.detach()).sum(1).log().mean() + (p.detach() * q).sum(1).log().mean())
    wanted.backward()
    torch.testing.assert_close(loss.double(), wanted)
    for leaf, true in ((a, x), (b, y)):
        torch.testing.assert_close(leaf.grad.double(), true.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("need_a", "need_b"), [(1, 0), (0, 1), (1, 1), (0, 0)])
def test_partial_gradients(need_a, need_b, monkeypatch):
    a, b = both((2, 6, 3, 3))
    a.requires_grad_(bool(need_a))
    b.requires_grad_(bool(need_b))
    loss = ops.softmax_alignment(a, b)
    assert loss.requires_grad == bool(need_a or need_b)
    if not loss.requires_grad:
        return
    asked = []
    from infodisent.backends.table import BY_NAME

    served = BY_NAME[backends.get_backend()]
    plain = served.softmax_alignment_backward
    monkeypatch.setattr(
        served,
        "softmax_alignment_backward",
        lambda *args: (asked.append([d is not None for d in args[4:]]), plain(*args))[1],
    )
    loss.sum().backward()
    assert asked == [[bool(need_a), bool(need_b)]]
    _, *grads = truth_of(a.detach(), b.detach(), torch.ones(2, 9))
    for leaf, true, need in ((a, grads[0], need_a), (b, grads[1], need_b)):
        assert (leaf.grad is not None) == bool(need)
        if need:
            torch.testing.assert_close(leaf.grad.double(), true, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_nonfinite_follows_the_formula(memory_format):
    a, b = both((2, 20, 5, 5))
    a[0, 3, 0, 1] = NAN
    a[0, 4, 1, 1] = INF
    b[0, 5, 2, 2] = NAN
    a[0, :, 3, 3] = -INF  # no softmax
    a[1, ::2, 1, 1] = -INF
    b[1, 1::2, 1, 1] = -INF  # nothing in common
    a[1, 3:9, 2] = -INF
    a, b = (t.contiguous(memory_format=memory_format) for t in (a, b))
    ours, wanted = ops.softmax_alignment(a, b), reference.softmax_alignment(a, b)
    torch.testing.assert_close(ours, wanted, equal_nan=True)
    assert ours[0].isnan().sum() == 4
    assert ours[1, 6] == INF
    assert ours[1].isfinite().sum() == 24
    x, y = a[1:].clone().requires_grad_(), b[1:].clone().requires_grad_()
    keep = torch.ones(1, 25)
    keep[0, 6] = 0
    loss = ops.softmax_alignment(x, y)
    loss[keep.bool()].sum().backward()
    _, *grads = truth_of(torch.where(a[1:] == -INF, -1e4, a[1:]), b[1:], keep)
    finite = keep.view(1, 1, 5, 5).bool().expand_as(x)
    torch.testing.assert_close(x.grad[finite].double(), grads[0][finite], rtol=1e-5, atol=2e-6)


@pytest.mark.usefixtures("poisoned")
def test_empty_batch():
    a, b = (torch.randn(0, 6, 3, 3, requires_grad=True) for _ in range(2))
    loss = ops.softmax_alignment(a, b)
    assert loss.shape == (0, 9)
    loss.sum().backward()
    assert a.grad.shape == b.grad.shape == a.shape


def test_bad_input():
    x = torch.zeros(2, 5, 3, 3)
    with pytest.raises(ValueError, match=r"first is \(2, 5, 3, 3\) but second is \(2, 5, 3, 4\)"):
        ops.softmax_alignment(x, torch.zeros(2, 5, 3, 4))
    with pytest.raises(ValueError, match=r"second is .* input_fmt NCHW has 4 dimensions"):
        ops.softmax_alignment(x, torch.zeros(2, 5, 9))
    with pytest.raises(TypeError, match=r"second is torch\.int64"):
        ops.softmax_alignment(x, x.long())
    with pytest.raises(ValueError, match="first on cpu, second on meta"):
        ops.softmax_alignment(x, x.to("meta"))
    assert ops.softmax_alignment(x.to("meta"), x.to("meta")).shape == (2, 9)


def test_second_derivatives_and_tangents_are_refused():
    a, b = both((2, 4, 3, 3))
    a.requires_grad_()
    (g,) = torch.autograd.grad(ops.softmax_alignment(a, b).sum(), a, create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        g.square().sum().backward()
    with (
        torch.autograd.forward_ad.dual_level(),
        pytest.raises(NotImplementedError, match="softmax_alignment: forward-mode"),
    ):
        ops.softmax_alignment(torch.autograd.forward_ad.make_dual(a, torch.ones_like(a)), b)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_opcheck(memory_format):
    a, b = (t.contiguous(memory_format=memory_format) for t in both((2, 6, 3, 3)))
    op, name = torch.ops.infodisent.softmax_alignment.default, backends.get_backend()
    torch.library.opcheck(op, (a.requires_grad_(), b, "NCHW", 0, name))
    tokens = [torch.randn(2, 7, 6, requires_grad=True) for _ in range(2)]
    torch.library.opcheck(op, (*tokens, "NLC", 2, name))


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 6, 3)

    def forward(self, x):
        return ops.softmax_alignment(self.stem(x), self.stem(x.flip(3)))


def test_compile_and_export():
    torch.compiler.reset()
    model, x = Small(), torch.randn(2, 3, 8, 8)
    grads = []
    for run in (model, torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)):
        model.zero_grad()
        run(x).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for eager, compiled in zip(*grads, strict=True):
        torch.testing.assert_close(compiled, eager)
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (x,), dynamic_shapes={"x": {0: batch}})
    targets = {str(n.target) for n in program.graph.nodes}
    assert any(t.startswith("infodisent.softmax_alignment") for t in targets)
    y = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(program.module()(y), model(y))


def test_onnx(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, x = Small().eval(), torch.randn(2, 3, 8, 8)
    path = tmp_path / "model.onnx"
    with backends.use_backend("reference"):
        torch.onnx.export(model, (x,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path)
    (loss,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(loss, model(x).detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("backend", [*BACKENDS, "reference"], indirect=True)
@pytest.mark.parametrize("seed", [pytest.param(s, id=f"seed{s}") for s in range(50)])
def test_sweep(seed):
    """200 random problems a seed."""
    g = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return int(torch.randint(low, high, (), generator=g))

    dtypes = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    for _ in range(200):
        shape = (draw(0, 6), draw(1, 100), draw(1, 15), draw(1, 15))
        fmt, prefix, build = list(LAYOUTS.values())[draw(0, len(LAYOUTS))]
        dtype = dtypes[draw(0, 4)]
        others = (dtype, dtypes[draw(0, 4)])
        scale = (0.3, 2.0, 40.0)[draw(0, 3)]
        maps = [(torch.randn(shape, generator=g) * scale).to(d) for d in others]
        cotangent = torch.randn(shape[0], shape[2] * shape[3], generator=g)
        loss, *grads = truth_of(*maps, cotangent)
        x, y = (build(m).detach().requires_grad_() for m in maps)
        ours = ops.softmax_alignment(x, y, input_fmt=fmt, num_prefix_tokens=prefix)
        eps = torch.finfo(ours.dtype).eps
        largest = float(loss.abs().max()) if loss.numel() else 0.0
        torch.testing.assert_close(ours.double(), loss, rtol=0, atol=eps * (8 + 4 * largest))
        ours.backward(cotangent.to(ours.dtype))
        for leaf, true in zip((x, y), grads, strict=True):
            pixels = to_bpc(leaf.grad, fmt, prefix)
            rounding = torch.finfo(leaf.dtype).eps
            least = torch.finfo(leaf.dtype).tiny * rounding  # of the denormal numbers
            size = float(cotangent.abs().max()) if cotangent.numel() else 0.0
            torch.testing.assert_close(
                pixels.double(),
                true.flatten(2).mT,
                rtol=rounding,
                atol=40 * eps * size * (1 + scale) + least,
            )
