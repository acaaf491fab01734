"""`predict` and the commands that explain, as a person types them."""

from __future__ import annotations

import csv
import io
import json

import pytest

from infodisent.report import publish
from tests.cli.test_cli import run


@pytest.fixture
def go(monkeypatch, capsys):
    return lambda *arguments: run(monkeypatch, capsys, *arguments)


def test_predict_writes_a_table(tmp_path, run_folder, image_folder, go):
    for name in ("t.csv", "t.json"):
        code, text = go("predict", image_folder, "--run", run_folder, "-o", tmp_path / name)
        assert code == 0, text
        assert "1 image(s) could not be read; the table names them" in text
        assert "07.png" in text
        assert "on 23 image(s) whose folder, or data set, names their class" in text
    rows = list(csv.DictReader((tmp_path / "t.csv").open(encoding="utf-8")))
    assert len(rows) == 24
    assert json.loads((tmp_path / "t.json").read_text())["unreadable"] == 1


def test_a_pipe_gets_the_table_and_nothing_else(run_folder, image_folder, monkeypatch, capsys):
    from infodisent.cli import app

    pattern = str(image_folder / "*" / "0[0-2].png")
    for out in ((), ("-o", "-")):
        arguments = ["infodisent", "predict", pattern, "--run", str(run_folder), *out]
        monkeypatch.setattr("sys.argv", arguments)
        with pytest.raises(SystemExit) as stopped:
            app.main()
        assert not stopped.value.code
        printed = capsys.readouterr()
        rows = list(csv.DictReader(io.StringIO(printed.out)))
        assert [row["true"] for row in rows] == ["green"] * 3 + ["red"] * 3
        assert "accuracy" in printed.err


def test_predict_labels(tmp_path, labels_run, image_folder, go):
    code, text = go("predict", image_folder, "--run", labels_run, "-o", tmp_path / "t.csv")
    assert code == 0, text
    assert "accuracy" not in text  # a folder's name is one label, an image may have several
    row = next(csv.DictReader((tmp_path / "t.csv").open(encoding="utf-8")))
    assert list(row) == ["path", "labels", "p:green", "p:red", "p:small, or so", "error"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("predict", "RED", "-o", "t.xlsx"), "must end in .csv or .json"),
        (("predict", "lost.png"), "lost.png is not a file"),
        (("predict", "no*.png"), "no file matches"),
        (("explain",), "no image is given; name images or folders, or pass --held-out"),
        (("explain", "RED", "--held-out"), "takes the run's own images"),
        (("explain", "RED", "--class", "Red"), "did you mean 'red'?"),
        (("explain", "--held-out", "--images-root", "nowhere"), "which is no folder"),
        (("prototypes", "--images-root", "nowhere"), "which is no folder"),
    ],
)
def test_refusals_are_one_message(run_folder, image_folder, go, arguments, message):
    given = [image_folder / "red" if a == "RED" else a for a in arguments]
    code, text = go(*given, "--run", run_folder)
    assert code == 2, text
    assert message in " ".join(text.split())
    assert "Traceback" not in text


def test_explain_held_out(tmp_path, run_folder, go, monkeypatch):
    def save(figure, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    monkeypatch.setattr(publish, "save_figure", save)
    code, text = go("explain", "--held-out", 2, "--run", run_folder, "-o", tmp_path / "why")
    assert code == 0, text
    assert len(list((tmp_path / "why" / "figures").iterdir())) == 2
    code, text = go(
        "explain", "--held-out", "--wrong-only", "--run", run_folder, "-o", tmp_path / "wrong"
    )
    assert code == 0, text
    assert "of 6 held-out images are predicted wrongly" in text
    page = (tmp_path / "wrong" / "report.html").read_text("utf-8")
    assert "✗ Wrong" in page
    assert "✓ Correct<" not in page
