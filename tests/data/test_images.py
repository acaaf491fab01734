"""Folders of images: finding, splitting, decoding, and what goes wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from infodisent.data.images import all_for_testing, load_image, scan_folder, split_items


def test_scan_is_stratified_and_repeatable(image_folder):
    images = scan_folder(image_folder, val_fraction=0.25, seed=3)
    assert images.classes == ("green", "red")
    for label in (0, 1):
        splits = [i.split for i in images.items if i.label == label]
        assert (splits.count("train"), splits.count("val")) == (9, 3)
    assert images == scan_folder(image_folder, val_fraction=0.25, seed=3)
    assert images != scan_folder(image_folder, val_fraction=0.25, seed=4)


def test_existing_split_is_kept(tmp_path):
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(tmp_path / split / name / "x.PNG")
    images = scan_folder(tmp_path)
    assert sorted((i.split, i.label) for i in images.items) == [
        ("train", 0),
        ("train", 1),
        ("val", 0),
        ("val", 1),
    ]
    (tmp_path / "test" / "c").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "test" / "c" / "x.png")
    with pytest.raises(ValueError, match=r"classes that .*train lacks: c"):
        scan_folder(tmp_path)


def test_bad_folders(tmp_path, image_folder):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        scan_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="0 class folder"):
        scan_folder(image_folder / "red")
    with pytest.raises(ValueError, match="val_fraction is 1"):
        scan_folder(image_folder, val_fraction=1.0)
    with pytest.raises(ValueError, match="classes the model lacks: green, red"):
        all_for_testing(image_folder, ("blue",))
    with pytest.raises(ValueError, match="'b' has 0 images"):
        split_items(tmp_path, ("a", "b"), ["1", "2", "3"], [0, 0, 0])
    with pytest.raises(ValueError, match=r"no class .* has two images"):
        split_items(tmp_path, ("a", "b"), ["1", "2"], [0, 1])
    alone = split_items(tmp_path, ("a", "b"), ["1", "2", "3"], [0, 0, 1])
    assert [i.split for i in alone.items if i.label == 1] == ["train"]
    assert alone.notices == ("trained on but not tested: 1 class with only one image (b)",)


@given(
    counts=st.lists(st.integers(2, 30), min_size=1, max_size=5),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 99),
)
def test_split_never_empties_a_class(counts, fraction, seed):
    labels = [y for y, n in enumerate(counts) for _ in range(n)]
    names = [str(y) for y in range(len(counts))]
    images = split_items("x", names, [str(i) for i in range(len(labels))], labels, fraction, seed)
    for y in range(len(counts)):
        assert {i.split for i in images.items if i.label == y} == {"train", "val"}
    assert [i.path for i in images.items] == [str(i) for i in range(len(labels))]


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_corrupt_image_is_named(tmp_path, content):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.png cannot be read as an image"):
        load_image(path)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "I;16", "1"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    Image.new(mode, (5, 3)).save(path)
    assert load_image(path).mode == "RGB"


def test_sixteen_bit_grey_keeps_its_contrast(tmp_path):
    ramp = np.linspace(0, 65535, 4096).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "16.png")
    pixels = np.asarray(load_image(tmp_path / "16.png"))
    assert abs(pixels.astype(float) - ramp[..., None] / 257).max() <= 1
    Image.fromarray(ramp.astype(np.int32)).save(tmp_path / "32.tif")
    assert np.array_equal(np.asarray(load_image(tmp_path / "32.tif")), pixels)


def test_orientation_is_obeyed_and_thin_pictures_refused(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    assert load_image(tmp_path / "turned.jpg").size == (20, 40)
    Image.new("RGB", (2000, 1)).save(tmp_path / "thin.png")
    with pytest.raises(ValueError, match="too thin"):
        load_image(tmp_path / "thin.png")


def test_hidden_folders_are_left_out_and_links_followed_once(tmp_path):
    for name in ("a", "b", "elsewhere", "a/.ipynb_checkpoints"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("RGB", (4, 4)).save(tmp_path / name / f"{i}.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "a").rename(tmp_path / "root" / "a")
    (tmp_path / "b").rename(tmp_path / "root" / "b")
    (tmp_path / "root" / "a" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "b" / "circle").symlink_to(tmp_path / "root" / "b")
    images = scan_folder(tmp_path / "root")
    assert [sum(i.label == label for i in images.items) for label in (0, 1)] == [6, 3]


def test_a_class_may_be_called_valid(tmp_path):
    for name in ("valid", "invalid"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "x.png")
    assert len(all_for_testing(tmp_path, ("invalid", "valid")).items) == 2
