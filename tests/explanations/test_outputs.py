"""What an explanation says beside the sum: the photograph's own pixels, tasks, and its outputs."""

from __future__ import annotations

import html.parser
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import infodisent
from infodisent import attach, explain
from infodisent.backbones.geometry import crop_geometry
from infodisent.backbones.preprocess import transform_config, transform_from
from infodisent.explanations import local
from infodisent.explanations.local import explain_many
from infodisent.explanations.placing import on_photograph
from tests.explanations.test_explain import five_classes, picture

NAMES = ("cat $x_1$", "dog", "<b>bird</b>", "鳥", "")


@pytest.fixture(scope="module")
def explanation():
    model = five_classes(bias=True)
    return explain(model, picture(size=(300, 170)), classes=NAMES, true_name="dog")


def test_boxes_are_also_in_the_photographs_pixels(monkeypatch):
    """A bright square is found where it is, whatever the transform did to the photograph."""
    model = attach("test_resnet", 2).eval()

    def brightness(x):  # a map that is the picture itself: the winner is the brightest cell
        light = torch.nn.functional.avg_pool2d(x.mean(1, keepdim=True), 32)
        maps = torch.zeros(x.shape[0], model.num_features, *light.shape[2:])
        maps[:, 3:4] = light - light.amin((2, 3), keepdim=True)
        return maps

    monkeypatch.setattr(model, "forward_features", brightness, raising=False)
    with torch.no_grad():
        model.head.fc.weight.fill_(0.5)
        model.head.rotation.A.zero_()
    photo = Image.new("RGB", (1600, 900), (20, 20, 20))
    photo.paste((255, 255, 255), (500, 200, 1000, 700))
    for mode, crop_pct in (("center", 0.95), ("squash", 1.0), ("border", 1.0)):
        config = {**transform_config(model), "crop_mode": mode, "crop_pct": crop_pct}
        e = explain(model, photo, transform=config)
        x0, y0, x1, y1 = e.shown[0].box_in_image
        assert e.image_size == (1600, 900)
        assert max(x0, 500) < min(x1, 1000)
        assert max(y0, 200) < min(y1, 700)
        assert (e.crop_in_image == (0, 0, 1600, 900)) == (mode != "center")
        assert bool(e.notes) == (mode == "center")
    assert explain(model, photo).crop_in_image[0] > 300
    assert "cut away" in explain(model, photo).notes[0]
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    photo.save(file, "JPEG", exif=exif)
    e = explain(model, file)
    assert e.image_size == (900, 1600)
    x0, y0, x1, y1 = e.shown[0].box_in_image  # turned by a quarter: x = 900 - y, y = x
    assert max(x0, 200) < min(x1, 700)
    assert max(y0, 500) < min(y1, 1000)


def test_a_dictionary_holds_everything_and_is_json(explanation):
    e = explanation
    values = json.loads(json.dumps(e.to_dict(), allow_nan=False))
    terms = [c["contribution"] for c in values["supporting"] + values["opposing"]]
    assert sum(terms) + values["rest"] + values["bias"] == pytest.approx(values["logit"], abs=1e-3)
    assert values["total"] == e.total
    assert values["logits"] == pytest.approx(e.logits.tolist())
    assert values["image_size"] == [300, 170]
    assert values["input_size"] == [160, 160]
    assert values["crop_in_image"] == list(e.crop_in_image)
    assert values["notes"] == list(e.notes)
    assert values["classes"] == list(NAMES)
    assert values["true_name"] == "dog"
    first = values["supporting"][0]
    assert first["box"] == list(e.shown[0].box)
    assert first["box_in_image"] == list(e.shown[0].box_in_image)
    assert "pos_heat" not in first
    heated = e.to_dict(heat=True)["supporting"][0]["pos_heat"]
    assert np.shape(heated) == tuple(e.shown[0].pos_heat.shape)


