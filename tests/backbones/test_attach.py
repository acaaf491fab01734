"""attach: what it proves, refuses and leaves alone; the families are in test_attach_families."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from infodisent.backbones.torchvision_import import ensure_torchvision

ensure_torchvision()
timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")

from infodisent.backbones.backbone import Backbone  # noqa: E402
from infodisent.backbones.timm import timm_plan  # noqa: E402
from infodisent.backbones.torchvision import torchvision_plan  # noqa: E402
from infodisent.classifier import attach  # noqa: E402
from infodisent.nn import InfoDisentHead  # noqa: E402
from tests.backbones.models import build, images, randomise, same  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Many small models: on a shared machine a second thread waits more than it works."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# What the layout and the plan say is proved: each of these readings is wrong and must be noticed.
WRONG = [
    ("convnext_atto", {}, {"after": ()}),
    ("mobilenetv3_small_050", {}, {"after": ("conv_head", "norm_head")}),
    ("efficientvit_b0", {}, {"before": ()}),
    ("efficientvit_m0", {}, {"after": ()}),
    ("vit_tiny_patch16_224", {"global_pool": "avg", "depth": 1}, {"num_prefix_tokens": 0}),
    ("vit_tiny_patch16_224", {"global_pool": "avg", "depth": 1}, {"num_prefix_tokens": 2}),
    ("vit_tiny_patch16_224", {"global_pool": "avg", "depth": 1}, {"after": ()}),
    ("vit_tiny_patch16_224", {"depth": 1}, {"pool": "avg"}),
    ("vit_tiny_patch16_224", {"depth": 1}, {"input_fmt": "NCHW"}),
    ("deit_tiny_distilled_patch16_224", {"depth": 1}, {"tails": (("head",),)}),
    ("mambaout_femto", {}, {"input_fmt": "NCHW"}),
    ("resnet18", {}, {"input_fmt": "NHWC"}),
]


@pytest.mark.parametrize(("name", "kwargs", "change"), WRONG, ids=lambda v: str(v))
def test_wrong_readings_are_refused(
    name: str, kwargs: dict[str, Any], change: dict[str, Any]
) -> None:
    net = build(name, **kwargs)
    plan = timm_plan(net)
    wrong = dataclasses.replace(plan, **change)
    assert wrong != plan
    Backbone(net, plan)
    with pytest.raises(ValueError, match=type(net).__name__):
        Backbone(net, wrong)


def test_wrong_stage_order_is_noticed() -> None:
    net = torchvision.models.resnet18(weights=None).eval()
    plan = torchvision_plan(net)

    def features(model: Any, x: Tensor) -> Tensor:
        stem = model.relu(model.bn1(model.conv1(x)))  # no maxpool
        return model.layer4(model.layer3(model.layer2(model.layer1(stem))))

    with pytest.raises(ValueError, match="its stages in order is not what the model"):
        Backbone(net, plan, features=features, classifier=lambda m, r: m.fc(r.mean((2, 3))))


@torch.no_grad()
def test_norms_after_the_pool_are_applied_per_pixel() -> None:
    net = build("maxvit_tiny_tf_224", depths=(1, 1, 1, 1))
    model = attach(net, 5)
    raw = model.backbone.raw(images(224, 1))
    norm = net.head.norm
    channels_last = raw.permute(0, 2, 3, 1)
    want = nn.functional.layer_norm(channels_last, (512,), norm.weight, norm.bias, norm.eps)
    same(model.backbone.to_map(raw), want.permute(0, 3, 1, 2), 1e-5)

    net = build("levit_128s")  # two classifiers, each with a batch norm of its own: neither is used
    model = attach(net, 5)
    raw = model.backbone.raw(images(224, 1))
    assert torch.equal(model.backbone.to_map(raw), raw)

    net = build("efficientvit_m0")  # one classifier: its batch norm scales the channels of the map
    model = attach(net, 5)
    raw = model.backbone.raw(images(224, 1))
    bn = net.head.bn
    want = (raw - bn.running_mean[:, None, None]) / (bn.running_var + bn.eps).sqrt()[:, None, None]
    want = want * bn.weight[:, None, None] + bn.bias[:, None, None]
    same(model.backbone.to_map(raw), want, 1e-5)


@torch.no_grad()
def test_densenet_map_is_normed_and_rectified() -> None:
    for name in ("densenet121", "torchvision/densenet121"):
        model = attach(name, 5)
        randomise(model.backbone.model)
        fmap = model.forward_features(images(64))
        assert fmap.min() == 0
        assert fmap.max() > 0


@torch.no_grad()
def test_identity_rotation_and_one_pixel_give_the_original_features() -> None:
    model = attach(build("resnet18"), 5)
    x = images(32)  # a 1 x 1 map, nonnegative: the sparse pool is the average
    assert model.grid_size(32) == (1, 1)
    same(
        model.forward_head(model.forward_features(x), pre_logits=True),
        model.backbone.model.forward_head(model.backbone.raw(x), pre_logits=True),
    )


def test_frozen_backbone_stays_in_eval_mode_and_out_of_the_gradient() -> None:
    model = attach(build("resnet18"), 5)
    before = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    assert model.train() is model
    assert model.training
    assert model.head.training
    assert not any(m.training for m in model.backbone.modules())
    assert not model.forward_features(images(64)).requires_grad  # nothing asks for a gradient
    model(images(64)).logsumexp(1).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.head.parameters())
    assert all(p.grad is None and not p.requires_grad for p in model.backbone.parameters())
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, before[key]), key  # batch norm statistics too


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "vit_tiny_patch16_224"])
def test_unfrozen_backbone_trains_up_to_the_map(name: str) -> None:
    net = build(name).train()
    model = attach(net, 5, freeze=False)
    assert model.train().backbone.model.training
    model(images(224, 2)).logsumexp(1).sum().backward()
    trained = {n for n, p in net.named_parameters() if p.requires_grad}
    assert {n for n, p in net.named_parameters() if p.grad is not None} == trained
    left = {n for n, _ in net.named_parameters()} - trained
    classifier = {"fc.weight", "fc.bias", "head.weight", "head.bias", "head.fc.weight"}
    assert left
    assert left <= classifier | {"head.fc.bias"}
    model.eval()
    assert not net.training
    assert model.forward_features(images(224, 1)).requires_grad


def test_attaching_leaves_modes_and_random_state_alone() -> None:
    net = timm.create_model("resnet18").train()
    net.bn1.eval()
    state = torch.get_rng_state()
    Backbone(net, timm_plan(net), freeze=False)
    assert net.training
    assert net.layer1.training
    assert not net.bn1.training
    assert torch.equal(torch.get_rng_state(), state)


def test_reset_classifier() -> None:
    model = attach(build("resnet18"), 5)
    x = images(64)
    original = model.original_logits(x)
    assert model.get_classifier() is model.head
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    assert model.num_classes == model.head.num_classes == model.spec["num_classes"] == 3
    assert torch.equal(model.original_logits(x), original)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("resnet18", {"num_classes": 11}),
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 1}),
        ("torchvision/mobilenet_v3_small", {}),
    ],
)
@torch.no_grad()
def test_state_dict_round_trip_through_the_spec(name: str, kwargs: dict[str, Any]) -> None:
    model = attach(name, 5, model_kwargs=kwargs, bias=True, nonneg="relu", rotate=False)
    randomise(model)
    spec = json.loads(json.dumps(model.spec))
    again = attach(
        spec["name"],
        spec["num_classes"],
        source=spec["source"],
        freeze=spec["freeze"],
        model_kwargs=spec["model_kwargs"],
        **spec["head_options"],
    ).eval()
    assert again.spec == model.spec
    x = images(64)
    assert not torch.equal(again(x), model(x))
    state = model.state_dict()
    pointers = [v.data_ptr() for v in state.values() if v.numel()]
    assert len(set(pointers)) == len(pointers), "weights are kept twice"
    again.load_state_dict(state)
    assert torch.equal(again(x), model(x))
    assert torch.equal(again.original_logits(x), model.original_logits(x))
    clone = copy.deepcopy(model)
    assert torch.equal(clone(x), model(x))


def test_spec_of_a_module_has_the_name_that_builds_it() -> None:
    model = attach(build("resnet18"))
    assert model.num_classes == 11
    assert model.spec["name"] == "resnet18"
    assert model.spec["model_kwargs"] == {"num_classes": 11}
    assert model.spec["original_num_classes"] == 11
    json.dumps(model.spec)
    with pytest.warns(UserWarning, match=r"opens again only with load\(path, module="):
        by_object = attach("resnet18", model_kwargs={"norm_layer": nn.BatchNorm2d})
    assert by_object.spec["name"] is None
    json.dumps(by_object.spec)


def test_pretrained_cfg() -> None:
    timm_cfg = attach("resnet18").pretrained_cfg
    assert timm_cfg["input_size"] == (3, 224, 224)
    model = attach("resnet18", source="torchvision")
    assert model.default_cfg is model.pretrained_cfg
    cfg = model.pretrained_cfg
    assert cfg["input_size"] == (3, 224, 224)
    assert cfg["mean"] == (0.485, 0.456, 0.406)
    assert cfg["crop_pct"] == 224 / 256
    assert cfg["interpolation"] == "bilinear"
    assert timm.data.resolve_data_config({}, pretrained_cfg=cfg)["crop_pct"] == 224 / 256


def test_grid_size() -> None:
    model = attach("resnet18")
    assert model.grid_size(224) == (7, 7)
    assert model.grid_size((64, 96)) == (2, 3)
    assert model.grid_size(65) == (3, 3)  # rounded up by the padded convolutions
    vit = attach("vit_tiny_patch16_224", model_kwargs={"dynamic_img_size": True, "depth": 1})
    assert vit.grid_size((64, 32)) == (4, 2)
    fixed = attach("vit_tiny_patch16_224", model_kwargs={"img_size": (64, 128), "depth": 1})
    assert fixed.grid_size((64, 128)) == (4, 8)
    with pytest.raises(ValueError, match="grid_size: VisionTransformer does not take 64 x 64"):
        fixed.grid_size(64)
    twins = attach("twins_svt_small")
    assert twins.grid_size((64, 128)) == (2, 4)


def test_dtype_and_device_follow_the_backbone() -> None:
    model = attach(build("resnet18").double(), 5)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert model(images(64, dtype=torch.float64)).dtype == torch.float64
    model = attach(build("convnext_atto").bfloat16(), 5)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.forward_features(images(64).bfloat16()).dtype == torch.bfloat16
    with torch.device("meta"):
        net = timm.create_model("resnet18")
    assert {p.device.type for p in attach(net, 5).parameters()} == {"meta"}


def test_channels_and_sizes_of_the_model_kwargs() -> None:
    model = attach("resnet18", 5, model_kwargs={"in_chans": 1})
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 5)
    hybrid = attach("vit_tiny_r_s16_p8_224", 5)  # its first patch embedding is a ResNet
    assert (hybrid.input_fmt, hybrid.num_prefix_tokens) == ("NLC", 1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: attach("resnet5O"), ValueError, r"timm has no model 'resnet5O'.*mean resnet5"),
        (lambda: attach("resnet50.a1_in1kk"), ValueError, "did you mean resnet50.a1_in1k"),
        (lambda: attach("torchvision/resnet5O"), ValueError, r"'resnet5O'; did you mean resnet50"),
        (lambda: attach("swin_t"), ValueError, "torchvision/swin_t"),
        (lambda: attach("torchvision/resnet18", source="timm"), ValueError, "but source is 'timm'"),
        (lambda: attach("resnet18", source="hub"), ValueError, "source is 'hub'"),
        (lambda: attach(build("resnet18"), pretrained=True), ValueError, "module already has its"),
        (lambda: attach(build("resnet18"), model_kwargs={"a": 1}), ValueError, "already built"),
        (lambda: attach(3), TypeError, "name or an nn.Module, got int"),
        (lambda: attach(nn.Linear(2, 2), 3), ValueError, "neither timm nor torchvision"),
        (lambda: attach("resnet18", input_fmt="NLC"), TypeError, "input_fmt comes from the back"),
        (lambda: attach("resnet18", nonsense=1), TypeError, "nonsense"),
        (lambda: attach("resnet18", 0), ValueError, "give num_classes >= 1"),
        (lambda: attach(build("resnet18", 0)), ValueError, "has no classes of its own"),
        (
            lambda: attach(timm.create_model("resnet18", features_only=True), 5),
            ValueError,
            "no forward_",
        ),
        (lambda: attach(build("crossvit_9_240"), 5), ValueError, "features are a list, not one"),
        (lambda: attach(build("coat_tiny"), 5), ValueError, "features are a list, not one map"),
        (lambda: attach(build("pit_ti_224"), 5), ValueError, "don't say which tokens are pixels"),
    ],
)
def test_errors(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@torch.no_grad()
def test_model_without_a_classifier() -> None:
    for kwargs in ({}, {"global_pool": ""}):
        model = attach(build("resnet18", 0, **kwargs), 5)
        assert model(images(64)).shape == (2, 5)
        assert model.spec["original_num_classes"] == 0
        with pytest.raises(ValueError, match="no classifier of its own"):
            model.original_logits(images(64))


def test_an_unknown_head_is_refused() -> None:
    class Odd(timm.models.resnet.ResNet):
        def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
            return super().forward_head(x.square(), pre_logits)

    net = Odd(timm.models.resnet.BasicBlock, (1, 1, 1, 1), num_classes=7)
    with pytest.raises(ValueError, match="Odd is not supported: its head as read here"):
        attach(net, 5)


def test_head_options_reach_the_head() -> None:
    model = attach("resnet18", 5, bias=True, rotate=False, drop_rate=0.25)
    assert isinstance(model.head, InfoDisentHead)
    assert model.spec["head_options"] == model.head.options()
    assert model.head.bias
    assert model.head.rotation is None
    assert model.head.drop_rate == 0.25
