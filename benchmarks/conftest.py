"""Benchmarks under pytest-benchmark: the cases and peers of `infodisent.bench.cases`.

    pytest benchmarks --benchmark-group-by=group
    pytest benchmarks -k "rotate_pool and resnet50" --benchmark-json=out.json

Every implementation is checked against float64 before it is timed.
"""

from __future__ import annotations

import functools

import pytest
import torch

from infodisent.allocator import keep_memory
from infodisent.backbones.torchvision_import import ensure_torchvision
from infodisent.bench import cases as bench
from infodisent.bench.labels import served_by

ensure_torchvision()
keep_memory(all_of_it=True)


def pytest_addoption(parser):
    parser.addoption("--batch", type=int, default=16, help="images in a batch")
    parser.addoption("--device", default="cpu", choices=["cpu", "cuda"])


@functools.lru_cache(maxsize=2)
def _checked(case: bench.Case):
    torch.compiler.reset()
    functions = bench.peers(case)
    bench.check(case, functions)
    return functions


def parametrize(metafunc, op: str) -> None:
    """One benchmark per map size, mode and implementation of an operator."""
    config = metafunc.config
    params = [
        pytest.param(case, name, id=f"{case.shape}-{case.mode}-{name}")
        for case in bench.cases(
            [op], batch=config.getoption("--batch"), device=config.getoption("--device")
        )
        for name in bench.peers(case)
    ]
    metafunc.parametrize(("case", "name"), params)


def measure(benchmark, case: bench.Case, name: str) -> None:
    """Time one implementation and note the throughput."""
    function = _checked(case)[name]
    run = bench.runner(case, function)
    c, h, w = case.size
    benchmark.group = f"{case.op} {case.shape} {c}x{h}x{w} B={case.batch} {case.mode}"
    label = f"{name} ({', '.join(served_by(run))})" if name == "infodisent" else name
    benchmark.extra_info.update(bench.machine(case.device), op=case.op, implementation=label)
    if case.op in ("rotate_pool", "infodisent_head"):
        benchmark.extra_info["product_gflop"] = 2 * case.batch * h * w * c * c / 1e9
    if case.device == "cuda":
        plain = run

        def run() -> None:
            plain()
            torch.cuda.synchronize()

    benchmark.pedantic(run, warmup_rounds=1, rounds=5)
