"""Images with any number of labels: loss, yardsticks, figures, a whole run."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from infodisent import attach
from infodisent.data.images import scan_folder
from infodisent.evaluation.accuracy import evaluate_head, linear_probe
from infodisent.evaluation.multilabel import MultilabelFigures
from infodisent.training import checkpoint
from infodisent.training.config import FitConfig
from infodisent.training.fit import fit_head, new_head
from infodisent.training.objective import class_pull, objective
from infodisent.training.run import evaluate_run, fit
from infodisent.training.validation import split_validation

from .stores import MemoryStore


def labelled(n=60, labels=3, scale=0.3, seed=0, rarest=0.1):
    """Every label has a channel of its own; some images have none, some several."""
    generator = torch.Generator().manual_seed(seed)
    chance = torch.linspace(rarest, 0.5, labels)
    y = (torch.rand(n, labels, generator=generator) < chance).float()
    y[:2, 0] = 1
    maps = torch.rand(n, 4, 16, generator=generator) * 0.3 + 0.7
    for k in range(labels):
        maps[:, 1, 2 * k : 2 * k + 2] += y[:, k, None]
    return MemoryStore(maps * scale, y, [f"label {k}" for k in range(labels)])


@pytest.mark.parametrize("labels", [3, 1])
@pytest.mark.parametrize("rotate", [True, False])
def test_learns(labels, rotate):
    store = labelled(labels=labels)
    head = new_head(16, labels, 0, bias=True, rotate=rotate)
    history = fit_head(head, store, FitConfig(lr=0.1), progress=False)
    assert history[-1]["loss"] < history[0]["loss"]
    result = evaluate_head(head, labelled(labels=labels, seed=1), torch.arange(60))
    assert result.mean_ap > 0.9
    assert result.auroc > 0.9
    probe = linear_probe(store, torch.arange(60), torch.arange(60))
    assert probe.mean_ap > 0.95
    assert probe.explanation_size is None


def test_the_bias_starts_at_the_log_odds():
    store = labelled()
    head = new_head(16, 3, 0, bias=True)
    fit_head(head, store, FitConfig(epochs=1, lr=0.0, rotation_lr=0.0), progress=False)
    count = store.labels.sum(0)
    expected = ((count + 0.5) / (60 - count + 0.5)).log()
    torch.testing.assert_close(head.offsets(torch.arange(3)), expected)
    without = new_head(16, 3, 0)
    fit_head(without, store, FitConfig(epochs=1), progress=False)  # none to start


def test_loss_and_pull():
    store, logits = labelled(), torch.randn(60, 3)
    train, bce = torch.arange(60), torch.nn.functional.binary_cross_entropy_with_logits
    plain = objective(store, train, FitConfig())
    torch.testing.assert_close(plain(logits, store.labels), bce(logits, store.labels))
    share = store.labels.mean(0)
    torch.testing.assert_close(class_pull(store, train, FitConfig(), plain), share)
    balanced = FitConfig(class_weights="balanced")
    loss = objective(store, train, balanced)
    expected = bce(logits, store.labels, pos_weight=(1 - share) / share)
    torch.testing.assert_close(loss(logits, store.labels), expected)
    torch.testing.assert_close(class_pull(store, train, balanced, loss), 1 - share)
    smooth = objective(store, train, FitConfig(label_smoothing=0.2))
    expected = bce(logits, store.labels * 0.8 + 0.1)
    torch.testing.assert_close(smooth(logits, store.labels), expected)


@pytest.mark.parametrize("options", [{"sampler": "balanced"}, {"logit_adjustment": 1.0}])
def test_options_of_one_class_an_image_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is .*one class an image"):
        fit_head(new_head(16, 3, 0), labelled(), FitConfig(**options), progress=False)


def test_a_label_without_positives_and_one_that_all_have():
    store = labelled()
    store.labels[:, 0], store.labels[:, 2] = 0, 1
    for options in ({}, {"class_weights": "balanced"}):
        head = new_head(16, 3, 0, bias=True)
        history = fit_head(head, store, FitConfig(epochs=5, **options), progress=False)
        assert math.isfinite(history[-1]["loss"])
    result = evaluate_head(head, store, torch.arange(60))
    assert result.recall[0] is None
    assert result.counts[2] == 60
    assert 0 < result.mean_ap <= 1


def test_validation_keeps_every_label_on_both_sides_and_scores_it():
    store = labelled(100)
    kept, held = split_validation(store, torch.arange(100), 0.3, 0)
    assert 25 <= len(held) <= 35
    share = store.labels[held].sum(0) / store.labels.sum(0)
    assert ((share > 0.2) & (share < 0.4)).all()
    assert store.labels[kept].sum(0).min() > 0
    config = FitConfig(epochs=20, validation=0.3, patience=3, lr=0.1)
    history = fit_head(new_head(16, 3, 0, bias=True), store, config, progress=False)
    assert 0.5 < history[-1]["validation_balanced_accuracy"] <= 1
    assert history[-1]["validation_accuracy"] <= 1


def test_figures_against_hand_counts():
    figures = MultilabelFigures(2, units_used=3)
    logits = torch.tensor([[3.0, -1.0], [2.0, -2.0], [-1.0, -3.0], [-2.0, 1.0]])
    labels = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    evidence = torch.tensor([[1, 1, 0, 0], [-1, 0, 0, 0.5], [1, 1, 1, 1], [1, 0, 1, 1]])
    figures.update(logits[:3], labels[:3], evidence[:3])  # 2 units, none, 4
    figures.update(logits[3:], labels[3:], evidence[3:])  # 3
    result = figures.evaluation()
    assert result.images == 4
    # label 0: positives at ranks 1 and 3; label 1: its one positive at rank 2
    assert result.mean_ap == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2)
    assert result.auroc == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert result.f1 == pytest.approx((2 * 1 / (2 + 2) + 0) / 2)
    assert result.subset_accuracy == 0
    assert result.recall == (0.5, 0.0)
    assert (result.explanation_size, result.explained) == (3, 0.75)
    assert (result.magnitude_size, result.units_used) == (2, 3)  # the middle of 2, 2, 4, 3
    assert "recall" not in result.as_dict()
    with pytest.raises(ValueError, match="NaN"):
        figures.update(logits * float("nan"), labels)
    with pytest.raises(ValueError, match="no images"):
        MultilabelFigures(2).evaluation()


def test_ranks_are_not_lost_where_probabilities_are_all_one():
    figures = MultilabelFigures(1)
    figures.update(torch.tensor([[90.0], [80.0], [70.0]]), torch.tensor([[1.0], [1.0], [0.0]]))
    assert figures.evaluation().auroc == 1


def test_one_output_is_a_binary_classifier():
    store = labelled(labels=1, rarest=0.3)
    head = new_head(16, 1, 0, bias=True)
    fit_head(head, store, FitConfig(lr=0.1), progress=False)
    with torch.no_grad():
        logits = head(store.gather(torch.arange(60)), input_fmt="NLC")[:, 0]
    assert ((logits > 0) == (store.labels[:, 0] > 0)).float().mean() > 0.95
    with pytest.raises(ValueError, match="the head has 2 classes, the store 1"):
        fit_head(new_head(16, 2, 0), store, progress=False)


def test_a_run(tmp_path, image_folder, go_table):
    images = scan_folder(image_folder)
    items = tuple(
        dataclasses.replace(item, label=((0,), (0, 1), (1,), ())[i % 4])
        for i, item in enumerate(images.items)
    )
    images = dataclasses.replace(images, classes=("a", "b"), items=items, task="multilabel")
    torch.manual_seed(0)
    model = attach("test_resnet", 2, bias=True)
    run = fit(model, images, tmp_path / "run", FitConfig(epochs=3), progress=False)
    assert [row["head"] for row in run.metrics["rows"]] == [
        "linear probe", "InfoDisent", "no rotation",
    ]  # fmt: skip
    assert {"mean_ap", "auroc", "f1", "subset_accuracy"} <= set(run.metrics["rows"][1])
    assert run.metrics["task"] == "multilabel"
    loaded = checkpoint.load(run.folder / "model.safetensors")
    assert loaded.task == "multilabel"
    assert evaluate_run(run.folder)["rows"][0] == run.metrics["rows"][1]
    text = go_table(run.metrics)
    for expected in ("2 labels", "mean AP", "macro AUROC", "all labels right"):
        assert expected in text
