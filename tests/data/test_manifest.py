"""``store.json`` that was cut off or changed: the file is named, and what helps."""

from __future__ import annotations

import functools
import json

import pytest

from infodisent.data.extraction import extract
from infodisent.data.images import scan_folder
from infodisent.data.store import FeatureStore

CHANGES = {
    "empty": lambda m: m.clear(),
    "no classes": lambda m: m.pop("classes"),
    "fewer classes": lambda m: m.update(classes=["one"]),
    "other classes": lambda m: m["classes"].reverse(),
    "task": lambda m: m.update(task="regression"),
    "labels of the other task": lambda m: m.update(task="multilabel"),
    "no images": lambda m: m.update(items=[]),
    "no list": lambda m: m.update(items=3),
    "an item": lambda m: m["items"].append(["a.png"]),
    "a label": lambda m: m["items"][0].__setitem__(1, 1 - m["items"][0][1]),
    "a split": lambda m: m["items"][0].__setitem__(2, "other"),
    "a path": lambda m: m["items"][0].__setitem__(0, None),
    "shard size": lambda m: m.update(shard_size=0),
    "grid": lambda m: m.update(grid=[1, 2]),
    "transform": lambda m: m["transform"].pop("std"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_manifest_names_the_file_and_what_helps(store, tiny, image_folder, change):
    manifest = store.path / "store.json"
    whole = json.loads(manifest.read_text())
    changed = json.loads(manifest.read_text())
    CHANGES[change](changed)
    manifest.write_text(json.dumps(changed))
    said = r"store\.json does not hold what it should .*: delete it, and the `infodisent fit`"
    with pytest.raises(ValueError, match=said):
        FeatureStore(store.path)
    again = functools.partial(
        extract, tiny, scan_folder(image_folder), store.path, shard_size=10, progress=False
    )
    with pytest.raises(ValueError, match=said):
        again()
    manifest.unlink()
    written = (store.path / "shard-00000.safetensors").stat().st_mtime_ns
    assert again().meta == whole
    assert (store.path / "shard-00000.safetensors").stat().st_mtime_ns == written


def test_damage_can_be_overwritten(store, tiny, image_folder):
    (store.path / "store.json").write_text("[]")
    images = scan_folder(image_folder)
    extract(tiny, images, store.path, shard_size=10, overwrite=True, progress=False)
    assert FeatureStore(store.path).meta == store.meta
    (store.path / "shard-00001.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="that made it makes again what is missing"):
        FeatureStore(store.path)
