"""The course of a training: validation curve, early stopping, callbacks, more epochs, resuming."""

from __future__ import annotations

import contextlib
import dataclasses
import json

import numpy as np
import pytest
import torch

from infodisent import ranks
from infodisent.files import read_tensors, write_tensors
from infodisent.methods import METHODS
from infodisent.report.curve import training_curve
from infodisent.training import fit as fitting
from infodisent.training.config import FitConfig
from infodisent.training.fit import fit_head, new_head
from infodisent.training.validation import best_epoch, stopped

from ..methods.heads import PrototypeHead
from .test_rare_classes import separable

CONFIG = FitConfig(epochs=12, batch_size=8, lr=0.05, rotation_lr=0.01)
VALIDATED = dataclasses.replace(CONFIG, validation=0.25)
PATIENT = dataclasses.replace(VALIDATED, epochs=60, patience=2, lr=1.0, rotation_lr=0.3)


@pytest.fixture
def rows():
    """Noisy features, so that validation does not follow training."""
    store = separable(20, 12)
    store._shards[0] += 0.05 * torch.randn(store._shards[0].shape)
    return store


def build(seed=0, **options):
    return new_head(24, 2, seed, **options)


@contextlib.contextmanager
def interrupted_after(monkeypatch, epochs):
    """The block's training dies once so many epochs are kept."""
    plain = fitting.save_state

    def dies(path, run, head, optimizer, history, **extra):
        plain(path, run, head, optimizer, history, **extra)
        if len(history) == epochs:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fitting, "save_state", dies)
        with pytest.raises(KeyboardInterrupt):
            yield


def same(one, other):
    return all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())


def test_validation_is_scored_every_epoch_and_does_not_train(rows):
    history = fit_head(build(), rows, VALIDATED, progress=False)
    assert set(history[0]) == {
        "loss", "accuracy", "validation_loss", "validation_accuracy",
        "validation_balanced_accuracy",
    }  # fmt: skip
    _, held = fitting.split_validation(rows, rows.indices("train"), 0.25, 0)
    head = build()
    fit_head(head, rows, VALIDATED, progress=False)
    rows._shards[0][held] = 0  # what it is scored on must not matter to the weights
    other = build()
    fit_head(other, rows, VALIDATED, progress=False)
    assert same(head, other)


@pytest.mark.parametrize(
    "config",
    [
        VALIDATED,
        PATIENT,
        dataclasses.replace(CONFIG, sampler="balanced", class_weights="balanced"),
        dataclasses.replace(CONFIG, class_weights=(1, 2)),
    ],
)
@pytest.mark.parametrize("rotate", [True, False])
def test_resumed_is_bitwise_the_uninterrupted_run(tmp_path, rows, monkeypatch, config, rotate):
    whole, state = build(rotate=rotate), tmp_path / "state.safetensors"
    expected = fit_head(whole, rows, config, progress=False)
    with interrupted_after(monkeypatch, 3):
        fit_head(build(rotate=rotate), rows, config, state=state, progress=False)
    for _ in range(2):  # the second time nothing is left to train
        resumed = build(5, rotate=rotate)
        assert fit_head(resumed, rows, config, state=state, progress=False) == expected
        assert same(resumed, whole)


def test_early_stopping_keeps_the_best_epoch(rows):
    head, states = build(), []

    def keep(epoch, figures):
        states.append({k: v.clone() for k, v in head.state_dict().items()})

    history = fit_head(head, rows, PATIENT, callbacks=[keep], progress=False)
    best = best_epoch(history)
    assert len(history) == best + 1 + 2 < 60
    assert all(torch.equal(v, states[best][k]) for k, v in head.state_dict().items())
    assert not torch.equal(head.fc.weight, states[-1]["fc.weight"])


def test_stopped():
    falling = [{"validation_loss": x} for x in (3.0, 2.0, 2.0, 2.5)]
    assert [stopped(falling, p) for p in (None, 1, 2, 3)] == [False, True, True, False]
    assert not stopped([], 1)


def test_callbacks_are_called_after_every_new_epoch(tmp_path, rows, monkeypatch):
    seen, state = [], tmp_path / "state.safetensors"
    callbacks = [lambda epoch, figures: seen.append((epoch, figures["loss"]))]
    with interrupted_after(monkeypatch, 5):
        fit_head(build(), rows, CONFIG, state=state, callbacks=callbacks, progress=False)
    assert [epoch for epoch, _ in seen] == [1, 2, 3, 4]
    history = fit_head(build(), rows, CONFIG, state=state, callbacks=callbacks, progress=False)
    assert [epoch for epoch, _ in seen] == [1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12]
    assert seen[-1][1] == history[-1]["loss"]

    def changes(epoch, figures):
        figures.clear()

    again = fit_head(build(), rows, CONFIG, callbacks=[changes], progress=False)
    assert again == history  # what a callback does to its figures stays with it


