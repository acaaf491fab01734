"""Whatever was attached and saved opens again, or it is said beforehand what it takes."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import infodisent
from infodisent.backbones.torchvision_import import ensure_torchvision
from infodisent.cli import app as cli
from infodisent.files import read_tensors, write_tensors
from infodisent.progress import console
from infodisent.training.folder import open_run
from infodisent.training.run import evaluate_run

ensure_torchvision()
import timm  # noqa: E402
import torchvision  # noqa: E402


def randomised(net: nn.Module) -> nn.Module:
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    return net.eval()


def timm_net(name: str = "test_resnet", **kwargs: Any) -> nn.Module:
    return randomised(timm.create_model(name, **kwargs))


def replaced(**parts: nn.Module) -> nn.Module:
    net = timm_net()
    for name, part in parts.items():
        setattr(net, name, part)
    return randomised(net)


BUILT = {
    "own classifier": lambda: timm_net(num_classes=7),
    "no classifier": lambda: timm_net(num_classes=0),
    "no classifier, no pool": lambda: timm_net(num_classes=0, global_pool=""),
    "grey": lambda: timm_net(in_chans=1, num_classes=3),
    "image size": lambda: timm_net("test_vit", img_size=96, num_classes=3),
    "pool": lambda: timm_net("test_vit", global_pool="avg"),
    "stochastic depth": lambda: timm_net(drop_rate=0.2, drop_path_rate=0.1),
    "layer replaced": lambda: replaced(fc=nn.Linear(96, 4)),
    "layer removed": lambda: replaced(fc=nn.Identity()),
    "torchvision": lambda: randomised(torchvision.models.shufflenet_v2_x0_5(num_classes=4)),
    "in parallel": lambda: nn.DataParallel(timm_net(num_classes=7)),
}


@pytest.mark.parametrize("kind", BUILT)
def test_modules_open_again(tmp_path: Path, kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none is said to need module=
        model = infodisent.attach(BUILT[kind](), 3).eval()
    infodisent.save(tmp_path / "m.safetensors", model)
    again = infodisent.load(tmp_path / "m.safetensors").model
    backbone = model.backbone
    x = torch.randn(2, backbone.in_chans, *backbone.image_size)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
        if backbone.num_classes:
            assert torch.equal(again.original_logits(x), model.original_logits(x))
    assert again.backbone.num_classes == backbone.num_classes


CHANGED = {
    "activation": lambda: replaced(layer2=nn.Sequential(timm_net().layer2, nn.GELU())),
    "heads": lambda: timm_net("test_vit", num_heads=4),
    "depth": lambda: timm_net("test_vit", depth=2),
    "MLP": lambda: replaced(fc=nn.Sequential(nn.Linear(96, 8), nn.Linear(8, 4))),
    "stride": lambda: timm_net(output_stride=16),
}


@pytest.mark.parametrize("kind", CHANGED)
def test_what_no_name_builds_is_said_when_attached(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(1)
    net = CHANGED[kind]()
    with pytest.warns(UserWarning, match=r"attach: what builds timm\S+ is not known, .*--module"):
        model = infodisent.attach(net, 3).eval()
    infodisent.save(tmp_path / "m.safetensors", model)
    with pytest.raises(ValueError, match=r"does not say what builds it: pass .*module=.*--module"):
        infodisent.load(tmp_path / "m.safetensors")
    again = infodisent.load(tmp_path / "m.safetensors", module=CHANGED[kind]()).model
    x = torch.randn(1, 3, *model.backbone.image_size)
    assert torch.equal(again(x), model(x))


def test_attributes_replaced_on_an_instance_are_noticed() -> None:
    net = timm_net()
    net.forward = lambda x: x
    with pytest.warns(UserWarning, match="opens again only"):
        infodisent.attach(net, 3)


def hub_folder(folder: Path) -> Path:
    """What timm's users push to the hub."""
    folder.mkdir()
    net = timm_net(num_classes=7)
    save_file(net.state_dict(), folder / "model.safetensors")
    keys = ("interpolation", "crop_pct", "pool_size", "first_conv", "classifier")
    cfg = {k: v for k, v in net.pretrained_cfg.items() if k in keys}
    cfg |= {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "num_classes": 7}
    config = {"architecture": "test_resnet", "num_classes": 7, "pretrained_cfg": cfg}
    config["pretrained_cfg"]["input_size"] = [3, 64, 64]
    config["pretrained_cfg"]["label_names"] = list("abcdefg")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_names_that_lead_elsewhere(tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "hub")
    model = infodisent.attach(f"local-dir:{folder}", 3, pretrained=True).eval()
    assert model.backbone.class_names == tuple("abcdefg")
    infodisent.save(tmp_path / "m.safetensors", model)
    folder.rename(tmp_path / "gone")
    loaded = infodisent.load(tmp_path / "m.safetensors")
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(loaded.model(x), model(x))
    assert torch.equal(loaded.model.original_logits(x), model.original_logits(x))
    for cfg in (loaded.transform, loaded.model.pretrained_cfg):  # of the hub's, not of the name's
        assert tuple(cfg["mean"]) == (0.1, 0.2, 0.3)
        assert tuple(cfg["input_size"]) == (3, 64, 64)
    assert loaded.model.backbone.class_names == tuple("abcdefg")
    with pytest.raises(ValueError, match="could not be loaded: "):
        infodisent.attach(f"local-dir:{folder}", 3, pretrained=True)


