"""B-cos: the unit against the published package and loops, exact contributions, the loss."""

from __future__ import annotations

import math

import pytest
import torch

from infodisent.evaluation.accuracy import evaluate_head
from infodisent.methods.bcos import BcosHead
from infodisent.methods.stages import TrainingBatch
from infodisent.training.fit import FitConfig, fit_head, new_head

from .planted import many_labels, one_class

OPTIONS = {
    "two layers": {"hidden": 5},
    "one layer": {"hidden": 0},
    "MaxOut": {"hidden": 4, "max_out": 2},
    "MaxOut, one layer": {"hidden": 0, "max_out": 3},
    "B 1.5": {"hidden": 4, "b": 1.5},
    "B 1": {"hidden": 4, "b": 1},
}


def small(**options):
    torch.manual_seed(3)
    head = BcosHead(6, 3, **options).double().eval()
    with torch.no_grad():
        head.log_gain.fill_(1.5)
    return head


def unit(x, candidates, b, added):
    """A B-cos unit of a vector, from the formula."""
    response = max(float((w @ x / w.norm()).detach()) for w in candidates)
    cosine = abs(response) / added(x)
    if b == 1:
        return response
    return response * (cosine if b == 2 else (cosine + 1e-6) ** (b - 1))


def on_pixel(x):
    return math.sqrt(float(x @ x) + 1e-6)


def on_vector(x):
    return float(x.norm()) + 1e-12


@pytest.mark.parametrize("case", OPTIONS)
def test_logits_are_the_formula(case):
    head = small(**OPTIONS[case])
    x = torch.randn(3, 6, 2, 2, dtype=torch.float64)
    first = head.first.unflatten(0, (-1, head.max_out))
    for i, image in enumerate(x.flatten(2).mT):
        z = torch.tensor(
            [sum(unit(p, ws, head.b, on_pixel) for p in image) / 4 for ws in first],
            dtype=torch.float64,
        )
        torch.testing.assert_close(head.pool(x).pooled[i], z)
        outputs = z.tolist()
        if head.hidden:
            second = head.second.unflatten(0, (3, head.max_out))
            outputs = [unit(z, ws, head.b, on_vector) for ws in second]
        want = [math.exp(1.5) * value - math.log(2) for value in outputs]
        assert head(x)[i].tolist() == pytest.approx(want, rel=1e-6)  # the bias is float32


@pytest.mark.parametrize("case", OPTIONS)
def test_contributions_of_units_and_of_pixels_are_the_logit(case):
    head = small(**OPTIONS[case])
    x = torch.randn(4, 6, 2, 3, dtype=torch.float64)
    classes = torch.tensor([0, 2, 1, 2])
    wanted = head(x)[torch.arange(4), classes] - head.offsets(classes)
    torch.testing.assert_close(head.contributions(head.pool(x).pooled, classes).sum(1), wanted)
    by_pixel = head.pixel_contributions(x, classes)
    assert by_pixel.shape == (4, 6)
    torch.testing.assert_close(by_pixel.sum(1), wanted)


def test_a_logit_is_linear_in_the_map_by_its_dynamic_weights():
    """The published explanation: the cosines held, logit - bias = x · gradient, at every pixel."""
    head = small(hidden=5)
    x = torch.randn(1, 4, 6, dtype=torch.float64, requires_grad=True)
    length = (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()
    first = head.first / head.first.norm(dim=1, keepdim=True)
    second = head.second / head.second.norm(dim=1, keepdim=True)
    response = x @ first.mT
    z = (response * (response.abs() / length).detach()).mean(1)
    held = z @ second.mT
    logit = (head.log_gain.exp() * held * (held.abs() / z.norm()).detach())[0, 1]
    (gradient,) = torch.autograd.grad(logit, x)
    exact = head.pixel_contributions(x.detach(), torch.tensor([1]), input_fmt="NLC")
    torch.testing.assert_close((x * gradient).sum(-1), exact)
    torch.testing.assert_close(exact.sum(), head(x, input_fmt="NLC")[0, 1] - head.bias[1])


@pytest.mark.parametrize(("b", "max_out"), [(2, 1), (2, 2), (1.25, 1)])
def test_the_unit_is_that_of_the_published_package(b, max_out):
    modules = pytest.importorskip("bcos.modules", reason="needs pip install bcos")
    head = BcosHead(6, 4, hidden=5, b=b, max_out=max_out).eval()
    layer = modules.BcosConv2d(6, 5, b=b, max_out=max_out)
    with torch.no_grad():
        layer.linear.weight.copy_(head.first[:, :, None, None])
    x = torch.randn(3, 6, 2, 3)
    x[0] = 0
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    theirs = layer(inputs[0]).flatten(2).mT
    ours = head.outputs(inputs[1].flatten(2).mT)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        *(
            torch.autograd.grad(y.square().sum(), i)
            for y, i in ((ours, inputs[1]), (theirs, inputs[0]))
        )
    )
    second = modules.BcosLinear(5, 4, b=b, max_out=max_out)
    z = ours.mean(1).detach()
    with torch.no_grad():
        second.linear.weight.copy_(head.second)
        bias = modules.LogitLayer(logit_bias=-math.log(3))
        torch.testing.assert_close(head.classify(z), bias(second(z)))


