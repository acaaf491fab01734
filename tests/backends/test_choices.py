"""`auto` between triton and cuda: what counts as evidence, where it is kept, what it leads to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from infodisent import backends, ops, reference
from infodisent.backends import architectures, choices, reported, selection, selfcheck
from infodisent.backends.cuda import backend as cuda_backend
from infodisent.backends.cuda import module as cuda
from infodisent.backends.table import BY_NAME
from infodisent.backends.triton import kernels, loading
from infodisent.contract import Extremes

CPU = torch.device("cpu")
MAP = choices.Map("float32", 8, 9)
BUILD = "a module"


def timing(batch, triton=(10.0, 30.0), cuda=(8.0, 29.0), of=MAP):
    return choices.Timing(of, batch, {"triton": triton, "cuda": cuda})


@pytest.fixture(autouse=True)
def gpu(monkeypatch, tmp_path):
    """A memory of its own, and a CPU with a GPU's name."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(selfcheck.ENV, raising=False)
    monkeypatch.setattr(selfcheck, "machine", lambda device: "a GPU, versions")
    monkeypatch.setattr(selection, "_resolved", {})
    choices.evidence.cache_clear()
    yield
    choices.evidence.cache_clear()


@pytest.mark.parametrize(
    ("triton", "cuda", "wanted"),
    [
        ((10.0, 30.0), (8.0, 29.0), "cuda"),
        ((10.0, 30.0), (8.0, 31.0), "triton"),  # training would be slower
        ((10.0, 30.0), (11.0, 20.0), "triton"),
    ],
)
def test_the_winner(triton, cuda, wanted):
    assert choices.winner({"cuda": cuda, "triton": triton}) == wanted
    assert choices.winner({"cuda": cuda}) == "triton"  # nothing to compare with


def test_ranges_join_neighbours_of_one_winner():
    slow = (12.0, 40.0)
    other = choices.Map("float32", 16, 9)
    timings = [timing(b) for b in (64, 8)] + [timing(256, cuda=slow), timing(8, of=other)]
    found = choices.ranges(timings, "here")
    assert [(r.map, r.least, r.most, r.backend) for r in found] == [
        (MAP, 8, 64, "cuda"),
        (MAP, 256, 256, "triton"),
        (other, 8, 8, "cuda"),
    ]
    assert str(found[0]) == "float32 8x9, B 8 to 64: cuda (triton 10.0, cuda 8.0 µs at B 64)"


def objection(batch, dtype=torch.float32, size=(9, 8), build=BUILD):
    return choices.objection("cuda", CPU, dtype, (batch, *size), build)


def test_evidence_holds_for_what_was_timed():
    assert "was never timed: `infodisent tune`" in objection(8)
    assert not choices.matters(CPU, BUILD)
    for batch in (8, 64):
        choices.remember(CPU, BUILD, timing(batch))
    choices.remember(CPU, BUILD, timing(256, cuda=(12.0, 40.0)))
    assert choices.matters(CPU, BUILD)
    assert [objection(b) is None for b in (7, 8, 33, 64, 65, 256)] == [
        False, True, True, True, False, False,
    ]  # fmt: skip
    assert "triton (triton 10.0, cuda 12.0 µs at B 256), timed on this machine" in objection(256)
    assert objection(8, torch.bfloat16)
    assert objection(8, size=(9, 16))
    assert objection(8, build="another module")
    choices.remember(CPU, BUILD, timing(8, cuda=(12.0, 40.0)))  # timed again
    assert objection(8)
    assert objection(64) is None


def test_no_check_no_kernel(monkeypatch):
    choices.remember(CPU, BUILD, timing(8))
    monkeypatch.setenv(selfcheck.ENV, "0")
    assert "INFODISENT_SELFCHECK=0" in objection(8)


