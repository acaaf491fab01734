"""Explanations: the sum is the model's logit, the boxes are where the activations are."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from infodisent import attach, reference
from infodisent.backbones.preprocess import transform_config, transform_from
from infodisent.data.images import load_image
from infodisent.explanations import local
from infodisent.explanations.local import TOLERANCE, cell_box, explain, explain_many
from infodisent.layout import to_bpc


def random_head(model, seed=0):
    """Weights and a rotation that are neither zero nor the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.head.parameters():
            scale = 0.05 if parameter.ndim == 2 and parameter.shape[0] == parameter.shape[1] else 1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.eval()


@functools.cache
def five_classes(name="test_resnet", **options):
    torch.manual_seed(1)
    return random_head(attach(name, 5, **options))


def picture(seed=0, size=(200, 170)):
    noise = torch.randint(
        0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(seed)
    )
    return Image.fromarray(noise.to(torch.uint8).numpy())


def truth(model, image):
    """Contributions [K, C] in float64 and the logits [K], without the code under test."""
    x = transform_from(transform_config(model))(image)[None]
    head = model.head
    with torch.no_grad():
        maps = model.forward_features(x)
        pixels = to_bpc(maps, head.input_fmt, head.num_prefix_tokens).double()
        if head.rotation is not None:
            pixels = pixels @ reference.rotation(head.rotation.A.double()).t()
        pooled = pixels.clamp_min(0).amax(1) - (-pixels).clamp_min(0).amax(1)
        return head.fc.effective_weight().double() * pooled, model(x)[0], pixels[0]


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
@pytest.mark.parametrize(
    "options",
    [{}, {"bias": True, "nonneg": "softplus"}, {"rotate": False, "nonneg": "abs"}],
    ids=["relu", "bias", "no rotation"],
)
def test_contributions_are_the_logit(name, options):
    model = five_classes(name, **options)
    for seed in range(3):
        image = picture(seed)
        contributions, logits, _ = truth(model, image)
        for k in (None, 0, 4):
            e = explain(model, image, class_index=k)
            target = int(logits.argmax()) if k is None else k
            assert e.class_index == target
            assert e.logit == pytest.approx(logits[target].item(), abs=1e-5)
            assert abs(e.total - e.logit) <= TOLERANCE
            wanted = contributions[target]
            for c in e.shown:
                assert c.contribution == pytest.approx(wanted[c.channel].item(), abs=1e-4)
                assert c.contribution == pytest.approx(c.weight * c.pooled, abs=1e-5)
                assert c.pooled == pytest.approx(c.pos - c.neg, abs=1e-5)
            hidden = wanted.sum() - sum(wanted[c.channel] for c in e.shown)
            assert e.rest == pytest.approx(hidden.item(), abs=1e-3)
            bias = model.head.fc.bias
            assert e.bias == (0 if bias is None else pytest.approx(bias[target].item()))


@pytest.mark.parametrize(("top", "opposing"), [(4, 2), (1, 0), (0, 3), (0, 0), (10_000, 10_000)])
def test_the_strongest_are_shown(top, opposing):
    model, image = five_classes(), picture()
    e = explain(model, image, class_index=2, top=top, top_opposing=opposing)
    wanted = truth(model, image)[0][2]
    best = [c for c in wanted.argsort(descending=True).tolist() if wanted[c] > 0][:top]
    worst = [c for c in wanted.argsort().tolist() if wanted[c] < 0][:opposing]
    assert [c.channel for c in e.supporting] == best
    assert [c.channel for c in e.opposing] == worst
    assert e.rest_count == len(wanted) - len(best) - len(worst)
    assert e.channels == len(wanted)
    assert all(c.sign == 1 for c in e.supporting)
    assert all(c.sign == -1 for c in e.opposing)
    assert abs(e.total - e.logit) <= TOLERANCE


def test_heat_maps_are_the_rotated_channels():
    model, image = five_classes(), picture()
    y = truth(model, image)[2]  # [P, C]
    e = explain(model, image, top=3, top_opposing=3)
    assert len(e.shown) == 6
    grid = model.grid_size(e.picture.size[::-1])
    for c in e.shown:
        for heat, values in ((c.pos_heat, y[:, c.channel]), (c.neg_heat, -y[:, c.channel])):
            wanted = values.clamp_min(0).unflatten(0, grid)
            wanted = wanted / wanted.max() if wanted.max() > 0 else wanted
            torch.testing.assert_close(heat.double(), wanted, rtol=1e-3, atol=1e-3)
        shown = c.heat.flatten().argmax().item()
        assert c.box == cell_box(shown, grid, e.picture.size)


