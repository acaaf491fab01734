"""Explanations of a random head, for figures and pages."""

from __future__ import annotations

import pytest
import torch

from infodisent.explanations.local import explain_many
from infodisent.explanations.prototypes import find_prototypes
from infodisent.report.units import Units


def randomise(head):
    """Weights of every sign and size, the same every time."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


@pytest.fixture
def gathered(store, tiny):
    """Fourteen explanations, right and wrong ones, the prototypes, and all units."""
    randomise(tiny.head)
    tiny.eval()
    prototypes = find_prototypes(tiny.head, store, k=3, progress=False)
    names = [store.classes[i] for i in store.labels.tolist()]
    units = Units(tiny.head, 14)
    explanations = explain_many(
        tiny,
        [*store.files[:8], *store.files[-6:]],
        true_names=[*names[:8], *names[-6:]],
        classes=store.classes,
        progress=False,
        on_features=units,
    )
    assert {e.correct for e in explanations} == {True, False}
    return explanations, prototypes, units


@pytest.fixture
def made(gathered):
    """The explanations and the prototypes."""
    return gathered[:2]
