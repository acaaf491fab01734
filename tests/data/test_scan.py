"""Folders as public data sets lie on disks: splits never taken for classes, nothing left out
without a word.
"""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infodisent.data.images import all_for_testing, extensions, scan_folder
from infodisent.data.splits import split_name


@pytest.fixture
def make(tmp_path):
    """Builds a folder from a text such as ``train/cat/3 test/dog/1``: so many images in each."""
    rng = np.random.default_rng(0)

    def build(layout: str, name: str = "d", ending: str = "png") -> Path:
        root = tmp_path / name
        for part in layout.split():
            folder, _, count = part.rpartition("/")
            (root / folder).mkdir(parents=True, exist_ok=True)
            for i in range(int(count)):
                pixels = rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / folder / f"{i}.{ending}")
        return root

    return build


def counts(images):
    """Images of every (class, split)."""
    return Counter((images.classes[i.label], i.split) for i in images.items)


def said(images, *words):
    """Whether one notice holds all the words."""
    return any(all(word in line for word in words) for line in images.notices)


@pytest.mark.parametrize(
    ("name", "role", "of"),
    [
        ("train", "train", ""),
        ("Training", "train", ""),
        ("train_images", "train", ""),
        ("images_train", "train", ""),
        ("imagesTrain", "train", ""),
        ("trainset", "train", ""),
        ("train2017", "train", ""),
        ("TRAIN-data", "train", ""),
        ("trainval", "train", ""),
        ("seg_train", "train", "seg"),
        ("val", "val", ""),
        ("Validation_set", "val", ""),
        ("valid", "val", ""),
        ("dev", "val", ""),
        ("ILSVRC2012_img_val", "val", "ilsvrc2012_img"),
        ("testing", "test", ""),
        ("Test Images", "test", ""),
        ("hold-out", "test", ""),
        ("eval", "test", ""),
        ("fold_0", "fold", ""),
        ("fold1", "fold", ""),
        ("split_1", "fold", ""),
        ("Fold 3", "fold", ""),
    ],
)
def test_names_of_splits(name, role, of):
    assert split_name(name) == (role, of)


@pytest.mark.parametrize(
    "name", ["invalid", "trainer", "strain", "testis", "device", "contest", "values", "images"]
)
def test_names_that_only_look_like_splits(name):
    assert split_name(name) is None


@pytest.mark.parametrize(
    ("train", "held"),
    [
        ("Training", "Testing"),  # brain tumours
        ("TRAIN", "TEST"),  # blood cells
        ("seg_train/seg_train", "seg_test/seg_test"),  # Intel's scenes
        ("train_images", "val_images"),
        ("train2017", "val2017"),
        ("train", "holdout"),
        ("trainset", "devset"),
        ("data/Train", "data/valid"),
    ],
)
def test_splits_of_public_data_sets(make, train, held):
    images = scan_folder(make(f"{train}/cat/3 {train}/dog/2 {held}/cat/1 {held}/dog/1"))
    assert images.classes == ("cat", "dog")
    assert counts(images) == {
        ("cat", "train"): 3,
        ("dog", "train"): 2,
        ("cat", "val"): 1,
        ("dog", "val"): 1,
    }


def test_val_is_held_out_and_test_left_out_with_a_notice(make):
    images = scan_folder(
        make("train/a/2 train/b/2 val/a/1 val/b/1 test/a/4 test/b/1 unlabeled/x/2")
    )
    assert counts(images)[("a", "val")] == 1
    assert said(images, "left out: test/", "5 images", "val/")
    assert said(images, "beside the splits", "unlabeled")
    images = scan_folder(make("tr/a/2 tr/b/2 te/a/1 te/b/1 test_images/3", "short"))
    assert Counter(i.split for i in images.items) == {"train": 4, "val": 2}
    assert said(images, "beside the splits", "test_images")


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("train/a/2 train/b/2", "only train/, a split without its counterpart"),
        ("test/a/2 test/b/2", "only test/, a split"),
        ("val/a/2 val/b/2 test/a/2 test/b/2", "only test/, val/: splits without"),
        ("train/a/2 train/b/2 unlabeled/x/3", "splits without their counterpart"),
        ("fold_0/a/1 fold_0/b/1 fold_1/a/1 fold_1/b/1", "holds the folds fold_0/, fold_1/"),
        ("1st_fold/2 2nd_fold/2 other/2", "holds the folds"),
        ("train/3 test/3", "splits, but test/, train/ with images in no class folder"),
        ("train/a/2 train/b/2 test/5", "splits, but test/ with images in no class folder"),
        ("train/a/2 train/b/2 more/a/2 more/b/2", "train/ and more/, which both hold a/, b/"),
        ("train/a/2 train/b/2 Training/a/2 Training/b/2 val/a/1 val/b/1", "several train splits"),
        ("train/a/2 test/a/1 x_train/a/1 x_test/a/1", "several pairs of splits"),
        ("images/train/4 images/val/4", "in no class folder"),  # detection data
        ("train/images/4 val/images/4", "train/, val/ with images in no class folder"),
        ("cat/train/2 cat/val/2 dog/3", "splits inside its class folders, but not the same"),
        ("cat/fold1/2 cat/fold2/2 dog/fold1/3", "cat/ with the folds"),
        ("x-train/a/2 x-train/b/2 y-test/a/2 y-test/b/2", "splits without their counterpart"),
        ("images/4 masks/4", "images/, masks/: pictures and what is drawn on them"),
        ("train/images/2 train/labels/2 val/images/2 val/labels/2", "pictures and what is drawn"),
        ("imagesTr/4 imagesTs/4 labelsTr/4", "with images in no class folder"),
        ("train/good/2 train/fine/2 test/good/2 test/bad/2", "train lacks: bad; the latter has"),
    ],
)
def test_what_cannot_be_understood_is_refused(make, layout, message):
    with pytest.raises(ValueError, match=message) as caught:
        scan_folder(make(layout))
    assert len(str(caught.value).splitlines()) == 1
    if "lacks" not in message:
        assert "--train DIR --val DIR" in str(caught.value)


