"""The GPU report gone through on the CPU: every stage, what is kept, what goes on, what is wrong.

The script must not be tried for the first time where minutes are counted: all of it but the clock
and the graphs of CUDA is run here, by the backends for CPUs.
"""

from __future__ import annotations

import itertools
import sys
import textwrap
import time

import pytest
import torch

from benchmarks import gpu_report
from benchmarks.gpu import (
    bars,
    cases,
    exact,
    limits,
    machine,
    once,
    progress,
    random_shapes,
    tables,
)
from benchmarks.gpu.stages import BUDGETS, STAGES, Stage, budget
from infodisent.backends.table import BY_NAME
from infodisent.bench import labels
from infodisent.contract import Extremes
from infodisent.files import read_json, write_json
from infodisent.testing import WrongResultError

ABOUT = {"device": "rehearsal", "commit": "abc", "code": "123"}


@pytest.fixture
def cpu():
    return machine.Rehearsal()


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "report.json"
    write_json(path, progress.opened(path, ABOUT))
    return path


def some(stage: Stage, count: int) -> Stage:
    return stage._replace(items=lambda *a: itertools.islice(stage.items(*a), count))


def go(path, cpu, stages, minutes=30, deadline=float("inf"), **options):
    reports = []
    status = progress.work(path, cpu, stages, minutes, deadline, reports.append, **options)
    return status, reports


def test_every_stage(path, cpu):
    """Two items of each; files, tables and picture as on a GPU."""
    cpu.classes = 3
    status, _ = go(path, cpu, [some(stage, 2) for stage in STAGES])
    assert status == progress.DONE
    report = read_json(path)
    # the others are about Triton's and CUDA's kernels only
    others = ("products", "cuda", "rotation in full", "tests")
    gone_through = [name for name, rows in report["stages"].items() if rows]
    assert gone_through == [s.name for s in STAGES if s.name not in others]
    for rows in report["stages"].values():
        for row in rows.values():
            assert row["ok"], row
    assert "running" not in report
    gpu_report.write_views(report, path)
    text = path.with_suffix(".md").read_text()
    assert "| 24×3×3 | 4 | bf16 | native" in text or "| 24×3×3 | 4 | bf16 | sparse" in text
    assert "What failed" not in text
    assert "| similarity_pool: ProtoPNet, CUB | 3 × 10 × 8 × 6 | bf16 | forward | " in text
    for part in ("forward", "backward", "head", "compiled"):
        for row in report["stages"][part].values():
            assert row["of_mm"][cases.PRODUCT] == 1.0
            assert set(row["how"]) == set(row["microseconds"])
            assert row["clocks"]["sm_mhz"] == 1755
            assert next(iter(row["microseconds"])) == row["ours"][0]
    assert path.with_suffix(".png").stat().st_size > 5000


def test_the_rotation_by_parts_is_a_peer(cpu, monkeypatch):
    """Where Triton's kernels are; tests/bench/test_gpu_report.py runs it in the interpreter."""
    by_parts = limits.BY_PARTS
    assert not any(by_parts in name for name in limits.rotation(cpu, 12)["microseconds"])
    ours = {**cpu.ours, "triton": ("triton",)}
    monkeypatch.setattr(machine.Rehearsal, "ours", ours)
    monkeypatch.setattr(limits, "by_parts", lambda a: torch.matrix_exp(a - a.mT))
    row = limits.rotation(cpu, 12)
    for mode in ("forward", "forward + backward"):
        assert row["microseconds"][f"{by_parts}, {mode}"] > 0
    assert f"{by_parts} " in tables._rotation({"stages": {"rotation": {"x": row}}})[-2]
    names = {s.name: [name for name, _ in s.items(cpu, 30)] for s in STAGES}
    assert len(names["products"]) == 3 * len(cpu.channels)


def test_the_order_is_that_of_value():
    names = [stage.name for stage in STAGES]
    wanted = ["machine", "integers", "operators", "random", "forward", "compiled", "sanitizer"]
    assert sorted(wanted, key=names.index) == wanted
    assert [budget(m) for m in (0.5, 1, 9.9, 10, 29, 30, 600)] == [1, 1, 1, 10, 10, 30, 30]


@pytest.mark.parametrize("kind", [machine.Machine, machine.Rehearsal])
def test_more_minutes_add_items_and_take_none_away(kind, monkeypatch):
    ours = {"triton": ("triton",), "cuda": ("cuda", "triton")}
    monkeypatch.setattr(machine.Machine, "ours", ours)
    for stage in STAGES:
        names = [[name for name, _ in stage.items(kind(), minutes)] for minutes in BUDGETS]
        assert all(len(set(n)) == len(n) for n in names)
        assert set(names[0]) <= set(names[1]) <= set(names[2])
        assert names[2] or kind is machine.Rehearsal
    # the first minute has one row of times: the map that the bars are about
    assert [str(c) for c in cases.cases("forward", machine.Machine(), 1)] == [
        "resnet50, 256, bf16, NHWC"
    ]
    assert max(machine.Machine.shapes.values()) >= bars.SHAPES


