"""Checkpoints: rebuilt models are the same, damaged files say so, nothing is unpickled."""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess

import pytest
import torch

import infodisent
from infodisent.files import read_tensors, reading, replacing, sweep, write_tensors


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [("test_resnet", {}), ("test_vit", {"img_size": 96}), ("torchvision/shufflenet_v2_x0_5", {})],
)
def test_round_trip(tmp_path, name, kwargs):
    model = infodisent.attach(name, 3, model_kwargs=kwargs, nonneg="softplus", bias=True).eval()
    torch.nn.init.normal_(model.head.rotation.A, std=0.05)
    path = tmp_path / "model.safetensors"
    infodisent.save(path, model, ["a", "b", "c"], info={"note": 1})
    loaded = infodisent.load(path)
    assert loaded.classes == ("a", "b", "c")
    assert loaded.info == {"note": 1}
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(x), model(x))
        torch.testing.assert_close(loaded.model.original_logits(x), model.original_logits(x))
    assert not loaded.model.training


def test_module_of_unknown_origin(tmp_path):
    import timm

    build = lambda: timm.create_model("test_resnet", num_classes=7)  # noqa: E731
    model = infodisent.attach(build(), 3).eval()
    path = tmp_path / "model.safetensors"
    infodisent.save(path, model)
    if model.spec["name"] is None:
        with pytest.raises(ValueError, match="module="):
            infodisent.load(path)
    loaded = infodisent.load(path, module=build())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(x), model(x))
    with pytest.raises(ValueError, match="does not fit"):
        infodisent.load(path, module=timm.create_model("test_vit"))


def test_damaged_and_foreign_files(tmp_path, tiny):
    path = tmp_path / "model.safetensors"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        infodisent.load(path)
    with pytest.raises(FileNotFoundError, match="is not a file"):
        infodisent.load(tmp_path)
    infodisent.save(path, tiny)
    content = path.read_bytes()
    for cut in (0, 4, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(ValueError, match="truncated or not a safetensors file"):
            infodisent.load(path)
    write_tensors(path, {"x": torch.zeros(1)}, {"kind": "training"})
    with pytest.raises(ValueError, match="not a model checkpoint"):
        infodisent.load(path)
    with pytest.raises(ValueError, match="3 class names were given for 2 classes"):
        infodisent.save(path, tiny, ["a", "b", "c"])


def test_no_pickle_is_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="not a safetensors file"):
        infodisent.load(path)


def test_writing_is_all_or_nothing(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="disk"):  # noqa: PT012
        with replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError("disk")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.bin"]


def test_what_killed_processes_had_begun_is_swept_away(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    with replacing(tmp_path / "x.bin") as temporary:
        running = temporary.name
        assert f"-{os.getpid()}-" in running
        left = [
            running.replace(f"-{os.getpid()}-", f"-{ended.pid}-"),
            f".x.bin.00000000-{ended.pid}-abc.bin",  # of another machine
            ".x.bin",
        ]
        for name in left:
            (tmp_path / name).touch()
        sweep(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {running, *left[1:]}


def test_tied_weights_can_be_stored(tmp_path):
    shared = torch.arange(6.0)
    write_tensors(tmp_path / "t.safetensors", {"a": shared, "b": shared[:3]})
    tensors, _ = read_tensors(tmp_path / "t.safetensors")
    assert torch.equal(tensors["a"], shared)
    assert torch.equal(tensors["b"], shared[:3])


def test_head_replaced_after_attach_and_dtype_survive(tmp_path, tiny):
    from infodisent.training.fit import new_head

    tiny.head = new_head(tiny.num_features, 2, 0, tiny.head, nonneg="abs").double()
    tiny.double().eval()
    torch.nn.init.normal_(tiny.head.fc.weight)
    infodisent.save(tmp_path / "m.safetensors", tiny)
    model = infodisent.load(tmp_path / "m.safetensors").model
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(model(x), tiny(x))


def test_a_library_that_cannot_be_imported_is_no_damaged_file(tmp_path, monkeypatch):
    (tmp_path / "an_unfit_library.py").write_text("import json\njson.nothing\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(AttributeError, match="nothing"), reading("m.safetensors"):
        importlib.import_module("an_unfit_library")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.pop("spec"), "does not hold what it should"),
        (lambda m: m.update(spec=[]), "does not hold what it should"),
        (lambda m: m.update(classes=None), "does not hold what it should"),
        (lambda m: m.update(classes=["a", "b", "c"]), "names 3 classes for 2 outputs"),
        (lambda m: m["spec"].update(name="hf-hub:foo/bar"), "asks for hf-hub:foo/bar"),
        (lambda m: m["spec"]["head_options"].update(pretrained=True), "asks for pretrained"),
        (lambda m: m["spec"]["model_kwargs"].update(checkpoint_path="x"), "checkpoint_path"),
        (lambda m: m.update(format=99), "update infodisent"),
    ],
)
def test_edited_metadata(tmp_path, tiny, edit, message):
    path = tmp_path / "m.safetensors"
    infodisent.save(path, tiny)
    tensors, metadata = read_tensors(path)
    edit(metadata)
    write_tensors(path, {k: v.clone() for k, v in tensors.items()}, metadata)
    with pytest.raises(ValueError, match=message):
        infodisent.load(path)