def test_loss_has_soft_targets():
    head = small(hidden=4)
    logits = torch.randn(4, 3, dtype=torch.float64)
    labels = torch.tensor([1, 0, 2, 1])
    want = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        for k, logit in enumerate(row):
            target, p = 1.0 if k == label else 1 / 3, 1 / (1 + math.exp(-logit))
            want -= (target * math.log(p) + (1 - target) * math.log(1 - p)) / 4
    loss = head.loss(lambda *_: pytest.fail("the objective"), logits, TrainingBatch(labels))
    assert loss.item() == pytest.approx(want)
    # no evidence is a probability of 1 / K
    torch.testing.assert_close(head.bias.sigmoid(), torch.full((3,), 1 / 3).double())
    plain = small(hidden=4, targets="labels")
    assert plain.loss(lambda a, b: (a, b), logits, TrainingBatch(labels)) == (logits, labels)
    many = TrainingBatch(torch.eye(3)[labels])
    assert head.loss(lambda a, b: "asked", logits, many) == "asked"


@pytest.mark.parametrize("hidden", [8, 0])
def test_trains_and_resumes(tmp_path, hidden):
    store, state = one_class(), tmp_path / "state.safetensors"
    config = FitConfig(epochs=20, batch_size=8, lr=0.05, rotation_lr=0.05)

    def build():
        return new_head(8, 3, 0, method="bcos", hidden=hidden, drop_rate=0.1)

    def dies(epoch, figures):
        if epoch == 5:
            raise KeyboardInterrupt

    head = build()
    expected = fit_head(head, store, config, progress=False)
    right = evaluate_head(head, store, store.indices("train")).accuracy
    assert right > (0.9 if hidden else 0.6)  # of three classes; one layer learns more slowly
    with pytest.raises(KeyboardInterrupt):
        fit_head(build(), store, config, state=state, callbacks=[dies], progress=False)
    resumed = build()
    assert fit_head(resumed, store, config, state=state, progress=False) == expected
    assert all(map(torch.equal, head.state_dict().values(), resumed.state_dict().values()))


def test_multilabel():
    store = many_labels()
    head = new_head(8, 3, 0, method="bcos", hidden=6)
    config = FitConfig(epochs=30, batch_size=8, lr=0.05, rotation_lr=0.02)
    history = fit_head(head, store, config, progress=False)
    odds = (store.labels.sum(0) + 0.5) / (24 - store.labels.sum(0) + 0.5)
    torch.testing.assert_close(head.bias, odds.log())
    assert history[-1]["accuracy"] > 0.9


BAD = {
    "hidden": ({"hidden": -1}, "hidden is -1"),
    "b": ({"b": 0.5}, "b is 0.5"),
    "max_out": ({"max_out": 0}, "max_out is 0"),
    "targets": ({"targets": "hard"}, "targets is 'hard', allowed are soft, labels"),
    "classes": ({"num_classes": True}, "num_classes is True"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_name_the_argument(case):
    change, message = BAD[case]
    with pytest.raises(ValueError, match=f"BcosHead: {message}"):
        BcosHead(**{"in_features": 4, "num_classes": 2, **change})