def test_overlays(tmp_path: Path) -> None:
    overlay = {"num_classes": 9, "mean": (0.5, 0.5, 0.5), "input_size": (3, 96, 96)}
    model = infodisent.attach("test_resnet", 3, model_kwargs={"pretrained_cfg_overlay": overlay})
    infodisent.save(tmp_path / "m.safetensors", model.eval())
    again = infodisent.load(tmp_path / "m.safetensors").model
    assert again.backbone.num_classes == 9
    assert again.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
    assert not again.backbone.trained


class Own(nn.Module):
    """Somebody's network."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, 4), nn.ReLU(), nn.Conv2d(width, 8, 3, 4))
        self.fc = nn.Linear(8, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(x).mean((2, 3)))


@pytest.mark.filterwarnings("ignore:attach. .*(what builds|normalised)")
def test_adapters(tmp_path: Path) -> None:
    path, x = tmp_path / "m.safetensors", torch.randn(1, 3, 64, 64)
    model = infodisent.attach(Own(), 3, features="body").eval()
    infodisent.save(path, model)  # how to read it is written down
    assert torch.equal(infodisent.load(path, module=Own()).model(x), model(x))
    told = {"features": lambda m, x: m.body(x), "logits": lambda m, f: m.fc(f.mean((2, 3)))}
    model = infodisent.attach(Own(), 3, **told).eval()
    infodisent.save(path, model)
    with pytest.raises(ValueError, match="Say where its map is"):
        infodisent.load(path, module=Own())
    for again in (infodisent.attach(Own(), **told), infodisent.attach(Own(), **told).backbone):
        loaded = infodisent.load(path, module=again).model
        assert torch.equal(loaded(x), model(x))
        assert torch.equal(loaded.original_logits(x), model.original_logits(x))
    with pytest.raises(
        ValueError, match=r"does not fit \w+: .*tensors of other shapes.*the model has"
    ):
        infodisent.load(path, module=infodisent.attach(Own(width=5), **told))


def test_arguments_in_another_order(tmp_path: Path) -> None:
    model = infodisent.attach("test_resnet", 3)
    path = tmp_path / "m.safetensors"
    with pytest.raises(TypeError, match=r"write save\(path, model\)"):
        infodisent.save(model, path)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"a \w*Path and a ResNet; write save\(path, model\)"):
        infodisent.save(path, model.backbone.model)  # type: ignore[arg-type]
    infodisent.save(path, model)
    with pytest.raises(TypeError, match="load: path is a InfoDisentClassifier"):
        infodisent.load(model)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"module is a str, must be an nn\.Module"):
        infodisent.load(path, module="resnet18")  # type: ignore[arg-type]


def test_another_width_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    infodisent.save(path, infodisent.attach("test_resnet", 3))
    tensors, metadata = read_tensors(path)
    metadata["spec"]["name"] = "test_resnet.r160_in1k"
    metadata["spec"]["model_kwargs"] = {"channels": (32, 48, 48, 192)}
    write_tensors(path, {k: v.clone() for k, v in tensors.items()}, metadata)
    with pytest.raises(ValueError, match="does not fit") as caught:
        infodisent.load(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


@pytest.fixture
def go(monkeypatch: Any, capsys: Any) -> Any:
    def run(*arguments: Any) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["infodisent", *map(str, arguments)])
        monkeypatch.setattr(console, "_file", sys.stdout)
        monkeypatch.setattr(console, "_width", 300)
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


NET = """
import torch
from torch import nn
from infodisent import attach

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 4), nn.ReLU(), nn.Conv2d(8, 8, 3, 4))
        self.fc = nn.Linear(8, 7)
    def forward(self, x):
        return self.fc(self.body(x).mean((2, 3)))