def test_more_epochs_for_a_finished_run(tmp_path, rows, monkeypatch):
    state = tmp_path / "state.safetensors"
    first = build()
    short = fit_head(first, rows, CONFIG, state=state, progress=False)
    content = state.read_bytes()
    longer = dataclasses.replace(CONFIG, epochs=16)
    whole, rates = build(5), []
    plain = torch.optim.AdamW.step

    def step(self, *arguments):
        rates.append(self.param_groups[0]["lr"])
        return plain(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        history = fit_head(whole, rows, longer, state=state, progress=False)
    assert rates[0] == CONFIG.lr  # a cosine of their own, over 4 epochs of 4 steps
    assert rates[8] == pytest.approx(CONFIG.lr / 2)
    assert len(rates) == 16
    assert (len(history), history[:12]) == (16, short)
    assert not same(first, whole)
    # interrupted on the way, and taken further twice
    state.write_bytes(content)
    with interrupted_after(monkeypatch, 14):
        fit_head(build(), rows, longer, state=state, progress=False)
    again = build(7)
    assert fit_head(again, rows, longer, state=state, progress=False) == history
    assert same(again, whole)
    further = dataclasses.replace(CONFIG, epochs=20)
    assert fit_head(again, rows, further, state=state, progress=False)[:16] == history
    # fewer, other options, or more for a run that has not ended, are another run
    for refused in (CONFIG, dataclasses.replace(further, l1=0.3)):
        with pytest.raises(ValueError, match=r"another training run .*--features.*--overwrite"):
            fit_head(build(), rows, refused, state=state, progress=False)
    state.unlink()
    with interrupted_after(monkeypatch, 5):
        fit_head(build(), rows, CONFIG, state=state, progress=False)
    with pytest.raises(ValueError, match="epochs was 12, is 16"):
        fit_head(build(), rows, longer, state=state, progress=False)


def test_more_epochs_where_none_were_named(tmp_path, rows):
    state = tmp_path / "state.safetensors"
    config = FitConfig(batch_size=8)
    done = len(fit_head(build(), rows, config, state=state, progress=False))
    more = dataclasses.replace(config, epochs=done + 3)
    assert len(fit_head(build(), rows, more, state=state, progress=False)) == done + 3


def test_a_state_of_the_first_recipe_goes_on_as_it_began(tmp_path, rows, monkeypatch):
    state, config = tmp_path / "state.safetensors", FitConfig(epochs=6)
    # a head of version 0.1: no shares, no scale
    plain = build()
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "class_pull", lambda *a: torch.ones(2))
        old = dataclasses.replace(config, lr=1e-2, logit_adjustment=0.0)
        expected = fit_head(plain, rows, old, progress=False)
        with interrupted_after(monkeypatch, 3):
            fit_head(build(), rows, old, state=state, progress=False)
    tensors, metadata = read_tensors(state)
    new = ("class_weights", "sampler", "logit_adjustment", "validation", "patience")
    metadata["config"] = {k: v for k, v in metadata["config"].items() if k not in new}
    del metadata["recipe"]
    write_tensors(state, {k: v.clone() for k, v in tensors.items()}, metadata)
    with interrupted_after(monkeypatch, 4):
        fit_head(build(), rows, config, state=state, progress=False)
    for _ in range(2):
        resumed = build(5)
        assert fit_head(resumed, rows, config, state=state, progress=False) == expected
        assert same(resumed, plain)
    assert fit_head(build(), rows, config, progress=False) != expected
    other = dataclasses.replace(config, sampler="balanced")
    with pytest.raises(ValueError, match=r"sampler was shuffle, is balanced"):
        fit_head(build(), rows, other, state=state, progress=False)


def test_stages_validate_and_the_last_one_stops(tmp_path, rows, monkeypatch):
    monkeypatch.setitem(METHODS, PrototypeHead.method, PrototypeHead)
    config = dataclasses.replace(PATIENT, rotation_lr=0.02)
    whole = build(method="toy")
    history = fit_head(whole, rows, config, progress=False)
    assert "validation_loss" in history[0]
    assert len(history) == 3 + best_epoch(history[3:]) + 1 + 2
    state = tmp_path / "state.safetensors"
    for stop in (2, 3, 5):
        with interrupted_after(monkeypatch, stop):
            fit_head(build(method="toy"), rows, config, state=state, progress=False)
        resumed = build(method="toy")
        assert fit_head(resumed, rows, config, state=state, progress=False) == history
        assert same(resumed, whole)
        state.unlink()


