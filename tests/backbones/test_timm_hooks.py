"""timm's training tools on an attached model: decay, checkpointing, features, another size."""

from __future__ import annotations

import pytest
import torch

from infodisent import attach
from infodisent.methods import METHODS
from infodisent.training import checkpoint


def groups(model, **options):
    """Learning-rate scale and weight decay of every parameter by name."""
    from timm.optim import create_optimizer_v2

    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, **options)
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        names[id(p)]: (group.get("lr_scale"), group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }


@pytest.mark.parametrize("parametrization", ["exp", "lie"])
@pytest.mark.parametrize("nonneg", ["projection", "softplus"])
def test_weight_decay_reaches_no_rotation(parametrization, nonneg):
    model = attach(
        "test_vit", 3, freeze=False, nonneg=nonneg, parametrization=parametrization, bias=True
    )
    for options in ({}, {"layer_decay": 0.75}):
        decay = {name: value[1] for name, value in groups(model, **options).items()}
        assert decay["head.rotation.A"] == 0
        assert decay["head.fc.bias"] == 0
        assert decay["head.fc.weight"] == (0 if nonneg == "softplus" else 0.05)
        assert decay["backbone.model.pos_embed"] == 0  # what the original model says
        assert decay["backbone.model.blocks.0.mlp.fc1.weight"] == 0.05


def test_names_without_weight_decay_are_parameters():
    for method in METHODS:
        model = attach("test_resnet", 2, method=method)
        assert model.head.no_weight_decay() <= dict(model.head.named_parameters()).keys()
    assert attach("test_resnet", 2, rotate=False).head.no_weight_decay() == set()


@pytest.mark.parametrize(
    ("name", "first", "later"),
    [
        ("test_vit", "patch_embed.proj.weight", "blocks.1.mlp.fc1.weight"),
        ("test_resnet", "conv1.0.weight", "layer2.0.conv1.weight"),
        ("torchvision/resnet18", "conv1.weight", "layer2.0.conv1.weight"),
    ],
)
def test_layer_decay_falls_towards_the_image(name, first, later):
    scale = {n: v[0] for n, v in groups(attach(name, 3, freeze=False), layer_decay=0.5).items()}
    assert scale["head.fc.weight"] == scale["head.rotation.A"] == 1
    assert scale[f"backbone.model.{first}"] < scale[f"backbone.model.{later}"] < 1


def test_gradient_checkpointing_gives_the_same_gradients():
    model = attach("test_vit", 3, freeze=False).train()
    x = torch.randn(2, 3, *model.backbone.image_size)

    def gradients():
        model.zero_grad()
        model(x).square().sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain = gradients()
    model.set_grad_checkpointing()
    assert model.backbone.model.grad_checkpointing
    for ours, wanted in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(ours, wanted)
    model.set_grad_checkpointing(False)
    assert not model.backbone.model.grad_checkpointing


def test_intermediate_maps():
    model = attach("test_resnet", 3).eval()
    x = torch.randn(1, 3, 64, 64)
    maps = model.forward_intermediates(x, intermediates_only=True)
    torch.testing.assert_close(maps[-1], model.forward_features(x))
    assert len(model.feature_info) == len(maps)
    other = attach("torchvision/resnet18", 3)
    assert not hasattr(other, "feature_info")
    with pytest.raises(ValueError, match="ResNet has no forward_intermediates"):
        other.forward_intermediates(x)
    with pytest.raises(ValueError, match="ResNet has no set_grad_checkpointing"):
        other.set_grad_checkpointing()


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_another_input_size(tmp_path, name):
    model = attach(name, 3).eval()
    model.set_input_size((64, 96))
    assert model.backbone.image_size == (64, 96)
    assert tuple(model.pretrained_cfg["input_size"]) == (3, 64, 96)
    x = torch.randn(2, 3, 64, 96)
    rows, columns = model.grid_size((64, 96))
    assert columns == rows * 3 // 2
    checkpoint.save(tmp_path / "m.safetensors", model)
    back = checkpoint.load(tmp_path / "m.safetensors")
    assert back.transform["input_size"] == [3, 64, 96]
    assert torch.equal(back.model(x), model(x))


def test_another_input_size_refused():
    model = attach("test_vit", 3)
    with pytest.raises(ValueError, match=r"img_size is \(64, 0\), must be a size"):
        model.set_input_size((64, 0))
    fixed = attach("torchvision/vit_b_32", 3)
    with pytest.raises(ValueError, match="does not take 64 x 64 images"):
        fixed.set_input_size(64)
    assert fixed.backbone.image_size == (224, 224)
    assert fixed.grid_size(224) == (7, 7)  # what was known stays


def test_script_is_refused_in_one_line():
    model = attach("test_resnet", 3)
    for module in (model, model.head, torch.nn.Sequential(model)):
        with pytest.raises(TypeError, match=r"use torch\.export\.export or torch\.jit\.trace"):
            torch.jit.script(module)
