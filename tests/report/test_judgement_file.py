"""What a judgement is kept in: asked before the work, and read back only where it is whole."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from infodisent.cli.app import app
from infodisent.evaluation import judgement
from infodisent.report import judged, judgement_file, publish
from infodisent.report.judged import judge_run, read_judgement
from infodisent.training.folder import open_run


@pytest.mark.parametrize("place", ["judge.json", "judge-images.safetensors", ""])
def test_where_figures_cannot_be_kept_is_said_before_the_work(run_folder, monkeypatch, place):
    monkeypatch.setattr(judged, "judge_features", lambda *a, **k: pytest.fail("worked"))
    if place:
        (run_folder / place).mkdir()
    else:
        access = judgement_file.os.access
        monkeypatch.setattr(
            judgement_file.os,
            "access",
            lambda path, mode: path != run_folder and access(path, mode),
        )
    with pytest.raises(OSError, match=r"^judge: .*(is a folder|is not writable)"):
        judge_run(run_folder, pictures=0, progress=False)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rows", None), ("rows", [{}]), ("rows", [{"measure": "accuracy", "of": "", "images": 1,
        "mean": "x", "low": None, "high": None}]), ("judged_images", {}), ("notes", [5]),
        ("recipe", 5), ("run_seed", {}), ("format", 99),
    ],
)  # fmt: skip
def test_a_damaged_judgement_says_what_to_do(tmp_path, key, value):
    whole = {
        "format": 2, "made_from": {}, "title": "", "unit": "", "rows": [], "notes": [],
        "judged_images": {"held out": 1, "pictures": 0}, "recipe": None, "run_seed": 0,
    }  # fmt: skip
    (tmp_path / "judge.json").write_text(json.dumps(whole))
    assert read_judgement(tmp_path) == whole
    (tmp_path / "judge.json").write_text(json.dumps({**whole, key: value}))
    with pytest.raises(ValueError, match=r"judge\.json .*judge the run --again"):
        read_judgement(tmp_path)


def test_runs_without_counts_of_images_are_judged(run_folder, monkeypatch):
    monkeypatch.setattr(judged, "judge_features", lambda *a, **k: judgement.Judgement())
    path = run_folder / "metrics.json"
    metrics = json.loads(path.read_text())
    expected = [metrics["images"].pop(key) for key in ("train", "val")]
    path.write_text(json.dumps(metrics))
    assert judge_run(run_folder, pictures=0, progress=False)["recipe"]["images"] == expected


@pytest.mark.parametrize("name", ["model.safetensors", "prototypes.safetensors", "metrics.json"])
def test_a_run_that_was_killed_is_said_to_be_unfinished(run_folder, name):
    (run_folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"not a finished run: {name} does not exist; the"):
        open_run(run_folder)


def test_a_folder_in_the_place_of_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "report_held_out", lambda *a, **k: pytest.fail("worked"))
    (tmp_path / "report.html").mkdir()
    with pytest.raises(IsADirectoryError, match=r"report\.html, which is a folder"):
        CliRunner().invoke(app, ["report", "--run", str(tmp_path)], catch_exceptions=False)
