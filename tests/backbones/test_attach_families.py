"""Every family of timm and torchvision models that attach is tested with.

What timm itself says is the judge wherever it says anything: ``forward_intermediates`` for the
order of pixels, ``forward_head`` on a one-pixel map for the per-pixel modules, the model's own
forward for the logits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from infodisent.backbones.torchvision_import import ensure_torchvision
from infodisent.layout import to_bpc

ensure_torchvision()
timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")

from infodisent.backbones import rebuild  # noqa: E402
from infodisent.backbones.torchvision import torchvision_plan  # noqa: E402
from infodisent.classifier import attach  # noqa: E402
from tests.backbones.models import build, images, randomise, same  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Many small models: on a shared machine a second thread waits more than it works."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Case(NamedTuple):
    name: str
    fmt: str
    prefix: int
    channels: int
    size: int = 224  # of the test images
    kwargs: dict[str, Any] = {}  # noqa: RUF012
    order: bool = True  # timm's forward_intermediates gives the same map in NCHW
    pixel: bool = True  # forward_head(one-pixel map, pre_logits=True) gives the map's pixel
    pool: str = "avg"  # "" = the head does not classify averaged pixels or a token


def token(name: str, channels: int, prefix: int = 1, size: int = 224, **kwargs: Any) -> Case:
    return Case(name, "NLC", prefix, channels, size, kwargs, pixel=False, pool="token")


SHALLOW = {"depths": (1, 1, 1, 1)}
CASES = [
    # the eight backbones of the sources
    Case("resnet34", "NCHW", 0, 512, 64),
    Case("resnet50", "NCHW", 0, 2048, 64),
    Case("densenet121", "NCHW", 0, 1024, 64),
    Case("convnext_tiny", "NCHW", 0, 768, 64, order=False),
    token("vit_base_patch16_224", 768, depth=2),
    Case("swin_small_patch4_window7_224", "NHWC", 0, 768, 224, {"depths": (1, 1, 2, 2)}),
    Case("maxvit_tiny_tf_224", "NCHW", 0, 512, 224, SHALLOW, order=False, pixel=False),
    # convolutional
    Case("tf_efficientnet_lite0", "NCHW", 0, 1280, 64, order=False),
    Case("mobilenetv2_050", "NCHW", 0, 1280, 64, order=False),
    Case("mobilenetv3_small_050", "NCHW", 0, 1024, 64, order=False),
    Case("tinynet_e", "NCHW", 0, 1280, 64, order=False),
    Case("ghostnet_050", "NCHW", 0, 1280, 64, order=False),
    Case("repghostnet_050", "NCHW", 0, 1280, 64, order=False),
    Case("fasternet_t0", "NCHW", 0, 1280, 64, order=False),
    Case("regnetx_002", "NCHW", 0, 368, 64),
    Case("resnext26ts", "NCHW", 0, 2048, 64),
    Case("res2net50_14w_8s", "NCHW", 0, 2048, 64),
    Case("resnest14d", "NCHW", 0, 2048, 64),
    Case("seresnet18", "NCHW", 0, 512, 64),
    Case("resnetv2_18", "NCHW", 0, 512, 64),
    Case("cs3darknet_s", "NCHW", 0, 512, 64),
    Case("dla46_c", "NCHW", 0, 256, 64),
    Case("hrnet_w18_small", "NCHW", 0, 2048, 64, order=False),
    Case("hgnetv2_b0", "NCHW", 0, 2048, 64, order=False),
    Case("inception_v3", "NCHW", 0, 2048, 128, order=False),
    Case("inception_v4", "NCHW", 0, 1536, 128, order=False),
    Case("legacy_xception", "NCHW", 0, 2048, 96, order=False),
    Case("nf_resnet26", "NCHW", 0, 2048, 64, order=False),
    Case("convnextv2_atto", "NCHW", 0, 320, 64, order=False),
    Case("poolformer_s12", "NCHW", 0, 512, 64, order=False),
    Case("edgenext_xx_small", "NCHW", 0, 168, 64, order=False),
    Case("mobilevit_xxs", "NCHW", 0, 320, 64, order=False),
    Case("fastvit_t8", "NCHW", 0, 768, 64, order=False),
    Case("repvgg_a0", "NCHW", 0, 1280, 64),
    Case("starnet_s050", "NCHW", 0, 128, 64, order=False),
    Case("mambaout_femto", "NHWC", 0, 288, 64, order=False, pixel=False),
    Case("inception_next_atto", "NCHW", 0, 320, 64, order=False, pixel=False),
    Case("efficientvit_b0", "NCHW", 0, 1024, 64, order=False, pixel=False),
    Case("efficientvit_m0", "NCHW", 0, 192, 224, order=False, pixel=False),
    Case("repvit_m0_9", "NCHW", 0, 384, 64, order=False, pixel=False),
    # attention in stages
    Case("caformer_s18", "NCHW", 0, 512, 64, order=False),
    Case("pvt_v2_b0", "NCHW", 0, 256, 64, order=False),
    Case("swinv2_tiny_window8_256", "NHWC", 0, 768, 256, SHALLOW),
    Case("coatnet_nano_rw_224", "NCHW", 0, 512, 224, SHALLOW, order=False),
    Case("nest_tiny", "NCHW", 0, 384, 224, order=False),
    Case("focalnet_tiny_srf", "NCHW", 0, 768, 64, order=False),
    Case("davit_tiny", "NCHW", 0, 768, 64, {"depths": (1, 1, 1, 1)}, order=False),
    Case("gcvit_xxtiny", "NCHW", 0, 512, 224, order=False),
    Case("tiny_vit_5m_224", "NCHW", 0, 320, 224, order=False),
    Case("efficientformerv2_s0", "NCHW", 0, 176, 224, order=False),
    Case("hiera_tiny_224", "NHWC", 0, 768, 224),
    Case("sequencer2d_s", "NHWC", 0, 384, 64, {"layers": (1, 1, 1, 1)}, order=False),
    # tokens without a class token
    Case("efficientformer_l1", "NLC", 0, 448, order=False),
    Case("mixer_s32_224", "NLC", 0, 512),
    Case("resmlp_12_224", "NLC", 0, 384),
    Case("gmlp_ti16_224", "NLC", 0, 128),
    Case("twins_svt_small", "NLC", 0, 512, 64),
    Case("levit_128s", "NLC", 0, 384, order=False, pixel=False),
    Case("mvitv2_tiny", "NLC", 0, 768),
    # class, distillation and register tokens
    Case("vit_tiny_patch16_224", "NLC", 1, 192, 64, {"img_size": 64, "global_pool": "avg"}),
    Case("eva02_tiny_patch14_224", "NLC", 1, 192, 56, {"img_size": 56, "depth": 2}),
    Case("beit_base_patch16_224", "NLC", 1, 768, 64, {"img_size": 64, "depth": 2}),
    Case(
        "vit_small_patch14_reg4_dinov2", "NLC", 5, 384, 56, {"img_size": 56, "global_pool": "avg"}
    ),
    token("vit_relpos_small_patch16_rpn_224", 384, 0, depth=2)._replace(pixel=True, pool="avg"),
    token("deit3_small_patch16_224", 384, size=64, img_size=64, depth=3),
    token("deit_tiny_distilled_patch16_224", 192, 2, size=64, img_size=64),
    token("cait_xxs24_224", 192, size=64, img_size=64, depth=2),
    token("xcit_nano_12_p16_224", 128, size=64)._replace(order=False),
    token("convit_tiny", 192, size=64, img_size=64),
    token("volo_d1_224", 384)._replace(pool="", order=False),
    # heads that are no function of the average: served, and they say so
    Case("vgg11_bn", "NCHW", 0, 512, 64, pixel=False, order=False, pool=""),
    Case("resnet50_clip", "NCHW", 0, 2048, 224, pixel=False, order=False, pool=""),
    Case(
        "vit_base_patch16_siglip_224", "NLC", 0, 768, 64, {"img_size": 64, "depth": 1}, pixel=False
    )._replace(pool=""),
]
QUICK = {  # one of every form of map, token and head; the others are slow
    "resnet34", "densenet121", "convnext_tiny", "tf_efficientnet_lite0", "mobilenetv3_small_050",
    "regnetx_002", "hrnet_w18_small", "nf_resnet26", "mobilevit_xxs", "mambaout_femto",
    "inception_next_atto", "efficientvit_b0", "pvt_v2_b0", "sequencer2d_s", "mixer_s32_224",
    "levit_128s", "vit_tiny_patch16_224", "eva02_tiny_patch14_224", "vit_small_patch14_reg4_dinov2",
    "vit_relpos_small_patch16_rpn_224", "deit3_small_patch16_224", "xcit_nano_12_p16_224",
    "deit_tiny_distilled_patch16_224", "vit_base_patch16_siglip_224",
}  # fmt: skip
EIGHT = {
    "resnet34": ("NCHW", 0, 512, (7, 7)),
    "resnet50": ("NCHW", 0, 2048, (7, 7)),
    "densenet121": ("NCHW", 0, 1024, (7, 7)),
    "convnext_tiny": ("NCHW", 0, 768, (7, 7)),
    "convnext_large": ("NCHW", 0, 1536, (7, 7)),
    "vit_base_patch16_224": ("NLC", 1, 768, (14, 14)),
    "swin_small_patch4_window7_224": ("NHWC", 0, 768, (7, 7)),
    "maxvit_tiny_tf_224": ("NCHW", 0, 512, (7, 7)),
}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=() if case.name in QUICK else pytest.mark.slow)
        for case in CASES
    ],
)
@torch.no_grad()
def test_timm_family(case: Case) -> None:
    net = build(case.name, **case.kwargs)
    model = attach(net, 5, rotate=False)  # the exponential of 2048 x 2048 would take the time
    x = images(case.size)
    assert (model.input_fmt, model.num_prefix_tokens) == (case.fmt, case.prefix)
    assert model.num_features == case.channels
    assert model.backbone.num_classes == 11

    raw = model.backbone.raw(x)
    want = net(x)
    same(model.original_logits(x), want)
    assert want.std() > 0
    fmap = model.backbone.to_map(raw)
    pixels = to_bpc(fmap, case.fmt, case.prefix)  # [B, P, C]
    assert pixels.shape[2] == case.channels
    rows, columns = model.grid_size(case.size)
    assert rows * columns == pixels.shape[1]
    assert model(x).shape == (2, 5)

    if case.pool:
        same(model.backbone.pooled_logits(raw), want)
    else:
        with pytest.raises(ValueError, match="logits cannot be recomputed"):
            model.backbone.pooled_logits(raw)
    if case.order:
        normed = not case.name.startswith("hiera")  # its norm is the head's, timm refuses it here
        spatial = net.forward_intermediates(
            x, indices=1, norm=normed, output_fmt="NCHW", intermediates_only=True
        )[-1]
        plain = to_bpc(model.backbone._arrange(raw), case.fmt, case.prefix)
        same(plain, to_bpc(spatial, "NCHW"))
        assert spatial.shape[2:] == (rows, columns)
    if case.pixel:
        # the average over one pixel is that pixel: what timm's head makes of it is the map's pixel
        p = pixels.shape[1] - 1
        flat = to_bpc(raw, "NLC" if raw.ndim == 3 else case.fmt, case.prefix)
        one = flat[:, p : p + 1]  # [B, 1, C]
        if raw.ndim == 3:
            one = torch.cat([raw[:, : case.prefix], one], dim=1)
        else:
            one = one.transpose(1, 2)[..., None] if case.fmt == "NCHW" else one[:, None]
        same(pixels[:, p], net.forward_head(one, pre_logits=True))


@pytest.mark.parametrize("name", EIGHT)
def test_source_backbones_at_full_size(name: str) -> None:
    with torch.device("meta"):  # shapes only: convnext_large has 198 million weights
        net = timm.create_model(name)
    model = attach(net, 200)
    fmt, prefix, channels, grid = EIGHT[name]
    assert (model.input_fmt, model.num_prefix_tokens) == (fmt, prefix)
    assert (model.num_features, model.backbone.num_classes) == (channels, 1000)
    assert model.grid_size(224) == grid
    assert model.head.fc.weight.shape == (200, channels)


@pytest.mark.slow
@pytest.mark.parametrize("name", EIGHT)
@torch.no_grad()
def test_source_backbones_full_depth(name: str) -> None:
    net = build(name)
    model = attach(net, 5)
    x = images(224, 1)
    same(model.original_logits(x), net(x))
    same(model.backbone.pooled_logits(model.backbone.raw(x)), net(x))


TORCHVISION = [
    ("resnet18", "NCHW", 0, 512, 64, True),
    ("resnext50_32x4d", "NCHW", 0, 2048, 64, True),
    ("densenet121", "NCHW", 0, 1024, 64, True),
    ("convnext_tiny", "NCHW", 0, 768, 64, True),
    ("vit_b_16", "NLC", 1, 768, 224, True),
    ("swin_t", "NHWC", 0, 768, 64, True),
    ("swin_v2_t", "NHWC", 0, 768, 64, True),
    ("maxvit_t", "NCHW", 0, 512, 224, True),
    ("efficientnet_b0", "NCHW", 0, 1280, 64, True),
    ("mobilenet_v2", "NCHW", 0, 1280, 64, True),
    ("mobilenet_v3_small", "NCHW", 0, 1024, 64, True),
    ("regnet_y_400mf", "NCHW", 0, 440, 64, True),
    ("googlenet", "NCHW", 0, 1024, 64, True),
    ("inception_v3", "NCHW", 0, 2048, 96, True),
    ("shufflenet_v2_x0_5", "NCHW", 0, 1024, 64, True),
    ("mnasnet0_5", "NCHW", 0, 1280, 64, True),
    ("vgg11", "NCHW", 0, 512, 64, False),
    ("alexnet", "NCHW", 0, 256, 96, False),
    ("squeezenet1_1", "NCHW", 0, 512, 64, False),
]


MORE = {
    "resnext50_32x4d",
    "densenet121",
    "vit_b_16",
    "swin_v2_t",
    "maxvit_t",
    "inception_v3",
    "vgg11",
}


@pytest.mark.parametrize(
    ("name", "fmt", "prefix", "channels", "size", "average"),
    [
        pytest.param(*case, id=case[0], marks=pytest.mark.slow if case[0] in MORE else ())
        for case in TORCHVISION
    ],
)
@torch.no_grad()
def test_torchvision_family(
    name: str, fmt: str, prefix: int, channels: int, size: int, average: bool
) -> None:
    torch.manual_seed(0)
    kwargs = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    net = randomise(torchvision.models.get_model(name, weights=None, num_classes=11, **kwargs))
    model = attach(net, 5, rotate=False)
    assert model.spec["source"] == "torchvision"
    assert (model.input_fmt, model.num_prefix_tokens) == (fmt, prefix)
    assert (model.num_features, model.backbone.num_classes) == (channels, 11)
    x = images(size)
    raw = model.backbone.raw(x)
    same(model.original_logits(x), net(x))
    if average:
        same(model.backbone.pooled_logits(raw), net(x))
    else:
        with pytest.raises(ValueError, match="logits cannot be recomputed"):
            model.backbone.pooled_logits(raw)
    pixels = to_bpc(model.backbone.to_map(raw), fmt, prefix)
    rows, columns = model.grid_size(size)
    assert rows * columns == pixels.shape[1]
    assert model(x).shape == (2, 5)


def test_candidates_are_built_without_drawing_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """A RegNet does not build on meta tensors, and its largest has 645 million weights."""
    monkeypatch.setattr(torch.random, "fork_rng", lambda **_: contextlib.nullcontext())
    before = torch.get_rng_state()
    net = rebuild._build("torchvision", "regnet_y_400mf", {"num_classes": 3})
    assert net is not None
    assert net.fc.weight.device.type == "cpu"
    assert net.fc.weight.shape == (3, 440)
    assert torch.equal(torch.get_rng_state(), before)


def test_torchvision_refuses_other_families() -> None:
    net = torchvision.models.segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None
    )
    with pytest.raises(ValueError, match=r"LRASPP is not a supported classifier.*ResNet"):
        attach(net, 5)
    with pytest.raises(ValueError, match="Linear is not a supported classifier"):
        torchvision_plan(nn.Linear(3, 3))
