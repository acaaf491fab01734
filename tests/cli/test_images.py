"""What `fit` and `evaluate` take as images, and what they say about them."""

from __future__ import annotations

import shutil
import sys

import pytest

from infodisent.cli.images import images_from
from infodisent.progress import console

from .test_cli import FIT, run


def test_two_folders_then_a_table(tmp_path, image_folder, monkeypatch, capsys):
    val = tmp_path / "held"
    for name in ("red", "green"):
        (val / name).mkdir(parents=True)
        for i in range(3):
            shutil.move(image_folder / name / f"{i:02d}.png", val / name)
    (image_folder / "red" / "[bold]scan.dcm").write_bytes(b"x")  # no markup of the console
    out = tmp_path / "run"
    arguments = ("fit", "--train", image_folder, "--val", val, *FIT, "--out", out)
    code, text = run(monkeypatch, capsys, *arguments)
    assert code == 0, text
    assert text.count("red/[bold]scan.dcm") == 1
    assert "6 held-out images" in text
    table = tmp_path / "t.csv"
    lines = [f"held/{name}/{i:02d},{name}" for name in ("red", "green") for i in range(3)]
    table.write_text("\n".join(["image,label", *lines, "gone.png,red"]))
    code, text = run(monkeypatch, capsys, "evaluate", "--run", out, "--images", table)
    assert code == 0, text
    assert "6 held-out images" in text
    assert text.count("left out: 1 image, no such file (gone.png)") == 1


def test_options_that_do_not_go_together(tmp_path, image_folder, monkeypatch):
    monkeypatch.setattr(console, "_file", sys.stdout)
    with pytest.raises(ValueError, match="pass FOLDER"):
        images_from(None)
    with pytest.raises(ValueError, match="pass FOLDER"):
        images_from(image_folder, image_folder, tmp_path)
    with pytest.raises(ValueError, match="pass FOLDER"):
        images_from(None, image_folder)
    with pytest.raises(ValueError, match="--multilabel needs a CSV"):
        images_from(image_folder, multilabel=True)
    table = tmp_path / "t.csv"
    rows = [f"images/red/0{i}.png,{'ab'[i % 2]}|c" for i in range(4)]
    table.write_text("\n".join(["image,label", *rows]))
    images = images_from(table, multilabel=True)
    assert images.task == "multilabel"
    assert images.classes == ("a", "b", "c")