@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00", "3"])
def test_a_damaged_file_is_said_and_ignored(content, caplog):
    path = choices.cache_file()
    path.parent.mkdir()
    path.write_text(content)
    assert objection(8)
    assert "backends.json" in caplog.text
    choices.remember(CPU, BUILD, timing(8))
    assert objection(8) is None
    assert list(json.loads(path.read_text())) == ["a GPU, versions, a module"]
    assert [p.name for p in path.parent.iterdir()] == ["backends.json"]  # nothing half-written


GOOD = {"dtype": "float32", "channels": 8, "pixels": 9, "batch": 8}
GOOD["times"] = {"triton": [10.0, 30.0], "cuda": [8.0, 29.0]}


@pytest.mark.parametrize(
    "change",
    [
        {"channels": "8"}, {"pixels": 0}, {"batch": True}, {"times": {}}, {"times": None},
        {"times": {"cuda": [1.0]}}, {"times": {"cuda": [1.0, -1.0]}}, {"times": {"cuda": "ab"}},
    ],
)  # fmt: skip
def test_what_is_no_timing_is_left_out(change, caplog):
    choices.cache_file().parent.mkdir()
    bad = {**GOOD, **change}
    choices.cache_file().write_text(json.dumps({"a GPU, versions, a module": [bad, 3, GOOD]}))
    assert objection(8) is None
    assert len([r for r in caplog.records if "is no timing" in r.getMessage()]) == 2
    assert len(choices.evidence(CPU, BUILD)) == 1


def of_report(failed=0, device="cpu"):
    row = "float32", 8, 9, 8, {"triton": (10.0, 30.0), "cuda": (8.0, 29.0)}
    return reported.Reported("abacus.json", device, "9.0", failed, (row,))


def test_committed_reports_are_evidence(monkeypatch):
    monkeypatch.setattr(choices, "REPORTS", (of_report(),))
    assert objection(8) is None
    (entry,) = choices.evidence(CPU, BUILD)
    assert entry.source == "abacus.json"
    choices.remember(CPU, BUILD, timing(8, cuda=(12.0, 40.0)))  # this machine goes before
    assert "timed on this machine" in objection(8)


@pytest.mark.parametrize("report", [of_report(failed=1), of_report(device="another")])
def test_a_report_with_failures_or_of_another_gpu_is_none(monkeypatch, report):
    monkeypatch.setattr(choices, "REPORTS", (report,))
    assert objection(8)


@pytest.fixture
def both(monkeypatch):
    """Both GPU backends serve on the CPU; who was called."""
    calls = []

    def serves(name):
        def rotate_pool(x, u, **_):
            calls.append(name)
            return Extremes(*reference.rotate_pool(x, u, input_fmt="NLC")[1:])

        return rotate_pool

    monkeypatch.setattr(loading, "objection", lambda *_: None)
    monkeypatch.setattr(selfcheck, "objection", lambda *_: None)
    monkeypatch.setattr(cuda, "device_objection", lambda *_: None)
    monkeypatch.setattr(cuda, "identity", lambda: BUILD)
    monkeypatch.setattr(cuda, "objection", lambda x, u, fp8=False: cuda.map_objection(x, u))
    monkeypatch.setattr(kernels, "rotate_pool", serves("triton"))
    monkeypatch.setattr(cuda, "rotate_pool", serves("cuda"))
    monkeypatch.setattr(
        cuda_backend.Cuda, "decides_by_size", lambda self, d: choices.matters(d, cuda.identity())
    )
    monkeypatch.setattr(cuda_backend.CudaFloat8, "decides_by_size", lambda self, d: False)
    return calls


def pool(calls, batch=8, layout="NHWC", **options):
    x = torch.randn(batch, 8, 3, 3)
    if layout == "NHWC":
        x = x.contiguous(memory_format=torch.channels_last)
    ops.rotate_pool(x, torch.randn(8, 8, **options))
    return calls[-1]


