"""What people name: files, folders, patterns; and the classes that folders give."""

from __future__ import annotations

import shutil

import pytest

from infodisent.report.sources import find_sources, limited


def names(sources, root):
    return [(item.path.removeprefix(f"{root}/"), item.true_name) for item in sources.items]


@pytest.fixture
def photos(tmp_path, image_folder):
    """red/ and green/ as splits, a stranger, a hidden file, a text, a circle of links."""
    root = tmp_path / "photos"
    picture = image_folder / "red" / "01.png"
    for place in ("train/red/a.png", "val/green/deep/b.PNG", "blue/c.png", "d.png", "e [1].png"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, root / place)
    (root / "red.txt").write_text("x")
    (root / ".hidden.png").write_text("x")
    (root / "train" / "round").symlink_to(root)
    return root


def test_a_folder_gives_images_and_their_classes(photos):
    found = find_sources([photos], ("red", "green"), command="predict")
    assert names(found, photos) == [
        ("d.png", None),
        ("e [1].png", None),
        ("blue/c.png", None),
        ("train/red/a.png", "red"),
        ("val/green/deep/b.PNG", "green"),
    ]
    assert found.known == 2
    text = "\n".join(found.notices())
    assert "2 other file(s) were left out" in text
    assert "1 .txt" in text
    assert "1 hidden" in text
    assert "blue (1)" in text


def test_without_class_folders_nothing_is_a_stranger(photos):
    found = find_sources([photos], ("cat", "dog"), command="predict")
    assert found.known == 0
    assert not found.strangers


def test_files_patterns_and_repetitions(photos, monkeypatch):
    monkeypatch.chdir(photos)
    found = find_sources(
        ["e [1].png", "train/red/a.png", "**/*.png", str(photos / "d.png"), "lost.png"],
        ("red", "green"),
        command="predict",
    )
    paths = found.paths
    assert paths[:2] == ["e [1].png", "train/red/a.png"]  # brackets of an existing name are letters
    assert len(paths) == len(set(paths))
    assert sum(path.endswith("d.png") for path in paths) == 1
    assert paths[-1] == "lost.png"  # named, so whoever reads it says that it is missing
    assert dict(names(found, photos))["train/red/a.png"] == "red"


def test_a_root_called_as_a_class_decides_only_where_nothing_below_does(tmp_path, image_folder):
    root = tmp_path / "red"
    for place in ("green/a.png", "b.png", "other/c.png"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image_folder / "red" / "01.png", root / place)
    found = find_sources([root], ("red", "green"), command="predict")
    assert dict(names(found, root)) == {
        "b.png": "red",
        "green/a.png": "green",
        "other/c.png": "red",
    }


def test_two_classes_on_one_path_are_no_answer(tmp_path, image_folder):
    root = tmp_path / "x"
    (root / "red" / "green").mkdir(parents=True)
    shutil.copy(image_folder / "red" / "01.png", root / "red" / "green" / "a.png")
    assert find_sources([root], ("red", "green"), command="predict").items[0].true_name is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("*.nothing", "no file matches"),
        ("https://a.b/c.png", "is an address; nothing is fetched"),
        ("empty", r"no image in .*found: 1 \.heic2; image files end in \.jpg"),
    ],
)
def test_what_gives_nothing_is_said(tmp_path, monkeypatch, name, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.heic2").write_text("x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"^predict: {message}|^predict: .*{message}"):
        find_sources([name], command="predict")


def test_a_limit_takes_all_classes_in_turn(image_folder):
    found = find_sources([image_folder], ("red", "green"), command="explain")
    chosen = limited(found, 4)
    assert [item.true_name for item in chosen] == ["green", "green", "red", "red"]
    assert len(limited(found, 1000)) == 24
