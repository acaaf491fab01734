"""Tables that do not fit each other are refused, in figures that are gathered or made of tables."""

from __future__ import annotations

import pytest
import torch

from infodisent.evaluation.accuracy import Figures, linear_probe
from infodisent.evaluation.intervals import bootstrap, bootstrap_runs
from infodisent.evaluation.logistic import fit_logistic, standardise
from infodisent.evaluation.multilabel import MultilabelFigures
from infodisent.evaluation.original import match_classes
from infodisent.evaluation.parts import consistency_of, purity_of, stability_of

L = torch.tensor([0, 1, 0])
ROWS, BOTH = torch.ones(3, 4), torch.ones(3, 2)
FOUND, SEEN = torch.ones(3, 2, 5, dtype=torch.bool), torch.ones(3, 5, dtype=torch.bool)
UNITS = torch.tensor([[0, 1], [2, -1]])
REFUSED = {
    "labels of a column": (lambda: MultilabelFigures(2).update(BOTH, L), r"must be \(3, 2\)"),
    "labels of NaN": (lambda: MultilabelFigures(2).update(BOTH, BOTH * torch.nan), "than 0 and 1"),
    "soft labels": (lambda: MultilabelFigures(2).update(BOTH, BOTH / 2), "than 0 and 1"),
    "logits of others": (lambda: MultilabelFigures(2).update(ROWS, ROWS), r"must be \(images, 2\)"),
    "no such class": (lambda: Figures(2).update(BOTH, L + 1), "are 1 … 2, allowed are 0 … 1"),
    "few columns": (lambda: Figures(2, [0, 7]).update(BOTH, L), "have 2 columns, .* need 8"),
    "one row": (lambda: standardise(ROWS[:1].clone(), 1), "count is 1"),
    "more than there are": (lambda: standardise(ROWS.clone(), 9), "count is 9 of 3"),
    "negative decay": (lambda: fit_logistic(ROWS, L, 2, -1.0), "weight_decay is -1.0"),
    "half": (lambda: fit_logistic(ROWS.half(), L, 2, 0.1), "rows is torch.float16"),
    "strange label": (lambda: fit_logistic(ROWS, L + 1, 2, 0.1), "labels are 1 … 2"),
    "one run": (lambda: bootstrap_runs([[1.0]]), "runs hold a list"),
    "level": (lambda: bootstrap(torch.ones(2), level="x"), "level is 'x'"),
    "a name for names": (lambda: match_classes("tench", 1000), "classes is 'tench'"),
    "numbers for names": (lambda: match_classes(["a"], 2, [1, 2]), r"names is \[1, 2\]"),
    "a list": (lambda: match_classes(["a"], 1000, None, ["a"]), "list is no mapping"),
    "float parts": (lambda: consistency_of(FOUND.float(), L, SEEN, UNITS), "vectors is torch.fl"),
    "other units": (lambda: consistency_of(FOUND, L, SEEN, UNITS[:, :1]), r"\(images, 1, parts\)"),
    "float visible": (lambda: consistency_of(FOUND, L, SEEN.float(), UNITS), "visible is torch.fl"),
    "fewer after": (lambda: stability_of(FOUND, FOUND[:1], L, UNITS), r"must be \(1,\)"),
    "other parts": (lambda: stability_of(FOUND, FOUND[..., :1], L, UNITS), r"after is \(3, 2, 1\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    compute, message = REFUSED[case]
    with pytest.raises((TypeError, ValueError), match=message):
        compute()


def test_purity_of_other_tables(tiny):
    value = torch.ones(2, tiny.head.num_features)
    with pytest.raises(ValueError, match=r"purity_of: kinds is \(3,\), must be \(5,\)"):
        purity_of(tiny.head, value, torch.ones(*value.shape, 5) > 0, torch.arange(3))


def test_spelling_of_an_accent():
    assert match_classes(["caf\u00e9"], 2, ["cafe\u0301", "b"]) == [0]


def test_a_message_names_few_of_many_classes():
    with pytest.raises(ValueError, match=r"none of the classes .*500 in all") as caught:
        match_classes([f"class {i}" for i in range(500)], 1000, None, {"other": 1})
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("given", [{"weight_decay": -1.0}, {"test": L[:0]}, {}])
def test_probe(store, given, monkeypatch):
    train, test = store.indices("train"), store.indices("val")
    if not given:
        bad = torch.full((len(train) + len(test), store.channels), torch.nan)
        monkeypatch.setattr(store, "average", lambda indices: bad)
    with pytest.raises(
        ValueError, match=r"linear_probe: (weight_decay is|test has no|features in)"
    ):
        linear_probe(store, train, **{"test": test, **given})
