"""Training: learns, repeats, resumes; the figures reported beside it."""

from __future__ import annotations

import pytest
import torch

from infodisent.data.images import scan_folder
from infodisent.devices import own_generators, seed_generators
from infodisent.evaluation.accuracy import (
    evaluate_head,
    linear_probe,
    pool_features,
    score,
)
from infodisent.explanations.sparsity import explanation_sizes
from infodisent.nn import NONNEG
from infodisent.training.fit import FitConfig, fit_head, new_head

CONFIG = FitConfig(epochs=30, batch_size=8, lr=0.05, rotation_lr=0.01, l1=0.01)


def weights(head):
    return {k: v.clone() for k, v in head.state_dict().items()}


@pytest.mark.parametrize("nonneg", NONNEG)
def test_learns(store, nonneg):
    head = new_head(store.channels, 2, seed=0, nonneg=nonneg)
    history = fit_head(head, store, CONFIG, progress=False)
    assert len(history) == 30
    assert history[-1]["loss"] < history[0]["loss"]
    assert head.rotation.A.abs().max() > 0
    assert torch.all(head.fc.effective_weight() >= 0)
    assert not head.training
    result = evaluate_head(head, store, store.indices("train"))
    assert result.accuracy >= 0.75
    if result.explained:  # |W| can end with negative logits, where the number does not exist
        assert 1 <= result.explanation_size <= store.channels


def test_a_seed_repeats_and_another_differs(store):
    def run(seed):
        head = new_head(store.channels, 2, seed=seed, drop_rate=0.2)
        torch.manual_seed(torch.seed())  # the caller's generator must not matter
        fit_head(head, store, FitConfig(epochs=2, batch_size=8, seed=seed), progress=False)
        return weights(head)

    first, again, other = run(0), run(0), run(1)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["fc.weight"], other["fc.weight"])


@pytest.mark.parametrize("options", [{}, {"rotate": False}, {"bias": True, "drop_rate": 0.3}])
def test_resumed_is_bitwise_the_uninterrupted_run(tmp_path, store, options, monkeypatch):
    whole = new_head(store.channels, 2, seed=0, **options)
    expected = fit_head(whole, store, CONFIG, progress=False)
    from infodisent.training import fit as module

    plain, state = module.save_state, tmp_path / "state.safetensors"

    def dies(path, identity, head, optimizer, history):
        plain(path, identity, head, optimizer, history)
        if len(history) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "save_state", dies)
    part = new_head(store.channels, 2, seed=0, **options)
    with pytest.raises(KeyboardInterrupt):
        fit_head(part, store, CONFIG, state=state, progress=False)
    monkeypatch.setattr(module, "save_state", plain)
    resumed = new_head(store.channels, 2, seed=5, **options)
    assert fit_head(resumed, store, CONFIG, state=state, progress=False) == expected
    assert all(torch.equal(v, whole.state_dict()[k]) for k, v in resumed.state_dict().items())
    # finished: nothing is trained again
    assert fit_head(resumed, store, CONFIG, state=state, progress=False) == expected
    with pytest.raises(ValueError, match=r"another training run \(epochs was 30, is 9"):
        fit_head(resumed, store, FitConfig(epochs=9), state=state, progress=False)
    content = state.read_bytes()
    state.write_bytes(content[:-10])
    with pytest.raises(ValueError, match="truncated"):
        fit_head(resumed, store, CONFIG, state=state, progress=False)


def test_without_rotation_precomputed_pool_gives_the_same(store):
    head = new_head(store.channels, 2, seed=0, rotate=False)
    fit_head(head, store, FitConfig(epochs=1, batch_size=64, lr=1e-2, l1=0.0), progress=False)
    other = new_head(store.channels, 2, seed=0, rotate=False)
    optimizer = torch.optim.AdamW(other.fc.parameters(), lr=1e-2, weight_decay=0.0)
    train = store.indices("train")
    torch.manual_seed(0)
    train = train[torch.randperm(len(train))]
    other.input_fmt = "NLC"
    loss = torch.nn.functional.cross_entropy(other(store.gather(train)), store.labels[train])
    loss.backward()
    optimizer.step()
    other.fc.project_()
    torch.testing.assert_close(head.fc.weight, other.fc.weight)