def test_figure_overlay_and_html(explanation, tmp_path):
    e = explanation
    e.plot().savefig(tmp_path / "x.png", dpi=40)
    assert Image.open(tmp_path / "x.png").size == (400, 248)
    image = e.tile()
    assert image.size == (320, 320)
    x0, y0, *_ = (2 * v for v in e.shown[0].box)
    assert image.getpixel((x0 + 1, y0 + 1)) == (0, 114, 178)
    assert e.tile(e.shown[-1].channel).tobytes() != image.tobytes()
    hidden = next(c for c in range(e.channels) if c not in {s.channel for s in e.shown})
    with pytest.raises(ValueError, match=rf"channel is {hidden}, shown are \d+"):
        e.tile(hidden)
    page = e._repr_html_()
    tags: list[str] = []
    parser = html.parser.HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.append(tag)
    parser.feed(page)
    assert tags.count("img") == 1 + len(e.shown)
    assert "http:" not in page
    assert "https:" not in page
    named = explain(five_classes(bias=True), picture(), classes=NAMES, class_index=2)
    assert "<b>bird" not in named._repr_html_()


def test_nothing_shown(tmp_path):
    e = explain(five_classes(), picture(), top=0, top_opposing=0)
    e.plot().savefig(tmp_path / "x.png", dpi=30)
    assert e._repr_html_()
    with pytest.raises(ValueError, match="shown are none"):
        e.tile()
    assert e.class_map().max() == pytest.approx(1, abs=0.2)  # of all units, shown or not


def test_labels_have_probabilities_of_their_own():
    model = five_classes(bias=True)
    e = explain(model, picture(), task="multilabel")
    torch.testing.assert_close(e.probabilities, e.logits.sigmoid())
    assert e.class_index == int(e.logits.argmax())
    assert set(e.predicted_names) == {str(i) for i in range(5) if e.logits[i] >= 0}
    assert e.correct is None
    assert e.to_dict()["task"] == "multilabel"
    plain = explain(model, picture(), class_index=1)
    assert plain.predicted_names == (plain.predicted_name,)
    assert float(plain.probabilities.sum()) == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="task is 'multi', allowed are multiclass, multilabel"):
        explain(model, picture(), task="multi")


def test_one_output_is_a_probability():
    torch.manual_seed(0)
    model = attach("test_resnet", 1, bias=True).eval()
    with torch.no_grad():
        model.head.fc.bias.fill_(-9.0)
    e = explain(model, picture(), classes=("defect",), true_name="defect")
    assert float(e.probabilities) == pytest.approx(1 / (1 + np.exp(-e.logit)), abs=1e-6)
    assert float(e.probabilities) < 0.5
    assert e.predicted_names == ()
    assert e.correct is False
    assert explain(model, picture(), classes=("defect",), true_name="fine").correct is True
    e.plot()


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_many_are_as_one_by_one(name, monkeypatch):
    model = five_classes(name)
    images = [picture(i, (150 + 10 * i, 170)) for i in range(7)]
    monkeypatch.setattr(local, "_BATCH", 3)
    passes = []
    plain = model.forward_features
    monkeypatch.setattr(
        model, "forward_features", lambda x: (passes.append(len(x)), plain(x))[1], raising=False
    )
    together = explain_many(model, images, progress=False)
    assert passes == [3, 3, 1]
    for image, e in zip(images, together, strict=True):
        alone = explain(model, image)
        torch.testing.assert_close(e.logits, alone.logits, rtol=1e-4, atol=1e-5)
        assert e.class_index == alone.class_index
        assert [c.channel for c in e.shown] == [c.channel for c in alone.shown]
        assert [c.box_in_image for c in e.shown] == [c.box_in_image for c in alone.shown]
        assert e.picture.tobytes() == alone.picture.tobytes()
        assert e.image_size == image.size


def test_a_checkpoint_lends_its_classes_transform_and_task(tmp_path):
    model = five_classes()
    config = {**transform_config(model), "input_size": [3, 96, 128]}
    path = tmp_path / "m.safetensors"
    infodisent.save(path, model, NAMES, transform=config, task="multilabel")
    loaded = infodisent.load(path)
    e = explain(loaded, picture())
    assert (e.classes, e.task, e.picture.size) == (NAMES, "multilabel", (128, 96))
    assert explain(loaded, picture(), task="multiclass").task == "multiclass"
    assert explain(loaded, picture(), classes=tuple("abcde")).classes == tuple("abcde")
    assert explain_many(loaded, [picture()], progress=False)[0].classes == NAMES
    assert explain(torch.nn.DataParallel(model), picture()).classes == tuple("01234")
    for wrong in ("runs/fit", None, {}):
        with pytest.raises(TypeError, match="must be a model from infodisent"):
            explain(wrong, picture())


