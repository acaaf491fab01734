"""Weights as people have them: wrappers off, the wrong file refused, and nothing half loaded."""

from __future__ import annotations

import argparse
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import infodisent
from infodisent.backbones.torchvision_import import ensure_torchvision
from infodisent.backbones.weights import load_backbone

ensure_torchvision()
import timm  # noqa: E402

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def net(name: str = "test_resnet", **kwargs: Any) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        made = timm.create_model(name, **{"num_classes": 1000, **kwargs}).eval()
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return made


def other() -> dict[str, Tensor]:
    return {k: v + 1 if v.is_floating_point() else v for k, v in net().state_dict().items()}


def prefixed(state: dict[str, Tensor], prefix: str) -> OrderedDict[str, Tensor]:
    return OrderedDict((prefix + k, v) for k, v in state.items())


def optimizer() -> dict[str, Any]:
    return {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}


STATE = net().state_dict()
TORN = {k: v for k, v in STATE.items() if not k.startswith("fc.")}
FILES: dict[str, Any] = {
    "plain": STATE,
    "timm": {
        "epoch": 3,
        "arch": "test_resnet",
        "state_dict": other(),
        "state_dict_ema": STATE,
        "optimizer": optimizer(),
        "args": argparse.Namespace(lr=0.1, data=Path("data")),
        "metric": np.float64(0.7),
    },
    "DDP": prefixed(STATE, "module."),
    "compiled": prefixed(STATE, "_orig_mod."),
    "compiled in DDP": {"model": prefixed(STATE, "module._orig_mod.")},
    "compiled stages": {
        k.replace("layer1.", "layer1._orig_mod.").replace("layer3.0.", "layer3.0._orig_mod."): v
        for k, v in STATE.items()
    },
    "Lightning": {
        "state_dict": prefixed(STATE, "model.") | {"criterion.weight": torch.ones(5)},
        "optimizer_states": [optimizer()],
        "hyper_parameters": {"lr": 0.1},
        "pytorch-lightning_version": "2.0",
    },
    "Lightning, net": {"state_dict": prefixed(STATE, "net.backbone.")},
    "Lightning with EMA": {
        "state_dict": prefixed(other(), "model.") | prefixed(STATE, "ema_model.module.")
    },
    "DINO": {"student": prefixed(other(), "module."), "teacher": prefixed(STATE, "backbone.")},
    "classifier of another name": {
        "model": TORN | {"head.weight": torch.ones(5, 96), "head.bias": torch.ones(5)}
    },
    "other size": TORN | {"fc.weight": torch.ones(5, 96), "fc.bias": torch.ones(5)},
    "no classifier": TORN,
    "half precision": {k: v.half() if v.is_floating_point() else v for k, v in STATE.items()},
    "no counters": {k: v for k, v in STATE.items() if "num_batches" not in k},
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("suffix", [".pth.tar"])
def test_wrappers_are_taken_off(tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save(FILES[kind], path)
    model = infodisent.attach("test_resnet", 3).eval()
    assert not model.backbone.trained
    report = load_backbone(model, path)
    assert model.backbone.trained
    with torch.no_grad():
        want = net().forward_features(IMAGES)
        tolerance = 0.05 if kind == "half precision" else 1e-5
        torch.testing.assert_close(
            model.forward_features(IMAGES), want, rtol=tolerance, atol=tolerance
        )
    assert len(str(report).splitlines()) <= 5
    lost = kind in ("classifier of another name", "other size", "no classifier")
    assert ("no original logits" in str(report)) == lost
    assert model.backbone.num_classes == (0 if lost else 1000)


def test_what_was_left_out_survives_a_checkpoint(tmp_path: Path) -> None:
    torch.save(FILES["other size"], tmp_path / "w.pth")
    model = infodisent.attach("test_resnet", 3).eval()
    report = load_backbone(model, tmp_path / "w.pth")
    assert "fc.weight (5, 96), here (1000, 96)" in str(report)
    infodisent.save(tmp_path / "m.safetensors", model)
    again = infodisent.load(tmp_path / "m.safetensors").model
    assert again.backbone.trained
    with pytest.raises(ValueError, match="no classifier of its own"):
        again.original_logits(IMAGES)


def test_formats(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "w.safetensors")
    torch.save(STATE, tmp_path / "w.bin")
    torch.save(STATE, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    first = infodisent.attach("test_resnet", 3).eval()
    for name in ("w.safetensors", "w.bin", "old.ckpt"):
        model = infodisent.attach("test_resnet", 3).eval()
        report = load_backbone(model, tmp_path / name)
        assert report.matched == report.total == len(STATE)
        assert torch.equal(model.backbone.model.conv1[0].weight, STATE["conv1.0.weight"]), name
    infodisent.save(tmp_path / "m.safetensors", model)
    report = load_backbone(first, tmp_path / "m.safetensors")
    assert "the backbone of an infodisent model" in str(report)
    assert torch.equal(first.original_logits(IMAGES), model.original_logits(IMAGES))


def test_position_embeddings_of_another_size_and_other_channels(tmp_path: Path) -> None:
    torch.save({"model": net("test_vit", img_size=96).state_dict()}, tmp_path / "vit.pth")
    vit = infodisent.attach("test_vit", 3, model_kwargs={"img_size": 160}).eval()
    assert "adapted as timm does" in str(load_backbone(vit, tmp_path / "vit.pth"))
    torch.save(STATE, tmp_path / "rgb.pth")
    grey = infodisent.attach("test_resnet", 3, model_kwargs={"in_chans": 1}).eval()
    assert "conv1.0.weight: adapted from 3 to 1" in str(load_backbone(grey, tmp_path / "rgb.pth"))
    x = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        want = net().forward_features(x.expand(-1, 3, -1, -1))
        torch.testing.assert_close(grey.forward_features(x), want, rtol=1e-4, atol=1e-4)


def test_the_same_layers_under_other_names(tmp_path: Path) -> None:
    renamed = {f"part{i}.{k.rpartition('.')[2]}": v for i, (k, v) in enumerate(STATE.items())}
    torch.save(renamed, tmp_path / "w.pth")
    model = infodisent.attach("test_resnet", 3).eval()
    assert "one to one in order" in str(load_backbone(model, tmp_path / "w.pth"))
    with torch.no_grad():
        assert torch.equal(model.original_logits(IMAGES), net()(IMAGES))
    keys = list(renamed)
    swapped = {k: renamed[k] for k in [*keys[5:], *keys[:5]]}
    torch.save(swapped, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"0 of \d+ names match; the file has part"):
        load_backbone(model, tmp_path / "w.pth")


def _jpeg(path: Path) -> None:
    Image.new("RGB", (8, 8)).save(path, "JPEG")


def _truncated(path: Path) -> None:
    torch.save(STATE, path)
    path.write_bytes(path.read_bytes()[:5000])


def _script(path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(path))


WRONG: dict[str, tuple[Any, str]] = {
    "picture": (_jpeg, "is not a weights file: it is a JPEG picture"),
    "page": (lambda p: p.write_text("<!DOCTYPE html><html>"), r"web page .*begins with '<!DOCTYPE"),
    "text": (lambda p: p.write_text("epoch,loss\n1,2\n"), r"it is text \(it begins with 'epoch"),
    "pointer": (lambda p: p.write_text("version https://git-lfs.x/spec\n"), "Git LFS pointer"),
    "index.json": (lambda p: p.write_text(json.dumps({"weight_map": {}})), "an index of shards"),
    "empty": (lambda p: p.write_bytes(b""), "it is empty"),
    "Keras": (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n"), "an HDF5"),
    "truncated": (_truncated, "truncated or not a PyTorch weights file"),
    "script": (_script, "is a TorchScript archive"),
    "model": (lambda p: torch.save(net(), p), r"holds timm\.\S+, not only tensors"),
    "optimiser": (lambda p: torch.save({"optimizer": optimizer()}, p), "no named tensors"),
    "tensor": (lambda p: torch.save(torch.ones(3), p), "no named tensors, but a Tensor"),
    "other model": (
        lambda p: torch.save(net("test_vit").state_dict(), p),
        r"0 of \d+ names match; the file has cls_token, .* in all\); the model has conv1.0.weight",
    ),
    "part": (
        lambda p: torch.save({k: v for k, v in STATE.items() if "layer4" not in k}, p),
        r"tensors are missing: layer4\.0\.\S+,",
    ),
    "integers": (
        lambda p: torch.save({k: v.to(torch.int8) for k, v in STATE.items()}, p),
        r"another shape or type: conv1\.0\.weight is \(\S+, \d+, \d+, \d+\) int8",
    ),
    "wider": (
        lambda p: torch.save({**STATE, "conv1.0.weight": torch.ones(9, 3, 3, 3)}, p),
        r"conv1\.0\.weight is \(9, 3, 3, 3\) float32, the model has",
    ),
    "NaN": (
        lambda p: torch.save({**STATE, "bn1.bias": STATE["bn1.bias"] * np.nan}, p),
        "holds NaN or Inf: bn1.bias",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_files_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("w.index.json" if kind == "index.json" else "w.pth")
    make, message = WRONG[kind]
    make(path)
    model = infodisent.attach("test_resnet", 3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=message) as caught:
        load_backbone(model, path)
    assert "weights_only=False" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert not model.backbone.trained
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def test_a_deeper_model_is_not_this_one(tmp_path: Path) -> None:
    torch.save(net("test_vit").state_dict(), tmp_path / "w.pth")
    model = infodisent.attach("test_vit", 3, model_kwargs={"depth": 3})
    with pytest.raises(ValueError, match=r"it is of a larger model, with blocks\.3\."):
        load_backbone(model, tmp_path / "w.pth")


def test_a_picture_named_safetensors_and_folders(tmp_path: Path) -> None:
    model = infodisent.attach("test_resnet", 3)
    _jpeg(tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="a JPEG picture"):
        load_backbone(model, tmp_path / "w.safetensors")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        load_backbone(model, tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a file"):
        load_backbone(model, tmp_path / "nothing.pth")


def test_no_code_of_a_file_runs(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (pytest.fail, ("unpickled",))

    torch.save({**STATE, "args": Bomb()}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="would have to run code to be read"):
        load_backbone(infodisent.attach("test_resnet", 3), tmp_path / "w.pth")
