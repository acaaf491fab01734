"""Hugging Face data sets: found by `datasets`, read without it."""

from __future__ import annotations

import sys

import pytest

from infodisent.data.archives import member_of, open_file
from infodisent.data.images import ImageDataset, all_for_testing, load_image, scan_folder
from infodisent.data.records import Reading
from tests.cli.test_cli import FIT, run
from tests.data.test_tars import picture

datasets = pytest.importorskip("datasets", reason="Hugging Face's datasets is not installed")
NAMES = ["cat", "dog"]


@pytest.fixture(autouse=True)
def quiet(tmp_path, monkeypatch):
    """No network, nothing in the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True, raising=False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True, raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def part(first, count, label=None, **changes):
    """Images whose colour is their number; their classes in turn."""
    columns = {
        "img": [{"bytes": picture(i), "path": f"a/{i}.png"} for i in range(first, first + count)],
        "fine": [i % 2 for i in range(first, first + count)],
        "text": [f"t{i % 3}" for i in range(first, first + count)],
    }
    for name, values in changes.items():
        for i, value in values.items():
            columns[name][i] = value
    kinds = {
        "img": datasets.Image(),
        "fine": label or datasets.ClassLabel(names=NAMES),
        "text": datasets.Value("string"),
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


@pytest.fixture
def saved(tmp_path):
    splits = {"train": part(0, 14), "validation": part(100, 6), "test": part(200, 4)}
    datasets.DatasetDict(splits).save_to_disk(
        tmp_path / "saved", num_shards={"train": 3, "validation": 1, "test": 1}
    )
    return tmp_path / "saved"


def check(images):
    """Every image is the one its name says, with its own label."""
    for item in images.items:
        member = member_of(item.path)
        number = int(member.name.rpartition("-")[2].removesuffix(".png"))
        assert load_image(item.path).getpixel((0, 0))[0] == number
        assert item.label == number % 2
        assert open_file(item.path).read() == picture(number)  # its file's own bytes


def test_what_was_saved(saved):
    images = scan_folder(saved)
    check(images)
    assert images.classes == tuple(NAMES)
    assert [item.split for item in images.items].count("train") == 14
    assert [item.split for item in images.items].count("val") == 6
    assert len({item.path for item in images.items}) == 20
    said = " ".join(images.notices)
    assert "read from 5 Arrow files" in said
    assert "left out: 4 samples of the split test" in said
    assert scan_folder(f"hfds/{saved}").items == images.items
    scored = all_for_testing(saved, ("dog", "cat"), reading=Reading(split="test"))
    assert [item.label for item in scored.items] == [1, 1, 0, 0]
    alone = scan_folder(saved / "train", val_fraction=0.5)
    check(alone)
    assert len(alone.items) == 14


def test_parquet_and_batches(tmp_path, monkeypatch):
    """What has to be prepared first, in several batches of a file."""
    monkeypatch.setattr(datasets.config, "DEFAULT_MAX_BATCH_SIZE", 4)
    monkeypatch.setattr(
        datasets.config, "ARROW_RECORD_BATCH_SIZE_FOR_IMAGE_DATASETS", 4, raising=False
    )
    folder = tmp_path / "parquet"
    folder.mkdir()
    part(0, 14).to_parquet(folder / "train-00000-of-00001.parquet", batch_size=4)
    part(100, 6).to_parquet(folder / "test-00000-of-00001.parquet", batch_size=4)
    images = scan_folder(f"hfds/{folder}")
    check(images)
    assert [item.split for item in images.items].count("val") == 6
    pa = pytest.importorskip("pyarrow")
    with pa.memory_map(member_of(images.items[0].path).archive) as source:
        assert len(list(pa.ipc.open_stream(source))) > 1


def test_images_that_are_files(tmp_path):
    for name in NAMES:
        for i in range(4):
            file = tmp_path / "photos" / "train" / name / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(picture(40 * (name == "dog") + i))
    images = scan_folder(f"hfds/{tmp_path / 'photos'}", val_fraction=0.5)
    assert images.classes == tuple(NAMES)
    assert len(images.items) == 8
    for item in images.items:
        assert f"/{NAMES[item.label]}/" in item.path
        assert member_of(item.path) is None


def test_what_cannot_be_used_is_left_out_or_named(tmp_path):
    folder = tmp_path / "s"
    odd = {"img": {3: None, 7: {"bytes": b"junk", "path": None}}, "fine": {5: None, 6: -1}}
    part(0, 14, **odd).save_to_disk(folder)
    images = scan_folder(folder, val_fraction=0.25)
    assert len(images.items) == 11
    assert "left out: 2 samples without a label" in images.notices
    assert "left out: 1 sample without an image" in images.notices
    loaded = ImageDataset([item.path for item in images.items], lambda image: image)
    broken = [what for _, what, _ in loaded if isinstance(what, str)]
    assert len(broken) == 1
    assert "!4!" in broken[0].replace("+", "!")  # its four bytes …
    assert "all/000007 cannot be read as an image" in broken[0]  # … and its row


def test_columns(saved, tmp_path):
    assert scan_folder(saved, reading=Reading(label="text")).classes == ("t0", "t1", "t2")
    with pytest.raises(ValueError, match=r"label is 'x', which is none of fine, text"):
        scan_folder(saved, reading=Reading(label="x"))
    with pytest.raises(ValueError, match=r"image is 'text', which is none of img"):
        scan_folder(saved, reading=Reading(image="text"))
    bare = tmp_path / "bare"
    part(0, 4).remove_columns("img").save_to_disk(bare)
    with pytest.raises(ValueError, match=r"has no column of images; its columns are fine, text"):
        scan_folder(bare)
    with pytest.raises(ValueError, match=r"hfds/nobody/nothing cannot be loaded"):
        scan_folder("hfds/nobody/nothing")


def test_several_labels(tmp_path):
    kind = datasets.Features({"x": [datasets.ClassLabel(names=NAMES)]})["x"]
    changes = {"fine": {i: [[0, 1], [1], [], [0]][i % 4] for i in range(12)}}
    part(0, 12, label=kind, **changes).save_to_disk(tmp_path / "s")
    images = scan_folder(tmp_path / "s", val_fraction=0.5)
    assert images.task == "multilabel"
    of = {int(member_of(i.path).name[-6:-4].strip("-")): i.label for i in images.items}
    assert of == {i: [(0, 1), (1,), (), (0,)][i % 4] for i in range(12)}


def test_a_selection_is_saved_first(saved):
    """What datasets gives as a selection of a file's rows is not mistaken for the file."""
    chosen = datasets.load_from_disk(str(saved))["train"].select([0, 3, 4, 9])
    chosen.save_to_disk(saved.parent / "chosen")
    images = scan_folder(saved.parent / "chosen", val_fraction=0.5)
    check(images)
    assert len(images.items) == 4