def test_one_image_for_many_is_refused(tmp_path):
    model = five_classes()
    array = np.asarray(picture())
    for one in ("photo.jpg", b"123", picture(), tmp_path, array, torch.rand(3, 8, 8), io.BytesIO()):
        with pytest.raises(TypeError, match="must be a list of images"):
            explain_many(model, one, progress=False)
    assert explain_many(model, [], progress=False) == []
    assert len(explain_many(model, np.stack([array, array]), progress=False)) == 2
    assert len(explain_many(model, (picture(i) for i in range(2)), progress=False)) == 2


def test_notes_are_said_once_with_their_number(capsys, tmp_path):
    model = five_classes()
    wide = [np.arange(300 * 100, dtype=np.uint16).reshape(100, 300) + i for i in range(3)]
    explanations = explain_many(model, wide)
    text = " ".join(capsys.readouterr().out.split())
    assert text.count("3 image(s): pixels of more than 8 bits") == 1
    assert text.count("3 image(s): the crop cut away more than 25% of the image") == 1
    assert [len(e.notes) for e in explanations] == [2, 2, 2]
    fixed = explain(model, wide[0], intensity_range=(0, 65535), page=None)
    assert len(fixed.notes) == 1
    with pytest.raises(ValueError, match="explain: page is -1"):
        explain(model, wide[0], page=-1)
    with pytest.raises(ValueError, match="explain: intensity_range"):
        explain_many(model, wide, intensity_range=(3, 2), on_error=lambda *_: None)


def test_a_transform_that_is_none():
    model = five_classes()
    assert explain(model, picture(), transform={"input_size": [3, 64, 96]}).picture.size == (96, 64)
    with pytest.raises(TypeError, match="transform is a function, must be a configuration"):
        explain(model, picture(), transform=lambda image: image)
    with pytest.raises(TypeError, match="classes is 'abcde', must be a list"):
        explain(model, picture(), classes="abcde")


def test_pictures_smaller_than_a_cell():
    for side in (1, 2, 3):
        e = explain(five_classes(), np.full((side, side, 3), 90, np.uint8))
        for evidence in e.shown:
            x0, y0, x1, y1 = evidence.box_in_image
            assert 0 <= x0 < x1 <= side
            assert 0 <= y0 < y1 <= side


def test_no_float64_before_the_cpu(monkeypatch):
    """Apple's mps has none: every conversion comes after the move."""
    moved = []
    plain = torch.Tensor.to

    def to(self, *args, **kwargs):
        names = [a for a in (*args, *kwargs.values()) if a is torch.float64]
        if names and any(isinstance(a, (str, torch.device)) for a in (*args, *kwargs.values())):
            moved.append(args)
        return plain(self, *args, **kwargs)

    def double(self):
        raise TypeError("no float64 on this device")

    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.Tensor, "double", double)
    explain(five_classes(), picture())
    assert not moved


def test_maps_have_the_photographs_size(explanation):
    """Float maps in 0 … 1 and uint8 RGB, zero outside of what the network saw."""
    e = explanation
    for heat in (e.class_map(), e.heat_map(), e.heat_map(e.shown[-1].channel)):
        assert heat.shape == (170, 300)
        assert heat.dtype == np.float32
        assert 0 <= heat.min() < heat.max() <= 1
        x0, _, x1, _ = e.crop_in_image
        assert not heat[:, : x0 - 1].any()
        assert not heat[:, x1 + 1 :].any()
    whole = e.overlay()
    assert whole.shape == (170, 300, 3)
    assert whole.dtype == np.uint8
    assert not np.array_equal(whole, e.overlay(e.shown[0].channel))
    assert float(e.cells.sum()) == pytest.approx(e.score_value - e.bias, abs=1e-3)
    with pytest.raises(ValueError, match="heat_map: channel is -5, shown are"):
        e.heat_map(-5)


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_a_map_lies_where_its_box_does(mode):
    """One cell of heat: the map's peak is the middle of the cell's box in the photograph."""
    config = {"input_size": (3, 64, 64), "crop_pct": 0.9, "crop_mode": mode}
    geometry = crop_geometry(config, (300, 200))
    heat = torch.zeros(4, 4)
    heat[2, 1] = 1
    large = on_photograph(heat, geometry, (300, 200))
    x0, y0, x1, y1 = geometry.in_image((16, 32, 32, 48))
    y, x = np.unravel_index(large.argmax(), large.shape)
    assert abs(x + 0.5 - (x0 + x1) / 2) < 2
    assert abs(y + 0.5 - (y0 + y1) / 2) < 2
    assert large.max() > 0.9
    rows, columns = np.nonzero(large)
    assert rows.min() < y0 < y1 - 1 < rows.max()  # half a cell beyond it on every side
    assert columns.min() < x0 < x1 - 1 < columns.max()


