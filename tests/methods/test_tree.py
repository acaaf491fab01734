"""The decision tree: laid out as scikit-learn grew it, evidence that adds up, files without it."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import infodisent
from infodisent.methods.tree import TreeHead, _float32_below
from infodisent.training import fit as fitting
from infodisent.training.fit import FitConfig, fit_head, new_head

CONFIG = FitConfig(epochs=3, batch_size=8)


def by_hand(classes=3):
    """Channel 1 above 0.5? Then no more; else channel 0 above -0.25? Of 3 classes 0 and 2."""
    torch.manual_seed(0)
    head = TreeHead(4, classes, depth=3, rotate=False).eval()
    tree = SimpleNamespace(
        node_count=5,
        children_left=np.array([1, 2, -1, -1, -1]),
        children_right=np.array([4, 3, -1, -1, -1]),
        feature=np.array([1, 0, -2, -2, -2]),
        threshold=np.array([0.5, -0.25, -2, -2, -2]),
        weighted_n_node_samples=np.array([10.0, 6, 4, 2, 4]),
        value=np.array([[[0.4, 0.6]], [[2 / 3, 1 / 3]], [[1, 0]], [[0, 1]], [[0, 1]]]),
    )
    head._take(tree, torch.tensor([0, 2]), 10)
    return head


POOLED = torch.tensor(
    [[-1.0, 0.5, 9.0, 9.0], [0.0, 0.0, 0.0, 0.0], [-1.0, 0.6, 0.0, 0.0], [-0.25, -3.0, 1.0, 1.0]]
)
LEAVES = [(4, 0), (0, 2), (0, 4), (4, 0)]
"""Of every row: training images of classes 0 and 2 in its leaf."""


def smoothed(first, last):
    root = [(4 + 1 / 3) / 11, (1 / 3) / 11, (6 + 1 / 3) / 11]
    return [(n + r) / (first + last + 1) for n, r in zip((first, 0, last), root, strict=True)]


def test_probabilities_and_evidence_by_hand():
    head = by_hand()
    wanted = torch.tensor([smoothed(*leaf) for leaf in LEAVES])
    logits = head.classify(POOLED)
    torch.testing.assert_close(logits.exp(), wanted)
    torch.testing.assert_close(head.scores(logits), wanted)
    assert (head.score, head.offset) == ("probability", "prior")
    top, left = torch.tensor(smoothed(4, 6)), torch.tensor(smoothed(4, 2))
    torch.testing.assert_close(head.offsets(torch.arange(3)), top)
    for k in range(3):
        parts = head.contributions(POOLED.double(), torch.full((4,), k))
        torch.testing.assert_close(parts.sum(1).float() + top[k], wanted[:, k])
        torch.testing.assert_close(parts[2].float(), torch.eye(4)[1] * (wanted[2, k] - top[k]))
        torch.testing.assert_close(parts[0, 1].float(), left[k] - top[k])
        torch.testing.assert_close(parts[0, 0].float(), wanted[0, k] - left[k])
    assert head.used_units().tolist() == [True, True, False, False]
    weights = head.class_weights()
    torch.testing.assert_close(weights[:, 1], torch.tensor(smoothed(0, 4)) - left)
    torch.testing.assert_close(weights[:, 0], 0.6 * (wanted[1] - wanted[0]))
    assert (weights[:, 2:] == 0).all()


def test_decisions_by_hand():
    first, second = by_hand().decisions(POOLED[0].double())
    assert (first.unit, first.value, first.threshold, first.yes) == (1, 0.5, 0.5, False)
    assert (second.unit, second.value, second.threshold, second.yes) == (0, -1.0, -0.25, False)
    assert first.probability == second.probability == 1
    assert second.distribution.tolist() == pytest.approx(smoothed(4, 0))
    (only,) = by_hand().decisions(POOLED[2].double())
    assert (only.unit, only.yes) == (1, True)
    assert TreeHead(4, 3).decisions(POOLED[0]) == ()


def test_float32_thresholds_part_float32_values_alike():
    above = np.nextafter(np.float32(0.1), np.float32(1))
    middle = (float(np.float32(0.1)) + float(above)) / 2
    for value in (middle, 0.1, -0.3, 1e-50, -1e-50, float(above)):
        limit = np.float32(_float32_below(value))
        for x in (np.float32(0.1), above, np.float32(value), np.float32(0)):
            assert (x <= limit) == (float(x) <= value)


def test_a_tree_is_that_of_scikit_learn(store):
    sklearn = pytest.importorskip("sklearn.tree", reason="scikit-learn is not installed")
    head = new_head(store.channels, 2, 0, method="tree", depth=3, min_leaf=1)
    fit_head(head, store, CONFIG, progress=False)
    train = store.indices("train")
    with torch.no_grad():
        maps, labels, _ = next(store.batches(train, 99))
        rows = head.pool(maps, input_fmt="NLC").pooled
        found = head(maps, input_fmt="NLC")
    grown = sklearn.DecisionTreeClassifier(max_depth=3, min_samples_leaf=1, random_state=0)
    grown.fit(rows.numpy(), labels.numpy())
    assert found.argmax(1).tolist() == grown.predict(rows.numpy()).tolist()
    assert int(head.used_units().sum()) == len({f for f in grown.tree_.feature if f >= 0})
    small = new_head(store.channels, 2, 0, method="tree", depth=3, ccp_alpha=1.0)
    fit_head(small, store, CONFIG, progress=False)
    assert not small.used_units().any()  # pruned to its root


def test_a_forest_is_the_mean_of_its_trees(store):
    sklearn = pytest.importorskip("sklearn.ensemble", reason="scikit-learn is not installed")
    head = new_head(store.channels, 2, 0, method="tree", depth=3, min_leaf=1, trees=4)
    fit_head(head, store, CONFIG, progress=False)
    maps, labels, _ = next(store.batches(store.indices("train"), 99))
    rows = head.pool(maps, input_fmt="NLC").pooled.detach()
    forest = sklearn.RandomForestClassifier(4, max_depth=3, min_samples_leaf=1, random_state=0)
    forest.fit(rows.numpy(), labels.numpy())
    wanted = torch.zeros(len(rows), 2, dtype=torch.float64)
    start = torch.zeros(2, dtype=torch.float64)
    for one in forest.estimators_:
        tree = one.tree_
        drawn = torch.as_tensor(tree.weighted_n_node_samples * tree.value[:, 0].T).T
        root = (drawn[0] + 1 / 2) / (drawn[0].sum() + 1)
        leaf = drawn[one.apply(rows.numpy())]
        wanted += (leaf + root) / (leaf.sum(1, keepdim=True) + 1) / 4
        start += (drawn[0] + root) / (drawn[0].sum() + 1) / 4
    found = head(maps, input_fmt="NLC").detach().exp()
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(head.offsets(torch.arange(2)).double(), start)
    for k in range(2):
        of = torch.full((len(rows),), k)
        total = head.contributions(rows.double(), of).sum(1) + head.offsets(of)
        torch.testing.assert_close(total, wanted[:, k], rtol=1e-5, atol=1e-6)
    asked = {int(f) for one in forest.estimators_ for f in one.tree_.feature if f >= 0}
    assert set(head.used_units().nonzero().flatten().tolist()) == asked
    assert head.decisions(rows[0]) == ()
    slope = torch.zeros(store.channels, dtype=torch.float64)  # of class 0, node by node
    for one in forest.estimators_:
        tree = one.tree_
        drawn = torch.as_tensor(tree.weighted_n_node_samples * tree.value[:, 0].T).T
        root = (drawn[0] + 1 / 2) / (drawn[0].sum() + 1)
        chances = (drawn + root) / (drawn.sum(1, keepdim=True) + 1)
        for node in (tree.feature >= 0).nonzero()[0]:
            right, left = (int(t[node]) for t in (tree.children_right, tree.children_left))
            share = drawn[node].sum() / len(rows)
            slope[tree.feature[node]] += share * (chances[right, 0] - chances[left, 0]) / 4
    torch.testing.assert_close(head.class_weights()[0].detach().double(), slope, atol=1e-6, rtol=0)


def test_interrupted_training_goes_on(tmp_path, store, monkeypatch):
    pytest.importorskip("sklearn.tree", reason="scikit-learn is not installed")

    def build():
        return new_head(store.channels, 2, 0, method="tree")

    whole = build()
    expected = fit_head(whole, store, CONFIG, progress=False)
    plain = fitting.save_state
    for stop in (1, 3):
        state = tmp_path / f"{stop}.safetensors"

        def dies(path, run, head, optimizer, history, stop=stop):
            plain(path, run, head, optimizer, history)
            if len(history) == stop:
                raise KeyboardInterrupt

        monkeypatch.setattr(fitting, "save_state", dies)
        with pytest.raises(KeyboardInterrupt):
            fit_head(build(), store, CONFIG, state=state, progress=False)
        monkeypatch.setattr(fitting, "save_state", plain)
        resumed = build()
        assert fit_head(resumed, store, CONFIG, state=state, progress=False) == expected
        for name, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), name


def test_without_scikit_learn_training_says_so_and_files_open(tmp_path, store, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    head = new_head(store.channels, 2, 0, method="tree")
    history = []
    with pytest.raises(ImportError, match=r"pip install 'infodisent\[tree\]'"):
        fit_head(head, store, CONFIG, progress=False, callbacks=[lambda *a: history.append(a)])
    assert not history  # before the first epoch
    model = infodisent.attach("test_resnet", 3, method="tree", depth=3)
    hand = by_hand()
    for name in ("channel", "threshold", "chances", "share", "grown"):
        getattr(model.head, name).copy_(getattr(hand, name))
    infodisent.save(tmp_path / "m.safetensors", model)
    again = infodisent.load(tmp_path / "m.safetensors").model
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again.eval()(x), model.eval()(x))
        assert again(x).exp().sum(1).tolist() == pytest.approx([1, 1])


BAD = {
    "depth": ({"depth": 0}, "depth is 0"),
    "deep": ({"depth": 17}, "depth is 17, must be at most 16"),
    "min_leaf": ({"min_leaf": 0.5}, "min_leaf is 0.5"),
    "ccp_alpha": ({"ccp_alpha": -1.0}, "ccp_alpha is -1.0"),
    "trees": ({"trees": 0}, "trees is 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_name_the_argument(case):
    change, message = BAD[case]
    with pytest.raises(ValueError, match=f"TreeHead: {message}"):
        TreeHead(4, 2, **change)
