"""Modules: conventions, nonnegativity, the cached rotation."""

from __future__ import annotations

import copy

import pytest
import torch

from infodisent import ops
from infodisent.nn import NONNEG, InfoDisentHead, MxPool, NonNegativeLinear, Rotation


@pytest.mark.parametrize("nonneg", NONNEG)
def test_weights_stay_nonnegative_and_learn(nonneg):
    layer = NonNegativeLinear(12, 4, nonneg=nonneg)
    assert torch.all(layer.effective_weight() >= 0)
    before = layer.effective_weight().detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    x, y = torch.randn(64, 12), torch.randint(0, 4, (64,))
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(layer(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        layer.project_()
        assert torch.all(layer.effective_weight() >= 0)
    assert not torch.allclose(layer.effective_weight(), before)


@pytest.mark.parametrize("nonneg", NONNEG)
@pytest.mark.parametrize("rotate", [True, False])
def test_head_is_rotate_pool_linear(nonneg, rotate, layout):
    kwargs, build = layout
    head = InfoDisentHead(16, 5, nonneg=nonneg, rotate=rotate, bias=True, **kwargs)
    torch.nn.init.normal_(head.fc.bias)
    if rotate:
        torch.nn.init.normal_(head.rotation.A, std=0.2)
    x = build(torch.randn(3, 16, 4, 4))
    pooled = head(x, pre_logits=True)
    assert pooled.shape == (3, 16)
    torch.testing.assert_close(head(x), pooled @ head.fc.effective_weight().T + head.fc.bias)


def test_timm_conventions():
    head = InfoDisentHead(8, 3, dtype=torch.float64)
    assert (head.in_features, head.num_features, head.num_classes) == (8, 8, 3)
    a = head.rotation.A
    head.eval()
    head.reset(7)
    assert head(torch.randn(2, 8, 2, 2, dtype=torch.float64)).shape == (2, 7)
    assert head.rotation.A is a
    assert head.fc.weight.dtype == torch.float64
    assert not head.fc.training
    head.reset(0)
    assert head(torch.randn(2, 8, 2, 2)).shape == (2, 8)
    with pytest.raises(ValueError, match="one pool only"):
        head.reset(3, pool_type="avg")
    meta = InfoDisentHead(8, 3, device="meta")
    assert meta.fc.weight.is_meta
    assert meta.rotation.A.is_meta


def test_dropout_only_in_training():
    head = InfoDisentHead(64, 3, drop_rate=0.5)
    x = torch.randn(2, 64, 3, 3)
    assert not torch.equal(head(x), head(x))
    head.eval()
    assert torch.equal(head(x), head(x))


def test_state_dict_round_trip():
    head = InfoDisentHead(8, 3)
    torch.nn.init.normal_(head.rotation.A)
    assert set(head.state_dict()) == {"rotation.A", "fc.weight"}
    other = InfoDisentHead(8, 3).eval()
    x = torch.randn(2, 8, 3, 3)
    with torch.no_grad():
        other(x)  # fills the cache with the old rotation
        other.load_state_dict(head.state_dict())
        torch.testing.assert_close(other(x), head(x))


def test_rotation_is_computed_once_and_never_stale(monkeypatch):
    calls = []
    plain = ops.rotation
    monkeypatch.setattr(ops, "rotation", lambda a, **k: (calls.append(1), plain(a, **k))[1])
    module = Rotation(8)
    torch.nn.init.normal_(module.A)
    module.eval()
    calls.clear()
    with torch.no_grad():
        first = module()
        assert module() is first
        assert not calls
        module.A.mul_(2)
        assert not torch.equal(module(), first)
        assert len(calls) == 1
        module.A.data = torch.zeros(8, 8)
        torch.testing.assert_close(module(), torch.eye(8))
        module.double()
        assert module().dtype == torch.float64
        twin = copy.deepcopy(module)
        twin.A.add_(torch.randn(8, 8))
        torch.testing.assert_close(module(), torch.eye(8, dtype=torch.float64))
        assert not torch.equal(twin(), module())
    assert module().requires_grad  # with gradients on, U is part of the graph even in eval mode


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: InfoDisentHead(0, 3), "in_features is 0"),
        (lambda: InfoDisentHead(8, -1), "num_classes is -1"),
        (lambda: InfoDisentHead(8, 2.0), "num_classes is 2.0"),
        (lambda: InfoDisentHead(8, 3, nonneg="exp"), "'exp', allowed are relu, softplus, abs"),
        (lambda: InfoDisentHead(8, 3, drop_rate=1.0), r"must be in \[0, 1\)"),
        (lambda: InfoDisentHead(8, 3, input_fmt="CHW"), "allowed are NCHW"),
        (lambda: InfoDisentHead(8, 3, num_prefix_tokens=1), "only in the token layouts"),
        (lambda: NonNegativeLinear(8, 0), "out_features is 0"),
        (lambda: Rotation(True), "num_features is True"),
        (lambda: Rotation(8, parametrization="cayley"), "'cayley', allowed are exp, lie"),
        (lambda: Rotation(8, precision="low"), "precision is 'low', allowed are full, half"),
        (lambda: InfoDisentHead(8, 3, parametrization="x"), "parametrization is 'x'"),
        (lambda: InfoDisentHead(8, 3, rotation_precision="x"), "rotation_precision is 'x'"),
        (lambda: MxPool(input_fmt="NC"), "allowed are NCHW"),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_mx_pool_module():
    y = torch.randn(2, 5, 3)
    torch.testing.assert_close(MxPool(input_fmt="NLC")(y), ops.mx_pool(y, input_fmt="NLC"))


def test_rotation_notices_writes_that_leave_no_version(monkeypatch):
    module = Rotation(16).eval()
    with torch.no_grad():
        module()
        module.A.data.copy_(torch.randn(16, 16) * 0.3)
        torch.testing.assert_close(module(), ops.rotation(module.A))
        module.A.detach().numpy()[0, 1] = 2.0
        torch.testing.assert_close(module(), ops.rotation(module.A))
        module.half().float()
        assert torch.equal(module(), ops.rotation(module.A))


def test_projection_passes_the_gradient_to_zeros():
    layer = NonNegativeLinear(3, 1, nonneg="projection")
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[-1.0, 0.0, 2.0]]))
    layer(torch.tensor([[1.0, 1.0, 1.0]])).sum().backward()
    assert layer.weight.grad.tolist() == [[1.0, 1.0, 1.0]]
    assert layer.effective_weight().tolist() == [[0.0, 0.0, 2.0]]