def test_files_that_hold_something_else(saved, monkeypatch):
    pa = pytest.importorskip("pyarrow")
    whole = datasets.load_from_disk(str(saved))["train"]
    parts = {"train": whole.select([0, 1, 2])}
    with monkeypatch.context() as patch:
        patch.setattr(datasets, "load_from_disk", lambda _path: parts)
        with pytest.raises(ValueError, match=r"'train' has 3 images, its files 5; save_to_disk"):
            scan_folder(saved)
    file = next((saved / "test").glob("*.arrow"))
    with pa.memory_map(str(file)) as source:
        table = pa.ipc.open_stream(source).read_all()
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_stream(str(saved / "new"), table.schema, options=options) as sink:
            sink.write_table(table)
    (saved / "new").replace(file)
    with pytest.raises(ValueError, match=r"test.data-00000-of-00001.arrow is compressed"):
        scan_folder(saved)


def test_it_is_read_without_datasets(saved, monkeypatch):
    images = scan_folder(saved)
    for package in ("datasets", "pyarrow"):
        monkeypatch.setitem(sys.modules, package, None)
    check(images)


@pytest.mark.slow
def test_a_run(saved, tmp_path, monkeypatch, capsys):
    out, name = tmp_path / "run", f"hfds/{saved}"
    code, text = run(monkeypatch, capsys, "fit", name, *FIT, "--out", out, "--explain", 2)
    assert code == 0, text
    assert "6 held-out images" in text
    assert "file is missing" not in (out / "report.html").read_text()
    code, text = run(
        monkeypatch, capsys, "evaluate", "--run", out, "--images", name, "--read", "split=test"
    )
    assert code == 0, text
    assert "4 held-out images" in text
    code, text = run(monkeypatch, capsys, "predict", name, "--run", out, "-o", tmp_path / "t.csv")
    assert code == 0, text
    assert "on 24 image(s)" in text
