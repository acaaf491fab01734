"""The transform is the model's own: its channels, its image size, the user's preprocessing."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import infodisent
from infodisent import attach
from infodisent.backbones.geometry import crop_geometry
from infodisent.backbones.preprocess import to_picture, transform_config, transform_from
from infodisent.data.extraction import extract
from infodisent.data.images import scan_folder

PHOTO = Image.new("RGB", (90, 50), (255, 255, 255))


def seen(model):
    """Shape of what the network is shown; it must take it."""
    x = transform_from(transform_config(model))(PHOTO)
    with torch.no_grad():
        model.eval()(x[None])
    return tuple(x.shape)


def test_grey_models_get_one_channel(tmp_path, image_folder):
    model = attach("test_resnet", 2, model_kwargs={"in_chans": 1})
    config = transform_config(model)
    assert config["input_size"] == [1, 160, 160]
    assert len(config["mean"]) == len(config["std"]) == 1
    assert config["mean"][0] == pytest.approx(np.mean(model.pretrained_cfg["mean"]))
    assert seen(model) == (1, 160, 160)
    photo = Image.new("RGB", (160, 160), (255, 0, 0))
    shown = to_picture(transform_from(config)(photo), config)
    assert shown.getpixel((5, 5)) == (76, 76, 76)  # luminance of red
    assert len(extract(model, scan_folder(image_folder), tmp_path / "f", progress=False)) == 23
    infodisent.save(tmp_path / "m.safetensors", model)
    again = infodisent.load(tmp_path / "m.safetensors")
    assert transform_config(again.model) == again.transform == config


def test_a_replaced_first_convolution_counts():
    net = torchvision.models.resnet18(weights=None)
    net.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    assert seen(attach(net, 2)) == (1, 224, 224)
    net = timm.create_model("test_vit", num_classes=3)
    net.patch_embed.proj = nn.Conv2d(1, net.embed_dim, 16, 16)
    assert seen(attach(net, 2)) == (1, 160, 160)


def test_more_channels_take_tensors_and_no_photographs(tmp_path, image_folder):
    model = attach("test_resnet", 2, model_kwargs={"in_chans": 4}).eval()
    assert model(torch.rand(1, 4, 64, 64)).shape == (1, 2)
    with pytest.raises(ValueError, match="takes 4-channel images, photographs have 3"):
        infodisent.explain(model, PHOTO)
    with pytest.raises(ValueError, match="takes 4-channel images"):
        extract(model, scan_folder(image_folder), tmp_path / "f", progress=False)
    assert not (tmp_path / "f").exists()
    infodisent.save(tmp_path / "m.safetensors", model)
    assert infodisent.load(tmp_path / "m.safetensors").model(torch.rand(1, 4, 64, 64)).shape


@pytest.mark.parametrize(
    ("name", "kwargs", "size"),
    [
        ("test_vit", {"img_size": (128, 64)}, (128, 64)),
        ("test_vit", {"img_size": 96, "dynamic_img_size": True}, (96, 96)),
        ("vit_tiny_patch16_224", {"img_size": (64, 32), "depth": 1}, (64, 32)),
        ("vit_tiny_patch16_224", {"img_size": 480, "depth": 1}, (480, 480)),
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": (64, 96), "window_size": 2, "depths": (1,) * 4},
            (64, 96),
        ),
        ("test_resnet", {"pretrained_cfg_overlay": {"input_size": (3, 128, 64)}}, (128, 64)),
    ],
)  # fmt: skip
def test_the_size_a_model_was_built_for(name, kwargs, size, tmp_path):
    model = attach(name, 2, model_kwargs=kwargs)
    assert seen(model) == (3, *size)
    infodisent.save(tmp_path / "m.safetensors", model)
    again = infodisent.load(tmp_path / "m.safetensors")
    assert again.transform["input_size"] == [3, *size]
    assert seen(again.model) == (3, *size)


def test_the_size_of_a_torchvision_transformer(monkeypatch):
    def small(name, **kwargs):
        return torchvision.models.VisionTransformer(kwargs.pop("image_size"), 16, 1, 2, 32, 32)

    monkeypatch.setattr(torchvision.models, "get_model", small)
    model = attach("torchvision/vit_b_16", 2, model_kwargs={"image_size": 64})
    assert seen(model) == (3, 64, 64)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_a_size_set_later(name, tmp_path):
    options = {"depth": 1} if name.startswith("vit") else {"depths": (1,) * 4}
    net = timm.create_model(name, num_classes=0, **options)
    net.set_input_size(img_size=(448, 224))
    assert seen(attach(net, 2)) == (3, 448, 224)
    model = attach(name, 2, model_kwargs=options)
    model.backbone.model.set_input_size(img_size=(224, 448))
    assert seen(model) == (3, 224, 448)
    infodisent.save(tmp_path / "m.safetensors", model)
    again = infodisent.load(tmp_path / "m.safetensors").model
    assert seen(again) == (3, 224, 448)
    x = torch.rand(1, 3, 224, 448)
    torch.testing.assert_close(again(x), model.eval()(x))


def test_dynamic_models_keep_the_size_asked_for():
    model = attach("test_vit", 2, model_kwargs={"dynamic_img_size": True}, input_size=(64, 96))
    assert seen(model) == (3, 64, 96)
    model.pretrained_cfg.update(input_size=(3, 128, 32))
    assert seen(model) == (3, 128, 32)


def test_the_users_own_preprocessing_is_kept(tmp_path):
    model = attach(
        "test_resnet", 2, input_size=[96, 64], mean=0.5, std=(0.1, 0.2, 0.3),
        interpolation="nearest", crop_pct=1, crop_mode="squash", intensity_range=(0, 4095), page=1,
    )  # fmt: skip
    config = transform_config(model)
    assert config == {
        "input_size": [3, 96, 64], "mean": [0.5] * 3, "std": [0.1, 0.2, 0.3],
        "interpolation": "nearest", "crop_pct": 1.0, "crop_mode": "squash",
        "intensity_range": [0.0, 4095.0], "page": 1,
    }  # fmt: skip
    json.dumps(config)
    x = transform_from(config)(PHOTO)
    torch.testing.assert_close(x[:, 0, 0], 0.5 / torch.tensor([0.1, 0.2, 0.3]))
    infodisent.save(tmp_path / "m.safetensors", model)
    loaded = infodisent.load(tmp_path / "m.safetensors")
    assert transform_config(loaded.model) == loaded.transform == config
    pages = [Image.fromarray(np.full((8, 8), v, np.uint16)) for v in (0, 4095)]
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:])
    e = infodisent.explain(loaded.model, tmp_path / "x.tif")
    assert e.picture.size == (64, 96)
    assert np.asarray(e.picture).min() == 255


def test_numbers_of_numpy_and_torch_are_numbers():
    model = attach(
        "test_resnet",
        2,
        input_size=tuple(np.array([96, 64])),
        mean=np.array([0.1, 0.2, 0.3]),
        std=torch.tensor(0.5),
        crop_pct=np.float32(0.5),
        intensity_range=np.array([0, 9]),
    )
    config = transform_config(model)
    json.dumps(config)
    assert config["input_size"] == [3, 96, 64]
    assert config["mean"] == [0.1, 0.2, 0.3]
    assert config["std"] == [0.5] * 3
    assert config["intensity_range"] == [0.0, 9.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_size": 0}, "input_size is 0, must be a side"),
        ({"input_size": "224"}, "input_size is '224'"),
        ({"input_size": (1, 64, 64)}, "the model takes 3 channels"),
        ({"input_size": (64,)}, r"must be \(height, width\)"),
        ({"input_size": True}, "input_size is True"),
        ({"mean": 123.7}, "divide values for 0 … 255 by 255"),
        ({"mean": (0.5, 0.5)}, "must be one number or 3"),
        ({"std": 0.0}, r"std is 0.0, must be in \(0, 1\]"),
        ({"std": (58.4, 57.1, 57.4)}, "by 255"),
        ({"std": float("nan")}, "std is nan"),
        ({"mean": "0.5"}, "mean is '0.5'"),
        ({"interpolation": "cubic"}, "allowed are nearest, bilinear, bicubic"),
        ({"crop_pct": 87.5}, r"crop_pct is 87.5, must be in \(0, 1\]"),
        ({"crop_mode": "centre"}, "allowed are center, squash, border"),
        ({"intensity_range": (9, 3)}, "low < high"),
        ({"page": -1}, "page is -1"),
    ],
)
def test_preprocessing_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        attach("test_resnet", 2, **options)


def test_a_size_the_model_does_not_take_is_refused():
    with pytest.raises(ValueError, match=r"built for 224 x 224; .*img_size.*\(256, 128\)"):
        attach("vit_tiny_patch16_224", 2, model_kwargs={"depth": 1}, input_size=(256, 128))


@settings(max_examples=60, deadline=None)
@given(
    mode=st.sampled_from(["center", "squash", "border"]),
    crop_pct=st.sampled_from([0.5, 0.875, 0.9, 0.95, 1.0]),
    target=st.sampled_from([(32, 32), (48, 24), (31, 57)]),
    size=st.tuples(st.integers(20, 200), st.integers(20, 200)),
    data=st.data(),
)
def test_a_box_lies_where_the_transform_shows_it(mode, crop_pct, target, size, data):
    config = {
        "input_size": [3, *target], "crop_pct": crop_pct, "crop_mode": mode, "mean": [0.0] * 3,
        "std": [1.0] * 3, "interpolation": "nearest",
    }  # fmt: skip
    geometry = crop_geometry(config, size)
    height, width = target
    assert geometry.input_size == (width, height)
    x0, y0 = data.draw(st.integers(0, width - 6)), data.draw(st.integers(0, height - 6))
    box = (x0, y0, x0 + 6, y0 + 6)
    place = geometry.in_image(box)
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    if place is not None:
        assert 0 <= place[0] < place[2] <= size[0]
        assert 0 <= place[1] < place[3] <= size[1]
        pixels[place[1] : place[3], place[0] : place[2]] = 255
    shown = transform_from(config)(Image.fromarray(pixels))[0].numpy() > 0.5
    # a pixel of the photograph may cover several of the network's, and a border none
    slack = [-(-r // s) + 1 for r, s in zip(geometry.resized, size, strict=True)]
    ys, xs = np.nonzero(shown)
    if len(xs):
        assert xs.min() >= box[0] - slack[0]
        assert xs.max() < box[2] + slack[0]
        assert ys.min() >= box[1] - slack[1]
        assert ys.max() < box[3] + slack[1]
    everything = transform_from(config)(Image.new("RGB", size, (255, 255, 255)))[0].numpy() > 0.5
    inside = np.zeros_like(shown)
    inside[box[1] : box[3], box[0] : box[2]] = True
    assert shown[inside & everything].all()
    assert (place is None) == (not everything[inside].any())


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(1600, 900), (900, 1600), (640, 640), (33, 200)])
def test_the_window_is_what_is_left(mode, size):
    config = {"input_size": [3, 160, 96], "crop_pct": 0.9, "crop_mode": mode, "mean": [0.0] * 3,
              "std": [1.0] * 3, "interpolation": "nearest"}  # fmt: skip
    geometry = crop_geometry(config, size)
    x0, y0, x1, y1 = geometry.window
    ramp = np.zeros((size[1], size[0], 3), np.float64)
    ramp[..., 0] = np.linspace(0, 255, size[0])
    ramp[..., 1] = np.linspace(0, 255, size[1])[:, None]
    ramp[..., 2] = 255
    red, green, there = transform_from(config)(Image.fromarray(ramp.astype(np.uint8)))
    photo = there > 0.5  # not the border
    for channel, start, stop, side in ((red, x0, x1, size[0]), (green, y0, y1, size[1])):
        step = 1 / 255 + 2 / side + 2 * side / 96 / side
        assert abs(float(channel[photo].min()) - start / side) < step
        assert abs(float(channel[photo].max()) - stop / side) < step
    assert geometry.lost == pytest.approx(1 - (x1 - x0) * (y1 - y0) / (size[0] * size[1]))
