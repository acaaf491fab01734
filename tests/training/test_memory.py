"""Nothing holds a table of all images and channels in memory, and the figures are the same."""

from __future__ import annotations

import functools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from infodisent.data import rows
from infodisent.data.store import FeatureStore
from infodisent.evaluation.accuracy import evaluate_head, linear_probe, original_head, score
from infodisent.files import write_json, write_tensors
from infodisent.training import fit as fitting
from infodisent.training.fit import FitConfig, fit_head, new_head

N, P, C, K = 3000, 2, 48, 10
TABLE = 4 * N * C
"""Bytes of the table of all images and channels."""


class Largest(TorchDispatchMode):
    """The largest result that any operation allocates, in bytes, and what made it."""

    bytes, of = 0, ""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        known = {a.untyped_storage().data_ptr() for a in tree_leaves(args) if torch.is_tensor(a)}
        for tensor in tree_leaves(result):
            if torch.is_tensor(tensor) and tensor.untyped_storage().data_ptr() not in known:
                size = tensor.numel() * tensor.element_size()
                if size > self.bytes:
                    self.bytes, self.of = size, str(func)
        return result


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A store of 3000 images in 10 classes, whose original head knows the classes."""
    folder = tmp_path_factory.mktemp("large")
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(N) % K
    centres = torch.randn(K, C, generator=generator)
    maps = torch.randn(N, P, C, generator=generator) * 1.5 + centres[labels][:, None]
    logits = maps.mean(1) @ centres.mT
    write_json(
        folder / "store.json",
        {
            "made_from": {"test": 1},
            "items": [[f"{i}.png", i % K, "val" if i % 7 == 0 else "train"] for i in range(N)],
            "classes": [str(k) for k in range(K)],
            "channels": C,
            "pixels": P,
            "grid": [1, P],
            "shard_size": 200,
            "transform": {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3},
            "original": {"trained": True, "class_names": [str(k) for k in range(K)]},
        },
    )
    for number, start in enumerate(range(0, N, 200)):
        part = slice(start, start + 200)
        tensors = {
            "features": maps[part].clone(),
            "item": torch.arange(start, start + 200),
            "original_logits": logits[part].half(),
        }
        written = {"made_from": {"test": 1}, "skipped": []}
        write_tensors(folder / f"shard-{number:05d}.safetensors", tensors, written)
    return FeatureStore(folder)


def twice(work, monkeypatch):
    """The result with the usual limits, and with little memory; and the largest allocation then."""
    usual = work()
    monkeypatch.setattr(rows, "IN_MEMORY", TABLE // 50)
    monkeypatch.setattr(rows, "BLOCK", TABLE // 20)
    with Largest() as largest:
        lean = work()
    assert largest.bytes <= TABLE // 4, (largest.bytes / TABLE, largest.of)
    assert largest.bytes > 0
    return usual, lean


def test_evaluation(large, monkeypatch):
    head = new_head(C, K, seed=0).eval()
    test = torch.arange(N)
    usual, lean = twice(lambda: evaluate_head(head, large, test), monkeypatch)
    assert usual == lean
    assert usual.images == N
    with torch.no_grad():  # and the figures of everything at once
        whole = score(head(large.gather(test), input_fmt="NLC"), large.labels)
    assert (whole.accuracy, whole.f1) == pytest.approx((usual.accuracy, usual.f1), rel=1e-5)
    assert whole.balanced_accuracy == pytest.approx(usual.balanced_accuracy, rel=1e-5)
    assert whole.loss == pytest.approx(usual.loss, rel=1e-5)
    few = evaluate_head(head, large, test, batch_size=7)
    assert few.as_dict() == pytest.approx(usual.as_dict(), rel=1e-5)


def test_linear_probe(large, monkeypatch):
    train, test = large.indices("train"), large.indices("val")
    usual, lean = twice(lambda: linear_probe(large, train, test), monkeypatch)
    assert usual.accuracy > 0.5
    assert usual.accuracy == pytest.approx(lean.accuracy, abs=0.005)
    assert usual.loss == pytest.approx(lean.loss, rel=1e-3)


def test_linear_probe_is_the_minimum(large):
    train, test = large.indices("train"), large.indices("val")
    average = torch.stack([large.gather(torch.tensor([i]))[0].mean(0) for i in range(N)])
    x = (average - average[train].mean(0)) / (average[train].std(0) + 1e-6)
    layer = torch.nn.Linear(C, K)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(400):
        loss = torch.nn.functional.cross_entropy(layer(x[train]), large.labels[train])
        loss = loss + 0.05 * layer.weight.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        expected = score(layer(x[test]), large.labels[test])
    assert linear_probe(large, train, test).loss == pytest.approx(expected.loss, rel=1e-3)


def test_head_with_a_fixed_pool(large, monkeypatch):
    config = FitConfig(epochs=2, batch_size=64)
    scale = functools.partial(fitting._feature_scale, sample=100)  # not thousands, as in use
    monkeypatch.setattr(fitting, "_feature_scale", scale)

    def work():
        head = new_head(C, K, seed=0, rotate=False)
        return fit_head(head, large, config, progress=False), head.fc.weight.detach()

    (history, weight), (lean_history, lean_weight) = twice(work, monkeypatch)
    assert history == lean_history
    assert torch.equal(weight, lean_weight)


def test_original_head(large, monkeypatch):
    usual, lean = twice(lambda: original_head(large, torch.arange(N)), monkeypatch)
    assert usual == lean
    logits = large.original_logits[torch.arange(N)]
    whole = score(logits, large.labels)
    for name in ("images", "accuracy", "balanced_accuracy", "f1", "loss"):
        assert getattr(usual, name) == pytest.approx(getattr(whole, name), rel=1e-6)
    with Largest() as largest:
        FeatureStore(large.path)
    assert largest.bytes < 4 * N * K  # opening a store reads no table


def test_answers_outside_the_classes_are_wrong():
    from infodisent.evaluation import accuracy

    figures = accuracy.Figures(2, [4, 1])
    figures.update(torch.eye(5)[[4, 1, 3, 1]], torch.tensor([0, 1, 0, 0]))
    some = figures.evaluation()
    assert some.accuracy == 0.5
    assert some.balanced_accuracy == pytest.approx((1 / 3 + 1) / 2)
    assert some.f1 == pytest.approx((0.5 + 2 / 3) / 2)
