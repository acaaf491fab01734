"""The compiled softmax pool: exponentials, threads, memory, what it refuses."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from infodisent import backends, ops
from infodisent.backends.native import module, softmax_calls
from infodisent.contract import Best
from tests.forks import forked

pytestmark = pytest.mark.skipif(
    module.objection() is not None, reason=module.objection() or "built"
)
FORMATS = [torch.contiguous_format, torch.channels_last]


def exponentials(x: torch.Tensor) -> torch.Tensor:
    """exp of x [N] <= 0 as backward computes it: s_mp of a second score beside a zero.

    Image i has the scores 0 and x_i at its only pixel, a sum of 1 and G = -1.
    """
    n = len(x)
    w = torch.stack([torch.zeros_like(x), x], 1).view(n, 1, 2)
    value, grad = torch.zeros(n, 2, dtype=x.dtype), torch.zeros(n, 2, dtype=x.dtype)
    value[:, 0], grad[:, 0] = 1, -1
    best = Best(value, torch.zeros(n, 2, dtype=torch.int32))
    normalizer = torch.stack([torch.zeros(n, 1), torch.ones(n, 1)]).to(x.dtype)
    dw = torch.full_like(w, float("nan"))
    # the second prototype's own value is 0, which would be written over what is looked at
    best.value[:, 1] = -torch.inf
    softmax_calls.softmax_pool_backward(w, None, 1.0, grad, best, normalizer, dw)
    return dw[:, 0, 1]


@pytest.mark.parametrize(("dtype", "lowest"), [(torch.float32, -87), (torch.float64, -708)])
def test_exponential_is_within_two_ulp(dtype, lowest):
    steps = torch.linspace(0, 1, 20_000, dtype=torch.float64)
    x = torch.cat([lowest * steps, -steps, -(2.0 ** (-60 * steps))]).to(dtype)
    ours, truth = exponentials(x).double(), x.double().exp()
    if dtype == torch.float64:
        assert ((ours - truth).abs() <= 4 * torch.finfo(dtype).eps * truth).all()
        return
    _, exponent = torch.frexp(truth)
    ulp = torch.ldexp(torch.ones_like(truth), exponent - 24)
    assert ((ours - truth).abs() <= 2 * ulp).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exponential_at_the_edges(dtype):
    x = torch.tensor([0.0, -0.0, -1e-30, -torch.inf, -1e30, -800.0, float("nan")], dtype=dtype)
    assert exponentials(x)[:6].tolist() == [1, 1, 1, 0, 0, 0]
    assert exponentials(x)[6].isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_depends_on_neither_threads_nor_batch(dtype, memory_format):
    x = torch.randn(3, 70, 13, 17).to(dtype).contiguous(memory_format=memory_format)
    y = torch.randn(3, 70, 13, 17).to(dtype).contiguous(memory_format=memory_format)
    g, h = torch.randn(3, 70), torch.randn(3, 221)

    def results(x, y, g, h):
        leaf, other = x.clone().requires_grad_(), y.clone().requires_grad_()
        with backends.use_backend("native"):
            pool, loss = ops.softmax_pool(leaf), ops.softmax_alignment(leaf, other)
        dx, dy = torch.autograd.grad(loss, (leaf, other), h.to(loss.dtype))
        (dp,) = torch.autograd.grad(pool.value, leaf, g.to(pool.value.dtype))
        return pool.value, pool.index, loss, dx, dy, dp

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = [results(*(t[i : i + 1] for t in (x, y, g, h))) for i in range(3)]
        for threads in (1, 2, 5, 40):
            torch.set_num_threads(threads)
            together = results(x, y, g, h)
            for parts, whole in zip(zip(*alone, strict=True), together, strict=True):
                assert torch.equal(torch.cat(parts), whole)
    finally:
        torch.set_num_threads(before)


def test_a_gradient_in_another_layout():
    """dx may lie in memory as it likes, whatever x does."""
    x = torch.randn(2, 30, 20)
    best, normalizer = Best(torch.empty(2, 20), torch.empty(2, 20, dtype=torch.int32)), None
    normalizer = torch.empty(2, 2, 30)
    softmax_calls.softmax_pool(x, None, 1.0, None, best, normalizer)
    grad, results = torch.randn(2, 20), []
    for source in (x, x.mT.contiguous().mT, torch.stack([x, x], -1)[..., 0]):
        for target in (x, x.mT.contiguous().mT, torch.stack([x, x], -1)[..., 0]):
            dx = torch.empty_strided(target.shape, target.stride()).fill_(torch.nan)
            softmax_calls.softmax_pool_backward(source, None, 1.0, grad, best, normalizer, dx)
            results.append(dx.clone())
    assert all(torch.equal(r, results[0]) for r in results)


def test_what_does_not_fit_is_refused():
    x, best = torch.randn(2, 3, 4), Best(torch.zeros(2, 4), torch.full((2, 4), 3).int())
    normalizer, grad = torch.ones(2, 2, 3), torch.ones(2, 4)
    with pytest.raises(ValueError, match="a place is outside of 3 pixels"):
        softmax_calls.softmax_pool_backward(x, None, 1.0, grad, best, normalizer, x.clone())
    best = Best(torch.zeros(2, 4), torch.zeros(2, 4).int())
    with pytest.raises(ValueError, match="a gradient is"):
        softmax_calls.softmax_pool_backward(x, None, 1.0, grad, best, normalizer, x.double())
    with pytest.raises(ValueError, match="must be contiguous"):
        softmax_calls.softmax_pool(x, torch.zeros(5), 1.0, None, best, normalizer)
    with pytest.raises(ValueError, match="a gradient is"):
        softmax_calls.softmax_alignment(x, x[:1], torch.empty(2, 3), torch.empty(6, 2, 3))


MEMORY = """
import re, sys, torch
from infodisent import backends, ops
def memory(name):
    with open("/proc/self/status") as file:
        return int(re.search(name + r":\\s+(\\d+) kB", file.read())[1]) * 1024