def test_auto_takes_cuda_only_where_it_was_faster(both, monkeypatch):
    assert pool(both) == "triton"
    choices.remember(CPU, BUILD, timing(8))
    monkeypatch.setattr(selection, "_resolved", {})  # another process
    assert pool(both) == "cuda"
    assert pool(both) == "cuda"  # and again, from what was resolved
    assert pool(both, batch=9) == "triton"
    assert pool(both, layout="NCHW") == "triton"  # it was not timed like this
    assert pool(both, dtype=torch.float16) == "triton"  # the kernel would refuse
    with backends.use_backend("triton"):
        assert pool(both) == "triton"
    x = torch.randn(8, 9, 8)
    ops.rotate_pool(x, torch.randn(8, 8), input_fmt="NLC")
    assert both[-1] == "cuda"
    ops.rotate_pool(x, torch.randn(8, 8), input_fmt="NLC", num_prefix_tokens=1)  # 8 pixels
    assert both[-1] == "triton"


def test_the_head_chooses_alike(both, monkeypatch):
    choices.remember(CPU, BUILD, timing(8))
    x = torch.randn(8, 9, 8)
    arguments = torch.randn(8, 8), torch.rand(5, 8)
    ops.infodisent_head(x, *arguments, input_fmt="NLC")
    assert both == ["cuda"]


def test_what_is_said_without_a_size(both):
    choices.remember(CPU, BUILD, timing(8))
    answer = backends.explain("rotate_pool", check=True)
    assert "sizes where `infodisent tune`" in answer["cuda"]
    assert answer["triton"] == "ok"


def test_a_build_has_a_name(monkeypatch, tmp_path):
    class Module:
        __file__ = str(tmp_path / "_cuda.so")

    monkeypatch.setattr(cuda, "_load", lambda: None)
    monkeypatch.setattr(cuda, "_module", Module)
    names = []
    for content in (b"one", b"another"):
        (tmp_path / "_cuda.so").write_bytes(content)
        names.append(cuda.identity.__wrapped__())
    assert len(set(names)) == 2
    monkeypatch.setattr(cuda, "_load", lambda: "why not")
    assert cuda.identity.__wrapped__() == "no CUDA module"
    assert not BY_NAME["cuda"].decides_by_size(torch.device("cuda"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sm_80", "compiled for it by the tests and never ran"),
        ("sm_90", "so are the CUDA kernels"),
        ("sm_89", "never compiled for it by the tests nor run"),
        ("gfx942", "PyTorch alone serves"),
        ("none", "concerns this machine"),
    ],
)
def test_what_is_known_of_an_architecture(name, said):
    assert said in architectures.knowledge(name)


def test_what_was_measured_on_an_architecture(monkeypatch):
    monkeypatch.setattr(architectures, "REPORTS", (of_report(failed=2, device="H100"),))
    assert architectures.knowledge("sm_90") == (
        "measured in benchmarks/results/abacus.json (H100, 2 checks FAILED)"
    )
    assert "never ran" in architectures.knowledge("sm_80")


@pytest.mark.parametrize(
    ("properties", "hip", "wanted"),
    [
        ({"major": 9, "minor": 0}, None, "sm_90"),
        ({"major": 12, "minor": 0}, None, "sm_120"),
        ({"major": 7, "minor": 5}, None, "sm_75"),
        ({"gcnArchName": "gfx942:sramecc+:xnack-"}, "6.4", "gfx942"),
    ],
)
def test_the_name_of_an_architecture(monkeypatch, properties, hip, wanted):
    made = type("Properties", (), properties)()
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: made)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert architectures.architecture(torch.device("cuda"))[0] == wanted
    assert architectures.architecture(None) == ("none", "")


def test_what_is_said_to_be_compiled_is():
    compile_tests = pytest.importorskip("tests.kernels.kernel_compile", reason="needs Triton")
    source = Path(compile_tests.__file__).read_text(encoding="utf-8")
    (archs,) = [line for line in source.splitlines() if '"--arch"' in line and "default=" in line]
    assert {name.removeprefix("sm_") for name in architectures.COMPILED} <= set(
        archs.partition("default=[")[2].partition("]")[0].split(", ")
    )