def test_what_has_kernels_is_among_the_operators():
    assert set(BY_NAME["triton"].stems) | set(BY_NAME["cuda"].stems) <= set(once.ARGUMENTS)


def counted(*names, fail=()):
    ran = []

    def item(name):
        def run():
            ran.append(name)
            if name in fail:
                raise WrongResultError(f"{name} is off\nby much")
            return {"ok": True}

        return name, run

    return Stage("some", "some", 60, lambda *_: [item(name) for name in names]), ran


def test_a_second_start_goes_on(path, cpu):
    stage, ran = counted("a", "b", "c", fail=("b",))
    now = itertools.count()
    status, reports = go(path, cpu, [stage], deadline=1.5, clock=lambda: next(now))
    assert (status, ran) == (progress.OUT_OF_TIME, ["a", "b"])
    assert len(reports) == 1  # written although the stage is not done
    assert go(path, cpu, [stage])[0] == progress.DONE
    assert ran == ["a", "b", "c"]
    rows = read_json(path)["stages"]["some"]
    assert rows["b"]["error"] == "WrongResultError: b is off"
    assert rows["b"]["more"] == ["by much"]
    assert [row["ok"] for row in rows.values()] == [True, False, True]
    assert go(path, cpu, [stage]) == (progress.DONE, [])  # nothing is written anew
    assert len(ran) == 3


def test_every_row_is_in_the_file_at_once(path, cpu):
    seen = []

    def look():
        report = read_json(path)
        seen.append((list(report["stages"]["some"]), report["running"]["item"]))
        return {"ok": True}

    stage = Stage("some", "some", 60, lambda *_: [(name, look) for name in "ab"])
    go(path, cpu, [stage])
    assert seen == [([], "a"), (["a"], "b")]


def test_a_dead_device_ends_the_process(path, cpu, monkeypatch):
    stage, ran = counted("a", "b", fail=("a",))
    monkeypatch.setattr(machine.Rehearsal, "alive", lambda self: False)
    assert go(path, cpu, [stage])[0] == progress.DEAD
    assert ran == ["a"]
    assert not read_json(path)["stages"]["some"]["a"]["ok"]


def test_a_report_of_something_else_is_kept(path, cpu):
    go(path, cpu, [counted("a")[0]])
    assert progress.opened(path, {**ABOUT, "commit": "def"})["stages"]["some"]
    other = progress.opened(path, {**ABOUT, "code": "456"})
    assert other["stages"] == {}
    assert read_json(path.with_name("report-abc-123.json.old"))["stages"]["some"]
    # what was interrupted is done again
    write_json(path, {"about": ABOUT, "stages": {}, "running": {"item": "a"}})
    assert "running" not in progress.opened(path, ABOUT)


WORKER = """
import json, os, sys, time
path = {path!r}
report = json.load(open(path))
rows = report["stages"].setdefault("random", {{}})
for name in ("good", "hangs", "crashes", "dies", "last"):
    if name in rows:
        continue
    report["running"] = {{"stage": "random", "item": name, "since": time.time(), "limit": 1}}
    json.dump(report, open(path + "~", "w")); os.replace(path + "~", path)
    if name == "hangs":
        time.sleep(60)
    if name == "crashes":
        os.abort()
    rows[name] = {{"ok": name != "dies", "seconds": 0.0}}
    del report["running"]
    json.dump(report, open(path + "~", "w")); os.replace(path + "~", path)
    if name == "dies":
        sys.exit({dead})
sys.exit({done})
"""


def test_what_hangs_or_crashes_costs_one_item(path):
    code = textwrap.dedent(WORKER).format(
        path=str(path), dead=progress.DEAD, done=progress.OUT_OF_TIME
    )
    began = time.monotonic()
    status = progress.supervise([sys.executable, "-c", code], path, poll=0.05)
    assert status == progress.OUT_OF_TIME
    assert time.monotonic() - began < 30
    rows = read_json(path)["stages"]["random"]
    assert {name: row["ok"] for name, row in rows.items()} == {
        "good": True, "hangs": False, "crashes": False, "dies": False, "last": True,
    }  # fmt: skip
    assert rows["hangs"]["error"] == "stopped after 1 s"
    assert "ended with -6" in rows["crashes"]["error"]
    assert "random: hangs: stopped after 1 s" in tables.markdown(read_json(path))


def case(op="forward", **options):
    return cases.Case(op, "resnet50", 4, **{"dtype": "fp32", **options})


@pytest.fixture
def sparse_only(cpu, monkeypatch):
    monkeypatch.setattr(machine.Rehearsal, "ours", {"sparse": ("sparse",)})
    return type(BY_NAME["sparse"])


