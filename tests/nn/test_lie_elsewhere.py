"""Rotation(parametrization="lie") in other hands: averages of weights, and optimisers that look at
several points a step."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from infodisent.nn import InfoDisentHead, Rotation
from infodisent.training.epochs import _training_only

CHANNELS, CLASSES = 12, 3


def off(head) -> float:
    u = head.rotation().detach().double()
    return (u.mT @ u - torch.eye(len(u), dtype=u.dtype)).abs().max().item()


def data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(48, CHANNELS, 3, 3, generator=generator), torch.arange(48) % CLASSES


def new(parametrization="lie"):
    torch.manual_seed(1)
    return InfoDisentHead(CHANNELS, CLASSES, parametrization=parametrization, bias=True).train()


def loss_of(head):
    x, y = data()
    return torch.nn.functional.cross_entropy(head(x), y)


def step(head, optimiser):
    optimiser.zero_grad()
    loss_of(head).backward()
    optimiser.step()


def mixed(parts=4):
    """A head whose base is the mean of far rotations, as a slow average leaves it."""
    head = new()
    with torch.no_grad():
        bases = [torch.matrix_exp(a - a.mT) for a in torch.randn(parts, CHANNELS, CHANNELS) * 0.2]
        head.rotation.base.copy_(torch.stack(bases).mean(0))
    return head


@pytest.mark.parametrize("moving", [True, False])
def test_averages_of_weights_are_rotations(moving):
    from timm.utils import ModelEmaV3

    head = new()
    optimiser = torch.optim.AdamW(head.parameters(), 3e-2)
    ema = ModelEmaV3(head, decay=0.9)
    swa, swa_buffers = AveragedModel(head), AveragedModel(head, use_buffers=True)
    torch_ema = AveragedModel(head, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for _ in range(40):
        step(head, optimiser)
        if moving:
            head.after_step()
        ema.update(head)
        for average in (swa, swa_buffers, torch_ema):
            average.update_parameters(head)
    if moving:
        base = ema.module.rotation.base
        assert (base.mT @ base - torch.eye(CHANNELS)).abs().max() > 1e-3  # there is work to do
    for average in (ema, swa, swa_buffers, torch_ema):
        kept = average.module.rotation
        before = copy.deepcopy(average.module.state_dict())
        average.module.eval()
        with torch.no_grad():
            assert off(average.module) < 1e-5
        assert off(average.module) < 1e-5  # with gradients
        average.module.train()
        assert off(average.module) < 1e-5
        for name, value in average.module.state_dict().items():  # looking changes nothing
            assert torch.equal(value, before[name]), name
        assert kept.parametrization == "lie"


def test_the_nearest_orthogonal_matrix_is_taken():
    head = mixed().eval()
    left, _, right = torch.linalg.svd(head.rotation.base.double())
    with torch.no_grad():
        torch.testing.assert_close(head.rotation().double(), left @ right, atol=1e-5, rtol=0)
        x, _ = data()
        compiled = torch.compile(head, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), head(x), atol=1e-4, rtol=1e-4)
        program = torch.export.export(head, (x,))
        torch.testing.assert_close(program.module()(x), head(x), atol=1e-4, rtol=1e-4)


def test_training_goes_on_from_an_average():
    head = mixed()
    optimiser = torch.optim.Adam(head.parameters(), 1e-2)
    first = loss_of(head).item()
    for _ in range(30):
        step(head, optimiser)
        head.after_step()
    base = head.rotation.base
    assert (base.mT @ base - torch.eye(CHANNELS)).abs().max() < 1e-5
    assert loss_of(head).item() < 0.8 * first


def test_a_base_that_no_rotation_is_near():
    for ruin in (
        lambda base: base.mul_(3),
        lambda base: base.zero_(),
        lambda base: base[0].zero_(),
    ):
        head = new().eval()
        with torch.no_grad():
            ruin(head.rotation.base)
            with pytest.raises(ValueError, match=r"base is off by .* no mean of rotations"):
                head.rotation()
    module = Rotation(4, parametrization="lie").eval()
    module.base[0, 0] = torch.nan
    with torch.no_grad():
        assert module().isnan().any()  # what is not finite shows, and is no business of ours


def sam(head, optimiser, radius=0.05):
    parameters = list(head.parameters())
    optimiser.zero_grad()
    loss_of(head).backward()
    norm = torch.stack([p.grad.norm() for p in parameters]).norm()
    before = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p in parameters:
            p.add_(radius * p.grad / norm)
    step_gradient = loss_of(head)
    optimiser.zero_grad()
    step_gradient.backward()
    with torch.no_grad():
        for p, value in zip(parameters, before, strict=True):
            p.copy_(value)
    optimiser.step()


def lbfgs(head, optimiser):
    def closure():
        optimiser.zero_grad()
        loss = loss_of(head)
        loss.backward()
        return loss

    optimiser.step(closure)


def lookahead(head, lr):
    from timm.optim import create_optimizer_v2

    return create_optimizer_v2(head, opt="lookahead_adam", lr=lr)


@pytest.mark.parametrize("moving", [True, False])
@pytest.mark.parametrize(
    ("make", "do", "steps"),
    [
        (lambda h: torch.optim.Adam(h.parameters(), 1e-2), sam, 100),
        (
            lambda h: torch.optim.LBFGS(h.parameters(), max_iter=8, line_search_fn="strong_wolfe"),
            lbfgs,
            12,
        ),
        (lambda h: lookahead(h, 1e-2), step, 100),
    ],
    ids=["sam", "lbfgs", "lookahead"],
)
def test_optimisers_that_look_around_find_what_exp_finds(make, do, steps, moving):
    final = {}
    for parametrization in ("exp", "lie"):
        head = new(parametrization)
        optimiser = make(head)
        for _ in range(steps):
            do(head, optimiser)
            head.after_step() if moving else head.fc.project_()
        final[parametrization] = loss_of(head.eval()).item()
    assert final["lie"] < 1.3 * final["exp"] + 0.02


def test_without_a_move_it_is_exp():
    """From the identity, the two are the same function of A until A is moved."""
    heads = [new("exp"), new("lie")]
    for head in heads:
        optimiser = torch.optim.SGD(head.parameters(), 0.1)
        for _ in range(5):
            step(head, optimiser)
    torch.testing.assert_close(heads[0].rotation.A, heads[1].rotation.A, atol=1e-5, rtol=1e-4)


def test_frozen_rotation_and_autocast():
    head = new()
    torch.nn.init.normal_(head.rotation.A, std=0.1)
    head.after_step()
    plain = head.rotation().detach().clone()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head.rotation(), plain)  # no product of it is rounded
        torch.nn.init.normal_(head.rotation.A, std=0.1)
        head.after_step()
    assert off(head) < 1e-5
    with _training_only(head, list(head.fc.parameters())):
        loss_of(head).backward()
    assert head.rotation.A.grad is None


def test_ensembles_under_vmap():
    heads = [new().eval() for _ in range(3)]
    for head in heads:
        torch.nn.init.normal_(head.rotation.A, std=0.1)
    parameters, buffers = torch.func.stack_module_state(heads)
    x, _ = data()
    together = torch.func.vmap(lambda p, b: torch.func.functional_call(heads[0], (p, b), (x,)))(
        parameters, buffers
    )
    for head, logits in zip(heads, together, strict=True):
        torch.testing.assert_close(logits, head(x), atol=1e-5, rtol=1e-4)
