"""Data sets by timm's names, tar shards by patterns, and which splits and columns are taken."""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
from pathlib import Path

import pytest

from infodisent.data.images import ImageDataset, all_for_testing, load_image, scan_folder
from infodisent.data.readers import read_records, reader_of
from infodisent.data.records import Reading, Record, Records, divided, for_scoring, named_rows
from infodisent.data.store import FeatureStore
from infodisent.data.tar_index import read_archives
from infodisent.data.tars import tars_of_pattern
from infodisent.report.sources import find_sources
from tests.cli.test_cli import FIT, run
from tests.data.test_tars import archive, picture, shard
from tests.ranks import torchrun

TFDS = Path(__file__).parent / "fixtures" / "tfds"


@pytest.fixture
def shards(tmp_path):
    root = tmp_path / "shards"
    for number in range(3):
        archive(root / f"x-train-{number:04d}.tar", shard(10 * number))
    archive(root / "x-validation-0000.tar", shard(90, 4))
    return root


def records(*rows, names=None):
    return Records("the set", "/set", "1 file", [Record(*row) for row in rows], names, "its list")


def rows(split, *labels):
    return [(split, label, f"/set/{split}-{i}") for i, label in enumerate(labels)]


def test_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert reader_of("hfds/ylecun/mnist") == ("hfds", "ylecun/mnist")
    assert reader_of("WDS//data/x-{0..3}.tar") == ("wds", "/data/x-{0..3}.tar")
    assert reader_of("tfds/cifar10:3.0.2") == ("tfds", "cifar10:3.0.2")
    for ordinary in ("photos", "photos/hfds", "hfds", "hfds/", tmp_path):
        assert reader_of(ordinary) is None
    (tmp_path / "hfds" / "mine").mkdir(parents=True)
    assert reader_of("hfds/mine") is None  # a folder that exists is that folder
    (tmp_path / "hfds" / "mine" / "state.json").touch()  # of some other program
    assert reader_of("hfds/mine") is None
    with pytest.raises(ValueError, match=r"stream cannot be found again .* pass hfds/a/b"):
        reader_of("hfids/a/b")
    with pytest.raises(ValueError, match=r"--read is of tar files and of data sets \(hfds, wds"):
        read_records(tmp_path, Reading(label="x"))
    with pytest.raises(ValueError, match=r"--read is 'lable'=…, allowed here: train, val, split"):
        Reading.of({"lable": "x"})


def test_patterns(shards, monkeypatch):
    monkeypatch.chdir(shards.parent)
    names = [f"x-train-{number:04d}.tar" for number in range(3)]
    for pattern in ("x-train-{0000..0002}.tar", "x-train-*.tar", "{x,x}-train-000{0..2}.tar"):
        assert [path.name for path in tars_of_pattern(f"shards/{pattern}")] == names
    images = scan_folder("wds/shards/x-{train-000{0,2},validation-0000}.tar")
    assert [item.split for item in images.items].count("train") == 12
    assert [item.split for item in images.items].count("val") == 4
    assert images.root == str(shards)
    with pytest.raises(FileNotFoundError, match=r"x-train-0003.tar is not a file"):
        scan_folder("wds/shards/x-train-{0000..0003}.tar")
    with pytest.raises(FileNotFoundError, match=r"wds/shards/y\*: no file matches"):
        scan_folder("wds/shards/y*")
    pair = scan_folder(train="wds/shards/x-train-*.tar", val="wds/shards/x-validation-0000.tar")
    assert [item.split for item in pair.items].count("train") == 18
    with pytest.raises(ValueError, match="must both be data sets"):
        scan_folder(train="wds/shards/x-train-*.tar", val=os.curdir + "/photos")


def test_splits_that_an_info_file_names(shards):
    (shards / "info.json").write_text('{"splits": {}, "name": 1}')
    names = {"train": ["x-train-0000.tar", "x-train-0001.tar"], "test": ["x-train-0002.tar"]}
    about = {split: {"filenames": files, "num_samples": 1} for split, files in names.items()}
    (shards / "_info.json").write_text(f'{{"splits": {about}}}'.replace("'", '"'))
    images = scan_folder(shards, reading=Reading(val="test"))
    held = {item.path.rpartition("/")[2][:16] for item in images.items if item.split == "val"}
    assert held == {"x-train-0002.tar"}
    assert "left out: 4 samples of the split val" in images.notices
    assert len(scan_folder(shards, reading=Reading(split="test"), val_fraction=0.5).items) == 6


def test_archives_are_read_once(shards, tmp_path, monkeypatch):
    index, archives = tmp_path / "run" / "archives.json", sorted(shards.glob("*.tar"))
    first = read_archives(archives, Reading(), index)
    assert index.is_file()
    opened, real = [], tarfile.open

    def counted(path, *mode):
        opened.append(Path(path).name)
        return real(path, *mode)

    monkeypatch.setattr(tarfile, "open", counted)
    assert read_archives(archives, Reading(), index) == first
    assert opened == []
    archive(archives[1], shard(50, 2))
    opened.clear()
    assert len(read_archives(archives, Reading(), index)[1].images) == 2
    assert opened == [archives[1].name]
    read_archives(archives, Reading(label="txt"), index)  # another question
    index.write_text("{")
    read_archives(archives, Reading(), index)
    assert len(opened) == 9
    scan_folder(shards, index=index)
    assert len(opened) == 9