def planted(model, monkeypatch, values):
    """Make the model see a map that is 0 but for `values`: {(channel, row, column): value}."""
    config = transform_config(model)
    rows, columns = model.grid_size(tuple(config["input_size"][1:]))
    maps = torch.zeros(1, rows * columns, model.num_features)
    for (channel, row, column), value in values.items():
        maps[0, row * columns + column, channel] = value
    if model.input_fmt == "NCHW":
        maps = maps.mT.unflatten(2, (rows, columns))
    if model.num_prefix_tokens:  # would win everything if it counted as a pixel
        maps = torch.cat([torch.full((1, model.num_prefix_tokens, maps.shape[2]), 99.0), maps], 1)
    monkeypatch.setattr(model, "forward_features", lambda x: maps, raising=False)
    with torch.no_grad():
        model.head.fc.weight.fill_(0.5)
    return rows, columns


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_boxes_are_on_the_planted_cells(name, monkeypatch):
    model = attach(name, 2).eval()
    grid = planted(
        model, monkeypatch, {(3, 1, 2): 5.0, (3, 0, 0): 2.5, (3, 2, 1): -1.0, (7, 0, 1): -2.0}
    )
    e = explain(model, picture(), class_index=1)
    size = e.picture.size
    assert [c.channel for c in e.supporting] == [3]
    assert [c.channel for c in e.opposing] == [7]
    first, second = e.shown
    assert (first.weight, first.pos, first.neg, first.contribution) == (0.5, 5.0, 1.0, 2.0)
    assert first.pos_box == first.box == cell_box(grid[1] + 2, grid, size)
    assert first.neg_box == cell_box(2 * grid[1] + 1, grid, size)
    assert first.pos_heat[1, 2] == 1
    assert first.pos_heat[0, 0] == 0.5
    assert first.pos_heat.sum() == 1.5
    assert first.neg_heat[2, 1] == first.neg_heat.sum() == 1
    assert second.pos_box is None
    assert second.pos_heat.sum() == 0
    assert second.box == cell_box(1, grid, size)
    width, height = size[0] / grid[1], size[1] / grid[0]
    for drawn, wanted in zip(first.box, (2 * width, height, 3 * width, 2 * height), strict=True):
        assert abs(drawn - wanted) <= 0.5
    assert e.rest == 0
    assert e.logit == 1.0
    assert e.size95 == 1


def test_size95_counts_the_largest_contributions(monkeypatch):
    model = attach("test_resnet", 2).eval()
    values = {(c, 0, 0): v for c, v in enumerate([8.0, 4.0, 2.0, 1.0, 0.5, 0.25])}
    planted(model, monkeypatch, values)
    assert explain(model, picture()).size95 == 4  # 15 of 15.75 is 95.2 %, 14 only 88.9 %
    planted(model, monkeypatch, {k: -v for k, v in values.items()})
    e = explain(model, picture())
    assert e.size95 is None
    assert e.logit < 0
    assert e.supporting == ()


@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    data=st.data(),
)
def test_cell_box_is_inside_and_on_its_cell(rows, columns, width, height, data):
    row, column = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    x0, y0, x1, y1 = cell_box(row * columns + column, (rows, columns), (width, height))
    assert 0 <= x0 < x1 <= width
    assert 0 <= y0 < y1 <= height
    for start, stop, i, cells, size in (
        (x0, x1, column, columns, width),
        (y0, y1, row, rows, height),
    ):
        tolerance = 0.5 if size >= cells else 1.5  # cells below a pixel are drawn as one
        assert abs(start - i * size / cells) <= tolerance
        assert abs(stop - (i + 1) * size / cells) <= tolerance


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
    top=st.integers(0, 9),
    opposing=st.integers(0, 9),
)
def test_the_sum_holds_for_any_head(seed, scale, top, opposing):
    model = five_classes(bias=True)
    before = {k: v.clone() for k, v in model.head.state_dict().items()}
    random_head(model, seed)
    with torch.no_grad():
        model.head.fc.weight.mul_(scale)
    e = explain(model, picture(seed % 7), top=top, top_opposing=opposing)
    sizes = [abs(c.contribution) for c in e.shown]
    assert abs(e.total - e.logit) <= max(TOLERANCE, 1e-5 * (sum(sizes) + abs(e.rest)))
    assert sum(e.probabilities) == pytest.approx(1, abs=1e-5)
    model.head.load_state_dict(before)


