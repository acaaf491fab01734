"""Options of the training that a method has no use for: those that change nothing, no others."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch

from infodisent.methods import METHODS
from infodisent.training.fit import FitConfig, fit_head, new_head
from tests.training.test_rare_classes import separable

SMALL = {
    "protopnet": {"per_class": 2, "dimension": 4},
    "st_protopnet": {"per_class": 2, "dimension": 4},
    "prototree": {"depth": 2},
    "tree": {"depth": 2},
    "epic": {"images": 6},
}
PLAIN = FitConfig(epochs=1, batch_size=16)
GIVEN = {
    "lr": 0.05,
    "rotation_lr": 0.02,
    "l1": 2.0,
    "label_smoothing": 0.3,
    "class_weights": (3.0, 1.0),
    "logit_adjustment": 2.0,
}


def trained(method, monkeypatch, **given):
    """What is learned in one epoch of every stage, and the warnings."""
    head = new_head(24, 2, 0, method=method, **SMALL.get(method, {}))
    plain = head.stages
    monkeypatch.setattr(
        head, "stages", lambda c: [dataclasses.replace(s, epochs=1) for s in plain(c)]
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit_head(head, separable(12, 8), dataclasses.replace(PLAIN, **given), progress=False)
    said = [str(w.message) for w in caught if "has no use for" in str(w.message)]
    return torch.cat([p.detach().flatten() for p in head.parameters()]), said


@pytest.mark.parametrize("method", [name for name in METHODS if name != "pipnet"])
def test_what_changes_nothing_is_told(method, monkeypatch):
    usual, said = trained(method, monkeypatch)
    assert not said
    ignored = new_head(24, 2, 0, method=method, **SMALL.get(method, {})).ignored(False)
    for name, value in GIVEN.items():
        learned, said = trained(method, monkeypatch, **{name: value})
        assert len(said) == (name in ignored), name
        assert torch.equal(learned, usual) == (name in ignored), name
