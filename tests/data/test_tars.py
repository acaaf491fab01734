"""Images in tar files: found, read where they lie, and trained on like any others."""

from __future__ import annotations

import io
import json
import tarfile

import pytest
from PIL import Image

from infodisent.data.archives import Member, is_there, member_of, size_and_change, without_place
from infodisent.data.fingerprints import listing
from infodisent.data.images import all_for_testing, load_image, scan_folder
from infodisent.report.view import short_name
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
    assert without_place(str(member)) == "a/b.tar/x/y!1+2!z.png"
    assert without_place("photo.png") == "photo.png"
    assert short_name("/a/b.tar!512+77!1.png") == "b.tar/1.png"


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
    assert scan_folder(archive(tmp_path / "x.tar", files), val_fraction=0.5).classes == (
        "blue",
        "red",
    )
    places = [f"data/{split}/{name}" for split in ("train", "test") for name in "ab"]
    folders = {f"{place}/{i}.png": picture(i) for place in places for i in (1, 2)}
    images = scan_folder(archive(tmp_path / "folders.tar", folders))
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
        scan_folder(archive(tmp_path / "train-0.tar", {"a.png": picture(1)}))
    compressed = archive(tmp_path / "c.tar", shard(0), "w:gz")
    with pytest.raises(ValueError, match="decompressed"):
        scan_folder(compressed)
    (shards / "classnames.txt").write_text("cat\n")
    with pytest.raises(ValueError, match="names 1 classes in 1 lines, but the largest label"):
        scan_folder(shards)
    path = scan_folder(archive(tmp_path / "d.tar", shard(0)), val_fraction=0.5).items[0].path
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
    code, text = run(monkeypatch, capsys, "evaluate", "--run", out, "--images", shards)
    assert code == 0, text
    assert "4 held-out images, 2 classes" in text  # those of val-000.tar


def test_scoring_labels_images_as_the_model_does(shards):
    images = all_for_testing(shards, ("dog", "mouse", "cat"))
    assert [item.label for item in images.items] == [2, 2, 0, 0]  # sorted by label
    for item in images.items:
        assert int(member_of(item.path).name[:4]) % 2 == {2: 0, 0: 1}[item.label]
    assert {item.split for item in images.items} == {"val"}
    assert len(all_for_testing(shards / "train-000.tar", ("cat", "dog")).items) == 6
    with pytest.raises(ValueError, match="classes the model lacks: dog; the model knows cat"):
        all_for_testing(shards, ("cat",))


def test_names_may_hold_anything(tmp_path):
    """Of the last member the archive ends in .TAR and its name looks like a place in another."""
    odd = ["c/" + "long" * 60 + ".PNG", "d/../a\nb.png", "d/x.tar!1+2!y.png", "c/caf\udce9.png"]
    files = {name: picture(i) for i, name in enumerate(odd)}
    images = scan_folder(archive(tmp_path / "X.TAR", files), val_fraction=0.5)
    assert {member_of(item.path).name for item in images.items} == set(odd)
    for item in images.items:
        assert load_image(item.path).getpixel((0, 0))[0] == odd.index(member_of(item.path).name)
    assert listing(images)


def test_dots_in_names_lose_no_image(tmp_path):
    files = {f"{kind}/{kind}.{i}.png": picture(i) for kind in ("cat", "dog") for i in range(3)}
    assert len(scan_folder(archive(tmp_path / "pets.tar", files)).items) == 6
    files = shard(0) | {"0005.right.png": picture(9)}
    files = dict(sorted(files.items()))  # now beside the rest of sample 5
    images = scan_folder(archive(tmp_path / "wds.tar", files))
    assert len(images.items) == 6
    assert any("1 sample with several images" in line for line in images.notices)


def test_numbers_and_their_names(tmp_path):
    files = shard(0) | {"a.png": picture(50), "a.cls": b"01"}
    path = archive(tmp_path / "s" / "a.tar", files)
    images = scan_folder(path)
    assert [item.label for item in images.items].count(1) == 4  # 01 is 1
    assert images.classes == ("0", "01")
    names = tmp_path / "s" / "classnames.txt"
    names.write_text("cat\n\ndog\n")  # to leave the blank line out would make 1 a dog
    with pytest.raises(ValueError, match=r"classnames.txt, line 2, is blank"):
        scan_folder(path)
    names.write_bytes("cat\ncaf\xe9\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"classnames.txt is not a text file in UTF-8"):
        scan_folder(path)
    names.write_text("cat\ndog\n\n")
    assert scan_folder(path).classes == ("cat", "dog")


def test_labels_that_are_none(tmp_path):
    odd = [b"[" * 100_000, b'{"label": ""}', b'{"label": [1]}', b"[1]", b"\xff"]
    files = shard(0)
    for i, content in enumerate(odd):
        files |= {f"odd{i}.png": picture(50 + i), f"odd{i}.json": content}
    images = scan_folder(archive(tmp_path / "train-0.tar", files))
    assert (len(images.items), images.classes) == (6, ("0", "1"))
    assert any(f"{len(odd)} samples without a label" in line for line in images.notices)


def test_splits_of_archives(tmp_path):
    for split in ("train", "validation"):
        archive(
            tmp_path / "w" / f"imagenet1k-{split}-0000.tar", shard(0 if split == "train" else 9)
        )
    images = scan_folder(tmp_path / "w")
    assert [item.split for item in images.items].count("val") == 6
    archive(tmp_path / "x" / "train-0.tar", shard(0))
    archive(tmp_path / "x" / "val-0.tar", {"a.png": picture(9), "a.cls": b"7"})
    with pytest.raises(ValueError, match="no image to train on is of 7"):
        scan_folder(tmp_path / "x")


def test_links_and_damage_are_said(tmp_path):
    path = archive(tmp_path / "a.tar", shard(0))
    with tarfile.open(path, "a") as tar:
        for number, kind in enumerate((tarfile.LNKTYPE, tarfile.SYMTYPE)):
            info = tarfile.TarInfo(f"link{number}.png")
            info.type, info.linkname = kind, "0000.png"
            tar.addfile(info)
    assert any("2 samples behind a link" in line for line in scan_folder(path).notices)
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        at = tar.getmembers()[6].offset
    content[at : at + 8] = b"\xff" * 8
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"a damaged header at byte {at}$"):
        scan_folder(path)
    for damaged, why in ((content[:700], "unexpected end of data"), (b"", "empty file")):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"a.tar cannot be read: {why}$"):  # nor compressed
            scan_folder(path)


def test_an_archive_beside_folders_of_images_is_left_out(tmp_path):
    for place in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "x.png").write_bytes(picture(len(place)))
    archive(tmp_path / "devkit.tar", {"readme.txt": b"text"})
    assert len(scan_folder(tmp_path).items) == 4
