"""Frozen means parameters, not graph: what trains, what stays in eval mode, what has a gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import infodisent
from infodisent.backbones.torchvision_import import ensure_torchvision

ensure_torchvision()
from tests.backbones.models import images  # noqa: E402


def trained(model: Any) -> set[str]:
    return {n for n, p in model.backbone.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_gradients_of_the_image_flow_through_a_frozen_backbone(name: str) -> None:
    model = infodisent.attach(name, 3).eval()
    side = 160 if name == "test_vit" else 64
    x = images(side, 1).requires_grad_()
    model(x)[0, 1].backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.backbone.parameters())
    y = images(side, 1).requires_grad_()
    (grad,) = torch.autograd.grad(model.original_logits(y)[0, 1], y)
    assert grad.abs().sum() > 0
    eps = 1e-3  # the gradient is that of the logit, not merely some
    step = x.grad / x.grad.norm()
    with torch.no_grad():
        slope = (model.double()(x.double() + eps * step) - model(x.double() - eps * step))[0, 1]
    torch.testing.assert_close(slope.float() / (2 * eps), x.grad.norm(), rtol=0.05, atol=1e-6)


def test_no_graph_where_nothing_asks_for_a_gradient() -> None:
    model = infodisent.attach("test_resnet", 3)
    features = model.forward_features(images(64))
    assert features.grad_fn is None
    model(images(64)).sum().backward()


def test_a_hook_on_a_frozen_layer_gets_a_gradient() -> None:
    model = infodisent.attach("test_resnet", 3).eval()
    seen: list[Tensor] = []
    handle = model.backbone.model.layer4.register_forward_hook(lambda m, i, o: seen.append(o))
    logit = model(images(64, 1))[0, 0]
    (grad,) = torch.autograd.grad(logit, seen[0])
    assert grad.abs().sum() > 0
    with torch.no_grad():
        model(images(64, 1))
    assert seen[1].grad_fn is None
    handle.remove()
    assert model.forward_features(images(64)).grad_fn is None


def test_unfreezing_the_last_stages() -> None:
    model = infodisent.attach("test_resnet", 3)
    backbone = model.backbone
    assert list(backbone.stages()) == ["conv1", "layer1.0", "layer2.0", "layer3.0", "layer4.0"]
    assert backbone.unfreeze(last=1) is backbone
    assert trained(model) == set(backbone.stages()["layer4.0"])
    assert not backbone.frozen
    model.train()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    assert backbone.model.layer4[0].bn1.training
    assert not any(m.training for m in backbone.model.layer3.modules())
    model(images(64, 4)).logsumexp(1).sum().backward()
    for name, parameter in backbone.model.named_parameters():
        assert (parameter.grad is not None) == (name in trained(model)), name
    changed = {k for k, v in backbone.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert all(".layer4." in k for k in changed)  # statistics of the frozen part stay
    assert backbone.freeze().frozen
    assert not any(m.training for m in model.train().backbone.modules())


def test_all_and_more_stages_than_there_are() -> None:
    model = infodisent.attach("torchvision/shufflenet_v2_x0_5", 3)
    model.backbone.unfreeze()
    assert trained(model) == set(model.backbone.map_parameters())
    assert "fc.weight" not in trained(model)  # the map does not need it: DDP would complain
    model.backbone.frozen = True
    assert not trained(model)
    model.backbone.frozen = False
    assert trained(model)
    for last in (0, 99, -1, True, "some"):
        with pytest.raises(ValueError, match=r"allowed are 'all' and 1 to 5: .*stage4, conv5"):
            model.backbone.unfreeze(last=last)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("test_vit", 7),
        ("test_convnext", 5),
        ("test_efficientnet", 6),
        ("torchvision/shufflenet_v2_x0_5", 5),
    ],
)
def test_stages_cover_the_map_and_nothing_else(name: str, count: int) -> None:
    backbone = infodisent.attach(name, 3).backbone
    stages = backbone.stages()
    assert len(stages) == count, list(stages)
    names = [n for group in stages.values() for n in group]
    assert len(names) == len(set(names))
    assert set(names) == set(backbone.map_parameters())


def test_parameters_set_by_hand_are_obeyed() -> None:
    model = infodisent.attach("test_resnet", 3)
    model.backbone.model.layer4.requires_grad_(True)
    assert not model.backbone.frozen
    model.train()
    model(images(64, 4)).sum().backward()
    assert all(p.grad is not None for p in model.backbone.model.layer4.parameters())
    assert not model.backbone.model.bn1.training if hasattr(model.backbone.model, "bn1") else True
    model.requires_grad_(False)
    assert model.backbone.frozen


def test_the_state_of_freezing_is_saved(tmp_path: Any) -> None:
    model = infodisent.attach("test_resnet", 3)
    model.backbone.unfreeze(last=2)
    infodisent.save(tmp_path / "m.safetensors", model)
    assert not infodisent.load(tmp_path / "m.safetensors").model.backbone.frozen
    model.backbone.freeze()
    infodisent.save(tmp_path / "m.safetensors", model)
    assert infodisent.load(tmp_path / "m.safetensors").model.backbone.frozen


def test_batch_norms_without_parameters_follow_their_block() -> None:
    block = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False))
    net = nn.Sequential(block, nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, affine=False)))
    with pytest.warns(UserWarning, match="opens again only"):
        model = infodisent.attach(net, 3, features="")
    model.backbone.unfreeze(last=1)
    model.train()
    assert not model.backbone.model[0][1].training
    assert model.backbone.model[1][1].training
