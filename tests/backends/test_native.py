"""The compiled module: its functions, what it refuses, and the sanitizers' word on csrc/."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from infodisent import ops, reference
from infodisent.backends import native
from infodisent.backends.native import module as _native
from infodisent.layout import to_bpc
from tests.forks import forked

CSRC = Path(__file__).parents[2] / "csrc"
INCLUDES = (f"-I{CSRC}", f"-I{CSRC / 'cpu'}")
SOURCES = sorted(p for p in CSRC.glob("cpu/*.cpp") if p.name != "bindings.cpp")
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
@pytest.mark.parametrize("openmp", [False, pytest.param(True, id="openmp")])
@pytest.mark.slow
def test_sanitizers(tmp_path, openmp):
    """AddressSanitizer and UndefinedBehaviorSanitizer over every function of csrc/."""
    program = tmp_path / "check"
    command = ["g++", "-std=c++17", "-O1", "-g", "-fno-omit-frame-pointer", "-Wall", "-Wextra"]
    command += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command += ["-DINFODISENT_NO_DISPATCH", *INCLUDES, "-o", str(program)]
    command += ["-fopenmp"] if openmp else ["-Wno-unknown-pragmas"]
    command += [str(Path(__file__).with_name("native_sanitizers.cpp")), *map(str, SOURCES)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert "warning" not in built.stderr, built.stderr
    # libgomp keeps its pool of threads until the end, which is not a leak of ours
    ran = subprocess.run(
        [str(program)], capture_output=True, text=True, env={"ASAN_OPTIONS": "detect_leaks=0"}
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "clean\n"


@pytest.mark.skipif(
    shutil.which("aarch64-linux-gnu-g++") is None or shutil.which("qemu-aarch64") is None,
    reason="needs a compiler for Arm and an emulator (g++-aarch64-linux-gnu, qemu-user)",
)
@pytest.mark.slow
def test_arm(tmp_path):
    """The same program built for 64-bit Arm with the flags of setup.py, and run."""
    program = tmp_path / "check"
    command = ["aarch64-linux-gnu-g++", "-std=c++17", "-O3", "-fno-math-errno", "-static"]
    command += ["-ffp-contract=fast", "-Wall", "-Wextra", "-Wno-unknown-pragmas", *INCLUDES]
    command += ["-o", str(program), str(Path(__file__).with_name("native_sanitizers.cpp"))]
    built = subprocess.run([*command, *map(str, SOURCES)], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert "warning" not in built.stderr, built.stderr
    ran = subprocess.run(["qemu-aarch64", str(program)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "clean\n"


@needs_module
@pytest.mark.skipif(_native._missing is None and not _native._module.tiles, reason="no AVX2 here")
@pytest.mark.parametrize("instructions", [1, 2])
@pytest.mark.parametrize("channels", [1, 16, 30, 64, 100])
@pytest.mark.parametrize("pixels", [1, 6, 49, 50])
@pytest.mark.parametrize("layout", ["channels last", "pixels last", "strided"])
def test_rotate_pool_of_each_instruction_set(instructions, channels, pixels, layout):
    x = torch.randn(3, pixels, channels)
    x[1, pixels // 2, channels // 2] = float("nan")
    if layout == "pixels last":
        x = x.mT.contiguous().mT
    elif layout == "strided":
        x = torch.stack([x, x * 0], -1)[..., 0]
    u = torch.randn(channels, channels)
    try:
        result = _native.rotate_pool(x, u, instructions)
    except ValueError as error:
        pytest.skip(str(error))
    wanted = reference.rotate_pool(x.double(), u.double(), input_fmt="NLC")
    for ours, truth in zip(result[:2], wanted[1:3], strict=True):
        torch.testing.assert_close(ours.double(), truth, rtol=1e-5, atol=1e-5, equal_nan=True)
    y = x.double() @ u.double().mT
    for index, sign in ((result[2], 1), (result[3], -1)):
        assert torch.all((index[1] == pixels // 2) | (channels == 0))  # the NaN
        for b in (0, 2):
            there = (sign * y[b]).gather(0, index[b].clamp_min(0).long()[None])[0]
            assert torch.all(there.clamp_min(0) >= (sign * y[b]).amax(0).clamp_min(0) - 1e-5)


@needs_module
def test_rotate_pool_ties_and_zeros():
    """Integers are exact in every product: the lowest pixel of several equal ones, -1 for none."""
    x = torch.randint(-2, 3, (5, 23, 70)).float()
    u = torch.randint(-1, 2, (70, 70)).float()
    u[3] = 0
    u[4] = 0
    x[..., 0] = x[..., 0].abs()
    u[4, 0] = 1  # nothing negative
    wanted = reference.rotate_pool(x, u, input_fmt="NLC")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for view in (x.to(dtype), x.to(dtype).mT.contiguous().mT):
            result = ops.rotate_pool(view, u.to(dtype), input_fmt="NLC")
            assert all(torch.equal(a, b) for a, b in zip(result, wanted, strict=True))
            assert not torch.signbit(result.neg).any()
    assert (wanted.pos_index[:, 3] == -1).all()


@needs_module
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotate_pool_depends_on_neither_threads_nor_batch(dtype):
    x, u = torch.randn(7, 128, 7, 7).to(dtype), torch.randn(128, 128).to(dtype)
    before = torch.get_num_threads()
    try:
        alone = [ops.rotate_pool(image[None], u) for image in x]
        for threads in (1, 2, 5, 40):
            torch.set_num_threads(threads)
            together = ops.rotate_pool(x, u)
            for i, parts in enumerate(zip(*alone, strict=True)):
                assert torch.equal(torch.cat(parts), together[i])
    finally:
        torch.set_num_threads(before)


@needs_module
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_by_library(dtype, layout, monkeypatch):
    """Where the processor has no tile, library products give the same."""
    kwargs, build = layout
    x, u = torch.randn(5, 24, 5, 7).to(dtype), torch.randn(24, 24).to(dtype)
    view = to_bpc(build(x), **kwargs)
    monkeypatch.setattr(native.rotate_pool, "CHUNK_ROWS", 70)  # two images and the rest
    result = native.rotate_pool.by_library(view, u)
    wanted = reference.rotate_pool(x.double(), u.double())
    for ours, truth in zip(result, wanted[1:], strict=True):
        torch.testing.assert_close(ours.double(), truth.double(), rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(_native, "multiplies", lambda *_: None)
    pool = ops.rotate_pool(build(x), u, **kwargs)
    assert all(torch.equal(a, b) for a, b in zip(pool[1:], result, strict=True))


MEMORY = """
import re, sys, torch
from infodisent import ops
def memory(name):
    with open("/proc/self/status") as file:
        return int(re.search(name + r":\\s+(\\d+) kB", file.read())[1]) * 1024
