"""PIP-Net against its formulas in float64: presences, scores, the three losses, stages, the end."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import infodisent
from infodisent.data.views import extract_views
from infodisent.evaluation.accuracy import evaluate_head
from infodisent.explanations.local import explain
from infodisent.explanations.predictions import predict_images
from infodisent.methods.pipnet import PIPNetHead
from infodisent.methods.stages import LoopOptions, Stage, TrainingBatch
from infodisent.report.table import json_row
from infodisent.training import fit as fitting
from infodisent.training import steps
from infodisent.training.config import FitConfig
from infodisent.training.fit import fit_head, new_head
from infodisent.training.run import evaluate_run, fit, open_run

CONFIG = FitConfig(epochs=6, batch_size=8, lr=0.01, rotation_lr=0.02)
OPTIONS = {"num_prototypes": 8, "pretraining": 4}


def small(layer=True, classes=3):
    torch.manual_seed(4)
    head = PIPNetHead(6, classes, num_prototypes=5 if layer else 0, pretraining=4).double()
    with torch.no_grad():
        head.weight.normal_(0.5, 1)  # some below 0
    return head.eval()


def softmaxes(head, x):
    """The softmax over prototypes at every pixel, [B, P, M], by loops."""
    rows = head.layer(x.flatten(2).mT).clone()
    for b in range(rows.shape[0]):
        for p in range(rows.shape[1]):
            e = [math.exp(v) for v in rows[b, p].tolist()]
            rows[b, p] = torch.tensor([v / sum(e) for v in e], dtype=torch.float64)
    return rows


@pytest.mark.parametrize("layer", [True, False])
@torch.no_grad()
def test_scores_are_the_formula(layer):
    head = small(layer)
    x = 3 * torch.randn(4, 6, 1, 2, dtype=torch.float64)
    every = softmaxes(head, x)
    present = every.amax(1)
    pool = head.pool(x)
    torch.testing.assert_close(pool.pos, present)
    assert torch.equal(pool.pos_index.long(), every.argmax(1))
    weight = head.weight.clamp_min(0)
    assert (head.weight < 0).any()
    kept = present.clone()
    for row in kept:
        for m in range(len(row)):
            if row[m] < 0.1:
                row[m] = 0
    assert (kept == 0).any()
    torch.testing.assert_close(head(x), kept @ weight.mT)
    labels = torch.tensor([2, 0, 1, 2])
    parts = head.contributions(present, labels)
    assert torch.equal(parts == 0, (weight[labels] == 0) | (kept == 0))
    head.train()
    torch.testing.assert_close(head(x), torch.log1p((present @ weight.mT) ** 2))


def test_abstains_where_no_score_is_positive():
    head = small()
    with torch.no_grad():
        head.weight.fill_(1)
        head.weight[:, 0] = 0
    pooled = torch.tensor([[0.9, 0.09, 0.09, 0, 0], [0, 0.1, 0, 0, 0]], dtype=torch.float64)
    assert head.abstains(pooled).tolist() == [True, False]
    assert head.classify(pooled).amax(1).tolist() == [0, 0.1]


@pytest.mark.parametrize("stage", ["pretraining", "main"])
def test_loss_is_the_formula(stage):
    head = small().train()
    x, labels = torch.randn(6, 6, 2, 3, dtype=torch.float64), torch.tensor([2, 0, 1])
    both = labels.repeat(2)
    units, extra = head.training_pool(x)
    logits = head.classify(units)
    batch = TrainingBatch(both, units, extra, stage, progress=0.5)  # the third epoch of four
    loss = head.loss(nn.functional.cross_entropy, logits, batch)
    with torch.no_grad():
        z = softmaxes(head, x)
        one, other = z[:3], z[3:]
        align = 0.0
        for b in range(3):
            for p in range(6):
                align -= math.log(sum(one[b, p, m] * other[b, p, m] for m in range(5))) / 18
        tanh = 0.0
        for view in (one, other):
            for m in range(5):
                total = sum(view[b, :, m].max().item() for b in range(3))
                tanh -= math.log(math.tanh(total) + 1e-8) / 5 / 2
        scores = torch.log1p((z.amax(1) @ head.weight.clamp_min(0).mT) ** 2)
        nll = nn.functional.nll_loss(scores.log_softmax(1), both).item()
    wanted = 0.75 * align + 5 * tanh if stage == "pretraining" else 5 * align + 2 * tanh + 2 * nll
    assert loss.item() == pytest.approx(wanted, rel=1e-9)


def test_gradient_of_the_alignment_takes_the_other_view_as_given():
    head = small()
    x = torch.randn(4, 6, 2, 3, dtype=torch.float64)
    aligned = head.train().training_pool(x)[1]["alignment"].mean()
    ours = torch.autograd.grad(aligned, head.layer.weight)[0]
    one, other = head.layer(x.flatten(2).mT).softmax(2).split(2)
    sides = (-(a * b.detach()).sum(2).log().mean() for a, b in ((one, other), (other, one)))
    wanted = torch.autograd.grad(0.5 * sum(sides), head.layer.weight)[0]
    torch.testing.assert_close(ours, wanted)


def test_weights_shrink_where_they_train_and_evaluating_changes_nothing():
    """The published code shrinks W once a test batch, so its accuracy depends on how many."""
    head = small()
    before = head.weight.detach().clone()
    head.weight.requires_grad_(False)
    head.after_step()
    head(torch.randn(3, 6, 2, 2, dtype=torch.float64))
    assert torch.equal(head.weight, before)
    head.weight.requires_grad_(True)
    head.after_step()
    assert torch.equal(head.weight, (before - 1e-3).clamp_min(0))


def test_evaluation_leaves_the_state_alone(store):
    head = new_head(store.channels, 2, 0, method="pipnet", **OPTIONS)
    before = {name: value.clone() for name, value in head.state_dict().items()}
    figures = [evaluate_head(head, store, torch.arange(20), batch_size=n) for n in (1, 20)]
    assert figures[0].as_dict() == pytest.approx(figures[1].as_dict())
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())


def test_prototypes_that_never_occur_end_without_weight():
    head = small(layer=False)
    maps = torch.full((2, 3, 6), -9.0, dtype=torch.float64)
    maps[0, 1, 4] = maps[1, 2, 1] = 0.0
    maps[0, 0], maps[0, 2], maps[1, :2] = maps[0, 1], maps[0, 1], maps[1, 2]
    before = head.weight.detach().clone()
    with torch.no_grad():
        head.finish(lambda: iter([(maps, torch.zeros(2), torch.arange(2))]))
    gone = [0, 2, 3, 5]
    assert (head.weight[:, gone] == 0).all()
    assert torch.equal(head.weight[:, [1, 4]], before[:, [1, 4]])


def test_rates_are_the_published_courses():
    head = small()
    main = head.stages(LoopOptions())[-1]
    steps = 600
    layer = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([{"params": [layer], "lr": 1.0}])
    annealed = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=0.01)
    for step in range(steps):
        assert main.rate(step / steps) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        annealed.step()
    optimizer = torch.optim.AdamW([{"params": [layer], "lr": 0.05}])
    restarts = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 10, eta_min=1e-3)
    peak, rate = main.groups[-1]["lr"], main.groups[-1]["rate"]
    assert peak == pytest.approx(0.05)
    for epoch in range(60):
        assert peak * rate(epoch / 60) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        restarts.step()


@pytest.fixture
def views(tmp_path, tiny, store):
    return extract_views(tiny, store, tmp_path / "views", progress=False)


def test_needs_views(store):
    head = new_head(store.channels, 2, 0, method="pipnet", **OPTIONS)
    with pytest.raises(ValueError, match=r"compares two views of every image.*extract_views"):
        fit_head(head, store, CONFIG, progress=False)


@pytest.mark.parametrize("stop", [2, 6, 9])
def test_interrupted_training_ends_the_same(tmp_path, store, views, monkeypatch, stop):
    def build():
        return new_head(store.channels, 2, 0, method="pipnet", drop_rate=0.1, **OPTIONS)

    whole = build()
    expected = fit_head(whole, store, CONFIG, views=views, progress=False)
    assert len(expected) == 4 + 3 + 6
    plain, state = fitting.save_state, tmp_path / "state.safetensors"

    def dies(path, run, head, optimizer, history):
        plain(path, run, head, optimizer, history)
        if len(history) == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "save_state", dies)
    with pytest.raises(KeyboardInterrupt):
        fit_head(build(), store, CONFIG, views=views, state=state, progress=False)
    monkeypatch.setattr(fitting, "save_state", plain)
    resumed = build()
    assert fit_head(resumed, store, CONFIG, views=views, state=state, progress=False) == expected
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_views_of_several_processes_stay_pairs(monkeypatch):
    monkeypatch.setattr(steps.ranks, "world", lambda: 2)
    monkeypatch.setattr(steps.ranks, "gathered", lambda rows, whole: torch.cat([rows, rows + 10]))
    whole = steps.everyones(torch.tensor([1, 2, 101, 102]), 2)  # two images in two views
    assert whole.tolist() == [1, 2, 11, 12, 101, 102, 111, 112]


def test_pretraining_needs_something_that_trains(store, views):
    head = new_head(store.channels, 2, 0, method="pipnet", num_prototypes=0)
    history = fit_head(head, store, CONFIG, views=views, progress=False)
    assert len(history) == 3 + 6  # the channels of a frozen backbone cannot be pretrained


def test_command_run_and_explanation(tmp_path, image_folder):
    torch.manual_seed(1)
    model = infodisent.attach("test_resnet", 2, method="pipnet", **OPTIONS)
    run = fit(model, image_folder, tmp_path / "run", CONFIG, view_pairs=1, progress=False)
    row = run.metrics["rows"][-1]
    assert row["head"] == "PIP-Net"
    assert 0 <= row["abstained"] <= 1
    assert evaluate_run(tmp_path / "run")["rows"][0] == row
    head = open_run(tmp_path / "run")[0].model.head
    assert isinstance(head, PIPNetHead)
    assert head.options() == model.head.options()
    file = next((image_folder / "green").glob("*.png"))
    evidence = explain(model, file)
    assert not evidence.abstained
    assert all(unit.pooled >= 0.1 for unit in evidence.shown)
    with torch.no_grad():
        model.head.weight.zero_()
    silent = explain(model, file)
    assert silent.abstained
    assert "the model abstains: no prototype that counts" in silent.notes[-1]
    assert silent.to_dict()["abstained"]
    (prediction,) = predict_images(model, [str(file)], progress=False)
    assert prediction.abstained
    assert json_row(prediction, ["green", "red"], "multiclass")["abstained"]


def test_several_labels_are_refused(labels_run):
    from infodisent.data.store import FeatureStore

    store = FeatureStore(labels_run / "features")
    head = new_head(store.channels, 3, 0, method="pipnet", **OPTIONS)
    with pytest.raises(ValueError, match="PIP-Net does not learn images with several labels"):
        fit_head(head, store, CONFIG, progress=False)
    batch = TrainingBatch(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="several labels"):
        head.loss(nn.functional.cross_entropy, torch.zeros(2, 3), batch)


BAD = {
    "prototypes": ({"num_prototypes": -1}, "num_prototypes is -1"),
    "pretraining": ({"pretraining": 2.5}, "pretraining is 2.5"),
    "alignment": ({"alignment": -1.0}, "alignment is -1.0"),
    "shrink": ({"shrink": float("nan")}, "shrink is nan"),
    "classes": ({"num_classes": True}, "num_classes is True"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_name_the_argument(case):
    change, message = BAD[case]
    with pytest.raises(ValueError, match=f"PIPNetHead: {message}"):
        PIPNetHead(**{"in_features": 4, "num_classes": 2, **change})


def test_stage_has_one_view_unless_it_says_two():
    assert Stage("any", []).views == 1
    assert [s.views for s in small().stages(LoopOptions())] == [2, 1, 2]