def test_a_wrong_kernel_is_not_timed(cpu, sparse_only, monkeypatch):
    plain = sparse_only.rotate_pool
    monkeypatch.setattr(
        sparse_only,
        "rotate_pool",
        lambda *a: Extremes(*(1.1 * t for t in plain(*a)[:2]), *plain(*a)[2:]),
    )
    with pytest.raises(WrongResultError, match="sparse is off by"):
        cases.compare(case(), cpu)


def test_a_wrong_gradient_is_not_timed(cpu, sparse_only, monkeypatch):
    plain = sparse_only.rotate_pool_backward
    wrong = lambda *a: (plain(*a)[0], 1.1 * plain(*a)[1])  # noqa: E731
    monkeypatch.setattr(sparse_only, "rotate_pool_backward", wrong)
    cases.compare(case(), cpu)
    with pytest.raises(WrongResultError, match="sparse: dU is off"):
        cases.compare(case("backward"), cpu)


def test_a_row_of_another_backend_is_not_timed(cpu, sparse_only, monkeypatch):
    """A row that says one backend and ran another's gradient was published once."""
    reference, plain = type(labels.BY_NAME["reference"]), sparse_only.rotate_pool_backward
    monkeypatch.setattr(reference, "rotate_pool_backward", lambda self, *a: plain(self, *a))
    other = BY_NAME["reference"]
    monkeypatch.setattr(
        sparse_only, "rotate_pool_backward", lambda self, *a: other.rotate_pool_backward(*a)
    )
    with pytest.raises(WrongResultError, match="sparse: ran rotate_pool_backward by reference"):
        cases.compare(case("backward"), cpu)


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("rotate_pool", lambda p: p._replace(pos=p.pos + 2**-9 * (p.pos > 0)), "values: off by"),
        ("rotate_pool", lambda p: p._replace(neg_index=p.neg_index.roll(1, 0)), "places"),
        ("rotate_pool_backward", lambda g: (g[0], g[1].roll(1, 0)), "dU is not exact"),
        ("rotate_pool_backward", lambda g: (g[0].roll(1, 1), g[1]), "dX is not exact"),
    ],
)
def test_integers_find_what_is_a_little_wrong(cpu, sparse_only, monkeypatch, name, spoil, message):
    plain = getattr(sparse_only, name)
    monkeypatch.setattr(sparse_only, name, lambda *a: spoil(plain(*a)))
    with pytest.raises(WrongResultError, match=message):
        exact.integers(cpu, "sparse", (4, 49, 24), "fp32", "integers")


def test_identity_finds_a_swapped_channel(cpu, sparse_only, monkeypatch):
    assert exact.identity(cpu, "sparse")["ok"]
    plain = sparse_only.rotate_pool
    swapped = lambda *a: Extremes(*(t.roll(1, 1) for t in plain(*a)))  # noqa: E731
    monkeypatch.setattr(sparse_only, "rotate_pool", swapped)
    with pytest.raises(WrongResultError, match="sparse"):
        exact.identity(cpu, "sparse")


def test_random_shapes(cpu, sparse_only, monkeypatch):
    monkeypatch.setattr(cpu, "together", 6)
    outcome = random_shapes.several(cpu, 0, 6)
    assert outcome == {"shapes": 6, "mismatches": [], "ok": True}
    plain = sparse_only.rotate_pool
    first = lambda *a: plain(*a)._replace(pos_index=0 * plain(*a).pos_index)  # noqa: E731
    monkeypatch.setattr(sparse_only, "rotate_pool", first)
    outcome = random_shapes.several(cpu, 0, 4)
    assert not outcome["ok"]
    assert "pos places" in outcome["mismatches"][0]


def test_main(tmp_path, capsys, monkeypatch):
    with pytest.raises(SystemExit):
        gpu_report.main(["--rehearse"])
    if not torch.cuda.is_available():
        assert gpu_report.main(["--out", str(tmp_path)]) == 2
        assert list(tmp_path.iterdir()) == []
    commands = []

    def supervise(command, path):  # the worker in this process
        commands.append(command)
        return gpu_report.main(command[3:])

    monkeypatch.setattr(progress, "supervise", supervise)
    options = ["--rehearse", "--minutes", "1", "--parts", "machine", "random", "--out"]
    assert gpu_report.main([*options, str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "random: 0 to 3: ok" in text
    assert "open   2,000 random shapes without a mismatch: 4 shapes, 0 wrong" in text
    assert (tmp_path / "rehearsal-no-gpu.md").is_file()
    report = read_json(tmp_path / "rehearsal-no-gpu.json")
    assert set(report["stages"]) == {"machine", "random"}
    report["stages"]["random"]["0 to 3"]["ok"] = False
    write_json(tmp_path / "rehearsal-no-gpu.json", report)
    assert gpu_report.main([*options, str(tmp_path)]) == 1
    assert commands[0][:3] == [sys.executable, "-m", "benchmarks.gpu_report"]
