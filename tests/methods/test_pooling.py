"""InfoDisent's other pools against loops in float64; the default is what it was."""

from __future__ import annotations

import math

import pytest
import torch

import infodisent
from infodisent.evaluation.accuracy import evaluate_head
from infodisent.methods.infodisent import InfoDisentHead
from infodisent.methods.pooling import gumbel_mean
from infodisent.training.fit import FitConfig, fit_head, new_head

from .planted import one_class

POOLS = {
    "topk": ({"pooling": "topk", "topk": 3}, lambda v: sum(sorted(v)[-3:]) / 3),
    "topk of few": ({"pooling": "topk", "topk": 99}, lambda v: sum(v) / len(v)),
    "lse": (
        {"pooling": "lse", "temperature": 0.3},
        lambda v: 0.3 * math.log(sum(math.exp(y / 0.3) for y in v) / len(v)),
    ),
}


def turned(**options):
    torch.manual_seed(4)
    head = InfoDisentHead(6, 3, **options)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_().abs_()
    return head


def with_token(x):
    """A map [B, C, H, W] as tokens after one that would win every maximum."""
    tokens = x.flatten(2).mT
    return torch.cat([torch.full_like(tokens[:, :1], 1e3), tokens], 1)


@pytest.mark.parametrize("rotate", [True, False])
@pytest.mark.parametrize("case", POOLS)
def test_values_and_places_are_the_formula(case, rotate):
    options, formula = POOLS[case]
    kwargs, build = {"input_fmt": "NLC", "num_prefix_tokens": 1}, with_token
    head = turned(**options, rotate=rotate, **kwargs).double()
    x = torch.randn(3, 6, 2, 4, dtype=torch.float64)
    y = x.flatten(2) if not rotate else torch.einsum("uc,bcp->bup", head.rotation(), x.flatten(2))
    pool = head.pool(build(x))
    for b in range(3):
        for c in range(6):
            values = y[b, c].tolist()
            pos, neg = max(formula(values), 0), max(formula([-v for v in values]), 0)
            assert pool.pos[b, c].item() == pytest.approx(pos, abs=1e-9)
            assert pool.neg[b, c].item() == pytest.approx(neg, abs=1e-9)
            assert pool.pos_index[b, c] == (values.index(max(values)) if pos > 0 else -1)
            assert pool.neg_index[b, c] == (values.index(min(values)) if neg > 0 else -1)
    torch.testing.assert_close(head(build(x)), pool.pooled @ head.class_weights().mT)


@pytest.mark.parametrize("pooling", ["topk", "lse"])
def test_gradients(pooling):
    """Of the map and of the rotation, against differences."""
    head = turned(pooling=pooling).double()
    x = torch.randn(2, 6, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: head(x).sum(), x, eps=1e-7)
    x, base = x.detach(), head.rotation.A.detach().clone()

    def of(change):
        with torch.no_grad():
            head.rotation.A.copy_(base + change)
        return head(x).square().sum()

    (gradient,) = torch.autograd.grad(of(0), head.rotation.A)
    step = torch.randn_like(base)
    difference = (of(1e-6 * step) - of(-1e-6 * step)).item() / 2e-6
    assert (gradient * step).sum().item() == pytest.approx(difference, rel=1e-4)


def test_gumbel_is_noise_in_training_and_the_extreme_after_it():
    head, plain = turned(pooling="gumbel", temperature=0.5), turned()
    x = torch.randn(2, 6, 3, 3)
    head.eval(), plain.eval()
    with torch.no_grad():
        assert torch.equal(head(x), plain(x))
        assert all(torch.equal(a, b) for a, b in zip(head.pool(x), plain.pool(x), strict=True))
        head.train()
        torch.manual_seed(0)
        first, second = head(x), head(x)
        assert not torch.equal(first, second)
        torch.manual_seed(0)
        assert torch.equal(head(x), first)
        assert (head.pool(x).pos <= plain.pool(x).pos + 1e-6).all()  # a mean
    # by the Gumbel-max trick a cold softmax picks pixel p with probability softmax(Y)_p
    y = torch.tensor([0.0, 1.0, -0.5])[None, :, None].expand(20_000, 3, 1)
    mean = gumbel_mean(y, 1e-4).mean().item()
    weights = y[0, :, 0].softmax(0)
    assert mean == pytest.approx((weights * y[0, :, 0]).sum().item(), abs=0.02)


def test_the_default_is_what_it_was():
    head = InfoDisentHead(6, 3)
    assert not {"pooling", "topk", "temperature"} & set(head.options())  # as in older files
    assert InfoDisentHead(6, 3, pooling="topk").options()["topk"] == 5
    again = InfoDisentHead(6, 3, **InfoDisentHead(6, 3, pooling="lse", temperature=2).options())
    assert (again.pooling, again.temperature) == ("lse", 2)


@pytest.mark.parametrize("pooling", ["topk", "lse", "gumbel"])
def test_trains_saves_and_resumes(tmp_path, pooling):
    def build():
        return new_head(8, 3, 0, pooling=pooling)

    store = one_class()
    config = FitConfig(epochs=12, batch_size=8, lr=0.1, rotation_lr=0.02)
    whole, state = build(), tmp_path / "state.safetensors"
    expected = fit_head(whole, store, config, progress=False)
    assert evaluate_head(whole, store, store.indices("train")).accuracy > 0.9

    def dies(epoch, figures):
        if epoch == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_head(build(), store, config, state=state, callbacks=[dies], progress=False)
    resumed = build()
    assert fit_head(resumed, store, config, state=state, progress=False) == expected
    assert all(map(torch.equal, whole.state_dict().values(), resumed.state_dict().values()))
    model = infodisent.attach("test_resnet", 2, pooling=pooling)
    infodisent.save(tmp_path / "m.safetensors", model)
    assert infodisent.load(tmp_path / "m.safetensors").model.head.options()["pooling"] == pooling


BAD = {
    "pooling": ({"pooling": "mean"}, "pooling is 'mean', allowed are max, topk, lse, gumbel"),
    "no topk": ({"topk": 3}, "topk is 3, which is for pooling topk, not 'max'"),
    "topk": ({"pooling": "topk", "topk": 0}, "topk is 0"),
    "no t": ({"pooling": "topk", "temperature": 1.0}, "temperature is 1.0, which is for pooling"),
    "t": ({"pooling": "lse", "temperature": 0.0}, "temperature is 0.0"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_name_the_argument(case):
    change, message = BAD[case]
    with pytest.raises(ValueError, match=f"InfoDisentHead: {message}"):
        InfoDisentHead(4, 2, **change)
