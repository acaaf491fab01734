"""What the GPU report makes of its rows (bars, tables, picture) and of the output of tools."""

from __future__ import annotations

import sys

import pytest
import torch

from benchmarks.gpu import bars, machine, picture, tables, tools
from infodisent.bench import timing


def row(size=(2048, 7, 7), batch=256, ok=True, **times):
    times = {"torch.mm": 100.0, **times}
    return {
        "op": "forward",
        "size": list(size),
        "shape": "resnet50",
        "batch": batch,
        "dtype": "bf16",
        "layout": "NHWC",
        "ours": [name for name in ("triton", "cuda") if name in times],
        "gflop": 105.0,
        "microseconds": times,
        "how": dict.fromkeys(times, "graph"),
        "of_mm": {name: times["torch.mm"] / us for name, us in times.items()},
        "clocks": {"sm_mhz": 1755.0},
        "ok": ok,
        "seconds": 1.0,
    }


def report(**stages):
    return {"about": {"device": "Abacus 9000"}, "stages": stages}


def holds(bar, **stages):
    (verdict,) = [v for v in bars.verdicts(report(**stages)) if v.bar.startswith(bar)]
    return verdict.holds, verdict.why


AMINMAX, EAGER = "torch.mm + aminmax", "eager"
MATRIX = "torch.matrix_exp, forward + backward"
BEST, FASTER = "best eager", "pools of prototypes faster"
ROTATION = "triton, forward + backward"


@pytest.mark.parametrize(
    ("bar", "stages", "wanted", "why"),
    [
        ("integers", {}, None, "not run"),
        ("integers", {"integers": {"a": {"ok": True}}}, True, "1 of 1"),
        ("integers", {"integers": {"a": {"ok": True}, "b": {"ok": False}}}, False, "first: b"),
        ("2,000", {"random": {"0": {"ok": True, "shapes": 50}}}, None, "50 shapes, 0 wrong"),
        ("2,000", {"random": {"0": {"ok": True, "shapes": 2000}}}, True, "2,000 shapes"),
        ("2,000", {"random": {"0": {"ok": False, "shapes": 9, "mismatches": ["x"]}}}, False, "1 w"),
        ("2,000", {"random": {"0": {"ok": False, "error": "died"}}}, False, "1 items broke"),
        ("pools of prototypes are", {"pools, integers": {"a": {"ok": False}}}, False, "first: a"),
        (
            "pools of prototypes: ",
            {"pools, random": {"0": {"ok": True, "shapes": 9}}},
            None,
            "9 sh",
        ),
        (FASTER, {"pools": {"a": row(triton=9.0, **{BEST: 18.0})}}, True, "least 2 (a)"),
        (FASTER, {"pools": {"a": row(triton=9.0, **{BEST: 8.0})}}, False, "0.889"),
        ("cuda", {"forward": {"a": row(cuda=104.0)}}, True, "least 0.962 (a)"),
        ("cuda", {"forward": {"a": row(cuda=104.0), "b": row(cuda=106.0)}}, False, "(b), 1 of 2"),
        ("cuda", {"forward": {"a": row(triton=99.0)}}, None, "not measured"),
        ("cuda", {"forward": {"a": row((768, 7, 7), cuda=400.0)}}, None, "not measured"),
        ("triton", {"forward": {"a": row(triton=110.0)}}, True, "0.909"),
        ("triton", {"forward": {"a": row(triton=112.0)}}, False, "0.893"),
        ("triton", {"forward": {"a": {"ok": False, "error": "x"}}}, False, "1 rows failed"),
        ("faster", {"forward": {"a": row(triton=9.0, cuda=11.0, **{AMINMAX: 10.0})}}, True, "1.11"),
        ("faster", {"forward": {"a": row(triton=11.0, **{AMINMAX: 10.0})}}, False, "0.909"),
        ("forward + b", {"backward": {"a": row(triton=10.0, **{EAGER: 21.0})}}, True, "2.1"),
        ("forward + b", {"backward": {"a": row(triton=10.0, **{EAGER: 19.0})}}, False, "1.9"),
        ("compute", {"sanitizer": {"a": {"ok": True, "missing": "not here"}}}, None, "not here"),
        ("compute", {"sanitizer": {"a": {"ok": False}}}, False, "0 of 1"),
    ],
)
def test_bars(bar, stages, wanted, why):
    verdict = holds(bar, **stages)
    assert verdict[0] is wanted
    assert why in verdict[1]


