"""Rotation(parametrization="lie"): the same group, gradients at the present U, kept orthogonal."""

from __future__ import annotations

import copy

import pytest
import torch

from infodisent import ops
from infodisent.classifier import attach
from infodisent.nn import InfoDisentHead, Rotation
from infodisent.testing import relative
from infodisent.training import checkpoint


def deviation(u: torch.Tensor) -> float:
    wide = u.detach().double()
    return (wide @ wide.mT - torch.eye(len(wide), dtype=torch.float64)).abs().max().item()


def test_gradient_at_the_base_is_that_of_the_formula():
    module = Rotation(20, parametrization="lie", dtype=torch.float64)
    module.base.copy_(torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64))[0])
    grad = torch.randn(20, 20, dtype=torch.float64)
    module().backward(grad)
    a = torch.zeros(20, 20, dtype=torch.float64, requires_grad=True)
    (torch.matrix_exp(a - a.mT) @ module.base).backward(grad)
    assert relative(module.A.grad, a.grad) < 1e-14


def test_moving_leaves_u_where_it_is():
    module = Rotation(30, parametrization="lie")
    torch.nn.init.normal_(module.A, std=0.1)
    before = module._compute(module.A.detach())
    u = module()  # forward moves nothing, however often: an optimiser may look at several points
    u.sum().backward()
    module().sum().backward()
    assert int(module.moves) == 0
    module.after_step()
    assert module.A.abs().max() == 0
    assert int(module.moves) == 1
    torch.testing.assert_close(module(), before, atol=1e-6, rtol=0)
    module.after_step()  # nothing is left to move
    assert int(module.moves) == 1
    module.A.data.fill_(1.0)
    module.eval()
    with torch.no_grad():  # evaluation takes A into account and moves nothing
        torch.testing.assert_close(module(), u, atol=1e-6, rtol=0)  # A - A^T is zero here
        module.A[0, 1] += 0.3
        assert not torch.equal(module(), u)
    assert int(module.moves) == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
        lambda p: torch.optim.Adam(p, lr=0.02),
        lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1),
        lambda p: torch.optim.RMSprop(p, lr=0.005),
        lambda p: torch.optim.Adagrad(p, lr=0.1),
    ],
)
@pytest.mark.parametrize("moving", [True, False])
def test_any_optimiser_finds_a_rotation(make, moving):
    """Minimise ||U - R||^2 for a rotation R, from the identity."""
    goal = ops.rotation(torch.randn(12, 12) * 0.3)
    module = Rotation(12, parametrization="lie")
    optimiser = make(module.parameters())
    first = None
    for _ in range(300):
        optimiser.zero_grad()
        loss = (module() - goal).square().sum()
        first = loss.item() if first is None else first
        loss.backward()
        optimiser.step()
        if moving:
            module.after_step()
    assert loss.item() < 0.05 * first
    assert deviation(module.eval()()) < 1e-5


@pytest.mark.parametrize(
    ("dtype", "steps"),
    [
        (torch.float32, 2_500),
        pytest.param(torch.float32, 10_000, marks=pytest.mark.slow),
        pytest.param(torch.float64, 10_000, marks=pytest.mark.slow),
    ],
)
def test_thousands_of_steps_stay_orthogonal(dtype, steps):
    module = Rotation(24, parametrization="lie", dtype=dtype)
    optimiser = torch.optim.Adam(module.parameters(), lr=0.05)
    targets = torch.randn(7, 24, 24, dtype=dtype)
    worst = 0.0
    for step in range(steps):
        optimiser.zero_grad()
        u = module()
        (u * targets[step % 7]).sum().backward()
        optimiser.step()
        module.after_step()
        if step % 250 == 99:
            worst = max(worst, deviation(u))
    assert int(module.moves) == steps
    worst = max(worst, deviation(module()))
    assert worst < (1e-5 if dtype == torch.float32 else 1e-13)


def test_without_the_correction_it_drifts_more(monkeypatch):
    """The Newton-Schulz step is what keeps the deviation down."""
    drift = {}
    for every in (100, 10**9):
        monkeypatch.setattr(Rotation, "REORTHOGONALIZE", every)
        torch.manual_seed(0)
        module = Rotation(24, parametrization="lie")
        for _ in range(2_000):
            module.A.data.copy_(torch.randn(24, 24) * 0.05)
            module.move_to_base()
        drift[every] = deviation(module.base)
    assert drift[100] < drift[10**9] / 2


def test_state_continues_exactly():
    head = InfoDisentHead(8, 3, parametrization="lie")
    x, y = torch.randn(6, 8, 3, 3), torch.randint(3, (6,))
    optimiser = torch.optim.Adam(head.parameters(), lr=0.01)

    def step(h, o):
        o.zero_grad()
        torch.nn.functional.cross_entropy(h(x), y).backward()
        o.step()
        h.after_step()

    for _ in range(3):
        step(head, optimiser)
    assert set(head.state_dict()) == {
        "rotation.A", "rotation.base", "rotation.moves", "fc.weight"
    }  # fmt: skip
    other = InfoDisentHead(8, 3, parametrization="lie")
    other.load_state_dict(copy.deepcopy(head.state_dict()))
    twin = torch.optim.Adam(other.parameters(), lr=0.01)
    twin.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    for _ in range(3):
        step(head, optimiser)
        step(other, twin)
    for name, value in head.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_checkpoint_file(tmp_path):
    model = attach("resnet18", 4, parametrization="lie", rotation_precision="half")
    torch.nn.init.normal_(model.head.rotation.A, std=0.05)
    model.head.rotation.move_to_base()
    model.eval()
    checkpoint.save(tmp_path / "m.safetensors", model)
    back = checkpoint.load(tmp_path / "m.safetensors").model
    assert back.head.rotation.parametrization == "lie"
    assert back.head.rotation.precision == "half"
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(back(x), model(x))


def test_the_general_formula_where_nothing_may_be_moved():
    module = Rotation(9, parametrization="lie")
    torch.nn.init.normal_(module.A, std=0.2)
    a = module.A.detach().clone().requires_grad_()
    u = torch.func.functional_call(module, {"A": a * 1.0}, ())
    u.sum().backward()
    assert module.A.abs().max() > 0
    check = a.detach().double().requires_grad_()
    torch.matrix_exp(check - check.mT).sum().backward()
    assert relative(a.grad, check.grad) < 1e-5
    with pytest.raises(RuntimeError, match="no base"):
        Rotation(4).move_to_base()


def test_gradient_can_be_taken_once():
    module = Rotation(5, parametrization="lie")
    (g,) = torch.autograd.grad(module().square().sum(), module.A, create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        g.sum().backward()
