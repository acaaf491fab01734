"""Images in tar files: found, read where they lie, and trained on like any others."""

from __future__ import annotations

import io
import json
import tarfile

import pytest
from PIL import Image

from infodisent.data.archives import Member, is_there, member_of, size_and_change
from infodisent.data.fingerprints import listing
from infodisent.data.images import load_image, scan_folder
from infodisent.data.tars import scan_tars
from tests.cli.test_cli import FIT, run


def picture(value, form="PNG"):
    file = io.BytesIO()
    Image.new("RGB", (20, 16), (value, 40, 90)).save(file, form)
    return file.getvalue()


def archive(path, files, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def shard(first, count=6, **more):
    """A WebDataset shard: labels 0 and 1 in turn."""
    files = {}
    for i in range(first, first + count):
        files[f"{i:04d}.png"] = picture(i)
        files[f"{i:04d}.cls"] = str(i % 2).encode()
        files[f"{i:04d}.txt"] = b"a caption"
    return {**files, **more}


@pytest.fixture
def shards(tmp_path):
    root = tmp_path / "shards"
    archive(root / "train-000.tar", shard(0))
    archive(root / "train-001.tar", shard(6, **{"lost.png": picture(200), "x.json": b"{}"}))
    archive(root / "val-000.tar", shard(20, 4))
    (root / "classnames.txt").write_text("cat\ndog\n")
    return root


def test_a_member_has_a_path():
    member = Member("a/b.tar", 512, 77, "x/y!1+2!z.png")
    assert member_of(str(member)) == member
    for plain in ("a/b.tar", "a/b.tar!x", "photo.png", "b.tar!1+!x"):
        assert member_of(plain) is None
    assert not is_there(str(member))


def test_webdataset_shards(shards):
    images = scan_folder(shards)
    assert images.classes == ("cat", "dog")
    splits = [item.split for item in images.items]
    assert (splits.count("train"), splits.count("val")) == (12, 4)
    for item in images.items:
        member = member_of(item.path)
        number = int(member.name[:4])
        assert item.label == number % 2
        assert load_image(item.path).getpixel((0, 0)) == (number, 40, 90)
        assert size_and_change(item.path)[0] == len(picture(number))
    said = " ".join(images.notices)
    assert "3 tar files; nothing is unpacked" in said
    assert "1 sample without a label" in said
    assert "1 sample without an image" in said


def test_labels_of_other_kinds(tmp_path):
    files = {"a.jpg": picture(1, "JPEG"), "a.json": json.dumps({"label": "red"}).encode()}
    files |= {"b.jpg": picture(2, "JPEG"), "b.json": json.dumps({"cls": "blue"}).encode()}
    files |= {"c.jpg": picture(3, "JPEG"), "c.cls": b"blue"}
    assert scan_tars(archive(tmp_path / "x.tar", files), val_fraction=0.5).classes == (
        "blue",
        "red",
    )
    places = [f"data/{split}/{name}" for split in ("train", "test") for name in "ab"]
    folders = {f"{place}/{i}.png": picture(i) for place in places for i in (1, 2)}
    images = scan_tars(archive(tmp_path / "folders.tar", folders))
    assert images.classes == ("a", "b")
    assert [item.split for item in images.items].count("val") == 4
    for name in ("n01", "n02"):  # as ImageNet comes: a class an archive
        files = {f"{name}_{i}.png": picture(i + 10 * int(name[1:])) for i in range(4)}
        archive(tmp_path / "imagenet" / "train" / f"{name}.tar", files)
    images = scan_folder(tmp_path / "imagenet")
    assert images.classes == ("n01", "n02")
    assert {item.split for item in images.items} == {"train", "val"}


def test_duplicates_and_fingerprints_see_the_bytes(shards, tmp_path):
    before = listing(scan_folder(shards))
    archive(shards / "val-000.tar", shard(0, 4))  # images of train-000
    images = scan_folder(shards)
    assert listing(images) != before
    assert any("also among the training images" in line for line in images.notices)


def test_what_cannot_be_used_is_said(tmp_path, shards):
    with pytest.raises(ValueError, match=r"no labelled images in 1 tar file"):
        scan_tars(archive(tmp_path / "train-0.tar", {"a.png": picture(1)}))
    compressed = archive(tmp_path / "c.tar", shard(0), "w:gz")
    with pytest.raises(ValueError, match="decompressed"):
        scan_tars(compressed)
    (shards / "classnames.txt").write_text("cat\n")
    with pytest.raises(ValueError, match="names 1 classes in 1 lines, but the largest label"):
        scan_tars(shards)
    path = scan_tars(archive(tmp_path / "d.tar", shard(0)), val_fraction=0.5).items[0].path
    whole = (tmp_path / "d.tar").read_bytes()
    (tmp_path / "d.tar").write_bytes(whole[:700])
    with pytest.raises(ValueError, match=r"ends before 0000.png does"):
        load_image(str(Member(str(tmp_path / "d.tar"), 512, 4000, "0000.png")))
    (tmp_path / "d.tar").unlink()
    with pytest.raises(FileNotFoundError, match="archive"):
        load_image(path)


def test_a_run(shards, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    code, text = run(monkeypatch, capsys, "fit", shards, *FIT, "--out", out, "--explain", 2)
    assert code == 0, text
    assert "nothing is unpacked" in text
    assert (out / "report.html").is_file()
    assert run(monkeypatch, capsys, "prototypes", "--run", out, "--channels", "0,1")[0] == 0
