"""Apple's mps without a Mac: no float64, and no operator that torch has no kernel for there.

What the sparse backend does is run on the CPU and looked at: every operator that reaches torch must
have a kernel for MPS in the list that torch's own kernels are generated from.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from infodisent import backends, ops, reference
from infodisent.backends.sparse import rotate_pool as sparse
from infodisent.backends.sparse import winners
from infodisent.nn import InfoDisentHead
from infodisent.testing import relative

LIST = "packaged/ATen/native/native_functions.yaml"


def kernels() -> set[str]:
    """Operators with a kernel for MPS, or made of others, as ``aten.<name>.<overload>``."""
    yaml = pytest.importorskip("yaml", reason="torch's list of operators is YAML")
    torchgen = pytest.importorskip("torchgen", reason="it brings torch's list of operators")
    path = Path(torchgen.__file__).parent / LIST
    if not path.is_file():
        pytest.skip("this torch comes without the list of its kernels")
    entries = {e["func"].split("(")[0]: e for e in yaml.safe_load(path.read_text())}
    found = set()
    for name, entry in entries.items():
        owner = entries.get(entry.get("structured_delegate"), entry)
        keys = [
            k.strip()
            for group in owner.get("dispatch", {"Composite": ""})
            for k in group.split(",")
        ]
        if "MPS" in keys or any(key.startswith("Composite") for key in keys):
            stem, _, overload = name.partition(".")
            found.add(f"aten.{stem}.{overload or 'default'}")
    return found


class Mac(TorchDispatchMode):
    """Refuses what an mps device does, and notes what was called."""

    def __init__(self):
        super().__init__()
        self.called: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "aten":
            self.called.add(str(func))
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor) and value.dtype in (torch.float64, torch.complex128):
                raise TypeError(f"Cannot convert a MPS Tensor to float64 ({func})")
        return result


@pytest.fixture
def mac(monkeypatch):
    monkeypatch.setattr(sparse, "GATHERING", ())
    with backends.use_backend("sparse"):
        yield Mac()


@pytest.mark.parametrize("norm", [0.01, 3.0, 40.0])
def test_rotation(mac, norm):
    a = torch.randn(12, 12)
    a = (a * norm / torch.linalg.matrix_norm(a - a.mT, 2)).requires_grad_()
    grad = torch.randn(12, 12)
    with mac:
        u = ops.rotation(a)
        (ours,) = torch.autograd.grad(u, a, grad)
    wide = a.detach().double().requires_grad_()
    truth = reference.rotation(wide)
    assert relative(u, truth) < 1e-5
    assert relative(ours, torch.autograd.grad(truth, wide, grad.double())[0]) < 1e-4
    assert not mac.called - kernels()
    assert not any("exp" in name for name in mac.called - {"aten.expand.default"})


@pytest.mark.parametrize("parametrization", ["exp", "lie"])
@pytest.mark.parametrize("input_fmt", ["NCHW", "NLC"])
def test_a_training_step_and_evaluation(mac, parametrization, input_fmt):
    head = InfoDisentHead(8, 3, bias=True, input_fmt=input_fmt, parametrization=parametrization)
    torch.nn.init.normal_(head.rotation.A, std=0.1)
    x = torch.randn(5, 8, 3, 3) if input_fmt == "NCHW" else torch.randn(5, 9, 8)
    x[0] = x[0].abs()  # rows without a winner on one side
    x.requires_grad_()
    y = torch.arange(5) % 3
    with mac:
        loss = torch.nn.functional.cross_entropy(head(x), y)
        loss.backward()
        torch.optim.AdamW(head.parameters(), 1e-2).step()
        head.after_step()
        pool = head.eval().pool(x.detach())
        head.contributions(pool.pooled, y)
        head.maps(x.detach()[0].reshape(8, -1).mT, y)
    assert x.grad.abs().sum() > 0
    assert not mac.called - kernels()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gradients_by_products_are_those_of_the_formula(mac, monkeypatch, dtype):
    x, u = torch.randn(7, 6, 10).to(dtype), torch.linalg.qr(torch.randn(10, 10))[0].to(dtype)
    x[2] = x[2].abs()
    u[0].abs_()
    monkeypatch.setattr(winners, "CHUNK_BYTES", 6 * 10 * 4 * 2)  # several chunks
    grad = torch.randn(7, 10)

    def gradients(function, *inputs):
        leaves = [t.detach().requires_grad_() for t in inputs]
        pooled = function(*leaves, input_fmt="NLC").pooled
        return torch.autograd.grad(pooled, leaves, grad.to(pooled.dtype))

    truth = gradients(reference.rotate_pool, x.double(), u.double())
    with mac:
        ours = gradients(ops.rotate_pool, x, u)
    for a, b in zip(ours, truth, strict=True):
        assert a.dtype == dtype
        assert relative(a, b) < (1e-5 if dtype == torch.float32 else 1e-2)


def test_auto_takes_sparse_on_mps():
    for op in ops.OPERATORS:
        answers = backends.explain(op, "mps")
        assert next(n for n in backends.NAMES[1:] if answers[n] == "ok") == "sparse"
        assert "not for xpu" in backends.explain(op, "xpu")["sparse"]
    with FakeTensorMode():  # shapes on a device that is not there
        x, u = torch.randn(2, 8, 3, 3, device="mps"), torch.randn(8, 8, device="mps")
        assert backends.select("rotate_pool", x, u) == "sparse"
        pool = ops.rotate_pool(x, u)
        assert pool.pos.device.type == "mps"
