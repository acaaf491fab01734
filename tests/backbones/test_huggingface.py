"""Image classifiers of transformers: read, proved, saved and opened again without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import infodisent
from infodisent.backbones.torchvision_import import ensure_torchvision
from infodisent.files import read_tensors, write_tensors

ensure_torchvision()
transformers = pytest.importorskip("transformers", reason="pip install 'infodisent[hf]'")
pytestmark = pytest.mark.filterwarnings("ignore:attach. .*(what builds|normalised)")

VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
VIT |= {"image_size": 64, "num_labels": 5}
STAGED = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_labels": 5}
SWIN = {"image_size": 64, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
FAMILIES: dict[str, tuple[dict[str, Any], str, int, tuple[int, int]]] = {
    "ViT": (VIT, "NLC", 1, (4, 4)),
    "DeiT": (VIT, "NLC", 2, (4, 4)),
    "Beit": (VIT, "NLC", 1, (4, 4)),
    "Dinov2": ({**VIT, "image_size": 56, "patch_size": 14}, "NLC", 1, (4, 4)),
    "Dinov2WithRegisters": (
        {**VIT, "image_size": 56, "patch_size": 14, "num_register_tokens": 4},
        "NLC",
        5,
        (4, 4),
    ),
    "Swin": ({**SWIN, "num_labels": 5}, "NLC", 0, (8, 8)),
    "ResNet": ({**STAGED, "embedding_size": 8, "layer_type": "basic"}, "NCHW", 0, (28, 28)),
    "ConvNext": ({**STAGED, "num_stages": 2, "image_size": 64}, "NCHW", 0, (8, 8)),
}


def build(family: str, **options: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**FAMILIES[family][0], **options})
    net = getattr(transformers, f"{family}ForImageClassification")(config).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return net


def pictures(net: Any) -> torch.Tensor:
    side = getattr(net.config, "image_size", 224)
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_families(tmp_path: Path, family: str) -> None:
    net = build(family)
    _, fmt, prefix, grid = FAMILIES[family]
    model = infodisent.attach(net, 3).eval()
    assert (model.input_fmt, model.num_prefix_tokens) == (fmt, prefix)
    x = pictures(net)
    assert model.grid_size(x.shape[-1]) == grid
    with torch.no_grad():
        torch.testing.assert_close(model.original_logits(x), net(x).logits)
    infodisent.save(tmp_path / "m.safetensors", model)
    again = infodisent.load(tmp_path / "m.safetensors").model
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
        assert torch.equal(again.original_logits(x), model.original_logits(x))
    assert again.pretrained_cfg["mean"] == model.pretrained_cfg["mean"]
    x.requires_grad_()
    assert torch.autograd.grad(model(x).sum(), x)[0].any()
    assert 2 <= len(model.backbone.stages()) <= 4


def test_a_folder_by_name_with_its_own_input_and_labels(tmp_path: Path) -> None:
    net = build("ViT", id2label={i: f"kind {i}" for i in range(5)})
    net.save_pretrained(tmp_path / "net")
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
        "size": {"height": 64, "width": 64},
        "resample": 3,
    }
    (tmp_path / "net" / "preprocessor_config.json").write_text(json.dumps(processor))
    model = infodisent.attach(f"hf/{tmp_path}/net", 3, pretrained=True).eval()
    cfg = model.pretrained_cfg
    assert (cfg["mean"], cfg["std"]) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (cfg["input_size"], cfg["interpolation"]) == ((3, 64, 64), "bicubic")
    assert model.backbone.class_names == tuple(f"kind {i}" for i in range(5))
    assert model.backbone.trained
    assert not infodisent.attach(f"hf/{tmp_path}/net", 3).backbone.trained
    infodisent.save(tmp_path / "m.safetensors", model)
    (tmp_path / "net").rename(tmp_path / "gone")  # nothing of it is read again
    again = infodisent.load(tmp_path / "m.safetensors").model
    with torch.no_grad():
        assert torch.equal(again(pictures(net)), model(pictures(net)))
    assert again.backbone.class_names == model.backbone.class_names
    assert again.pretrained_cfg["mean"] == (0.1, 0.2, 0.3)


def test_weights_of_the_model_without_its_classifier(tmp_path: Path) -> None:
    from infodisent.backbones.weights import load_backbone

    net = build("ViT")
    torch.save(net.vit.state_dict(), tmp_path / "w.bin")
    other = infodisent.attach(build("ViT", num_labels=9), 3).eval()
    torch.nn.init.zeros_(other.backbone.model.vit.embeddings.cls_token)
    report = load_backbone(other, tmp_path / "w.bin")
    assert "prefix 'vit.' added to the names" in str(report)
    assert "no original logits" in str(report)
    with torch.no_grad():
        want = net.base_model(pictures(net)).last_hidden_state
        torch.testing.assert_close(other.forward_features(pictures(net)), want)


def test_a_checkpoint_cannot_make_transformers_fetch(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    infodisent.save(path, infodisent.attach(build("ViT"), 3))
    tensors, metadata = read_tensors(path)
    tensors = {k: v.clone() for k, v in tensors.items()}
    for change, message in [
        ({"model_kwargs": {}}, "asks for vit, which may read"),
        ({"name": "somebody/net", "model_kwargs": {}}, "asks for somebody/net, which may read"),
        ({"model_kwargs": {"config": {"model_type": "vit", "auto_map": {"A": "b"}}}}, "auto_map"),
        ({"model_kwargs": {"config": {"model_type": "timm_wrapper"}}}, "timm_wrapper"),
    ]:
        edited = {**metadata, "spec": {**metadata["spec"], **change}}
        write_tensors(path, tensors, edited)
        with pytest.raises(ValueError, match=message):
            infodisent.load(path)


def test_a_model_that_pools_otherwise_is_told_how() -> None:
    class Odd(transformers.ViTForImageClassification):
        def forward(self, pixel_values: Any, **kwargs: Any) -> Any:
            output = super().forward(pixel_values, **kwargs)
            output.logits = output.logits.square()
            return output

    net = Odd(transformers.ViTConfig(**VIT)).eval()
    with pytest.raises(ValueError, match=r"Odd|attach\(model, K, features="):
        infodisent.attach(net, 3)
    model = infodisent.attach(
        net,
        3,
        features=lambda m, x: m.base_model(x).last_hidden_state,
        logits=lambda m, r: m.classifier(r[:, 0]).square(),
        num_prefix_tokens=1,
    )
    assert model.backbone.num_classes == 5


def test_changed_modules_open_again_or_say_so(tmp_path: Path) -> None:
    net = build("ViT")
    net.classifier = torch.nn.Linear(32, 8)  # as people do, without telling the config
    model = infodisent.attach(net, 3).eval()
    infodisent.save(tmp_path / "m.safetensors", model)
    again = infodisent.load(tmp_path / "m.safetensors").model
    assert again.backbone.num_classes == 8
    assert torch.equal(again(pictures(net)), model(pictures(net)))
    net = build("ResNet")
    net.resnet.encoder.stages[0].layers[0].activation = torch.nn.GELU()
    with pytest.warns(UserWarning, match="opens again only with"):
        assert infodisent.attach(net, 3).spec["name"] is None


def test_an_assumed_normalisation_is_said() -> None:
    with pytest.warns(UserWarning, match=r"normalised: those of vit's image processor are used"):
        model = infodisent.attach(build("ViT"), 3)
    assert model.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
