"""The operators inside torch: compile, export, ONNX, autocast, inference mode, backends."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from infodisent import backends, ops, reference
from infodisent.nn import InfoDisentHead
from infodisent.testing import relative
from tests.conftest import BACKENDS


class Small(nn.Module):
    """A convolution and the head: the smallest whole model."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        self.head = InfoDisentHead(16, 5, **options)
        if self.head.rotation is not None:
            nn.init.normal_(self.head.rotation.A, std=0.2)

    def forward(self, x):
        return self.head(self.stem(x))


OPTIONS = [{}, {"nonneg": "softplus", "bias": True}, {"nonneg": "abs"}, {"rotate": False}]


@pytest.mark.parametrize("options", OPTIONS)
def test_compile_fullgraph_same_gradients(options):
    torch.compiler.reset()
    model = Small(**options)
    x = torch.randn(2, 3, 8, 8)
    grads = []
    # the compiler's own code once; else its graphs alone, which take a third of the time
    backend = "aot_eager" if options else "inductor"
    for run in (model, torch.compile(model, fullgraph=True, backend=backend)):
        model.zero_grad()
        run(x).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for eager, compiled in zip(*grads, strict=True):
        torch.testing.assert_close(compiled, eager)


def test_compile_dynamic_batch():
    torch.compiler.reset()
    model = Small().eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.no_grad():
        for batch in (1, 3, 5):
            x = torch.randn(batch, 3, 8, 8)
            torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("options", OPTIONS)
def test_export(options):
    model = Small(**options).eval()
    x = torch.randn(2, 3, 8, 8)
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (x,), dynamic_shapes={"x": {0: batch}})
    targets = {str(n.target) for n in program.graph.nodes}
    assert any(t.startswith("infodisent.") for t in targets)  # the operator, not its decomposition
    y = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(program.module()(y), model(y))


@pytest.mark.parametrize(
    ("options", "dynamo"), [*((options, False) for options in OPTIONS), (OPTIONS[1], True)]
)
def test_onnx(tmp_path, options, dynamo):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = Small(**options).eval()
    x, y = torch.randn(2, 3, 8, 8), torch.randn(3, 3, 8, 8)
    path = tmp_path / "model.onnx"
    if dynamo:
        shapes = {"x": {0: torch.export.Dim("batch")}}
        torch.onnx.export(model, (x,), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    else:
        torch.onnx.export(
            model, (x,), path, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "batch"}}
        )
    session = onnxruntime.InferenceSession(path)
    (logits,) = session.run(None, {session.get_inputs()[0].name: y.numpy()})
    np.testing.assert_allclose(logits, model(y).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_onnx_of_a_model_in_training_mode_fails_and_torch_says_eval(tmp_path):
    pytest.importorskip("onnxscript")
    path = tmp_path / "m.onnx"
    with pytest.warns(UserWarning, match=r"Calling model\.eval\(\)"), pytest.raises(Exception):  # noqa: B017
        torch.onnx.export(Small().train(), (torch.randn(1, 3, 8, 8),), path, verbose=False)
    assert not path.exists()


def test_autocast():
    model = Small()
    x = torch.randn(2, 3, 8, 8)
    wanted = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
        pool = model.head.pool(model.stem(x))
    assert logits.dtype == torch.float32
    assert pool.pooled.dtype == torch.float32
    assert 0 < relative(logits, wanted) < 0.02  # rounded inputs, yet close
    logits.sum().backward()
    assert model.head.rotation.A.grad.isfinite().all()


def test_autocast_does_not_reach_the_rotation():
    a = torch.randn(32, 32) * 0.1
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ops.rotation(a), ops.rotation(a.clone()))
        u = ops.rotation(a)
    assert torch.equal(u, ops.rotation(a))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes_without_gradients(mode):
    model = Small().eval()
    x = torch.randn(2, 3, 8, 8)
    wanted = model(x)
    with mode():
        got = model(x)
    assert not got.requires_grad
    torch.testing.assert_close(got, wanted)
    model(x).sum().backward()  # the cached rotation must not be an inference tensor


@pytest.mark.parametrize("name", ["reference", "auto", *BACKENDS])
def test_backends_agree(name):
    x, u, w = torch.randn(3, 8, 4, 4), torch.linalg.qr(torch.randn(8, 8))[0], torch.rand(4, 8)
    wanted = reference.infodisent_head(x, u, w)
    with backends.use_backend(name):
        assert backends.get_backend() == name
        torch.testing.assert_close(ops.infodisent_head(x, u, w), wanted)
        torch.testing.assert_close(ops.rotation(u), reference.rotation(u), atol=2e-6, rtol=1e-5)
        assert torch.equal(ops.mx_pool(x).pooled, reference.mx_pool(x).pooled)
        torch.testing.assert_close(ops.rotate_pool(x, u), reference.rotate_pool(x, u))


def test_backend_environment(monkeypatch):
    monkeypatch.setenv("INFODISENT_BACKEND", "reference")
    assert backends.select("rotation", torch.zeros(1)) == "reference"
    y = torch.randn(1, 2, 2, 2, requires_grad=True)
    assert "infodisent" not in type(ops.mx_pool(y).pos.grad_fn).__name__
    monkeypatch.setenv("INFODISENT_BACKEND", "fastest")
    with pytest.raises(
        ValueError, match="INFODISENT_BACKEND is 'fastest', allowed are auto, cuda, "
    ):
        ops.mx_pool(y)


def test_backend_choice_raises_with_the_reason_and_auto_falls_back(monkeypatch):
    call = backends.explain("rotation", "xpu")
    assert call["reference"] == "ok"
    assert "not for xpu" in call["sparse"]
    assert backends.explain("rotation", "mps")["sparse"] == "ok"
    x = torch.zeros(1)
    assert backends.select("rotation", x) != "reference"
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    monkeypatch.setattr(torch.jit, "is_tracing", lambda: True)
    assert backends.select("rotation", x) == "reference"
    with (
        backends.use_backend("sparse"),
        pytest.raises(backends.BackendError, match="plain formulas"),
    ):
        backends.select("rotation", x)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="name is 'x'"):
        backends.set_backend("x")
    assert ("auto", *backends.explain("rotation")) == backends.NAMES
    shipped = ["cuda", "cuda:fp8", "triton", "native", "sparse", "reference"]  # in auto's order
    assert [name for name in backends.NAMES if name in shipped] == shipped
    assert backends.explain("rotation")["sparse"] == "ok"
    assert "cpu only, not on cuda" in backends.explain("rotation", "cuda")["native"]


def test_meta_tensors_have_shapes():
    head = InfoDisentHead(8, 5, device="meta")
    x = torch.empty(3, 8, 2, 2, device="meta")
    assert head(x).shape == (3, 5)
    assert head.eval()(x).shape == (3, 5)
    assert [tuple(t.shape) for t in head.pool(x)] == [(3, 8)] * 5


def test_second_derivative_through_the_reference():
    u = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0].requires_grad_()
    x = torch.randn(1, 3, 2, 2, dtype=torch.float64)
    with backends.use_backend("reference"):
        assert torch.autograd.gradgradcheck(lambda u: ops.rotate_pool(x, u).pooled.square(), (u,))
