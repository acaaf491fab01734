"""What version 0.1 wrote is read, goes on and means the same (made by fixtures/make_v01.py)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import infodisent
from infodisent.backbones.preprocess import transform_config
from infodisent.data import shards
from infodisent.data.extraction import describe, extract
from infodisent.data.fingerprints import listing_by_path
from infodisent.data.images import ImageItem, ImageSet
from infodisent.data.store import FeatureStore
from infodisent.evaluation.accuracy import evaluate_head, linear_probe, pool_features
from infodisent.explanations.prototypes import Prototypes, find_prototypes
from infodisent.files import read_tensors
from infodisent.training.fit import FitConfig, fit_head, new_head

V01 = Path(__file__).parent / "fixtures" / "v01"
EXPECTED = json.loads((V01 / "expected.json").read_text())
CONFIG = FitConfig(epochs=6, batch_size=8, lr=0.05, rotation_lr=0.01, l1=0.01, seed=3)


@pytest.fixture
def model():
    model = infodisent.load(V01 / "model.safetensors").model
    model.pretrained_cfg.update(input_size=(3, 64, 64))
    return model


@pytest.fixture
def old(tmp_path):
    shutil.copytree(V01, tmp_path / "v01")
    return FeatureStore(tmp_path / "v01" / "features")


def the_images(store):
    items = tuple(ImageItem(*item) for item in store.meta["items"])
    assert not any(Path(item.path).exists() for item in items)
    return ImageSet(store.meta["root"], store.classes, items)


def test_checkpoint(model):
    loaded = infodisent.load(V01 / "model.safetensors")
    assert (loaded.classes, loaded.info) == (("green", "red"), {"note": "0.1"})
    probe = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(probe)[0], torch.tensor(EXPECTED["logits"]))
        torch.testing.assert_close(
            model.original_logits(probe)[0], torch.tensor(EXPECTED["original_logits"])
        )


def test_a_description_is_the_same_to_the_byte(model, old):
    images = the_images(old)
    now = describe(model.backbone, images, transform_config(model), "float16")
    now["images"] = listing_by_path(images)
    assert json.dumps(now) == json.dumps(EXPECTED["made_from"])


def test_a_store_is_accepted_and_not_made_again(model, old, monkeypatch):
    monkeypatch.setattr(shards, "_forward", lambda *a: pytest.fail("was extracted again"))
    again = extract(model, the_images(old), old.path, shard_size=8, progress=False)
    assert len(again) == 19
    assert [Path(path).name for path, _ in again.skipped] == ["05.png"]
    with torch.no_grad():
        next(model.backbone.parameters()).add_(1)
    with pytest.raises(ValueError, match="different: weights"):
        extract(model, the_images(old), old.path, shard_size=8, progress=False)


def test_training_goes_on_where_it_stopped(old):
    state = old.path.parent / "training.safetensors"
    _, metadata = read_tensors(state)
    assert len(metadata["history"]) == 3
    assert "method" not in metadata
    head = new_head(old.channels, 2, seed=0, bias=True)
    history = fit_head(head, old, CONFIG, state=state, progress=False)
    assert history[:3] == metadata["history"]
    for now, then in zip(history, EXPECTED["history"], strict=True):
        assert now == pytest.approx(then, rel=1e-5)
    tensors, _ = read_tensors(V01 / "model.safetensors")
    for name, value in head.state_dict().items():
        torch.testing.assert_close(value, tensors[f"head.{name}"], rtol=1e-4, atol=1e-6)


def test_figures(model, old):
    everything = torch.arange(len(old))
    pooled = pool_features(model.head, old, everything)
    torch.testing.assert_close(pooled[0], torch.tensor(EXPECTED["pooled"]))
    figures = evaluate_head(model.head, old, everything).as_dict()
    then = {name: figures[name] for name in EXPECTED["head"]}  # there are more by now
    assert then == pytest.approx(EXPECTED["head"], rel=1e-6)
    probe = linear_probe(old, old.indices("train"), old.indices("val")).as_dict()
    numbers = {k: v for k, v in probe.items() if v is not None}
    assert numbers == pytest.approx({k: EXPECTED["probe"][k] for k in numbers}, rel=1e-3)


def test_prototypes(model, old):
    kept = Prototypes.load(V01 / "prototypes.safetensors")
    now = find_prototypes(model.head, old, k=2, progress=False)
    assert torch.equal(now.pos_image, kept.pos_image)
    assert torch.equal(now.neg_index, kept.neg_index)
    torch.testing.assert_close(now.pos_value, kept.pos_value)