def test_a_class_may_be_called_train(make):
    images = scan_folder(make("car/4 plane/4 train/4"), seed=1)
    assert images.classes == ("car", "plane", "train")
    assert said(images, "a class", "'train'")
    both = scan_folder(make("car/4 plane/4 train/4 test/4", "both"))
    assert both.classes == ("car", "plane", "test", "train")
    assert said(both, "classes", "'train'", "'test'")
    deep = scan_folder(make("car/images/4 bus/images/4 train/images/4 test/images/4", "deep"))
    assert deep.classes == ("bus", "car", "test", "train")
    sorts = scan_folder(make("steam_train/4 bullet_train/4", "sorts"))
    assert sorts.classes == ("bullet_train", "steam_train")
    inner = scan_folder(make("car/images/4 train/images/4", "inner"))
    assert inner.classes == ("car", "train")


def test_splits_inside_classes(make):
    images = scan_folder(make("cat/train/3 cat/val/1 dog/train/2 dog/val/2 dog/masks/1 dog/1"))
    assert counts(images) == {
        ("cat", "train"): 3,
        ("cat", "val"): 1,
        ("dog", "train"): 2,
        ("dog", "val"): 2,
    }
    assert said(images, "inside each class")
    assert said(images, "left out: 1 folder (dog/masks)")
    assert said(images, "not in a class folder", "dog/0.png")


def test_equally_named_parts_of_classes(make):
    plain = scan_folder(make("cat/images/4 dog/images/4"))
    assert plain.classes == ("cat", "dog")
    assert plain.notices == ()
    parts = scan_folder(make("benign/40X/2 benign/100X/2 bad/40X/2 bad/100X/2", "parts"))
    assert parts.classes == ("bad", "benign")
    assert said(parts, "every class folder holds 100X/, 40X/")


def test_wrappers_are_entered_and_said(make):
    images = scan_folder(make("chest/chest/cat/4 chest/chest/dog/4"))
    assert images.classes == ("cat", "dog")
    assert said(images, "taken from", "chest")
    doubled = make("train/a/2 train/b/2 val/a/1 val/b/1 chest/train/a/2", "doubled")
    assert said(scan_folder(doubled), "beside the splits", "chest")


def test_left_out_files_are_counted_and_named(make):
    root = make("a/4 b/4")
    for i in range(5):
        (root / "b" / f"lost{i}.png").symlink_to(f"/nowhere/{i}.png")
    for name in ("a/s.dcm", "a/t.npy", "b/labels.txt", "README", "a/x.heic"):
        (root / name).write_bytes(b"x")
    (root / ".DS_Store").write_bytes(b"x")
    (root / "__MACOSX").mkdir()
    (root / "empty").mkdir()
    Image.new("RGB", (4, 4)).save(root / "loose.png")
    images = scan_folder(root)
    assert len(images.items) == 8
    assert said(images, "5 broken links", "b/lost0.png, b/lost1.png, b/lost2.png …")
    assert said(images, "of no image format", "1 .dcm", "1 .npy", "1 .txt", "pydicom")
    assert said(images, "2 hidden", ".DS_Store, __MACOSX")
    assert said(images, "1 class folder, without any image (empty)")
    assert said(images, "1 image, not in a class folder (loose.png)")
    assert all("\n" not in line for line in images.notices)


def test_all_formats_of_pillow_count(make):
    endings = [
        e for e in ("pgm", "jfif", "avif", "jp2", "PNM", "tga") if f".{e.lower()}" in extensions()
    ]
    assert {"pgm", "jfif", "PNM"} <= set(endings)
    root = make("a/3 b/3")
    for ending in endings:
        Image.new("RGB", (8, 8)).save(
            root / "a" / f"x.{ending}", format="JPEG" if ending == "jfif" else None
        )
    assert len(scan_folder(root).items) == 6 + len(endings)
    assert {".mpo", ".ppm", ".pbm", ".jpg", ".webp"} <= set(extensions())
    assert not {".pdf", ".eps", ".ps", ".mpg", ".mpeg", ".h5"} & set(extensions())


