"""Tables of images and labels."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from infodisent.data.images import all_for_testing, read_csv


@pytest.fixture
def table(tmp_path):
    """Writes a table beside 12 images ``x0.png`` … ``x11.png``."""
    rng = np.random.default_rng(0)
    for i in range(12):
        pixels = rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"x{i}.png")

    def write(*lines: str, name: str = "t.csv", encoding: str = "utf-8"):
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding=encoding)
        return tmp_path / name

    return write


def rows(labels, tail=""):
    return [f"x{i}.png,{label}{tail}" for i, label in enumerate(labels)]


def said(images, *words):
    return any(all(word in line for word in words) for line in images.notices)


def test_image_and_label(table, tmp_path):
    images = read_csv(table("image,label", *rows("aaaabbbb")))
    assert images.classes == ("a", "b")
    assert Counter((i.label, i.split) for i in images.items) == {
        (0, "train"): 3,
        (0, "val"): 1,
        (1, "train"): 3,
        (1, "val"): 1,
    }
    assert images.items[0].path == str(tmp_path / "x0.png")
    assert images.root == str(tmp_path)
    assert images.notices == ()


@pytest.mark.parametrize(
    ("first", "separator"),
    [("Filename;Class", ";"), ("file path\ttarget", "\t"), ("image-id,Category", ",")],
)
def test_other_columns_and_separators(table, first, separator):
    lines = [f"x{i}.png{separator}{'ab'[i % 2]}" for i in range(8)]
    assert len(read_csv(table(first, *lines)).items) == 8


def test_as_spreadsheets_write_it(table, tmp_path):
    lines = [f"x{i},{'ab'[i % 2]}" for i in range(8)]  # no ending, a byte order mark
    images = read_csv(table("image,label", *lines, "", ",", encoding="utf-8-sig"))
    assert len(images.items) == 8
    (tmp_path / "sub").mkdir()
    (tmp_path / "x0.png").rename(tmp_path / "sub" / "x0.png")
    lines[0] = "sub\\x0.png,a"
    assert read_csv(table("image,label", *lines)).items[0].path == str(tmp_path / "sub" / "x0.png")
    with pytest.raises(ValueError, match="not a text file in UTF-8"):
        read_csv(table("image,label", "x0.png,ä", name="u.csv", encoding="utf-16"))


def test_numbers_are_ordered_as_numbers(table):
    images = read_csv(table("path,target", *rows([2, 10, 2, 10, 1, 1])))
    assert images.classes == ("1", "2", "10")


def test_split_column(table):
    lines = [f"x{i}.png,{'ab'[i % 2]},{('Training', 'TEST')[i // 4]}" for i in range(8)]
    images = read_csv(table("image,label,subset", *lines), val_fraction=0.5)
    assert [i.split for i in images.items] == ["train"] * 4 + ["val"] * 4
    assert said(images, "val_fraction 0.5 has no effect")
    lines = [f"x{i}.png,{'ab'[i % 2]},{('train', 'val', 'test')[i // 4]}" for i in range(12)]
    images = read_csv(table("image,label,split", *lines))
    assert len(images.items) == 8
    assert said(images, "left out: 4 images of the test split")


def test_groups_are_never_divided(table):
    lines = [f"x{i}.png,{'ab'[i % 2]},p{i // 3}" for i in range(12)]
    for seed in range(8):
        images = read_csv(table("image,label,Patient ID", *lines), seed=seed)
        splits = {(i.group, i.split) for i in images.items}
        assert len(splits) == 4
        assert {s for _, s in splits} == {"train", "val"}
        assert sum(i.split == "val" for i in images.items) == 3
    with pytest.raises(ValueError, match=r"no class .* has two groups"):
        read_csv(table("image,label,group", *rows("ab" * 4, ",same")))


def test_a_class_in_one_group_is_trained_on(table):
    lines = [f"x{i}.png,{'c' if i < 3 else 'ab'[i % 2]},p{i // 3}" for i in range(12)]
    images = read_csv(table("image,label,patient", *lines))
    assert {i.split for i in images.items if i.label == 2} == {"train"}
    assert said(images, "trained on but not tested", "only one group (c)")


def test_missing_files_are_counted(table):
    images = read_csv(table("image,label", *rows("ababab"), *[f"no{i}.png,a" for i in range(4)]))
    assert len(images.items) == 6
    assert said(images, "4 images, no such file (no0.png, no1.png, no2.png …)")
    with pytest.raises(FileNotFoundError, match=r"none of its 2 images is there, such as no1\.png"):
        read_csv(table("image,label", "no1.png,a", "no2.png,b"))


def test_several_labels(table):
    lines = ["x0.png,a|b", "x1.png,", "x2.png,b; c", "x3.png,a", "x4.png,c", "x5.png,a|c"]
    images = read_csv(table("Image Index,Finding Labels", *lines), task="multilabel")
    assert images.task == "multilabel"
    assert images.classes == ("a", "b", "c")
    assert [i.label for i in images.items[:3]] == [(0, 1), (), (1, 2)]
    assert {i.split for i in images.items} == {"train", "val"}


def test_columns_of_zero_and_one(table):
    lines = [f"x{i}.png,{i % 2}.0,{1 - i % 2},{i}" for i in range(8)]
    path = table("image,NV,MEL,age", *lines)
    single = read_csv(path)
    assert single.classes == ("NV", "MEL")
    assert [i.label for i in single.items[:2]] == [1, 0]
    assert said(single, "labels from the columns NV, MEL")
    assert said(single, "columns not used: age")
    assert read_csv(path, task="multilabel").items[1].label == (0,)
    path = table("image,NV,MEL", *lines_of("1,1", "0,1", "1,0", "0,0"))
    assert read_csv(path, task="multilabel").items[0].label == (0, 1)
    with pytest.raises(ValueError, match=r"line 2: 2 of the columns NV, MEL are 1.*--multilabel"):
        read_csv(path)
    with pytest.raises(ValueError, match="line 3: column MEL holds '-1', allowed are 0 and 1"):
        read_csv(table("image,NV,MEL", *lines_of("1,1", "0,-1")), task="multilabel")


def lines_of(*cells):
    return [f"x{i}.png,{cell}" for i, cell in enumerate(cells)]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["x0.png,a", "x1.png,b"], r"no column for the image: its first line is x0\.png, a"),
        (["image,name", "x0.png,a"], "no column for the label: its columns are image, name"),
        (["image,label"], r"1 line\(s\)"),
        (["image,label", "x0.png,a,b"], "line 2: 3 columns, 2 are named"),
        (["image,label", "x0.png,a", "x0.png,b"], "lines 2 and 3: x0.png has the labels a and b"),
        (["image,label,split", "x0.png,a,train", "x0.png,a,val"], "in two splits"),
        (["image,label,fold", "x0.png,a,0", "x1.png,b,1"], "fold is '0' .* allowed are train"),
        (["image,label,split", "x0.png,a,train", "x1.png,b,"], "line 3: split is ''"),
        (["image,label,split", "x0.png,a,train", "x1.png,b,train"], "no images to hold out"),
        (["image,label,split", "x0.png,a,train", "x1.png,b,val"], "val has classes that train"),
        (["image,label", "x0.png,a", "x1.png,a"], "1 class .a., at least 2"),
        (["image,label", "https://x.org/a.png,a", "x1.png,b"], "download it first"),
    ],
)
def test_what_cannot_be_understood_is_refused(table, lines, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_csv(table(*lines))
    assert len(str(caught.value).splitlines()) == 1


def test_lines_without_label_and_joined_labels_are_said(table):
    images = read_csv(table("image,label", *rows(["a", "b", "a", "b", "", "a|b", "a|b"])))
    assert said(images, "left out: 1 line without a label (x4.png)")
    assert said(images, "'a|b'", "--multilabel")
    assert images.classes == ("a", "a|b", "b")


def test_scoring_takes_a_table(table):
    path = table("image,label", *rows("abab"))
    images = all_for_testing(path, ("c", "b", "a"))
    assert [(i.label, i.split) for i in images.items[:2]] == [(2, "val"), (1, "val")]
    with pytest.raises(ValueError, match="classes the model lacks: b; the model knows a, c"):
        all_for_testing(path, ("a", "c"))
    several = all_for_testing(path, ("a", "b"), "multilabel")
    assert several.items[0].label == (0,)