def test_l1_shortens_explanations(store):
    nonzero = []
    for l1 in (0.0, 1.0):
        head = new_head(store.channels, 2, seed=0, nonneg="projection")
        fit_head(head, store, FitConfig(epochs=30, batch_size=8, l1=l1), progress=False)
        nonzero.append((head.fc.effective_weight() > 0).sum().item())
    assert nonzero[1] < 0.8 * nonzero[0]


def test_errors(store):
    with pytest.raises(ValueError, match="head has 3 classes, the store 2"):
        fit_head(new_head(store.channels, 3, 0), store, progress=False)
    with pytest.raises(ValueError, match="head takes 5 channels"):
        fit_head(new_head(5, 2, 0), store, progress=False)
    with pytest.raises(ValueError, match="no training images"):
        fit_head(
            new_head(store.channels, 2, 0),
            store,
            train=torch.empty(0, dtype=torch.int64),
            progress=False,
        )
    for bad in ({"epochs": 0}, {"lr": -1.0}, {"l1": float("nan")}, {"label_smoothing": 1.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            FitConfig(**bad)


def test_infinite_loss_is_an_error(store):
    with pytest.raises(ValueError, match=r"loss is .* in epoch \d; lower lr"):
        fit_head(new_head(store.channels, 2, 0), store, FitConfig(lr=1e37), progress=False)


def test_default_budget(store):
    head = new_head(store.channels, 2, seed=0)
    assert len(fit_head(head, store, progress=False)) == 120  # one step an epoch
    config = FitConfig(batch_size=1)
    assert len(fit_head(head, store, config, progress=False)) == 15


def test_explanation_sizes():
    c = torch.tensor([[5.0, 3.0, 2.0, 0.0], [1.0, 1.0, 1.0, 1.0], [9.6, 0.4, 0, 0], [2, 1, -1, 0]])
    assert explanation_sizes(c).tolist() == [3, 4, 1, 1]
    assert explanation_sizes(-c).tolist() == [0, 0, 0, 0]


def test_score_against_hand_counts():
    logits = torch.tensor([[2.0, 1.0], [2.0, 1.0], [2.0, 1.0], [0.0, 1.0]])
    result = score(logits, torch.tensor([0, 0, 1, 1]))
    assert result.accuracy == 0.75
    assert result.balanced_accuracy == pytest.approx(0.75)
    assert result.f1 == pytest.approx((0.8 + 2 / 3) / 2)
    with pytest.raises(ValueError, match="no images"):
        score(logits[:0], torch.empty(0, dtype=torch.int64))


def test_linear_probe_separates_what_is_separable(store):
    result = linear_probe(store, store.indices("train"), store.indices("train"))
    assert result.accuracy == 1.0
    assert result.explanation_size is None


def test_pool_features_equal_the_head(store, tiny):
    torch.nn.init.normal_(tiny.head.rotation.A, std=0.05)
    index = torch.tensor([3, 1])
    maps = store.gather(index).mT.reshape(2, store.channels, *store.grid)
    with torch.no_grad():
        torch.testing.assert_close(
            pool_features(tiny.head, store, index), tiny.head(maps, pre_logits=True)
        )


def test_state_of_other_training_images_is_refused(tmp_path, store):
    train = store.indices("train")
    config, state = FitConfig(epochs=1), tmp_path / "state.safetensors"
    fit_head(new_head(store.channels, 2, 0), store, config, train=train[:8], state=state)
    with pytest.raises(ValueError, match="other images"):
        fit_head(new_head(store.channels, 2, 0), store, config, train=train[-8:], state=state)


def test_averages_are_over_the_classes_present():
    logits = torch.tensor([[5.0, 0, 0], [0, 5, 0], [5, 0, 0], [5, 0, 0]])
    result = score(logits, torch.zeros(4, dtype=torch.int64))
    assert result.balanced_accuracy == result.accuracy == 0.75
    with pytest.raises(ValueError, match="NaN"):
        score(logits * float("nan"), torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize("what", ["new_head", "fit_head"])
def test_generators_of_the_caller_go_on_as_if_nothing_was_drawn(store, monkeypatch, what):
    """A GPU's generator that this work does not use is not touched; there may be no way back."""
    seeded = []
    for module in (torch.cuda, torch.mps, torch.xpu):
        for name in ("manual_seed", "manual_seed_all"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, lambda seed, n=name: seeded.append(n))
    before = torch.get_rng_state()
    if what == "new_head":
        new_head(store.channels, 2, seed=0)
    else:
        fit_head(new_head(store.channels, 2, 0), store, FitConfig(epochs=1), progress=False)
    assert seeded == []
    assert torch.equal(torch.get_rng_state(), before)


def test_generators_of_the_device_in_use_are_seeded_and_restored(monkeypatch):
    """With a stand-in for CUDA: its generator is an integer."""
    from contextlib import nullcontext

    state = {"cuda": 7}
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "manual_seed", lambda seed: state.update(cuda=seed))
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: state["cuda"])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda value, device: state.update(cuda=value))
    device, before = torch.device("cuda", 0), torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        with own_generators(device):
            seed_generators(3, device)
            assert state["cuda"] == 3
            expected = torch.rand(1, generator=torch.Generator().manual_seed(3))
            assert torch.equal(torch.rand(1), expected)
            raise KeyboardInterrupt
    assert state["cuda"] == 7
    assert torch.equal(torch.get_rng_state(), before)


