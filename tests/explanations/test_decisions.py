"""Explanations of trees: the path in order, sums of probabilities, what figures and pages say."""

from __future__ import annotations

import json

import pytest
import torch

import infodisent
from infodisent.explanations.local import explain
from infodisent.explanations.prototypes import find_prototypes
from infodisent.explanations.sparsity import magnitude_sizes
from infodisent.report.figure import explanation_figure
from infodisent.report.page import write_page


@pytest.fixture
def tree_model():
    torch.manual_seed(5)
    model = infodisent.attach("test_resnet", 2, method="prototree", depth=3).eval()
    with torch.no_grad():
        model.head.leaves.copy_(3 * torch.rand(8, 2))
    return model


def test_the_path_is_explained_written_and_drawn(tmp_path, image_folder, store, tree_model):
    file = next((image_folder / "red").glob("*.png"))
    e = explain(tree_model, file, class_index=1, classes=("red", "<b>green</b>"))
    assert e.score == "probability"
    assert e.score_value == pytest.approx(float(e.probabilities[1]), abs=1e-5)
    assert e.total == pytest.approx(e.score_value, abs=1e-3)
    assert len(e.decisions) == 3
    assert e.decisions[0].unit == 0
    assert e.decisions[0].before == pytest.approx(e.bias)
    for step, following in zip(e.decisions, e.decisions[1:], strict=False):
        assert step.after == following.before
        assert following.unit == 2 * step.unit + (2 if step.yes else 1)
    assert all(s.evidence.box is not None for s in e.decisions if s.value > 0)
    values = json.loads(json.dumps(e.to_dict(), allow_nan=False))
    assert [step["unit"] for step in values["decisions"]] == [s.unit for s in e.decisions]
    assert (values["score"], values["offset"]) == ("probability", "prior")
    assert f"prototype {e.decisions[2].unit}" in e._repr_html_()
    prototypes = find_prototypes(tree_model.head, store, k=1, progress=False)
    texts = [t.get_text() for t in explanation_figure(e, prototypes).texts]
    assert any(text.startswith("The path: 3 decisions") for text in texts)
    assert f"3. prototype {e.decisions[2].unit}" in texts
    assert any("(probability)" in text and "(prior)" in text for text in texts)
    write_page(tmp_path / "page.html", [e], prototypes)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count('<p class="asked">') == 3
    assert "<b>green</b>" not in page
    assert "the logit" not in page


def test_a_sum_that_does_not_add_up_is_an_error(image_folder, tree_model, monkeypatch):
    file = next((image_folder / "red").glob("*.png"))
    monkeypatch.setattr(type(tree_model.head), "scores", lambda self, logits: logits)
    with pytest.raises(RuntimeError, match=r"prior add up to .* model's probability"):
        explain(tree_model, file)


def test_sizes_by_magnitude_exist_where_the_sum_is_negative():
    parts = torch.tensor([[-10.0, 0.3, -0.2], [1.0, -1.0, 1.0], [0.0, 0.0, 0.0]])
    assert magnitude_sizes(parts).tolist() == [1, 3, 0]
