"""The published forms of training steps have the loss of ours, and a report is written."""

from __future__ import annotations

import pytest
import torch

from benchmarks import method_steps


@pytest.mark.parametrize("name", method_steps.ENTRIES)
def test_both_sides_are_the_same_step(name, monkeypatch):
    for constant, value in {"CLASSES": 3, "CHANNELS": 8, "SIDE": 2, "BATCH": 6}.items():
        monkeypatch.setattr(method_steps, constant, value)
    monkeypatch.setattr(method_steps, "ROUNDS", 1)
    row = method_steps.measure(name)
    assert row["speedup"] > 0
    report = {"machine": {"device": "none"}, "commit": "none", "results": [row]}
    text = method_steps.markdown(report)
    assert method_steps.ENTRIES[name].title in text
    entry = method_steps.ENTRIES[name]
    wrong = method_steps.Entry(entry.title, entry.head, lambda *_: torch.zeros(()))
    monkeypatch.setitem(method_steps.ENTRIES, name, wrong)
    with pytest.raises(ValueError, match=f"{name}: our loss is"):
        method_steps.measure(name)