def test_a_folder_of_other_files_says_which(make):
    root = make("a/0 b/0")
    for name in ("a/1.dcm", "b/1.dcm"):
        (root / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=r"0 class folder.*2 files.*2 \.dcm.*pydicom"):
        scan_folder(root)


def test_same_content_in_both_splits_and_under_two_labels(make):
    root = make("train/a/3 train/b/3 val/a/2 val/b/2")
    shutil.copy(root / "train/a/0.png", root / "val/a/copy.png")
    shutil.copy(root / "train/b/1.png", root / "train/a/wrong.png")
    images = scan_folder(root)
    assert said(images, "1 held-out image is also among the training images", "val/a/copy.png")
    assert said(images, "the same image under different labels, 1 time", "wrong.png")
    assert not any("same image" in line for line in scan_folder(make("a/4 b/4", "e")).notices)


def test_large_files_are_compared_whole(make):
    root = make("train/a/1 train/b/1 val/a/1 val/b/1")
    pixels = np.random.default_rng(0).integers(0, 255, (100, 100, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "train/a/big.bmp")
    shutil.copy(root / "train/a/big.bmp", root / "val/a/same.bmp")
    pixels[0, 0] ^= 1  # the last bytes of the file: its rows are stored from below
    Image.fromarray(pixels).save(root / "val/a/other.bmp")
    assert said(scan_folder(root), "1 held-out image is", "same.bmp is train/a/big.bmp")


def test_classes_that_lack_images(make):
    rare = scan_folder(make("a/4 b/4 rare/1"))
    assert counts(rare)[("rare", "train")] == 1
    assert said(rare, "trained on but not tested", "1 class with only one image (rare)")
    lacking = scan_folder(make("train/a/2 train/b/2 train/c/1 val/a/1 val/b/1", "f"))
    assert said(lacking, "trained on but not tested", "(c)")
    with pytest.raises(ValueError, match="nothing can be held out"):
        scan_folder(make("a/1 b/1", "g"))


def test_nearly_equal_names_are_said(make):
    assert said(scan_folder(make("Cat/2 cat/2")), "'Cat' and 'cat'")
    with pytest.raises(ValueError, match=r"val has classes that .*train lacks: cat"):
        scan_folder(make("train/Cat/2 train/dog/2 val/cat/2 val/dog/2", "h"))


def test_a_fraction_beside_fixed_splits_is_said_to_be_ignored(make):
    root = make("train/a/2 train/b/2 val/a/1 val/b/1")
    assert said(scan_folder(root, val_fraction=0.5), "val_fraction 0.5 has no effect")
    assert scan_folder(root).notices == ()


def test_two_folders_given(make, tmp_path):
    one = make("cat/3 dog/3", "one")
    two = make("wrap/cat/1 wrap/dog/2", "two")
    images = scan_folder(train=one, val=two)
    assert counts(images)[("dog", "val")] == 2
    assert images.root == str(tmp_path)
    with pytest.raises(ValueError, match="one must not hold the other"):
        scan_folder(train=one, val=one / "cat")
    with pytest.raises(TypeError, match="train and val go together"):
        scan_folder(train=one)
    with pytest.raises(TypeError, match="not both"):
        scan_folder(one, train=one, val=two)
    whole = make("train/cat/1 train/dog/1 val/cat/1 val/dog/1", "whole")
    with pytest.raises(ValueError, match="holds splits itself"):
        scan_folder(train=whole, val=two)


def test_links_to_one_folder_from_both_splits_count_twice(make):
    root = make("train/b/2 val/b/1 elsewhere/3")
    for split in ("train", "val"):
        (root / split / "a").symlink_to(root / "elsewhere")
    images = scan_folder(root)
    assert counts(images)[("a", "train")] == counts(images)[("a", "val")] == 3
    assert said(images, "3 held-out images are also among the training images")


def test_scoring_understands_the_same_folders(make):
    root = make("d/Training/a/2 d/Training/b/2 d/Testing/a/1 d/Testing/b/3")
    images = all_for_testing(root, ("a", "b", "c"))
    assert counts(images) == {("a", "val"): 1, ("b", "val"): 3}
    assert said(images, "scored: Testing/")
    one = all_for_testing(make("a/left/2 a/right/2", "one"), ("a", "left", "right"))
    assert counts(one) == {("a", "val"): 4}
    only = all_for_testing(make("test/a/2", "only", "pgm"), ("a", "b"))
    assert counts(only) == {("a", "val"): 2}
    inside = all_for_testing(make("a/train/3 a/val/1 b/train/2 b/val/2", "in"), ("a", "b"))
    assert counts(inside) == {("a", "val"): 1, ("b", "val"): 2}
    named = all_for_testing(make("train/2 test/2", "named"), ("test", "train"))
    assert counts(named) == {("test", "val"): 2, ("train", "val"): 2}