def step(b, c, side, memory_format, what):
    x = torch.randn(b, c, side, side).contiguous(memory_format=memory_format)
    x.requires_grad_(what == "backward")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew
    before = memory("VmRSS")
    with backends.use_backend("native"):
        value = ops.softmax_pool(x).value
        if x.requires_grad:
            value.sum().backward()
    return memory("VmHWM") - before
def extra(*how):
    torch.set_num_threads(2)
    step(2, 64, 7, *how)
    print(step(16, 768, 26, *how) - (4 * 16 * 768 * 676 if how[1] == "backward" else 0))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_dense_softmax_is_held():
    """Beside the gradient of the map itself, a tenth of a map."""
    ways = itertools.product(FORMATS, ("forward", "backward"))
    printed = forked(MEMORY, [f"extra({layout}, {what!r})" for layout, what in ways]).split()
    assert len(printed) == 4
    assert all(int(number) < 4 * 16 * 768 * 676 / 8 for number in printed), printed


CSRC = Path(__file__).parents[2] / "csrc"


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.slow
def test_sanitizers(tmp_path):
    """AddressSanitizer and UndefinedBehaviorSanitizer over the functions of both operators."""
    program = tmp_path / "check"
    command = ["g++", "-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
    command += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command += ["-DINFODISENT_NO_DISPATCH", f"-I{CSRC}", f"-I{CSRC / 'cpu'}", "-o", str(program)]
    command += [str(Path(__file__).with_name("native_softmax_sanitizers.cpp"))]
    command += [str(CSRC / "cpu" / f"softmax_{name}.cpp") for name in ("pool", "alignment")]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert "warning" not in built.stderr, built.stderr
    ran = subprocess.run([str(program)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "clean\n"