def test_columns_of_tar_files(tmp_path):
    files = {}
    for i in range(4):
        files |= {f"{i}.jpg": picture(i, "JPEG"), f"{i}.seg.png": picture(100 + i)}
        files |= {f"{i}.cls": b"0", f"{i}.txt": [b"cat", b"dog"][i % 2]}
        files[f"{i}.json"] = f'{{"fine": {i % 3}}}'.encode()
    path = archive(tmp_path / "a.tar", files)
    assert scan_folder(path, reading=Reading(label="txt")).classes == ("cat", "dog")
    assert scan_folder(path, reading=Reading(label="fine")).classes == ("0", "1", "2")
    masks = read_records(path, Reading(image="seg.png")).rows
    assert [load_image(row.path).getpixel((0, 0))[0] for row in masks] == [100, 101, 102, 103]
    names = tmp_path / "names.txt"
    names.write_text("ant\nbee\ncow\n")
    asked = Reading(label="fine", names=str(names))
    assert scan_folder(path, reading=asked).classes == ("ant", "bee", "cow")
    names.write_text("ant\nbee\n")
    with pytest.raises(ValueError, match=r"names.txt names 2 classes .* counted from 0, is 2"):
        scan_folder(path, reading=asked)


@pytest.mark.parametrize(
    ("splits", "reading", "train", "val"),
    [
        ("train validation test", {}, "train", "validation"),
        ("train test extra", {}, "train", "test"),
        ("train valid test", {"val": "test"}, "train", "test"),
        ("train validation", {"val": "val"}, "train", "validation"),
        ("full test", {}, "full", "test"),
        ("seg_train seg_test", {}, "seg_train", "seg_test"),
        ("train dev", {"train": "dev", "val": "train"}, "dev", "train"),
        ("train train_extra test", {}, "train", "test"),
        ("fit_on hold", {"train": "fit_on", "val": "hold"}, "fit_on", "hold"),
    ],
)
def test_which_splits_are_taken(splits, reading, train, val):
    found = records(*(row for split in splits.split() for row in rows(split, *"abab")))
    images = divided(found, Reading(**reading))
    taken = {(item.path.removeprefix("/set/")[:-2], item.split) for item in images.items}
    assert taken == {(train, "train"), (val, "val")}
    for other in set(splits.split()) - {train, val}:
        assert f"left out: 4 samples of the split {other}" in images.notices


def test_splits_that_cannot_be_told():
    both = records(*rows("one", *"ab"), *rows("two", *"ab"))
    with pytest.raises(ValueError, match=r"cannot be told: one, two; pass --read train=NAME"):
        divided(both, Reading())
    with pytest.raises(ValueError, match=r"no split 'three' \(val\); it has: one, two"):
        divided(both, Reading(val="three"))
    with pytest.raises(ValueError, match="both the split 'one'"):
        divided(both, Reading(train="one", val="one"))
    alone = divided(records(*rows("test", *"aabb")), Reading(), 0.5)  # all there is
    assert [item.split for item in alone.items].count("val") == 2


def test_labels():
    kept_secret = records(*rows("train", *"0101"), *rows("test", None, None), names=("cat", "dog"))
    images = divided(kept_secret, Reading(), 0.5)
    assert images.classes == ("cat", "dog")
    assert [item.split for item in images.items].count("val") == 2  # none of those without label
    assert "left out: 2 samples without a label" in images.notices
    several = records(*rows("", ("0", "1"), ("1",), (), ("0",)), names=("cat", "dog"))
    images = divided(several, Reading(), 0.5)
    assert images.task == "multilabel"
    assert {item.path[-1]: item.label for item in images.items} == {
        "0": (0, 1), "1": (1,), "2": (), "3": (0,),
    }  # fmt: skip
    scored = for_scoring(several, ("dog", "cat"), "multilabel")
    assert sorted(item.label for item in scored.items) == [(), (0,), (0, 1), (1,)]
    assert {item.label for item in scored.items if item.path == "/set/-3"} == {(1,)}  # the cat
    with pytest.raises(ValueError, match="has several labels an image, but the model's task is"):
        for_scoring(several, ("dog", "cat"))
    assert named_rows(kept_secret)[0] == ("/set/train-0", "cat")
    assert named_rows(kept_secret)[-1] == ("/set/test-1", None)
    assert named_rows(several)[0] == ("/set/-0", None)


def test_sources_of_a_command(shards):
    found = find_sources([f"wds/{shards}", shards / "x-train-0000.tar"], ("0", "1"), command="p")
    assert len(found.items) == 22  # each once
    assert all(item.true_name == str(int(item.path[-8:-4]) % 2) for item in found.items)
    some = find_sources([shards / "*-0000.tar"], ("1", "2"), command="p")
    assert len(some.items) == 10
    assert some.strangers == {"0": 5}
    held = find_sources([shards], ("0", "1"), command="p", reading=Reading(split="val"))
    assert len(held.items) == 4