def test_the_bar_of_the_rotation():
    def rows(ratio, channels=2048):
        times = {MATRIX: 10.0 * ratio, ROTATION: 10.0}
        return {"a": {"ok": True, "channels": channels, "ours": "triton", "microseconds": times}}

    assert holds("rotation", rotation=rows(11))[0] is True
    assert holds("rotation", rotation=rows(9))[0] is False
    assert holds("rotation", rotation=rows(9, 1024))[0] is None


def test_a_failed_row_is_in_the_tables_and_leaves_the_others():
    failed = {"ok": False, "error": "WrongResultError: off", "seconds": 2.0}
    waiting = row(triton=110.0, eager=300.0)
    waiting["how"]["eager"] = "waits"
    text = tables.markdown(report(forward={"good": waiting, "bad": failed}))
    assert "- forward: bad: WrongResultError: off" in text
    assert (
        "| 2048×7×7 | 256 | bf16 | triton 110.0 | 955 | 91% | 1755 | torch.mm 0.91×, "
        "eager 2.73× (waits) |" in text
    )
    assert "| forward | rotate_pool, forward | 2 | 1 | 3 |" in text
    assert "| FAILS | 1 rows failed; first: bad |" in text


def test_picture(tmp_path):
    path = tmp_path / "roofline.png"
    ceilings = {"ceilings": {"ok": True, "bf16_tflops": 700.0, "copy_tbs": 3.0, "seconds": 1.0}}
    rows = {"a": row(triton=110.0), "b": row((512, 7, 7), 8, triton=12.0)}
    assert not picture.plot(report(forward=rows), path)  # nothing to compare with
    assert not picture.plot(report(ceilings=ceilings), path)
    assert not path.exists()
    assert picture.plot(report(forward=rows, ceilings=ceilings), path)
    assert path.stat().st_size > 5000
    assert picture.moved_bytes(row()) == 2 * (256 * 49 * 2048 + 2048**2) + 16 * 256 * 2048


@pytest.mark.parametrize(
    ("code", "text", "ok"),
    [
        (0, "ran\n========= ERROR SUMMARY: 0 errors\n", True),
        (0, "ran\n========= ERROR SUMMARY: 3 errors\n", False),
        (0, "ran\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors)\n", True),
        (0, "ran\n========= RACECHECK SUMMARY: 2 hazards displayed\n", False),
        (1, "Traceback\n========= ERROR SUMMARY: 0 errors\n", False),  # it did not come to its end
        (0, "ran\n", False),  # and here the tool did not
        (-1, "stopped", True),
    ],
)
def test_what_the_sanitizer_says(code, text, ok):
    assert bool(tools.sanitized(code, text)["ok"]) is ok


NCU = """==PROF== Connected
"ID","Process ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","7","rotate_pool_kernel","gpu__time_duration.sum","ns","201,500"
"0","7","rotate_pool_kernel","launch__registers_per_thread","register/thread","168"
"1","7","finish","gpu__time_duration.sum","us","3.5"
"1","7","finish","something__else.sum","us","4"
"""


def test_what_ncu_says():
    assert tools.counters(NCU) == [
        {"kernel": "rotate_pool_kernel", "us": 201.5, "registers": 168.0},
        {"kernel": "finish", "us": 3.5},
    ]
    assert tools.counters("ERR_NVGPUCTRPERM") == []


def test_tools_in_processes():
    assert tools.run([sys.executable, "-c", "print(3)"], 60) == (0, "3\n")
    code, text = tools.run([sys.executable, "-c", "import time; time.sleep(60)"], 0.2)
    assert code == -1
    assert "stopped after" in text
    done = tools.script("tests.bench.no_such_module", 60)
    assert not done["ok"]
    assert "No module named" in done["tail"]
    assert len(tools.test_files()) > 5


