"""ops.softmax_pool inside torch: bad input, modes, opcheck, compile, export, ONNX, transforms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from infodisent import backends, ops, reference
from infodisent.backends.table import BY_NAME

pytestmark = pytest.mark.usefixtures("backend")

NAN, INF = float("nan"), float("inf")

BAD = [
    ((8, 5, 7), None, {}, ValueError, "NCHW has 4 dimensions"),
    ((2, 5, 0, 3), None, {}, ValueError, "no pixels"),
    ((2, 0, 3, 3), None, {}, ValueError, "no channels"),
    ((2, 5, 3, 3), (4, 6), {}, ValueError, r"prototypes is \(4, 6\), must be \(prototypes, 5\)"),
    ((2, 5, 3, 3), (5,), {}, ValueError, r"prototypes is \(5,\), must be \(prototypes, 5\)"),
    ((2, 5, 3, 3), (0, 5), {}, ValueError, "no prototypes"),
    ((2, 5, 3, 3), None, {"temperature": 0.0}, ValueError, "temperature is 0.0, must be finite"),
    ((2, 5, 3, 3), None, {"temperature": -1}, ValueError, "temperature is -1"),
    ((2, 5, 3, 3), None, {"temperature": NAN}, ValueError, "temperature is nan"),
    ((2, 5, 3, 3), None, {"temperature": INF}, ValueError, "temperature is inf"),
    ((2, 5, 3, 3), None, {"temperature": 1e-39}, ValueError, "temperature is 1e-39"),
    ((2, 5, 3, 3), None, {"temperature": True}, TypeError, "must be a float, got bool"),
    ((2, 5, 3, 3), None, {"temperature": torch.ones(())}, TypeError, "must be a float, got Tensor"),
    ((2, 5, 3, 3), None, {"bias": torch.zeros(5)}, ValueError, "bias is given without prototypes"),
    ((2, 5, 3, 3), (4, 5), {"bias": torch.zeros(5)}, ValueError, r"bias is \(5,\), must be \(4,\)"),
    ((2, 5, 3, 3), (4, 5), {"bias": torch.zeros(4).int()}, TypeError, "bias is torch.int32"),
    ((2, 5, 3, 3), None, {"valid": torch.ones(2, 9)}, TypeError, "must be a torch.bool"),
    ((2, 5, 3, 3), None, {"valid": [True]}, TypeError, "valid is list"),
    ((2, 5, 3, 3), None, {"valid": torch.ones(2, 3, 3).bool()}, ValueError, r"must be \(2, 9\)"),
    ((2, 5, 3, 3), None, {"valid": torch.zeros(2, 9).bool()}, ValueError, "no pixel of image 0"),
    ((2, 5, 3, 3), None, {"valid": torch.arange(18).view(2, 9) < 9}, ValueError, "of image 1"),
    ((2, 5, 3, 3), None, {"num_prefix_tokens": 1}, ValueError, "only in the token layouts"),
    ((2, 5, 3, 3), None, {"input_fmt": "CHW"}, ValueError, "'CHW', allowed are NCHW"),
]


@pytest.mark.parametrize(("x", "v", "kwargs", "error", "message"), BAD)
def test_bad_input(x, v, kwargs, error, message):
    with pytest.raises(error, match=message):
        ops.softmax_pool(torch.zeros(x), None if v is None else torch.zeros(v), **kwargs)


def test_bad_types_and_devices():
    x = torch.zeros(1, 2, 1, 1)
    with pytest.raises(TypeError, match="int64"):
        ops.softmax_pool(x.long())
    with pytest.raises(TypeError, match=r"must be a torch\.Tensor"):
        ops.softmax_pool([1.0])
    with pytest.raises(ValueError, match="x on cpu, prototypes on meta"):
        ops.softmax_pool(x, torch.zeros(3, 2, device="meta"))
    with pytest.raises(ValueError, match="valid on meta"):
        ops.softmax_pool(x, valid=torch.ones(1, 1, dtype=torch.bool, device="meta"))


def test_meta_inputs():
    x = torch.empty(3, 8, 2, 2, device="meta")
    pool = ops.softmax_pool(x, torch.empty(5, 8, device="meta"))
    assert pool.value.shape == pool.index.shape == (3, 5)
    assert ops.softmax_pool(x).value.device.type == "meta"


def test_autocast_casts_as_for_a_product():
    x, v = torch.randn(2, 16, 3, 3), torch.randn(7, 16)
    with torch.autocast("cpu", torch.bfloat16):
        pool, alone = ops.softmax_pool(x, v), ops.softmax_pool(x)
    assert pool.value.dtype == torch.float32
    wanted = reference.softmax_pool(x.bfloat16().double(), v.bfloat16().double()).value
    torch.testing.assert_close(pool.value.double(), wanted, rtol=1e-5, atol=1e-6)
    assert torch.equal(alone.value, ops.softmax_pool(x).value)  # no product, nothing is cast


def test_second_derivatives_and_tangents_are_refused():
    x = torch.randn(2, 4, 3, 3, requires_grad=True)
    (g,) = torch.autograd.grad(ops.softmax_pool(x).value.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        g.square().sum().backward()
    with (
        torch.autograd.forward_ad.dual_level(),
        pytest.raises(NotImplementedError, match="softmax_pool: forward-mode"),
    ):
        ops.softmax_pool(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_opcheck(memory_format):
    x = torch.randn(2, 6, 3, 3).contiguous(memory_format=memory_format).requires_grad_()
    v, b = torch.randn(4, 6, requires_grad=True), torch.randn(4, requires_grad=True)
    valid = torch.ones(2, 9, dtype=torch.bool)
    name = backends.get_backend()
    op = torch.ops.infodisent.softmax_pool.default
    torch.library.opcheck(op, (x, None, None, None, 1.0, "NCHW", 0, name))
    torch.library.opcheck(op, (x, v, b, valid, 0.5, "NCHW", 0, name))
    tokens = torch.randn(2, 7, 6, requires_grad=True)
    torch.library.opcheck(op, (tokens, v, None, None, 0.5, "NLC", 2, name))


class Small(torch.nn.Module):
    """A convolution, prototypes and the pool."""

    def __init__(self, prototypes: bool) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 6, 3)
        self.v = torch.nn.Parameter(torch.randn(4, 6)) if prototypes else None

    def forward(self, x):
        return ops.softmax_pool(self.stem(x), self.v, temperature=0.7).value


@pytest.mark.parametrize("prototypes", [False, True])
def test_compile_and_export(prototypes):
    torch.compiler.reset()
    model, x = Small(prototypes), torch.randn(2, 3, 8, 8)
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
    assert any(t.startswith("infodisent.softmax_pool") for t in targets)
    y = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(program.module()(y), model(y))


def test_compiled_by_inductor_with_a_mask():
    torch.compiler.reset()
    x, valid = torch.randn(2, 6, 5, 5), torch.rand(2, 25) < 0.5
    valid[:, 0] = True
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    run = torch.compile(lambda x, valid: ops.softmax_pool(x * 2, valid=valid), fullgraph=True)
    pool, wanted = run(x, valid), ops.softmax_pool(x * 2, valid=valid)
    torch.testing.assert_close(pool.value, wanted.value)
    assert torch.equal(pool.index, wanted.index)
    g = torch.randn(2, 6)
    ours, plain = (torch.autograd.grad(p.value, x, g)[0] for p in (pool, wanted))
    torch.testing.assert_close(ours, plain)
    with torch.no_grad(), pytest.raises(ValueError, match="valid has no pixel of image 0"):
        run(x, torch.zeros_like(valid))


@pytest.mark.parametrize("with_prototypes", [False, True])
def test_an_image_without_valid_pixels_has_no_gradient(with_prototypes):
    """Reached where nobody can look at the mask, as in a captured CUDA graph."""
    x, v = torch.randn(2, 9, 6), torch.randn(4, 6) if with_prototypes else None
    valid = torch.ones(2, 9, dtype=torch.bool)
    valid[1] = False
    served = BY_NAME[backends.get_backend()]
    best, normalizer = served.softmax_pool(x, v, 1.0, None, valid)
    assert (best.value[1] == -INF).all()
    assert (best.index[1] == 0).all()
    dx, grad = torch.full_like(x, NAN), torch.randn(best.value.shape)
    dv, _ = served.softmax_pool_backward(
        grad, best, normalizer, x, v, 1.0, None, dx, with_prototypes, False
    )
    assert dx[1].abs().max() == 0
    assert dx[0].abs().max() > 0
    assert dv is None or dv.isfinite().all()


@pytest.mark.parametrize("dynamo", [True, False])
def test_onnx(tmp_path, dynamo):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = Small(True).eval()
    x, y = torch.randn(2, 3, 8, 8), torch.randn(3, 3, 8, 8)
    path = tmp_path / "model.onnx"
    options = {"dynamic_shapes": {"x": {0: torch.export.Dim("batch")}}, "verbose": False}
    if not dynamo:
        options = {"input_names": ["x"], "dynamic_axes": {"x": {0: "batch"}}}
    with backends.use_backend("reference"):
        torch.onnx.export(model, (x,), path, dynamo=dynamo, **options)
    session = onnxruntime.InferenceSession(path)
    (value,) = session.run(None, {session.get_inputs()[0].name: y.numpy()})
    np.testing.assert_allclose(value, model(y).detach().numpy(), rtol=1e-4, atol=1e-6)


def test_transforms_take_the_formulas():
    x = torch.randn(3, 4, 3, 3)
    with backends.use_backend("auto"):
        ours = torch.func.vmap(torch.func.grad(lambda x: ops.softmax_pool(x[None]).value.sum()))(x)
    leaf = x.clone().requires_grad_()
    ops.softmax_pool(leaf).value.sum().backward()
    torch.testing.assert_close(ours, leaf.grad, rtol=1e-4, atol=1e-6)


CALLS = {
    "pool": lambda m, x: m.softmax_pool(x, temperature=0.7).value,
    "prototypes": lambda m, x: m.softmax_pool(x, torch.linspace(-1, 1, 24).view(4, 6)).value,
    "alignment": lambda m, x: m.softmax_alignment(x, x.flip(1)),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_hostile_tensors(call):
    """Lazy signs and zeros, views that overlap or skip, inference mode, autocast, parameters."""
    lazy = torch.randn(2, 6, 3, 3, dtype=torch.complex64).conj().imag
    assert lazy.is_neg()
    spread = torch.randn(1, 6, 1, 1).expand(2, 6, 3, 3)
    for x in (
        lazy,
        spread,
        torch._efficientzerotensor((2, 6, 3, 3)),
        torch.randn(2, 6, 9, 6)[..., ::2],
    ):
        plain = torch.zeros_like(x) if x._is_zerotensor() else x.clone().resolve_neg()
        torch.testing.assert_close(call(ops, x), call(reference, plain))
        leaf, true = (t.detach().clone().requires_grad_() for t in (plain, plain.double()))
        (d,) = torch.autograd.grad(call(ops, leaf).square().sum(), leaf)
        if x is not spread and not x._is_zerotensor():  # no ties
            (wanted,) = torch.autograd.grad(call(reference, true).square().sum(), true)
            torch.testing.assert_close(d.double(), wanted, rtol=1e-4, atol=1e-6)
    x = torch.randn(2, 6, 3, 3)
    wanted = call(ops, x)
    with torch.inference_mode():
        assert torch.equal(call(ops, x), wanted)
    with torch.autocast("cpu", torch.bfloat16):
        assert call(ops, x).dtype == torch.float32
    y = torch.nn.Parameter(x)
    assert call(ops, y).requires_grad


@pytest.mark.parametrize("name", ["pool", "alignment"])
def test_default_device_is_not_that_of_the_inputs(name):
    x = torch.randn(2, 6, 3, 3, requires_grad=True)
    wanted = CALLS[name](ops, x)
    (true,) = torch.autograd.grad(wanted.sum(), x)
    with torch.device("meta"):
        result = CALLS[name](ops, x)
        (d,) = torch.autograd.grad(result.sum(), x)
    assert torch.equal(result, wanted)
    assert torch.equal(d, true)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_jit_trace_records_the_operator(call):
    traced = torch.jit.trace(lambda x: call(ops, x), torch.randn(2, 6, 3, 3))
    assert "infodisent::softmax" in str(traced.inlined_graph)
    x = torch.randn(2, 6, 3, 3)
    torch.testing.assert_close(traced(x), call(ops, x))