def test_a_prepared_tensorflow_set(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(TFDS))
    images = scan_folder("tfds/toy")
    assert images.items == scan_folder(TFDS / "toy" / "1.0.0").items
    assert images.classes == ("cat", "dog")
    assert len(images.items) == 16
    for item in images.items:
        number = load_image(item.path).getpixel((0, 0))[0]
        assert (item.label, item.split) == (number % 2, "val" if number >= 20 else "train")
    assert len({item.path for item in images.items}) == 16
    scored = all_for_testing("tfds/toy:1.0.0", ("dog", "cat"))
    assert [item.label for item in scored.items] == [1, 1, 0, 0]  # cats, then dogs
    texts = named_rows(read_records("tfds/toy", Reading(label="id")))
    assert {name for _, name in texts} == {f"number {i}" for i in (*range(12), *range(20, 24))}
    with pytest.raises(ValueError, match=r"column of labels is score2; it has label of the kind"):
        scan_folder("tfds/toy", reading=Reading(label="score2"))
    with pytest.raises(FileNotFoundError, match=r"tfds/nothing is not prepared in .* tfds build"):
        scan_folder("tfds/nothing")


def test_damaged_tensorflow_sets(tmp_path):
    shutil.copytree(TFDS / "toy", tmp_path / "toy")
    folder = tmp_path / "toy" / "1.0.0"
    file = folder / "toy-test.tfrecord-00000-of-00001"
    whole = file.read_bytes()
    for content, why in (
        (whole[:-3], "is damaged or no TFRecord file: see byte"),
        (whole[:12] + b"\x0f" + whole[13:], "the record at byte 12 is damaged"),
        (b"", "'test' has 4 images, its TFRecord files in .* 0"),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=why):
            scan_folder(folder)
    file.write_bytes(whole.replace(b"PNG", b"GNP", 1))
    images = scan_folder(folder)
    loaded = ImageDataset([item.path for item in images.items], lambda picture: picture)
    broken = [(i, what) for i, what, _ in loaded if isinstance(what, str)]
    assert len(broken) == 1
    assert images.items[broken[0][0]].path in broken[0][1]  # it is named
    (tmp_path / "toy" / "other" / "2.0.0").mkdir(parents=True)
    shutil.copytree(
        TFDS / "toy" / "1.0.0", tmp_path / "toy" / "other" / "2.0.0", dirs_exist_ok=True
    )
    with pytest.raises(ValueError, match="several configurations: other, toy"):
        scan_folder(f"tfds/{tmp_path / 'toy'}")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    for name in ("hfds/someone/something", tmp_path / "saved"):
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'infodisent\[datasets\]'"):
            scan_folder(name)


@pytest.mark.slow
def test_from_shards_to_the_page(shards, tmp_path, monkeypatch, capsys):
    """Train, held-out and page of shards by their pattern, one image of which is corrupt."""
    out = tmp_path / "run"
    archive(shards / "x-train-0003.tar", shard(40, 4, **{"99.png": b"no image", "99.cls": b"0"}))
    pattern = f"wds/{shards}/x-*.tar"
    code, text = run(monkeypatch, capsys, "fit", pattern, *FIT, "--out", out, "--workers", 2)
    assert code == 0, text
    assert "1 image(s) could not be read" in text
    assert "x-train-0003.tar!" in text
    assert (out / "archives.json").is_file()
    why = tmp_path / "why"
    code, text = run(
        monkeypatch, capsys, "explain", pattern, "--read", "split=val", "--run", out, "-o", why
    )
    assert code == 0, text
    assert sorted(os.listdir(why / "figures")) == [f"00{i + 1}-009{i}.png" for i in range(4)]
    assert "file is missing" not in (why / "report.html").read_text()
    code, text = run(monkeypatch, capsys, "predict", pattern, "--run", out, "-o", why / "t.csv")
    assert code == 0, text
    assert "1 image(s) could not be read" in text
    code, text = run(monkeypatch, capsys, "judge", out, "--images", 4, "--pictures", 1)
    assert code == 0, text
    code, text = run(
        monkeypatch,
        capsys,
        "explain",
        "--beside",
        "closed",
        "--held-out",
        1,
        "--run",
        out,
        "-o",
        why,
    )
    assert code == 0, text
    code, text = run(
        monkeypatch, capsys, "evaluate", "--run", out, "--images", pattern, "--read", "split=train"
    )
    assert code == 0, text
    assert "22 held-out images" in text


@pytest.mark.slow
def test_two_processes_store_each_image_once(shards, tmp_path):
    out = tmp_path / "run"
    torchrun(2, "-m", "infodisent", "fit", f"wds/{shards}", *map(str, FIT), "--out", str(out))
    store = FeatureStore(out / "features")
    assert len(store) == len(set(store.files)) == 22
    assert (out / "archives.json").is_file()