def test_the_loss_shown_says_what_is_in_it(rows, monkeypatch):
    notes = []
    display = type(fitting.bar(False))
    plain = display.update

    def update(self, task, **fields):
        notes.append(fields.get("note"))
        plain(self, task, **fields)

    monkeypatch.setattr(display, "update", update)
    fit_head(build(), rows, dataclasses.replace(CONFIG, epochs=1), progress=False)
    assert notes[0].startswith("epoch 1/1 loss ")
    assert " = cross-entropy " in notes[0]
    assert " + penalty " in notes[0]


def test_curve(rows):
    history = fit_head(build(), rows, VALIDATED, progress=False)
    figure = training_curve(history, kept=4)
    labels = [[line.get_label() for line in axes.get_lines()] for axes in figure.axes]
    assert labels == [
        ["training, with penalty", "validation", "kept: epoch 4"],
        ["training", "validation", "validation, balanced", "kept: epoch 4"],
    ]
    assert list(figure.axes[0].get_lines()[0].get_ydata()) == [e["loss"] for e in history]
    assert len(training_curve(history[:1]).axes) == 2
    with pytest.raises(ValueError, match="history is empty"):
        training_curve([])


def test_more_epochs_start_from_the_best_weights(tmp_path, rows, monkeypatch):
    for seed in range(20):  # until the last epoch is not the best
        state, first = tmp_path / f"{seed}.safetensors", build()
        config = dataclasses.replace(PATIENT, epochs=12, patience=50, seed=seed)
        history = fit_head(first, rows, config, state=state, progress=False)
        if best_epoch(history) < 11:
            break
    assert best_epoch(history) < 11
    second, begun = build(3), []
    longer = dataclasses.replace(config, epochs=14)
    plain = torch.optim.AdamW.step

    def step(self, *arguments):
        begun.append(same(first, second))
        return plain(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        fit_head(second, rows, longer, state=state, progress=False)
    assert begun[0]


def test_options_may_be_numpy_numbers():
    config = FitConfig(epochs=np.int64(3), lr=np.float32(0.5), seed=np.uint8(7))
    assert (type(config.epochs), type(config.lr), config.seed) == (int, float, 7)
    assert json.loads(json.dumps(config.as_dict()))["lr"] == 0.5


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_no_numbers_are_refused(rows, bad):
    rows._shards[0][3, 0] = bad
    head = new_head(24, 2, 0, method="protoquant", codes=4)
    with pytest.raises(ValueError, match=r"mean feature of memory is (nan|inf)"):
        fit_head(head, rows, CONFIG, progress=False)


def test_every_process_goes_on_with_the_leaders_figures(rows, monkeypatch):
    """Else one could stop earlier than the others, which then wait for it."""
    losses = iter([3.0, 2.0, 1.0, 1.5, 1.5, 0.1])
    monkeypatch.setattr(ranks, "told", lambda value: {**value, "validation_loss": next(losses)})
    history = fit_head(build(), rows, PATIENT, progress=False)
    assert [entry["validation_loss"] for entry in history] == [3.0, 2.0, 1.0, 1.5, 1.5]


def test_more_epochs_for_a_run_that_patience_ended(tmp_path, rows, monkeypatch):
    """They go on from its best weights, and patience counts anew."""
    state, first, second = tmp_path / "state.safetensors", build(), build(5)
    short = fit_head(first, rows, PATIENT, state=state, progress=False)
    content, ended = state.read_bytes(), len(short)
    assert ended < PATIENT.epochs
    longer = dataclasses.replace(PATIENT, epochs=70)
    history = fit_head(second, rows, longer, state=state, progress=False)
    assert history[:ended] == short
    added = history[ended:]
    assert 3 <= len(added) == best_epoch(added) + 1 + 2 < 70 - ended
    assert same(first, second) == (best_epoch(history) < ended)  # the best of all epochs is kept
    # interrupted on the way; then nothing is left to train, and then more is
    state.write_bytes(content)
    with interrupted_after(monkeypatch, ended + 1):
        fit_head(build(), rows, longer, state=state, progress=False)
    for _ in range(2):
        again = build(7)
        assert fit_head(again, rows, longer, state=state, progress=False) == history
        assert same(again, second)
    further = fit_head(
        again, rows, dataclasses.replace(PATIENT, epochs=80), state=state, progress=False
    )
    assert further[: len(history)] == history
    assert len(further) > len(history) + 2
    # one that was interrupted before its patience ended has epochs of its own left
    state.unlink()
    with interrupted_after(monkeypatch, 2):
        fit_head(build(), rows, PATIENT, state=state, progress=False)
    with pytest.raises(ValueError, match="epochs was 60, is 70"):
        fit_head(build(), rows, longer, state=state, progress=False)
