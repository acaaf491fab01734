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
from infodisent.backends.triton import kernels as triton_kernels
from infodisent.backends.triton import loading
from infodisent.bench import timing
from infodisent.contract import Extremes
from infodisent.testing import WrongResultError
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

    for module, name, value in (
        (gpu_cases, "DEVICE", "cpu"),
        (gpu_cases, "SIZES", {"resnet34": (24, 3, 2), "vit_base_patch16_224": (17, 4, 4)}),
        (gpu_cases, "BATCHES", (3, 1)),
        (gpu_cases, "TUNED", ()),
        (gpu_cases, "ROUNDS", 2),
        (gpu_cases, "CLASSES", 5),
        (gpu_cases, "has_cuda", lambda: False),
        (timing, "captured", lambda run: run),
        (timing, "flush_cache", lambda: None),
        (timing, "peak_memory", lambda run: (run(), 0.0)[1]),
        (loading, "objection", lambda *_: None),
        (selection, "_resolved", {}),
        (torch.cuda, "Event", Event),
        (torch.cuda, "synchronize", lambda *_: None),
    ):
        monkeypatch.setattr(module, name, value)
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
    plain = triton_kernels.rotate_pool
    wrong = lambda *a: Extremes(*(1.1 * t for t in plain(*a)[:2]), *plain(*a)[2:])  # noqa: E731
    monkeypatch.setattr(triton_kernels, "rotate_pool", wrong)
    with pytest.raises(AssertionError, match="triton is off by"):
        report.compare(report.Case("forward", "resnet34", 2, "fp32"))


@runs
def test_a_row_of_another_backend_is_not_timed(report, monkeypatch):
    """A row that says triton and ran sparse, in its gradient, was published once."""
    sparse = selection.BY_NAME["sparse"]
    monkeypatch.setattr(
        triton_kernels, "rotate_pool_backward", lambda *a: sparse.rotate_pool_backward(*a)
    )
    with pytest.raises(WrongResultError, match="triton: ran rotate_pool_backward by sparse, not"):
        report.compare(report.Case("backward", "resnet34", 2, "fp32"))


@runs
def test_random_shapes(report, monkeypatch):
    from benchmarks.gpu_random import random_shapes

    outcome = random_shapes(count=12)
    assert outcome["shapes"] == 12
    assert outcome["mismatches"] == []
    assert random_shapes(count=3, deadline=0)["shapes"] == 0
    plain = triton_kernels.rotate_pool
    first = lambda *a: plain(*a)._replace(pos_index=0 * plain(*a).pos_index)  # noqa: E731
    monkeypatch.setattr(triton_kernels, "rotate_pool", first)
    outcome = random_shapes(count=4)
    assert outcome["wrong"] == len(outcome["mismatches"]) > 0
    assert "pos places" in outcome["mismatches"][0]


@runs
def test_tables_and_picture(report, tmp_path):
    from benchmarks import gpu_machine, gpu_tables

    rows = [report.compare(report.Case("forward", s, 2, "bf16")) for s in report.SIZES]
    about = {"device": "a stand-in"}
    content = {"about": about, "forward": rows, "overhead": gpu_machine.overhead()}
    text = gpu_tables.markdown(content)
    assert text.count("| 24×3×2, 2, bf16, NHWC |") == 1
    gpu_tables.plot(content, tmp_path / "no.png")  # no ceilings: no picture
    assert not (tmp_path / "no.png").exists()
    content["ceilings"] = {"bf16_tflops": 100.0, "copy_tbs": 1.0}
    gpu_tables.plot(content, tmp_path / "roofline.png")
    assert (tmp_path / "roofline.png").stat().st_size > 5000
    assert "%" in gpu_tables.markdown(content)


@pytest.mark.skipif(
    INTERPRETED or torch.cuda.is_available() or importlib.util.find_spec("triton") is None,
    reason="this is the interpreter, or there is a GPU, or no Triton",
)
def test_in_the_interpreter():
    passed = re.search(r"(\d+) passed", kernel_compile.interpret(__file__))
    assert int(passed[1]) >= 7
