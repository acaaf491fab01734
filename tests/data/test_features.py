"""The feature store: right maps, resumable, refuses what does not fit, survives corrupt images."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from infodisent import attach, progress
from infodisent.backbones.preprocess import transform_config, transform_from
from infodisent.data import extraction, shards
from infodisent.data.extraction import extract
from infodisent.data.fingerprints import ENDS, LOOKS, listing
from infodisent.data.images import ImageDataset, ImageItem, ImageSet, load_image, scan_folder
from infodisent.data.store import FeatureStore
from infodisent.layout import to_bpc


def test_maps_are_those_of_the_model(store, tiny):
    transform = transform_from(transform_config(tiny))
    index = torch.tensor([0, 13, 5, 22])
    batch = torch.stack([transform(load_image(store.files[i])) for i in index])
    with torch.no_grad():
        wanted = to_bpc(tiny.forward_features(batch), tiny.input_fmt, tiny.num_prefix_tokens)
        original = tiny.original_logits(batch)
    torch.testing.assert_close(store.gather(index), wanted, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(store.original_logits[index], original, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(store.average()[index], wanted.mean(1), rtol=2e-3, atol=2e-3)
    assert store.grid[0] * store.grid[1] == store.pixels == wanted.shape[1]


def test_corrupt_image_is_skipped_counted_and_named(store):
    assert len(store) == 23
    assert len(store.skipped) == 1
    path, reason = store.skipped[0]
    assert path.endswith("red/07.png")
    assert "cannot be read as an image" in reason
    assert path not in store.files
    for file, label in zip(store.files, store.labels.tolist(), strict=True):
        assert store.classes[label] in file


def test_batches_cover_a_split_once(store):
    train = store.indices("train")
    seen = []
    for maps, labels, index in store.batches(train, 4, generator=torch.Generator()):
        assert torch.equal(maps, store.gather(index))
        assert torch.equal(labels, store.labels[index])
        seen += index.tolist()
    assert sorted(seen) == train.tolist()
    assert seen != train.tolist()
    with pytest.raises(IndexError):
        store.gather(torch.tensor([23]))


def test_killed_extraction_goes_on(tmp_path, image_folder, tiny, monkeypatch):
    images = scan_folder(image_folder)
    options = {"shard_size": 10, "batch_size": 5, "progress": False}
    whole = extract(tiny, images, tmp_path / "whole", **options)
    calls = []
    plain = shards._forward

    def dies(*args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return plain(*args)

    monkeypatch.setattr(shards, "_forward", dies)
    with pytest.raises(KeyboardInterrupt):
        extract(tiny, images, tmp_path / "part", **options)
    left = sorted(p.name for p in (tmp_path / "part").glob("*shard*"))
    assert left == ["shard-00000.safetensors", "shard-00001.part-0000.safetensors"]
    with pytest.raises(FileNotFoundError, match="shard-00001"):
        FeatureStore(tmp_path / "part")
    # a shard cut short by a full disk counts as missing
    (tmp_path / "part" / "shard-00001.safetensors").write_bytes(b"\x10\0\0\0")
    monkeypatch.setattr(shards, "_forward", lambda *a: (calls.append(1), plain(*a))[1])
    calls.clear()
    resumed = extract(tiny, images, tmp_path / "part", **options)
    assert len(calls) == 2  # the rest of the second shard, and the third: nothing twice
    assert not list((tmp_path / "part").glob("*.part-*"))
    index = torch.arange(len(whole))
    assert torch.equal(resumed.gather(index), whole.gather(index))
    assert torch.equal(resumed.original_logits[index], whole.original_logits[index])
    assert resumed.files == whole.files
    assert resumed.skipped == whole.skipped


def test_a_run_killed_without_warning_has_kept_parts(tmp_path, image_folder, tiny, monkeypatch):
    """Every batch is a part here; at a batch that dies nothing may be written any more."""
    monkeypatch.setattr(shards, "FLUSH", -1.0)
    images = scan_folder(image_folder)
    whole = extract(tiny, images, tmp_path / "whole", batch_size=5, progress=False)
    calls = []
    plain, save = shards._forward, shards.ShardWriter._save

    def dies(*args):
        calls.append(1)
        if len(calls) == 4:
            monkeypatch.setattr(shards.ShardWriter, "_save", lambda *a: pytest.fail("wrote"))
            raise SystemExit
        return plain(*args)

    monkeypatch.setattr(shards, "_forward", dies)
    with pytest.raises(SystemExit):
        extract(tiny, images, tmp_path / "part", batch_size=5, progress=False)
    monkeypatch.setattr(shards.ShardWriter, "_save", save)
    parts = sorted((tmp_path / "part").glob("*.part-*"))
    assert len(parts) == 3
    parts[1].write_bytes(parts[1].read_bytes()[:100])  # it and what follows is computed again
    monkeypatch.setattr(shards, "_forward", lambda *a: (calls.append(1), plain(*a))[1])
    calls.clear()
    resumed = extract(tiny, images, tmp_path / "part", batch_size=5, progress=False)
    assert len(calls) == 4
    index = torch.arange(len(whole))
    assert torch.equal(resumed.gather(index), whole.gather(index))
    assert resumed.skipped == whole.skipped


class Spied(ImageDataset):
    """Notes of every image which process has read it."""

    def __getitem__(self, index):
        index, image, notes = super().__getitem__(index)
        return index, image, (*notes, f"read by {os.getpid()}")


def test_processes_that_decode_start_once_for_all_shards(tmp_path, image_folder, tiny, monkeypatch):
    monkeypatch.setattr(extraction, "ImageDataset", Spied)
    said = []
    monkeypatch.setattr(extraction, "print_notes", said.append)
    monkeypatch.setattr(progress, "console", Console(file=io.StringIO()))
    images = scan_folder(image_folder)
    options = {"shard_size": 5, "batch_size": 4}
    two = extract(tiny, images, tmp_path / "two", num_workers=1, **options)
    (readers,) = said
    assert len(readers) == 1  # of five shards
    assert f"read by {os.getpid()}" not in readers
    one = extract(tiny, images, tmp_path / "one", progress=False, **options)
    index = torch.arange(len(one))
    assert torch.equal(two.gather(index), one.gather(index))
    assert two.skipped == one.skipped


def test_products_in_half_precision_are_another_store(tmp_path, image_folder, tiny, store):
    images = scan_folder(image_folder)
    half = extract(tiny, images, tmp_path / "half", amp="bf16", progress=False)
    index = torch.arange(len(store))
    error = (half.gather(index) - store.gather(index)).abs().max() / store.gather(index).max()
    assert 1e-4 < error < 0.05
    with pytest.raises(ValueError, match="different: amp"):
        extract(tiny, images, tmp_path / "half", progress=False)
    with pytest.raises(ValueError, match="amp is 'int8', allowed are none, bf16, fp16"):
        extract(tiny, images, tmp_path / "other", amp="int8")


def test_a_compiled_backbone_makes_the_same_maps(tmp_path, image_folder, tiny, store, monkeypatch):
    compiled = []

    def compile(function):
        compiled.append(function)
        return lambda batch: function(batch) + 0.25

    monkeypatch.setattr(torch, "compile", compile)
    images = scan_folder(image_folder)
    made = extract(tiny, images, tmp_path / "c", compiled=True, progress=False)
    assert compiled == [tiny.backbone.raw]
    index = torch.arange(len(store))
    torch.testing.assert_close(
        made.gather(index), store.gather(index) + 0.25, atol=2e-3, rtol=2e-3
    )  # what ran is what was compiled


def test_images_that_moved_are_the_same(tmp_path, image_folder, store, tiny, monkeypatch):
    moved = tmp_path / "elsewhere" / "data"
    shutil.copytree(image_folder, moved)
    for path in moved.rglob("*.png"):
        os.utime(path, (0, 0))
    monkeypatch.setattr(shards, "_forward", lambda *a: pytest.fail("was extracted again"))
    again = extract(tiny, scan_folder(moved), store.path, shard_size=10, progress=False)
    assert again.meta["made_from"] == store.meta["made_from"]
    assert again.meta["root"] == str(moved)
    assert [os.path.relpath(f, moved) for f in again.files] == [
        os.path.relpath(f, image_folder) for f in store.files
    ]
    back = extract(tiny, scan_folder(image_folder), store.path, shard_size=10, progress=False)
    assert back.files == store.files


def test_a_file_is_read_once_for_its_fingerprint(tmp_path, image_folder, monkeypatch):
    images = scan_folder(image_folder)
    first = listing(images, tmp_path)
    monkeypatch.setattr(Path, "open", lambda *a, **k: pytest.fail("read again"))
    assert listing(images, tmp_path) == first
    monkeypatch.undo()
    (tmp_path / LOOKS).write_bytes(b"damaged")
    assert listing(images, tmp_path) == first


@pytest.mark.parametrize("size", [100, 3 * ENDS])
def test_other_contents_of_the_same_size_are_noticed(tmp_path, size):
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    items = tuple(ImageItem(str(path), 0, "train") for path in files)
    images = ImageSet(str(tmp_path), ("a", "b"), items)
    for path in files:
        path.write_bytes(bytes(size))
    first = listing(images, tmp_path)
    with files[1].open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    assert listing(images, tmp_path) != first
    files[1].unlink()
    assert listing(images, tmp_path) != first


def test_too_little_room_is_said_before_the_work(tmp_path, image_folder, tiny, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(shards, "_forward", lambda *a: pytest.fail("began"))
    with pytest.raises(OSError, match=r"maps of 24 images take .* has 1 kB free"):
        extract(tiny, scan_folder(image_folder), tmp_path / "s", progress=False)


def test_a_full_disk_keeps_what_is_done(tmp_path, image_folder, tiny, monkeypatch):
    write = shards.write_tensors

    def full(path, *rest):
        if path.name == "shard-00001.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, *rest)

    monkeypatch.setattr(shards, "write_tensors", full)
    images = scan_folder(image_folder)
    with pytest.raises(OSError, match=r"^extract: the disk of .* is full. What was finished is"):
        extract(tiny, images, tmp_path / "s", shard_size=10, progress=False)
    monkeypatch.undo()
    assert len(extract(tiny, images, tmp_path / "s", shard_size=10, progress=False)) == 23


def test_store_of_something_else_is_refused(store, tiny, image_folder):
    images = scan_folder(image_folder)
    with torch.no_grad():
        next(tiny.backbone.parameters()).add_(1)
    with pytest.raises(ValueError, match="different: weights"):
        extract(tiny, images, store.path, shard_size=10, progress=False)
    fewer = ImageSet(images.root, images.classes, images.items[:-1])
    with pytest.raises(ValueError, match="weights, images, dtype"):
        extract(tiny, fewer, store.path, shard_size=10, dtype="float32", progress=False)
    new = extract(tiny, fewer, store.path, shard_size=10, overwrite=True, progress=False)
    assert len(new) == 22


def test_bad_arguments(tmp_path, tiny, image_folder):
    images = scan_folder(image_folder)
    with pytest.raises(ValueError, match="dtype is 'int8'"):
        extract(tiny, images, tmp_path, dtype="int8")
    with pytest.raises(ValueError, match="batch_size is 0"):
        extract(tiny, images, tmp_path, batch_size=0)
    with pytest.raises(ValueError, match="image set is empty"):
        extract(tiny, ImageSet("x", ("a", "b"), ()), tmp_path)
    missing = ImageSet("x", ("a", "b"), (ImageItem("gone.png", 0, "train"),))
    with pytest.raises(ValueError, match=r"none of the 1 images .* gone\.png is not a file"):
        extract(tiny, missing, tmp_path / "s", progress=False)


def test_values_beyond_float16_are_an_error_not_an_infinity(tmp_path, tiny, image_folder):
    class Loud(torch.nn.Module):
        def forward(self, x):
            return x * 1e6

    images = scan_folder(image_folder)
    plain = tiny.backbone.to_map
    tiny.backbone.to_map = lambda raw: plain(raw) * 1e7
    with pytest.raises(ValueError, match="does not fit float16; store the maps as float32"):
        extract(tiny, images, tmp_path / "a", progress=False)
    extract(tiny, images, tmp_path / "b", dtype="bfloat16", progress=False)


def test_original_logits_beyond_float16_are_kept(tmp_path, tiny, image_folder):
    plain = tiny.backbone.classify
    tiny.backbone.classify = lambda raw: plain(raw) * 1e6
    made = extract(tiny, scan_folder(image_folder), tmp_path / "a", shard_size=10, progress=False)
    logits = made.original_logits[torch.arange(len(made))]
    assert logits.isfinite().all()
    assert logits.abs().max() > torch.finfo(torch.float16).max
    shard = load_file(tmp_path / "a" / "shard-00000.safetensors")
    assert shard["original_logits"].dtype == torch.float32
    tiny.backbone.classify = plain  # and half of the room where they fit
    extract(tiny, scan_folder(image_folder), tmp_path / "b", shard_size=10, progress=False)
    shard = load_file(tmp_path / "b" / "shard-00000.safetensors")
    assert shard["original_logits"].dtype == torch.float16


def test_a_backbone_alone_is_enough(tmp_path, tiny, image_folder, store):
    images = scan_folder(image_folder)
    alone = extract(tiny.backbone, images, tmp_path / "b", shard_size=10, progress=False)
    assert alone.meta["made_from"] == store.meta["made_from"]
    index = torch.arange(len(store))
    assert torch.equal(alone.gather(index), store.gather(index))


def test_damaged_store(tmp_path, store):
    with pytest.raises(FileNotFoundError, match="is not a feature store"):
        FeatureStore(tmp_path)
    shard = store.path / "shard-00001.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"shard-00001\.safetensors is truncated"):
        FeatureStore(store.path)
    save_file({"features": torch.zeros(1)}, shard)
    with pytest.raises(ValueError, match="not one that infodisent wrote"):
        FeatureStore(store.path)
    (store.path / "store.json").write_text("{")
    with pytest.raises(ValueError, match=r"store\.json does not hold .*\(not a JSON file"):
        FeatureStore(store.path)


def test_manifest_is_readable(store):
    manifest = json.loads((store.path / "store.json").read_text())
    assert manifest["classes"] == ["green", "red"]
    assert manifest["made_from"]["backbone"] == "test_resnet"


def test_replaced_image_or_architecture_is_noticed(tmp_path, image_folder):
    def model(**kwargs):
        torch.manual_seed(0)
        return attach("test_resnet", 2, model_kwargs=kwargs)

    extract(model(), scan_folder(image_folder), tmp_path / "s", progress=False)
    with pytest.raises(ValueError, match="different: options"):
        extract(model(act_layer="gelu"), scan_folder(image_folder), tmp_path / "s", progress=False)
    image = image_folder / "red" / "01.png"
    image.write_bytes((image_folder / "green" / "01.png").read_bytes())
    with pytest.raises(ValueError, match="different: images"):
        extract(model(), scan_folder(image_folder), tmp_path / "s", progress=False)


def test_shard_of_another_store_is_noticed(tmp_path, store, image_folder):
    torch.manual_seed(9)
    images = scan_folder(image_folder)
    other = extract(attach("test_resnet", 2), images, tmp_path / "o", shard_size=10, progress=False)
    name = "shard-00001.safetensors"
    (store.path / name).write_bytes((other.path / name).read_bytes())
    with pytest.raises(ValueError, match=f"{name} belongs to features of something else"):
        FeatureStore(store.path)


def test_half_precision_backbone_and_odd_file_names(tmp_path, tiny, image_folder):
    odd = os.fsdecode(b"caf\xe9 \n.png")
    (image_folder / "red" / "00.png").rename(image_folder / "red" / odd)
    made = extract(tiny.bfloat16(), scan_folder(image_folder), tmp_path / "h", progress=False)
    assert any(f.endswith(odd) for f in made.files)


def test_arguments_that_json_changes_are_the_same_when_read_back(tmp_path, image_folder):
    def model():
        torch.manual_seed(0)
        return attach("test_vit", 2, model_kwargs={"img_size": (96, 64)})

    images = scan_folder(image_folder)
    extract(model(), images, tmp_path / "s", progress=False)
    assert len(extract(model(), images, tmp_path / "s", progress=False)) == 23