def test_contributions_that_do_not_add_up_are_an_error(monkeypatch):
    model = attach("test_resnet", 2).eval()
    plain = model.forward_head
    monkeypatch.setattr(model, "forward_head", lambda x: plain(x) + 0.01, raising=False)
    with pytest.raises(RuntimeError, match=r"add up to .* but the model's logit"):
        explain(model, picture())


def test_picture_is_what_the_network_sees(image_folder, tiny):
    file = image_folder / "red" / "00.png"
    e = explain(tiny, file, classes=("green", "red"), true_name="red")
    config = transform_config(tiny)
    x = transform_from(config)(load_image(file))
    assert e.picture.size == (x.shape[2], x.shape[1])
    seen = torch.tensor(list(e.picture.tobytes())).view(*x.shape[1:], 3).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(config[k]).view(3, 1, 1) for k in ("mean", "std"))
    assert (seen - (x * std + mean).clamp(0, 1)).abs().max() <= 0.5 / 255 + 1e-6
    assert e.path == str(file)
    assert e.correct == (e.predicted_name == "red")
    assert e.class_name == e.predicted_name
    assert explain(tiny, load_image(file)).correct is None


def test_another_transform(image_folder, tiny):
    config = {**transform_config(tiny), "input_size": [3, 96, 128]}
    e = explain(tiny, image_folder / "red" / "00.png", transform=config)
    assert e.picture.size == (128, 96)
    rows, columns = tiny.grid_size((96, 128))
    assert rows != columns
    assert e.shown[0].pos_heat.shape == (rows, columns)


def test_training_mode_is_left_alone(tiny):
    tiny.train()
    explain(tiny, picture())
    assert tiny.training
    assert tiny.head.training
    assert not tiny.backbone.training
    tiny.eval()
    explain(tiny, picture())
    assert not tiny.training


def test_many(image_folder, tiny):
    files = sorted((image_folder / "green").glob("*.png"))[:3]
    names = ["green", None, "red"]
    explanations = explain_many(tiny, files, true_names=names, progress=False, top=1)
    assert [e.path for e in explanations] == [str(f) for f in files]
    assert [e.true_name for e in explanations] == ["green", None, "red"]
    assert all(len(e.supporting) <= 1 for e in explanations)
    with pytest.raises(ValueError, match="2 true_names were given for 3 images"):
        explain_many(tiny, files, true_names=["a", "b"], progress=False)


def test_unreadable_images_are_handed_over_and_every_image_is_decoded_once(
    tmp_path, image_folder, tiny, monkeypatch
):
    files = [image_folder / "red" / f"{i:02d}.png" for i in (6, 7, 8)] + [tmp_path / "gone.png"]
    decoded, failures = [], []
    plain = local.load_picture
    monkeypatch.setattr(local, "load_picture", lambda f: (decoded.append(f), plain(f))[1])
    explanations = explain_many(
        tiny,
        files,
        true_names=["a", "b", "c", "d"],
        on_error=lambda image, error: failures.append((image, type(error), str(error))),
        progress=False,
    )
    assert [(e.path, e.true_name) for e in explanations] == [
        (str(files[0]), "a"),
        (str(files[2]), "c"),
    ]
    assert [(image, kind) for image, kind, _ in failures] == [
        (files[1], ValueError), (files[3], FileNotFoundError),
    ]  # fmt: skip
    assert "07.png cannot be read" in failures[0][2]
    assert decoded == files
    with pytest.raises(ValueError, match=r"07\.png cannot be read"):
        explain_many(tiny, files, progress=False)
    with torch.no_grad():  # a fault of the model is not one of an image
        tiny.head.fc.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        explain_many(tiny, files, on_error=lambda *_: None, progress=False)


def test_bad_arguments(tmp_path, image_folder, tiny):
    for index in (-1, 2):
        with pytest.raises(ValueError, match=rf"class_index is {index}, allowed are 0 … 1"):
            explain(tiny, picture(), class_index=index)
    with pytest.raises(ValueError, match="3 class names were given for 2 classes"):
        explain(tiny, picture(), classes=("a", "b", "c"))
    with pytest.raises(ValueError, match="top is -1"):
        explain(tiny, picture(), top=-1)
    with pytest.raises(ValueError, match="top_opposing is -2"):
        explain(tiny, picture(), top_opposing=-2)
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        explain(tiny, tmp_path / "gone.png")
    with pytest.raises(ValueError, match=r"07\.png cannot be read as an image"):
        explain(tiny, image_folder / "red" / "07.png")
    with torch.no_grad():
        tiny.head.fc.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        explain(tiny, picture())
