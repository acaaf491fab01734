"""The script for the CUDA module on a GPU, as far as that goes without one."""

from __future__ import annotations

import argparse
import time

import pytest
import torch

from benchmarks import gpu_cuda
from benchmarks.gpu import cuda_gradient, cuda_problems, cuda_times
from infodisent import reference
from infodisent.bench import timing
from infodisent.testing import gradient_truth


def grad_u(pos, neg, x, pos_index, neg_index, dtype, *, cluster=None, splits=None):
    """What the kernel computes, on the CPU."""
    u = torch.zeros(x.shape[2], x.shape[2])
    rounded = pos.to(x.dtype), neg.to(x.dtype)
    if x.dtype == torch.float16:  # the kernel scales each channel before
        rounded = pos, neg
    return gradient_truth(*rounded, x, u, pos_index, neg_index).du.to(dtype)


def other_pixel(pos, neg, x, pos_index, neg_index, *rest, **options):
    last = x.shape[1] - 1
    return grad_u(pos, neg, x, pos_index.where(pos_index != last, 0), neg_index, *rest, **options)


def once(pos, neg, x, pos_index, neg_index, *rest, **options):
    return grad_u(
        pos, neg.where(pos_index != neg_index, 0), x, pos_index, neg_index, *rest, **options
    )


def of_none(pos, neg, x, pos_index, neg_index, *rest, **options):
    return grad_u(pos, neg, x, pos_index, neg_index.clamp_min(0), *rest, **options)


def part_left_out(pos, neg, x, pos_index, neg_index, *rest, splits=None, **options):
    some = len(x) - 1 if splits == 2 else len(x)
    tensors = (t[:some] for t in (pos, neg, x, pos_index, neg_index))
    return grad_u(*tensors, *rest, **options)


def spoilt(pos, neg, x, pos_index, neg_index, *rest, **options):
    """0 times Inf is NaN."""
    du = grad_u(pos, neg, x, pos_index, neg_index, *rest, **options)
    return du + (0 * x.float().sum((0, 1)))[None].to(du.dtype)


def rounded_twice(*arguments, **options):
    return grad_u(*arguments[:5], torch.bfloat16, **options).to(arguments[5])


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(cuda_problems, "DEVICE", "cpu")
    monkeypatch.setattr(cuda_gradient, "PIXELS", (1, 49))
    monkeypatch.setattr(cuda_gradient, "SIZES", ((5, 24),))


def test_gradient_stage(small, monkeypatch):
    monkeypatch.setattr(cuda_gradient, "grad_u", grad_u)
    rows = cuda_gradient.gradient(argparse.Namespace())
    assert rows == [{"problems": 192, "wrong": 0, "ok": True}]


@pytest.mark.parametrize(
    "fault", [other_pixel, once, of_none, part_left_out, spoilt, rounded_twice]
)
def test_gradient_stage_finds(small, monkeypatch, fault):
    monkeypatch.setattr(cuda_gradient, "grad_u", fault)
    rows = cuda_gradient.gradient(argparse.Namespace())
    assert not rows[-1]["ok"]
    assert all(row["reason"] for row in rows[:-1])


def test_stages():
    """Each with a limit is there, and what runs under the sanitizer besides."""
    assert set(gpu_cuda.STAGES) == {*gpu_cuda.LIMITS, "few"}


def test_times_hold_no_time_of_the_host(monkeypatch):
    """Calls that keep the host busy for long, of which a replay shows nothing."""
    pytest.importorskip("triton", reason="needs Triton, whose wrapper is timed beside")

    def slow(x, u, *_, **__):
        time.sleep(0.02)
        return reference.rotate_pool(x, u, input_fmt="NLC")

    def captured(run):
        run()
        return lambda: None  # on a device: the kernels alone

    monkeypatch.setattr(cuda_problems, "DEVICE", "cpu")
    monkeypatch.setattr(cuda_times, "MAPS", cuda_times.MAPS[:1])
    monkeypatch.setattr(cuda_times, "make", lambda *a: cuda_problems.make(2, 4, 8, a[3]))
    monkeypatch.setattr(cuda_times, "variants", lambda x: [("flat", 1)])
    monkeypatch.setattr(cuda_times, "wrong", lambda *_: "")
    monkeypatch.setattr(cuda_times, "call", slow)
    monkeypatch.setattr(cuda_times.cuda, "rotate_pool", slow)
    monkeypatch.setattr("infodisent.kernels.rotate_pool.rotate_pool", slow)
    monkeypatch.setattr(timing, "captured", captured)
    monkeypatch.setattr(timing, "event_clock", timing.host_clock)
    options = argparse.Namespace(batch=[2], rounds=3, out=None)
    (row,) = cuda_times.times(options)
    assert set(row["us"]) == {"cuda", "triton", "torch.mm", "cuda flat 1"}
    assert max(row["us"].values()) < 10_000
    assert row["of torch.mm"]["torch.mm"] == 1.0
