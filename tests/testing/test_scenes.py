"""The renderer draws what it says: its truth is found again in the pixels."""

from __future__ import annotations

import hashlib

import pytest
import torch
from PIL import Image

from infodisent.data.images import scan_folder
from infodisent.testing.scene_files import DISTRACTOR, read_annotations, write_scenes
from infodisent.testing.scenes import SceneDetector, Scenes


def with_color(image, color):
    return (image == torch.tensor(color, dtype=torch.uint8)[:, None, None]).all(0)


@pytest.mark.parametrize("options", [{}, {"parts": 5, "size": 96}, {"cell": 8, "variants": 3}])
def test_masks_are_the_pixels_of_their_colour(options):
    scenes = Scenes(16, **options)
    assert len(scenes.classes) == len(set(scenes.classes)) == len(scenes.codes)
    colors = {variant.color for variant in scenes.variants}
    assert len(colors) == len(scenes.variants)
    for scene in scenes:
        assert scene.distractors.any()
        assert not (scene.distractors & scene.masks.any(0)).any()
        wanted = scenes.class_variants()[scene.label]
        assert sorted(scene.variants.tolist()) == wanted.nonzero().flatten().tolist()
        for number, variant in enumerate(scenes.variants):
            drawn = with_color(scene.image, variant.color)
            if scene.variants[variant.part] == number:
                assert drawn.sum() >= 12
                assert torch.equal(drawn, scene.masks[variant.part])
                middle = drawn.nonzero().float().mean(0).flip(0) + 0.5  # x, y
                assert (middle - scene.keypoints[variant.part]).abs().max() < 1.5
            else:
                assert not drawn.any()


def test_same_seed_same_bytes_whatever_was_drawn_before():
    scenes = Scenes(4, seed=5)
    torch.rand(3)
    pixels = torch.stack([scene.image for scene in scenes])
    assert hashlib.sha256(pixels.numpy().tobytes()).hexdigest()[:16] == "8c5cbdb4be3999d3"
    assert torch.equal(Scenes(9, seed=5)[3].image, scenes[3].image)
    assert not torch.equal(Scenes(4, seed=6)[3].image, scenes[3].image)


def test_taking_something_away_changes_nothing_else():
    scenes = Scenes(6)
    for i, scene in enumerate(scenes):
        less = scenes.scene(i, without=["head"])
        assert torch.equal(scene.keypoints, less.keypoints)
        assert less.visible.tolist() == [False, True, True]
        changed = (scene.image != less.image).any(0)
        assert torch.equal(changed, scene.masks[0])
        plain = scenes.scene(i, distractors=False)
        assert torch.equal((scene.image != plain.image).any(0), scene.distractors)
    hidden = Scenes(40, hidden=0.5).batch()
    assert 0.3 < hidden.visible.float().mean() < 0.7
    assert torch.equal(hidden.masks.flatten(2).any(2), hidden.visible)


def test_cells_hold_one_part_each():
    scenes = Scenes(16, cell=8)
    batch = scenes.batch()
    cells = torch.nn.functional.max_pool2d(batch.masks.float(), 8) > 0
    assert (cells.flatten(2).sum(2) == 1).all()
    place = (batch.keypoints / 8).long()  # x, y
    rows = torch.arange(16)[:, None], torch.arange(3)[None]
    assert cells[(*rows, place[..., 1], place[..., 0])].all()
    maps = SceneDetector(scenes)(batch.images)  # what is there, and nothing of what is not
    found = maps.flatten(2).amax(2) > 0
    assert torch.equal(found.float(), scenes.class_variants()[batch.labels])


def test_files_hold_the_same(tmp_path):
    scenes = Scenes(8, parts=2, variants=2, hidden=0.3, seed=2)
    written = write_scenes(scenes, tmp_path)
    again = read_annotations(tmp_path)
    assert again.classes == scenes.classes == scan_folder(tmp_path / "images").classes
    assert again.parts == ("head", "left wing")
    for i, scene in enumerate(scenes):
        picture = Image.open(tmp_path / "images" / again.files[i])
        pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        assert torch.equal(pixels.view(64, 64, 3).permute(2, 0, 1), scene.image)
        assert torch.equal(again.masks(i), scene.masks)
        assert torch.equal(again.keypoints[i], scene.keypoints)
        assert torch.equal(again.visible[i], scene.visible)
        assert again.labels[i] == scene.label
        x0, y0, x1, y1 = again.boxes[i].tolist()
        assert scene.masks.any(0)[y0:y1, x0:x1].sum() == scene.masks.any(0).sum()
        mask = Image.open(tmp_path / "masks" / again.files[i])
        numbers = torch.frombuffer(bytearray(mask.tobytes()), dtype=torch.uint8)
        assert (numbers == DISTRACTOR).sum() == scene.distractors.sum()
    assert torch.equal(written.boxes, again.boxes)
    (tmp_path / "annotations.json").write_text('{"images": 3}')
    with pytest.raises(ValueError, match=r"annotations\.json does not hold"):
        read_annotations(tmp_path)


def test_what_is_not_allowed_is_named():
    for options, message in (
        ({"parts": 6}, "parts is 6"),
        ({"parts": 5, "variants": 3}, "more than 12"),
        ({"size": 20}, "size is 20"),
        ({"hidden": 2}, "hidden 2"),
        ({"cell": 30}, "cell 30"),
        ({"variants": 0}, "variants is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Scenes(1, **options)
    with pytest.raises(ValueError, match="'beak', parts are head"):
        Scenes(1).scene(0, without=["beak"])
    with pytest.raises(IndexError, match="0 … 0"):
        Scenes(1)[1]
