"""Annotations of parts and masks, read from small files of the formats that people have."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from infodisent.backbones.geometry import crop_geometry
from infodisent.data import annotations
from infodisent.data.annotation_formats import FUNNYBIRDS_COLORS, read_annotations
from infodisent.data.annotations import mask_in_input, merged, points_in_input
from infodisent.testing.scene_files import write_scenes
from infodisent.testing.scenes import Scenes


def write_cub(root):
    """Two images of two classes, as CUB-200-2011 is laid out; the second has no mask."""
    files = {
        "images.txt": "1 001.A_bird/one_1.jpg\n2 002.B_bird/two_2.jpg\n",
        "classes.txt": "1 001.A_bird\n2 002.B_bird\n",
        "image_class_labels.txt": "1 1\n2 2\n",
        "train_test_split.txt": "1 1\n2 0\n",
        "bounding_boxes.txt": "1 2.0 3.0 10.0 8.0\n2 0.0 0.0 5.0 4.0\n",
        "parts/parts.txt": "1 back\n2 left eye\n3 right eye\n",
        "parts/part_locs.txt": "1 1 4.0 5.0 1\n1 2 0.0 0.0 0\n1 3 7.5 8.5 1\n"
        "2 1 1.0 1.0 1\n2 2 2.0 2.0 1\n2 3 3.0 3.0 0\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for name, color in (("001.A_bird/one_1.jpg", 90), ("002.B_bird/two_2.jpg", 160)):
        (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 16), (color, 60, 60)).save(root / "images" / name)
    agreed = np.zeros((16, 20), dtype=np.uint8)
    agreed[3:11, 2:12] = 102  # two annotators of five
    agreed[4:10, 3:11] = 204
    (root / "segmentations" / "001.A_bird").mkdir(parents=True)
    Image.fromarray(agreed).save(root / "segmentations" / "001.A_bird" / "one_1.png")
    return root


def test_cub(tmp_path):
    known = read_annotations(f"cub:{write_cub(tmp_path / 'CUB_200_2011')}")
    assert known.classes == ("001.A_bird", "002.B_bird")
    assert known.labels.tolist() == [0, 1]
    assert known.splits == ("train", "val")
    assert known.parts == ("back", "left eye", "right eye")
    assert known.groups == (0, 1, 1)
    assert known.boxes.tolist() == [[2, 3, 12, 11], [0, 0, 5, 4]]
    assert known.keypoints[0].isnan().any(1).tolist() == [False, True, False]
    assert known.keypoints_of(0)[2].tolist() == [7.5, 8.5]
    mask, source = known.mask_of(0)
    assert source == "segmentation"
    assert int(mask.sum()) == 6 * 8
    mask, source = known.mask_of(1)
    assert source == "box"
    assert mask[:4, :5].all()
    assert int(mask.sum()) == 20
    assert known.find("/elsewhere/cropped/002.B_bird/two_2.png") == 1
    assert known.find("C:\\birds\\001.A_bird\\one_1.jpg") == 0
    assert known.find("/elsewhere/one_1.jpg") == 0
    assert known.find("/elsewhere/three.jpg") is None
    images = known.image_set()
    assert [(item.label, item.split) for item in images.items] == [(0, "train"), (1, "val")]
    assert Image.open(images.items[1].path).size == (20, 16)
    (tmp_path / "CUB_200_2011" / "bounding_boxes.txt").write_text("1 2.0 3.0\n")
    with pytest.raises(ValueError, match=r"bounding_boxes.txt line 1 has 3 columns, must have 5"):
        read_annotations(f"cub:{tmp_path / 'CUB_200_2011'}")


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("images.txt", "", "images.txt has 0 lines"),
        ("images.txt", "1 a/b.jpg\n1 a/c.jpg\n", "images.txt has 2 lines with 1 numbers"),
        ("images.txt", "1\n", "images.txt line 1 has 1 columns, must have 2"),
        ("image_class_labels.txt", "1 1\n", "labels.txt lacks 1 of the images, such as 002.B"),
        ("image_class_labels.txt", "1 1\n2 9\n", "line 2: '9' is no number of classes.txt"),
        ("train_test_split.txt", "", "split.txt lacks 2 of the images, such as 001.A"),
        ("train_test_split.txt", "1 x\n2 0\n", "split.txt line 1: 'x' is no number"),
        ("bounding_boxes.txt", "7 0 0 5 4\n", "line 1: '7' is no number of images.txt"),
        ("bounding_boxes.txt", "1 0 nan 5 4\n", "boxes.txt line 1: 'nan' is no number"),
        ("parts/part_locs.txt", "1 4 1 1 1\n", "locs.txt line 1: '4' is no number of parts.txt"),
        ("parts/part_locs.txt", "1 1 1 inf 1\n", "part_locs.txt line 1: 'inf' is no number"),
    ],
)
def test_damaged_lines_of_cub_are_named(tmp_path, file, text, words):
    root = write_cub(tmp_path)
    (root / file).write_text(text)
    with pytest.raises(ValueError, match=re.escape(words)):
        read_annotations(f"cub:{root}")


def test_boxes_outside_of_the_photograph(tmp_path):
    root = write_cub(tmp_path)
    (root / "bounding_boxes.txt").write_text("1 0 0 5 4\n2 -9 -9 4 4\n")
    assert not read_annotations(f"cub:{root}").mask_of(1)[0].any()
    (root / "bounding_boxes.txt").write_text("1 0 0 5 4\n2 18 -3 400 5\n")
    mask, _ = read_annotations(f"cub:{root}").mask_of(1)
    assert mask[:2, 18:].all()
    assert int(mask.sum()) == 4


@pytest.mark.parametrize("kind", ["funnybirds", "coco"])
def test_json_with_other_values_is_named(tmp_path, kind):
    image = {"class_idx": 0} if kind == "funnybirds" else {"id": 1, "file_name": "a/b.jpg"}
    for changed, words in (
        ({"class_idx": "x", "height": "x", "width": 4}, "invalid literal"),
        ({"class_idx": 3, "height": 0, "width": 4}, "classes, images of|height and width"),
    ):
        known = [image | changed]
        if kind == "coco":
            known = {"images": known, "annotations": [], "categories": []}
        (tmp_path / "dataset_test.json").write_text(json.dumps(known))
        (tmp_path / "classes.json").write_text(json.dumps([{"class_idx": 0}]))
        with pytest.raises(ValueError, match=f"json does not hold what it should .*({words})"):
            read_annotations(f"{kind}:{tmp_path}")


def test_a_part_of_no_category_is_named(tmp_path):
    part = {"image_id": 1, "category_id": 5, "segmentation": [[0, 0, 3, 0, 3, 3]]}
    image = {"id": 1, "file_name": "a/b.jpg", "height": 4, "width": 4}
    known = {"images": [image], "annotations": [part]}
    (tmp_path / "dataset_test.json").write_text(json.dumps(known))
    with pytest.raises(ValueError, match="category_id 5"):
        read_annotations(f"coco:{tmp_path}")


def test_funnybirds(tmp_path):
    (tmp_path / "dataset_train.json").write_text(json.dumps([{"class_idx": 1}]))
    (tmp_path / "dataset_test.json").write_text(json.dumps([{"class_idx": 0}, {"class_idx": 1}]))
    (tmp_path / "classes.json").write_text(
        json.dumps([{"class_idx": 0, "parts": {}}, {"class_idx": 1, "parts": {}}])
    )
    pixels = np.zeros((12, 12, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    pixels[2:5, 2:5, :3] = FUNNYBIRDS_COLORS["beak"]
    pixels[7:9, 1:9, :3] = FUNNYBIRDS_COLORS["wing02"]
    place = tmp_path / "test_part_map" / "1" / "000001.png"
    place.parent.mkdir(parents=True)
    Image.fromarray(pixels).save(place)
    known = read_annotations(f"funnybirds:{tmp_path}")
    assert known.classes == ("0", "1")
    assert known.splits == ("train", "val", "val")
    assert known.files[2] == "test/1/000001.png"
    assert known.find("/x/test/1/000001.png") == 2
    assert known.find("/x/train/1/000000.png") == 0
    masks = known.part_mask(2)
    assert masks.flatten(1).sum(1).tolist() == [0, 0, 9, 0, 0, 0, 16, 0]
    points = known.keypoints_of(2)
    assert points[2].tolist() == [3.5, 3.5]
    assert points[0].isnan().all()
    assert known.groups[known.parts.index("wing01")] == known.groups[known.parts.index("wing02")]
    mask, source = known.mask_of(2)
    assert (int(mask.sum()), source) == (25, "parts")


def write_coco(path, shape):
    known = {
        "images": [{"id": 7, "file_name": "n01_3.JPEG", "height": 10, "width": 12}],
        "categories": [
            {"id": 4, "name": "Quadruped Head", "supercategory": "Quadruped"},
            {"id": 9, "name": "Quadruped Tail", "supercategory": "Quadruped"},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 9, "segmentation": shape, "iscrowd": 0}
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(known))


def test_coco(tmp_path):
    write_coco(tmp_path / "annotations" / "val.json", [[2, 3, 6, 3, 6, 7, 2, 7]])
    write_coco(tmp_path / "annotations" / "train.json", [[0, 0, 3, 0, 3, 3, 0, 3]])
    (tmp_path / "other.json").write_text("[]")
    known = read_annotations(f"coco:{tmp_path}")
    assert known.splits == ("train", "val")
    assert known.classes == ("n01",)
    assert known.parts == ("Quadruped Head", "Quadruped Tail")
    head, tail = known.part_mask(1)
    assert not head.any()
    assert tail.shape == (10, 12)
    assert tail[4:7, 3:6].all()
    assert not tail[8:].any()
    assert known.keypoints_of(1)[1].tolist() == [4.5, 5.5]
    assert known.find("photos/n01_3.JPEG") is None  # two images have this name
    with pytest.raises(ValueError, match="no images and annotations"):
        read_annotations(f"coco:{tmp_path / 'other.json'}")


def test_run_lengths_are_left_to_their_library(tmp_path, monkeypatch):
    runs = {"size": [10, 12], "counts": [23, 2, 95]}  # by columns: rows 3 and 4 of the third
    write_coco(tmp_path / "val.json", runs)
    known = read_annotations(f"coco:{tmp_path / 'val.json'}")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pycocotools", None)
        with pytest.raises(ModuleNotFoundError, match="pip install pycocotools"):
            known.part_mask(0)
    pytest.importorskip("pycocotools", reason="reads run-length codes")
    assert known.part_mask(0)[1].nonzero().tolist() == [[3, 2], [4, 2]]


def test_compressed_run_lengths(tmp_path):
    pytest.importorskip("pycocotools", reason="reads run-length codes")
    # 23, 2, 95 as COCO writes them: 5 bits a letter from "0", lowest first, 32 where more follow;
    # from the third run on, the difference to the run two before
    write_coco(tmp_path / "val.json", {"size": [10, 12], "counts": "g02o2"})
    known = read_annotations(f"coco:{tmp_path / 'val.json'}")
    assert known.part_mask(0)[1].nonzero().tolist() == [[3, 2], [4, 2]]


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"counts": [23, 2, 95]}, "must be a list of polygons"),
        ("02o2", "must be a list of polygons"),
        ({"size": [12, 10], "counts": [23, 2, 95]}, r"size \[12, 10\], its photograph \[10, 12\]"),
        ({"size": [10, 12], "counts": [23, 2, 96]}, "whose sum is height x width, 120"),
        ({"size": [10, 12], "counts": [130, -10]}, "numbers >= 0"),
        ([[2, 3, 6, 3, 6, 7, 2]], "x and y in turn"),
        ([2, 3, 6, 3, 6, 7], "segmentation holds 2, must hold polygons"),
        ([["a", "b"] * 3], "must hold polygons"),
    ],
)
def test_broken_segmentations_say_what_is_wrong(tmp_path, shape, words):
    write_coco(tmp_path / "val.json", shape)
    known = read_annotations(f"coco:{tmp_path / 'val.json'}")
    with pytest.raises(ValueError, match=words):
        known.part_mask(0)


def test_scenes_and_plain_masks(tmp_path):
    scenes = Scenes(3, hidden=0.3, seed=1)
    write_scenes(scenes, tmp_path / "scenes")
    known = read_annotations(f"scenes:{tmp_path / 'scenes'}")
    for i, scene in enumerate(scenes):
        assert torch.equal(known.part_mask(i), scene.masks)
        assert torch.equal(known.keypoints_of(i).isnan().any(1), ~scene.visible)
    (tmp_path / "masks" / "cat").mkdir(parents=True)
    drawn = np.zeros((6, 8), dtype=np.uint8)
    drawn[1, 2] = 1
    Image.fromarray(drawn).save(tmp_path / "masks" / "cat" / "a.b.png")
    plain = read_annotations(f"masks:{tmp_path / 'masks'}")
    at = plain.find("images/cat/a.b.jpg")
    assert plain.mask_of(at)[0].nonzero().tolist() == [[1, 2]]
    assert plain.keypoints_of(at) is None


def test_what_is_given_is_checked(tmp_path):
    with pytest.raises(ValueError, match="kinds cub, funnybirds, coco, scenes, masks"):
        read_annotations(f"birds:{tmp_path}")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_annotations(f"cub:{tmp_path / 'nowhere'}")
    with pytest.raises(FileNotFoundError, match="no mask"):
        read_annotations(f"masks:{tmp_path}")
    assert merged(["left leg", "nape", "right leg", "foot02", "foot01"]) == (0, 1, 0, 2, 2)


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_masks_and_points_go_the_way_of_the_photograph(mode):
    config = {"input_size": (3, 32, 32), "crop_pct": 0.8, "crop_mode": mode}
    geometry = crop_geometry(config, (100, 60))
    mask = torch.zeros(60, 100, dtype=torch.bool)
    mask[20:40, 40:60] = True
    seen = mask_in_input(mask, geometry)
    assert seen.shape == (32, 32)
    centre = points_in_input(torch.tensor([[50.0, 30.0]]), geometry)[0]
    where = seen.nonzero().float().mean(0).flip(0) + 0.5
    assert (centre - where).abs().max() < 0.6
    share = seen.sum() / (geometry.resized[0] * geometry.resized[1])
    assert float(share) == pytest.approx(400 / 6000, rel=0.15)
    with pytest.raises(ValueError, match="a mask is 60 x 100, its photograph 100 x 60"):
        mask_in_input(mask.mT, geometry)
    assert annotations.MASKS == ("segmentation", "parts", "box")
