"""The compiled module: its functions, what it refuses, and the sanitizers' word on csrc/."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from infodisent import _native

CSRC = Path(__file__).parents[1] / "csrc"
needs_module = pytest.mark.skipif(
    _native.objection() is not None, reason=_native.objection() or "built"
)


@needs_module
@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 130, 257])
@pytest.mark.parametrize("dtype", _native.DTYPES)
def test_combine_mirror_norms(n, dtype):
    inputs = [torch.randn(n, n, dtype=dtype) for _ in range(3)]
    unread = torch.full((n, n), float("nan"), dtype=dtype)
    outputs = [torch.full_like(unread, float("nan")) for _ in range(3)]
    coefficient = [[1, 0, 2.0, 0], [0.5, 1, 0, 0], [0, -1, 3, 0]]
    _native.combine([*inputs, unread], outputs, coefficient, [0, 1, -1])
    for row, sign, out in zip(coefficient, (0, 1, -1), outputs, strict=True):
        total = sum(c * x for c, x in zip(row, inputs, strict=False))
        torch.testing.assert_close(out, total + sign * total.mT, atol=1e-5, rtol=1e-5)
    x = inputs[0].clone()
    _native.combine([x], [x], [[1.0]], [-1])  # in place
    torch.testing.assert_close(x, inputs[0] - inputs[0].mT)
    x = inputs[1].clone()
    _native.mirror(x, -1.0)
    assert torch.equal(x, inputs[1].tril() - inputs[1].tril(-1).mT)
    one, squares = _native.norms(inputs[2])
    assert one == pytest.approx(inputs[2].abs().sum(1).max().item(), rel=1e-5)
    assert squares == pytest.approx(inputs[2].square().sum().item(), rel=1e-5)


@needs_module
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_norms_hide_nothing(value):
    x = torch.randn(70, 70)
    x[69, 3] = value
    one, squares = _native.norms(x)
    assert not (one < float("inf"))
    assert not (squares < float("inf"))


@needs_module
def test_threads_change_nothing():
    inputs = [torch.randn(200, 200) for _ in range(2)]
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            out = torch.empty(200, 200)
            _native.combine(inputs, [out], [[0.3, 0.7]], [1])
            results.append((out, _native.norms(out)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(r[0], results[0][0]) and r[1] == results[0][1] for r in results)


@needs_module
@pytest.mark.parametrize(
    "x", [torch.zeros(4, 4).mT[:, :3], torch.zeros(8, 8)[::2, ::2], torch.zeros(4, 5)]
)
def test_what_is_not_a_contiguous_matrix_is_refused(x):
    with pytest.raises(ValueError, match="must be contiguous"):
        _native.mirror(x, 1.0)


def test_a_missing_module_says_why(monkeypatch):
    monkeypatch.setattr(_native, "_missing", "no native module: no compiler")
    assert "no compiler" in _native.describe()
    assert _native.objection() == "no native module: no compiler"


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("openmp", [False, True])
def test_sanitizers(tmp_path, openmp):
    """AddressSanitizer and UndefinedBehaviorSanitizer over every function of csrc/."""
    program = tmp_path / "check"
    command = ["g++", "-std=c++17", "-O1", "-g", "-fno-omit-frame-pointer", "-Wall", "-Wextra"]
    command += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command += ["-DINFODISENT_NO_DISPATCH", f"-I{CSRC}", "-o", str(program)]
    command += ["-fopenmp"] if openmp else ["-Wno-unknown-pragmas"]
    sources = CSRC.glob("*_cpu.cpp")
    command += [str(Path(__file__).with_name("native_sanitizers.cpp")), *map(str, sources)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert "warning" not in built.stderr, built.stderr
    # libgomp keeps its pool of threads until the end, which is not a leak of ours
    ran = subprocess.run(
        [str(program)], capture_output=True, text=True, env={"ASAN_OPTIONS": "detect_leaks=0"}
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "clean\n"