def test_runs_share_features_and_know_the_originals_classes(tmp_path, image_folder, tiny):
    from infodisent.data import shards
    from infodisent.training import run

    images, shared = scan_folder(image_folder), tmp_path / "features"
    config = FitConfig(epochs=2, batch_size=8)
    known = {"green": 3, "red": 7}
    options = {"features": shared, "progress": False, "compare_identity": False}
    tiny.backbone.trained = True
    first = run.fit(tiny, images, tmp_path / "a", config, original_classes=known, **options)
    assert first.metrics["rows"][0]["head"] == "original head"
    assert first.store.path.samefile(shared)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "_forward", lambda *a: pytest.fail("extracted again"))
        other = FitConfig(epochs=2, batch_size=8, l1=0.5)
        run.fit(tiny, images, tmp_path / "b", other, overwrite=True, **options)
    again = run.evaluate_run(tmp_path / "a", progress=False)
    assert again["rows"][0] == first.metrics["rows"][0]
    assert not (tmp_path / "a" / "features").exists()


def test_overwrite_leaves_no_picture_of_the_old_model(tmp_path, image_folder, tiny):
    from infodisent.training import run

    images, out = scan_folder(image_folder), tmp_path / "run"
    options = {"progress": False, "compare_identity": False, "probe": False}
    run.fit(tiny, images, out, FitConfig(epochs=1, batch_size=8), **options)
    old = [out / name for name in ("report.html", "prototypes-3.png", "figures/001-cat.png")]
    for path in (*old, out / "notes.txt"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("old")
    run.fit(tiny, images, out, FitConfig(epochs=1, batch_size=6), overwrite=True, **options)
    assert not any(path.exists() for path in old)
    assert (out / "notes.txt").exists()


def test_wrong_class_weights_are_refused_before_anything_is_extracted(tmp_path, image_folder, tiny):
    from infodisent.training import run

    config = FitConfig(class_weights=(1.0, 2.0, 3.0))
    with pytest.raises(ValueError, match="class_weights has 3 numbers, the images have 2 classes"):
        run.fit(tiny, scan_folder(image_folder), tmp_path / "run", config, progress=False)
    assert not (tmp_path / "run").exists()
