"""Rare classes, and the options for them: sampler, class weights, logit adjustment."""

from __future__ import annotations

import pytest
import torch

from infodisent.evaluation.accuracy import evaluate_head, linear_probe
from infodisent.methods.stages import TrainingBatch, TrainingStatistics
from infodisent.training.config import FitConfig, weights_rate
from infodisent.training.fit import fit_head, new_head
from infodisent.training.objective import class_pull, draw_epoch, imbalanced, objective
from infodisent.training.validation import split_validation

from .stores import MemoryStore


def separable(*counts, scale=0.07, channels=24, seed=0):
    """Every class has a channel of its own, a little above the common part of all of them."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.full((n,), k) for k, n in enumerate(counts)])
    maps = torch.rand(len(labels), 4, channels, generator=generator) * 0.3 + 0.7
    for k in range(len(counts)):
        maps[labels == k, 0, k * 3 : k * 3 + 3] += 1.0
    return MemoryStore(maps * scale, labels, [str(k) for k in range(len(counts))])


@pytest.mark.parametrize(
    ("rotate", "counts", "scale"),
    [
        (True, (94, 6), 0.07),
        (True, (100, 10, 1), 1.0),
        (True, (60, 60, 2), 0.07),
        (False, (94, 6), 1.0),
        (False, (100, 10, 1), 0.07),
        (False, (60, 60, 2), 1.0),
    ],
)
def test_a_rare_class_that_can_be_told_is_told(rotate, counts, scale):
    store = separable(*counts, scale=scale)
    test = separable(*[20] * len(counts), scale=scale, seed=1)
    head = new_head(24, len(counts), 0, rotate=rotate)
    fit_head(head, store, progress=False)
    result = evaluate_head(head, test, test.indices("train"))
    probe = linear_probe(store, store.indices("train"), store.indices("train"))
    assert result.balanced_accuracy >= 0.9, probe


def test_balanced_classes_train_as_if_nothing_knew_of_shares():
    store = separable(20, 20, scale=1.0)
    train = store.indices("train")
    config = FitConfig(epochs=2)
    loss = objective(store, train, config)
    assert (loss.weights, loss.adjustment) == (None, None)
    assert torch.equal(class_pull(store, train, config, loss), torch.ones(2))
    head = new_head(24, 2, 0)
    batch = TrainingBatch(store.labels)
    known = config.knowing(TrainingStatistics(0.7, torch.ones(2)))
    plain = config.l1 * 0.7 / 2 * head.class_weights().sum()
    assert torch.equal(plain, head.penalty(known, batch))
    assert known.lr == 1e-2


def test_the_penalty_is_in_proportion_to_what_pulls():
    head = new_head(4, 2, 0)
    weights = head.class_weights()
    known = FitConfig(l1=2.0).knowing(TrainingStatistics(0.5, torch.tensor([1.5, 0.5])))
    expected = 2.0 * 0.5 / 2 * (1.5 * weights[0].sum() + 0.5 * weights[1].sum())
    torch.testing.assert_close(head.penalty(known, TrainingBatch(torch.zeros(1))), expected)
    store = separable(30, 10)
    train = store.indices("train")
    for options, pull in (
        ({}, [1.5, 0.5]),
        ({"class_weights": "balanced"}, [1, 1]),
        ({"sampler": "balanced"}, [1, 1]),
        ({"class_weights": [1, 6]}, [2 / 3, 4 / 3]),
    ):
        config = FitConfig(**options)
        found = class_pull(store, train, config, objective(store, train, config))
        torch.testing.assert_close(found, torch.tensor(pull, dtype=torch.float32))


def test_rate_of_the_weights():
    assert weights_rate(None, 0.5) == weights_rate(None, 3.0) == weights_rate(None, 0.0) == 1e-2
    assert weights_rate(None, 0.05) == pytest.approx(0.1)
    assert weights_rate(0.3, 0.05) == 0.3


def test_class_weights_are_those_of_torch():
    store = separable(6, 3)
    train = store.indices("train")
    loss = objective(store, train, FitConfig(class_weights="balanced"))
    torch.testing.assert_close(loss.weights, torch.tensor([0.75, 1.5]))
    logits = torch.randn(9, 2)
    expected = torch.nn.functional.cross_entropy(logits, store.labels, weight=loss.weights)
    torch.testing.assert_close(loss(logits, store.labels), expected)
    only = objective(store, train, FitConfig(class_weights=[1, 0]))
    assert only(logits[6:], store.labels[6:]) == 0  # and not 0 / 0


def test_logit_adjustment_is_that_of_the_paper():
    store = separable(40, 10)
    train = store.indices("train")
    logits = torch.randn(50, 2)
    log_shares = torch.tensor([0.8, 0.2]).log()
    for given, tau in ((None, 1.0), (0.5, 0.5), (0, 0)):
        loss = objective(store, train, FitConfig(logit_adjustment=given))
        expected = torch.nn.functional.cross_entropy(logits + tau * log_shares, store.labels)
        torch.testing.assert_close(loss(logits, store.labels), expected)
    for options in ({"class_weights": "balanced"}, {"sampler": "balanced"}):
        assert objective(store, train, FitConfig(**options)).adjustment is None
    assert not imbalanced([30, 10])
    assert imbalanced([31, 10])
    assert not imbalanced([10, 0])


def test_the_balanced_sampler_draws_every_class_equally_often():
    store = separable(50, 9, 1)
    train = store.indices("train")[1:]
    drawn = draw_epoch(store, train, "balanced")
    assert len(drawn) == 59
    assert store.labels[drawn].bincount().sub(59 / 3).abs().max() < 1
    assert set(drawn.tolist()) <= set(train.tolist())
    assert sorted(draw_epoch(store, train, "shuffle").tolist()) == train.tolist()


@pytest.mark.parametrize(
    "options",
    [{}, {"class_weights": "balanced"}, {"sampler": "balanced"}, {"logit_adjustment": 1.0}],
)
def test_a_class_without_training_images(options):
    store = separable(12, 6, 2)
    some = store.indices("train")[:18]
    head = new_head(24, 3, 0)
    history = fit_head(
        head, store, FitConfig(epochs=3, label_smoothing=0.1, **options), train=some, progress=False
    )
    assert all(torch.isfinite(torch.tensor(list(e.values()))).all() for e in history)
    assert torch.isfinite(head.class_weights()).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_weights": "heavy"}, "class_weights is 'heavy', allowed are none, balanced"),
        ({"class_weights": [1.0, float("nan")]}, "class_weights is .*nan.*finite"),
        ({"class_weights": [0, 0]}, "one of them > 0"),
        ({"sampler": "random"}, "sampler is 'random', allowed are shuffle, balanced"),
        ({"logit_adjustment": -1.0}, "logit_adjustment is -1"),
        ({"validation": 1.0}, "validation is 1.0, must be in"),
        ({"validation": float("nan")}, "validation is nan"),
        ({"patience": 3}, "patience is 3, which needs validation"),
        ({"patience": 0, "validation": 0.2}, "patience is 0, must be >= 1"),
    ],
)
def test_options_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FitConfig(**options)


def test_options_that_do_not_fit_the_images():
    for options in ({"class_weights": 3}, {"validation": "a"}, {"patience": 1.5}):
        with pytest.raises(TypeError, match=next(iter(options))):
            FitConfig(**options)
    store = separable(5, 5)
    with pytest.raises(ValueError, match="class_weights has 3 numbers, the store 2 classes"):
        fit_head(new_head(24, 2, 0), store, FitConfig(class_weights=[1, 2, 3]), progress=False)
    with pytest.raises(ValueError, match="0 for every class with training images"):
        fit_head(
            new_head(24, 2, 0),
            store,
            FitConfig(class_weights=[1, 0]),
            train=torch.arange(5, 10),
            progress=False,
        )


def test_validation_takes_part_of_every_class():
    store = separable(40, 8, 1)
    train = store.indices("train")
    kept, held = split_validation(store, train, 0.25, seed=0)
    assert store.labels[held].bincount(minlength=3).tolist() == [10, 2, 0]  # the only one trains
    assert sorted([*kept.tolist(), *held.tolist()]) == train.tolist()
    again = split_validation(store, train, 0.25, seed=0)[1]
    other = split_validation(store, train, 0.25, seed=1)[1]
    assert torch.equal(held, again)
    assert not torch.equal(held, other)


def test_validation_divides_no_group():
    store = separable(30, 30)
    store.groups = [f"patient {i % 12}" for i in range(60)]
    kept, held = split_validation(store, store.indices("train"), 0.25, seed=0)
    groups = [{store.groups[i] for i in part.tolist()} for part in (kept, held)]
    assert not groups[0] & groups[1]
    assert 10 <= len(held) <= 20
    store.groups = ["one patient"] * 60
    with pytest.raises(ValueError, match="of 1 training groups none can be held out"):
        split_validation(store, store.indices("train"), 0.25, seed=0)


def test_validation_of_one_image_a_class():
    store = separable(1, 1)
    with pytest.raises(ValueError, match="of 2 training images none can be held out"):
        fit_head(new_head(24, 2, 0), store, FitConfig(validation=0.5), progress=False)