def build():
    torch.manual_seed(0)
    return attach(Net(), features=lambda m, x: m.body(x), logits=lambda m, f: m.fc(f.mean((2, 3))))

def nothing():
    return 3
"""


def test_every_command_takes_a_module(tmp_path: Path, image_folder: Path, go: Any) -> None:
    (tmp_path / "net.py").write_text(NET)
    own, out = f"{tmp_path}/net.py:build", tmp_path / "run"
    options = ("--epochs", 1, "--batch-size", 8, "--out", out)
    code, text = go("fit", image_folder, "--module", own, *options)
    assert code == 0, text
    assert "note: attach: what builds" in text
    assert "note: attach: _user_net.Net does not say how its images are normalised" in text
    assert text.index("opens again only with") < text.index("held-out images")
    code, text = go("evaluate", "--run", out)
    assert code == 2
    assert "--module file.py:function" in text
    image = next((image_folder / "red").glob("*.png"))
    for command in (
        ("evaluate", "--run", out),
        ("explain", image, "--run", out, "--out", tmp_path / "why"),
        ("prototypes", "--run", out),
    ):
        code, text = go(*command, "--module", own)
        assert code == 0, text
    module = infodisent.attach(Own(), 3, features="body")
    assert open_run(out, module=module)[0].model.num_features == 8
    assert evaluate_run(out, module=module)["rows"]
    for given, message in [
        (f"{tmp_path}/net.py", "must be FILE.py:FUNCTION"),
        (f"{tmp_path}/none.py:build", "does not exist"),
        (f"{tmp_path}/net.py:make", "has no function 'make'; it has"),
        (f"{tmp_path}/net.py:nothing", "returns a int, not an nn.Module"),
    ]:
        code, text = go("evaluate", "--run", out, "--module", given)
        assert code == 2, text
        assert message in text


def test_a_run_of_a_hub_folder(tmp_path: Path, image_folder: Path, go: Any) -> None:
    folder = hub_folder(tmp_path / "hub")
    out = tmp_path / "run"
    options = ("--epochs", 1, "--batch-size", 8, "--out", out)
    code, text = go("fit", image_folder, "--backbone", f"local-dir:{folder}", *options)
    assert code == 0, text
    folder.rename(tmp_path / "gone")
    code, text = go("evaluate", "--run", out)
    assert code == 0, text
    code, text = go("fit", image_folder, "--weights", "net.jpg", *options, "--overwrite")
    assert code == 2
    assert "net.jpg is not a file" in text