class Captures(machine.Rehearsal):
    """A GPU that cannot capture one of its works, and waits for another."""

    def captured(self, run):
        if run is WORKS["other"]:
            raise RuntimeError("operation not permitted when stream is capturing")
        return lambda: None

    def clock(self):
        clock = timing.EventClock()
        clock.waits.add(WORKS["waiting"])
        clock.__class__ = type("Host", (timing.EventClock,), {"__call__": lambda _, run: 1.0})
        return clock


WORKS = {name: (lambda: None) for name in ("one",)}
WORKS |= {"other": lambda: 1, "waiting": lambda: 2}


def test_how_a_work_was_timed():
    times = Captures().times(WORKS, launched=["waiting"])
    assert times.how == {"one": "graph", "other": "launched", "waiting": "waits"}
    assert times.seconds == dict.fromkeys(WORKS, 1.0)
    assert times.clocks == {"sm_mhz": 1755.0}


def test_what_nvidia_smi_says(monkeypatch):
    told = {"driver": " 570.86.10", "sm_mhz": "1980", "watts": " 312.50", "degrees": " [N/A]"}
    assert machine.parsed(told) == {"driver": "570.86.10", "sm_mhz": 1980.0, "watts": 312.5}

    def missing(*_, **__):
        raise FileNotFoundError("no nvidia-smi")

    monkeypatch.setattr(machine.subprocess, "run", missing)
    assert machine.Machine().clocks() == {"unknown": "no nvidia-smi"}
    assert machine.versions()["commit"] == "unknown"
    assert machine.versions("abc")["commit"] == "abc"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_gpu_that_is_not_there_is_not_alive():
    assert not machine.Machine().alive()


def test_what_a_gpu_is_asked_for(monkeypatch, tmp_path):
    """The lines that only a GPU runs, with stand-ins for what they call."""
    pytest.importorskip("triton", reason="its version is told")
    properties = {"name": "Abacus 9000", "major": 9, "minor": 0, "multi_processor_count": 132}
    properties |= {"total_memory": 80 << 30, "L2_cache_size": 50 << 20}
    made = type("Properties", (), properties)()
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: made)
    waits = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(1))
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho '570.86.10, 1755, 1980, 2619, 312.50, 700.00, [N/A]'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    gpu = machine.Machine()
    gpu.busy, gpu.queued = 0.0, 3
    about = gpu.about("abc")
    assert about["device"] == "Abacus 9000"
    assert (about["capability"], about["driver"], about["commit"]) == ("9.0", "570.86.10", "abc")
    assert about == gpu.about("abc")  # else a second start would begin anew
    ran = []
    told = gpu.busy_clocks(lambda: ran.append(1))
    assert (len(ran), len(waits)) == (3, 1)
    assert told == {
        "sm_mhz": 1755.0, "most_sm_mhz": 1980.0, "memory_mhz": 2619.0, "watts": 312.5,
        "most_watts": 700.0,
    }  # fmt: skip
    assert gpu.tool("nvidia-smi") == str(smi)
    assert gpu.tool("no-such-tool") is None
    asked = []
    monkeypatch.setattr(torch, "compile", lambda f, **options: asked.append(options) or f)
    assert gpu.compiled(len) is len
    assert asked[0]["mode"].startswith("max-autotune")
    assert isinstance(gpu.clock(), timing.EventClock)
    monkeypatch.setattr(machine.cuda, "device_objection", lambda _: "no such GPU")
    assert list(gpu.ours) == ["triton"]
    monkeypatch.setattr(machine.cuda, "device_objection", lambda _: None)
    assert list(gpu.ours) == ["triton", "cuda"]
    monkeypatch.setattr(timing, "captured", lambda run: (run, "graph"))
    monkeypatch.setattr(timing, "peak_memory", lambda run: 3.0)
    assert gpu.captured(len) == (len, "graph")
    assert gpu.peak_memory(len) == 3.0