def test_the_photograph_is_read_again_from_where_it_was(tmp_path):
    model, photo = five_classes(), picture(size=(90, 60))
    photo.save(tmp_path / "a.png")
    for source in (photo, np.asarray(photo), tmp_path / "a.png", (tmp_path / "a.png").open("rb")):
        e = explain(model, source)
        assert e.photograph().size == (90, 60)
        assert e.photograph().tobytes() == photo.tobytes()
    with Image.open(tmp_path / "a.png") as opened:
        e = explain(model, opened)
    assert e.photograph().tobytes() == photo.tobytes()
    gone = explain(model, tmp_path / "a.png")
    (tmp_path / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.png"):
        gone.overlay()
    assert gone.class_map().shape == (60, 90)


def test_ready_tensors_and_class_names():
    model = five_classes()
    config = transform_config(model)
    photo = picture(size=(200, 200))
    x = transform_from(config)(photo)
    plain = explain(model, photo, classes=NAMES, class_name="dog")
    assert plain.class_index == 1
    for given in (x, x[None], x.numpy()):
        e = explain(model, given, classes=NAMES, class_name="dog", ready=True)
        torch.testing.assert_close(e.logits, plain.logits)
        assert e.class_map().shape == e.overlay().shape[:2] == tuple(x.shape[1:])
    both = explain_many(model, torch.stack([x, -x]), ready=True, progress=False)
    torch.testing.assert_close(both[0].logits, plain.logits)
    assert both[1].image_size == both[1].picture.size
    for wrong, message in (
        ([photo], "tensor or array, got Image"),
        ([x[:2]], r"\[3, H, W\] of floats as the backbone is fed, got \[2, 160, 160\]"),
        ([(x * 50).to(torch.uint8)], "of uint8"),
        ([x * float("nan")], "not finite"),
        ([x, x[:, :96, :96]], "several sizes"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            explain_many(model, wrong, ready=True, progress=False)
    with pytest.raises(ValueError, match="ready=True"):
        explain(model, x)
    with pytest.raises(ValueError, match=r"class is 'Dog', .* did you mean 'dog'"):
        explain(model, photo, classes=NAMES, class_name="Dog")
    with pytest.raises(ValueError, match="give one"):
        explain(model, photo, classes=NAMES, class_name="dog", class_index=1)


def test_a_photograph_that_is_another_now(tmp_path, explanation):
    path = tmp_path / "p.png"
    picture(size=(60, 40)).save(path)
    e = explain(five_classes(bias=True), path, classes=NAMES)
    assert e.overlay().shape == (40, 60, 3)
    picture(size=(30, 40)).save(path)
    for ask in (e.photograph, e.overlay, lambda: e.overlay(e.shown[0].channel)):
        with pytest.raises(ValueError, match=r"p.png is 30 x 40 now, .* was 60 x 40"):
            ask()
    assert e.class_map().shape == (40, 60)  # needs no photograph
    assert "<table>" in e._repr_html_()


def test_a_channel_that_is_a_text_is_shown_as_one(explanation):
    unit = explanation.shown[0].channel
    with pytest.raises(ValueError, match=f"heat_map: channel is '{unit}', shown are {unit}"):
        explanation.heat_map(str(unit))


def test_words_of_a_head_are_no_markup(explanation):
    e = replace(explanation, unit="<u>", score="<s>", offset="<o>")
    assert not any(word in e._repr_html_() for word in ("<u>", "<s>", "<o>"))
