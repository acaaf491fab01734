"""Commands on a finished run in several processes: what one alone would say, written once."""

from __future__ import annotations

import functools
import json
import threading

import pytest
import torch

from infodisent import ranks
from infodisent.cli import app as cli
from infodisent.evaluation import judgement
from infodisent.evaluation.misalignment import misalignment
from infodisent.explanations.predictions import predict_images
from infodisent.explanations.prototypes import Prototypes
from infodisent.report import annotated, judged
from infodisent.report.sheet import draw_prototypes
from infodisent.training.run import evaluate_run, open_run
from tests.cli.test_cli import run
from tests.cli.test_judge import annotate
from tests.ranks import torchrun


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Several batches of everything, and few steps."""
    monkeypatch.setattr(judgement, "PIXEL_STEPS", 1)
    monkeypatch.setattr(judgement, "_BATCH", 3)
    monkeypatch.setattr(judged, "_BATCH", 1)
    monkeypatch.setattr(annotated, "_BATCH", 3)
    fast = functools.partial(misalignment, iterations=1, step=0.2)
    monkeypatch.setattr(judgement, "misalignment", fast)


def everything(folder, images, parts):
    """All that a run is asked afterwards."""
    found = judged.judge_run(folder, pictures=2, annotations=parts, progress=False, again=True)
    loaded, _, _ = open_run(folder)
    files = sorted(str(path) for path in images.rglob("*.png"))
    predictions = predict_images(loaded.model, files, batch_size=3, progress=False)
    draw_prototypes(folder, "0,3", keep=4, progress=False)
    scored = evaluate_run(folder, progress=False)
    return found["rows"], predictions, scored["rows"], found["notes"]


class Threads:
    """`infodisent.ranks` among threads of this process."""

    def __init__(self, count, monkeypatch):
        self.count, self.mine = count, threading.local()
        self.meeting, self.box = threading.Barrier(count, timeout=120), [None] * count
        doubles = {
            "world": lambda: count,
            "rank": lambda: self.mine.rank,
            "everyones": self.everyones,
            "told": lambda value: self.everyones(value)[0],
            "barrier": lambda: self.everyones(None),
            "gathered": lambda rows, whole=None: torch.cat(self.everyones(rows)),
        }
        for name, double in doubles.items():
            monkeypatch.setattr(ranks, name, double)

    def everyones(self, value):
        self.box[self.mine.rank] = value
        self.meeting.wait()
        values = list(self.box)
        self.meeting.wait()
        return values

    def run(self, job):
        results = [None] * self.count

        def work(rank):
            self.mine.rank = rank
            try:
                results[rank] = job()
            except BaseException as error:
                self.meeting.abort()
                results[rank] = error

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(self.count)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        return results


def same(one, other):
    assert len(one) == len(other)
    for row, wanted in zip(one, other, strict=True):
        assert row.keys() == wanted.keys()
        for key, value in row.items():
            near = wanted[key]
            if isinstance(near, float):
                near = pytest.approx(near, rel=1e-4, abs=1e-5, nan_ok=True)
            assert value == near, (row, wanted)


def test_two_judge_predict_and_score_as_one(run_folder, image_folder, tmp_path, monkeypatch):
    parts = f"cub:{annotate(image_folder, tmp_path / 'annotated')}"
    rows, predictions, scored, notes = everything(run_folder, image_folder, parts)
    alone = Prototypes.load(run_folder / "prototypes.safetensors")
    for path in ("judge.json", "prototypes-0-3-k4.png"):
        (run_folder / path).unlink()
    writers = []
    write = judged.write_json
    monkeypatch.setattr(judged, "write_json", lambda *a: (writers.append(ranks.rank()), write(*a)))
    results = Threads(2, monkeypatch).run(lambda: everything(run_folder, image_folder, parts))
    for result in results:
        assert not isinstance(result, BaseException), result
        same(result[0], rows)
        same(result[2], scored)
        assert result[3] == notes
        assert [p.path for p in result[1]] == [p.path for p in predictions]
        assert [p.top[0][0] if p.top else p.error for p in result[1]] == [
            p.top[0][0] if p.top else p.error for p in predictions
        ]
    assert writers == [0]
    assert json.loads((run_folder / "judge.json").read_text())["rows"] == results[0][0]
    assert (run_folder / "prototypes-0-3-k4.png").is_file()
    again = Prototypes.load(run_folder / "prototypes.safetensors")
    assert torch.equal(again.pos_image, alone.pos_image)


@pytest.mark.slow
def test_under_torchrun(run_folder, image_folder):
    """The commands themselves, which speak once and leave nothing torn.

    ``-r``, as torchrun takes ``--run`` for an abbreviation of two options of its own.
    """
    for command in (
        ["evaluate", "-r", run_folder],
        ["predict", image_folder, "-r", run_folder, "-o", run_folder / "table.csv"],
        ["prototypes", "-r", run_folder, "-k", "4"],
        ["judge", run_folder, "--pictures", "2"],
    ):
        done = torchrun(2, "-m", "infodisent", *map(str, command))
        assert "error" not in done.stdout
    assert done.stdout.count("stored") == 1
    assert len((run_folder / "table.csv").read_text().splitlines()) == 1 + 24


def test_other_commands_leave_it_to_one(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "1")
    code, text = run(monkeypatch, capsys, "methods")
    assert (code, text) == (0, "")
    monkeypatch.setenv("RANK", "0")
    code, text = run(monkeypatch, capsys, "methods")
    assert code == 0
    assert "methods runs in one process: of the 3 that were started the others have" in text
    assert "protopnet" in text
    monkeypatch.setenv("WORLD_SIZE", "1")
    code, text = run(monkeypatch, capsys, "methods")
    assert "runs in one process" not in text
    assert set(cli.DIVIDED) <= {command.__name__ for command in cli.COMMANDS}