def step(b, c, memory_format):
    x = torch.randn(b, c, 7, 7).contiguous(memory_format=memory_format)
    u, w = torch.randn(c, c, requires_grad=True), torch.rand(10, c, requires_grad=True)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew
    before = memory("VmRSS")
    ops.infodisent_head(x, u, w).sum().backward()
    return memory("VmHWM") - before
def extra(memory_format):
    step(2, 64, memory_format)
    print(step(256, 2048, memory_format) - 4 * 2048 * (2048 + 10))
"""


@needs_module
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory():
    """Forward and backward at C = 2048, B = 256: gradients and less than 64 MB."""
    layouts = ["torch.contiguous_format", "torch.channels_last"]
    printed = forked(MEMORY, [f"extra({layout})" for layout in layouts]).split()
    assert len(printed) == 2
    assert all(0 < int(number) < 64e6 for number in printed), printed


@pytest.mark.parametrize(
    ("tiles", "openmp", "fused", "product"),
    [
        ("avx512", True, True, True),
        ("avx2", False, True, True),
        ("neon", True, True, False),
        ("neon", False, False, False),
        ("", True, False, False),
    ],
)
def test_what_a_tile_is_taken_for(monkeypatch, tiles, openmp, fused, product):
    module = types.SimpleNamespace(tiles=tiles, openmp=openmp, pairs=False)
    monkeypatch.setattr(_native, "_module", module)
    assert _native.is_fused() == fused
    assert (_native.multiplies(torch.float32, torch.float32, 8) is not None) == fused
    assert _native.has_product(torch.float32) == product
    assert not _native.has_product(torch.float64)


needs_tile = pytest.mark.skipif(
    _native.objection() is not None or not _native.is_fused(), reason="no tile for this processor"
)


@needs_tile
@pytest.mark.parametrize("n", [1, 5, 6, 63, 64, 65, 97, 200, 389, 520])
def test_matrix_product(n, poisoned):
    a, b, addend = (torch.randn(n, n) for _ in range(3))
    for left in (a, a.mT):
        for right in (b, b.mT):
            for scale, added in ((0.0, None), (-2.0, addend)):
                out = torch.empty(n, n)
                _native.matrix_product(left, right, out, added, scale)
                truth = left.double() @ right.double()
                eager = (left @ right).double()
                if added is not None:
                    truth, eager = truth + scale * addend.double(), eager + scale * addend.double()
                error, theirs = (out - truth).abs().max(), (eager - truth).abs().max()
                assert error <= 1.5 * theirs + 1e-6, (left is a, right is b, scale)
    out = addend.clone()
    for left in (a, a.mT):  # rows of it are the same bits; no other row is touched
        whole, parts = torch.empty(n, n), torch.full((n, n), 7.0)
        _native.matrix_product(left, b, whole, addend, -2.0)
        at = [0, n // 3 // 6 * 6, n * 2 // 3 // 6 * 6, n]
        for first, last in itertools.pairwise(at):
            assert (parts[first:] == 7).all()
            _native.matrix_product(left, b, parts, addend, -2.0, rows=(first, last))
        assert torch.equal(parts, whole)
        parts.fill_(7)
        for first, last in itertools.pairwise([0, n // 3, n * 2 // 3, n]):  # and so are columns
            assert (parts[:, first:] == 7).all()
            _native.matrix_product(left, b, parts, addend, -2.0, columns=(first, last))
        assert torch.equal(parts, whole)
    with pytest.raises(ValueError, match="begin and end with a tile"):
        _native.matrix_product(a, b, out, rows=(1, n))
    with pytest.raises(ValueError, match="must be those of the result"):
        _native.matrix_product(a, b, out, columns=(0, n + 1))
    out = addend.clone()
    _native.matrix_product(a, b, out, out, 2.0)  # what is added may be where it goes
    torch.testing.assert_close(out, a @ b + 2 * addend, rtol=1e-4, atol=1e-4)


@needs_tile
@pytest.mark.parametrize("n", [1, 5, 6, 63, 64, 65, 97, 200, 389, 520])
def test_a_symmetric_or_skew_product_is_exactly_that(n, poisoned):
    a = torch.randn(n, n)
    skew, symmetric = a - a.mT, a + a.mT
    cube = symmetric @ symmetric  # commutes with `symmetric`
    cube = (cube + cube.mT) / 2
    for left, right, parity in ((skew, skew, 1), (symmetric, symmetric, 1), (symmetric, cube, 1)):
        out = torch.empty(n, n)
        _native.matrix_product(left, right, out, parity=parity)
        half, at = torch.empty(n, n), n // 2 // 6 * 6
        for rows in ((0, at), (at, n)):
            _native.matrix_product(left, right, half, parity=parity, rows=rows)
        assert torch.equal(half.tril(), out.tril())
        for kind in ("rows", "columns"):  # all of it, when what is below is written above, too
            half.fill_(torch.nan)
            for which in ((0, at), (at, n)):
                _native.matrix_product(
                    left, right, half, parity=parity, mirrored=True, **{kind: which}
                )
            assert torch.equal(half, out), kind
        truth = left.double() @ right.double()
        assert torch.equal(out, out.mT)
        assert (out - truth).abs().max() <= 1e-5 * truth.abs().max() + 1e-6
    square = skew @ skew
    square = (square + square.mT) / 2
    out = torch.empty(n, n)
    _native.matrix_product(skew, square, out, parity=-1)
    assert torch.equal(out, -out.mT)
    truth = skew.double() @ skew.double() @ skew.double()
    assert (out - truth).abs().max() <= 1e-5 * truth.abs().max() + 1e-6


@needs_tile
def test_matrix_products_do_not_depend_on_threads():
    a, b = torch.randn(300, 300), torch.randn(300, 300)
    results = []
    before = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            whole, half = torch.empty(300, 300), torch.empty(300, 300)
            _native.matrix_product(a.mT, b, whole)
            _native.matrix_product(a.mT, a, half, parity=1)
            results.append((whole, half))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(x, y) for r in results for x, y in zip(r, results[0], strict=True))
