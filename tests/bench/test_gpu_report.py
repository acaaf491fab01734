"""The GPU report without a GPU: every comparison, tables and picture, in Triton's interpreter.

The script must not be tried for the first time where minutes are counted. Clocks and graphs are
those of a stand-in; the kernels, the checks and what is written are the script's own.
"""

from __future__ import annotations

import importlib.util
import os
import re
import time

import pytest
import torch

from infodisent.backends import selection
from infodisent.backends import triton as _triton
from tests.kernels import kernel_compile

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
runs = pytest.mark.skipif(not INTERPRETED, reason="test_in_the_interpreter runs it")


class Event:
    """A clock with the face of torch.cuda.Event."""

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.time = time.perf_counter()

    def elapsed_time(self, end):
        return 1e3 * (end.time - self.time)


@pytest.fixture
def report(monkeypatch):
    """`gpu_cases` on the CPU, with small maps."""
    from benchmarks import gpu_cases

    for name, value in (
        ("DEVICE", "cpu"),
        ("SIZES", {"resnet34": (24, 3, 2), "vit_base_patch16_224": (17, 4, 4)}),
        ("BATCHES", (3, 1)),
        ("TUNED", ()),
        ("ROUNDS", 2),
        ("CLASSES", 5),
        ("_graph", lambda run: run),
        ("_flush", lambda: None),
        ("_has_cuda", lambda: False),
        ("_peak", lambda run: (run(), 0.0)[1]),
    ):
        monkeypatch.setattr(gpu_cases, name, value)
    kernels = {"infodisent.kernels.infodisent_head": "infodisent_head"}
    for path, stem in kernels.items():
        monkeypatch.setitem(__import__("sys").modules, path, kernel_compile.kernels_module(stem))
    monkeypatch.setattr(_triton, "module", kernel_compile.kernels_module)
    monkeypatch.setattr(_triton, "objection", lambda *_: None)
    monkeypatch.setattr(selection, "_resolved", {})
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    return gpu_cases


@runs
@pytest.mark.parametrize("part", ["forward", "backward", "head"])
def test_every_case(report, part):
    cases = list(report.cases(part))
    assert len({str(c) for c in cases}) == len(cases)
    wanted = {("bf16", "NHWC"), ("fp32", "NHWC")}
    wanted |= {("fp16", "NHWC"), ("bf16", "NCHW")} if part == "forward" else set()
    assert {(c.dtype, c.layout) for c in cases} == wanted
    some = {(c.dtype, c.layout): c for c in reversed(cases)}.values()
    for case in some:
        small = report.Case(case.op, case.shape, 3, case.dtype, case.layout)
        row = report.compare(small)
        ours = next(iter(row["microseconds"]))
        assert ours.startswith("triton")
        assert all(us > 0 for us in row["microseconds"].values())
        assert str(small) == row["case"]
        assert ours in report.line(row)


@runs
def test_a_wrong_kernel_is_not_timed(report, monkeypatch):
    plain = _triton.rotate_pool
    monkeypatch.setattr(_triton, "rotate_pool", lambda *a: [1.1 * t for t in plain(*a)[:2]] + [
        *plain(*a)[2:]
    ])  # fmt: skip
    with pytest.raises(AssertionError, match="triton is off by"):
        report.compare(report.Case("forward", "resnet34", 2, "fp32"))


@runs
def test_random_shapes(report):
    found = report.random_shapes(count=12)
    assert found["shapes"] == 12
    assert found["mismatches"] == []
    assert report.random_shapes(count=3, deadline=0)["shapes"] == 0


@runs
def test_tables_and_picture(report, tmp_path):
    rows = [report.compare(report.Case("forward", s, 2, "bf16")) for s in report.SIZES]
    about = {"device": "a stand-in"}
    content = {"about": about, "forward": rows, "overhead": report.overhead()}
    text = report.markdown(content)
    assert text.count("| 24×3×2, 2, bf16, NHWC |") == 1
    report.plot(content, tmp_path / "no.png")  # no ceilings: no picture
    assert not (tmp_path / "no.png").exists()
    content["ceilings"] = {"bf16_tflops": 100.0, "copy_tbs": 1.0}
    report.plot(content, tmp_path / "roofline.png")
    assert (tmp_path / "roofline.png").stat().st_size > 5000
    assert "%" in report.markdown(content)


@pytest.mark.skipif(
    INTERPRETED or torch.cuda.is_available() or importlib.util.find_spec("triton") is None,
    reason="this is the interpreter, or there is a GPU, or no Triton",
)
def test_in_the_interpreter():
    passed = re.search(r"(\d+) passed", kernel_compile.interpret(__file__))
    assert int(passed[1]) >= 6
