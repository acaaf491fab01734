"""The GPU report's rows of the Triton kernels without a GPU: in Triton's interpreter.

`test_gpu_stages.py` goes through the whole report with the backends for CPUs. Here are the lines
that name Triton's: the kernels, the checks and what is written are the script's own.
"""

from __future__ import annotations

import importlib.util
import os
import re

import pytest
import torch
from infodisent.kernels.tiles import rotation as tiles
from infodisent.kernels.tiles.blocks import Block, Row

from benchmarks.gpu import (
    cases,
    exact,
    machine,
    once,
    pool_checks,
    pools,
    random_shapes,
    rotation,
    tables,
)
from infodisent.backends import selection
from infodisent.backends.triton import kernels as triton_kernels
from infodisent.backends.triton import loading
from infodisent.contract import Extremes
from infodisent.testing import WrongResultError, check_close
from tests.kernels import kernel_compile

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
runs = pytest.mark.skipif(not INTERPRETED, reason="test_in_the_interpreter runs it")


class Interpreter(machine.Rehearsal):
    """The CPU with the kernels for GPUs."""

    sizes = {"resnet34": (24, 3, 2), "vit_base_patch16_224": (17, 4, 4)}  # noqa: RUF012
    batches = (3, 1, 2)
    ours = {"triton": ("triton",)}  # noqa: RUF012
    rounds = 1


@pytest.fixture
def interpreter(monkeypatch):
    monkeypatch.setattr(loading, "objection", lambda *_: None)
    monkeypatch.setattr(selection, "_resolved", {})
    for module in (random_shapes, pool_checks):
        monkeypatch.setattr(module, "IMAGES", ((7, 7), (1, 1), (5, 10), (3, 4)))
    return Interpreter()


@runs
@pytest.mark.parametrize("part", cases.PARTS)
def test_every_case(interpreter, part):
    todo = list(cases.cases(part, interpreter, 30))
    assert len({str(c) for c in todo}) == len(todo)
    wanted = {("bf16", "NHWC"), ("fp32", "NHWC")}
    wanted |= {("fp16", "NHWC"), ("bf16", "NCHW")} if part == "forward" else set()
    assert {(c.dtype, c.layout) for c in todo} == wanted
    some = {(c.dtype, c.layout): c for c in reversed(todo)}.values()
    for case in some:
        small = cases.Case(case.op, case.shape, 3, case.dtype, case.layout)
        row = cases.compare(small, interpreter)
        assert next(iter(row["microseconds"])) == "triton"
        assert (cases.ONE_LAUNCH in row["microseconds"]) == (part == "head")
        assert (cases.WHOLE_IMAGES in row["microseconds"]) == (part == "backward")
        assert all(us > 0 for us in row["microseconds"].values())


@runs
def test_a_wrong_kernel_is_not_timed(interpreter, monkeypatch):
    plain = triton_kernels.rotate_pool
    wrong = lambda *a: Extremes(*(1.1 * t for t in plain(*a)[:2]), *plain(*a)[2:])  # noqa: E731
    monkeypatch.setattr(triton_kernels, "rotate_pool", wrong)
    with pytest.raises(AssertionError, match="triton is off by"):
        cases.compare(cases.Case("forward", "resnet34", 2, "fp32"), interpreter)


@runs
def test_a_row_of_another_backend_is_not_timed(interpreter, monkeypatch):
    """A row that says triton and ran sparse, in its gradient, was published once."""
    sparse = selection.BY_NAME["sparse"]
    monkeypatch.setattr(
        triton_kernels, "rotate_pool_backward", lambda *a: sparse.rotate_pool_backward(*a)
    )
    with pytest.raises(WrongResultError, match="triton: ran rotate_pool_backward by sparse, not"):
        cases.compare(cases.Case("backward", "resnet34", 2, "fp32"), interpreter)


@runs
def test_random_shapes(interpreter, monkeypatch):
    outcome = random_shapes.several(interpreter, 0, 6)
    assert outcome == {"shapes": 6, "mismatches": [], "ok": True}
    plain = triton_kernels.rotate_pool
    first = lambda *a: plain(*a)._replace(pos_index=0 * plain(*a).pos_index)  # noqa: E731
    monkeypatch.setattr(triton_kernels, "rotate_pool", first)
    outcome = random_shapes.several(interpreter, 0, 2)
    assert "pos places" in outcome["mismatches"][0]


@runs
def test_whole_numbers_and_every_operator(interpreter):
    assert exact.identity(interpreter, "triton")["ok"]
    for dtype, kind in (("bf16", "integers"), ("fp16", "ties"), ("fp32", "integers")):
        assert exact.integers(interpreter, "triton", (3, 50, 24), dtype, kind)["ok"]
    items = dict(once.items(interpreter, 30))
    assert {name.split(",")[0] for name in items} == {f"triton: {op}" for op in loading.STEMS}
    for run in items.values():
        assert run()["ok"]


@runs
@pytest.mark.parametrize("shape", ["protopnet_cub", "tesnet_cub", "softmax_codes", "pipnet_small"])
def test_pools_of_prototypes(interpreter, shape):
    case = pools.PoolCase(shape, "forward+backward", "bf16")
    row = pools.compare(case, interpreter)
    assert next(iter(row["microseconds"])) == "triton"
    assert all(us > 0 for us in row["microseconds"].values())


@runs
def test_pools_of_whole_and_of_random_numbers(interpreter):
    for run, dtype in ((pool_checks.integers, "bf16"), (pool_checks.ties, "fp32")):
        assert run(interpreter, "triton", (2, 9, 24, 10), dtype)["ok"]
    assert pool_checks.several(interpreter, 0, 4)["mismatches"] == []


@pytest.fixture
def small(interpreter, monkeypatch):
    """With small tiles and without a clock: the interpreter is slow."""
    block = Block(16, 16, 16, 4, 1)
    monkeypatch.setattr(tiles, "BLOCKS", (Row(0, 0, rotation.FORMS, block),))
    monkeypatch.setattr(tiles, "choose", tiles.choose.__wrapped__)  # it keeps what it chose

    def times(runs, **_):
        return machine.Times(dict.fromkeys(runs, 1e-6), dict.fromkeys(runs, "graph"), {})

    monkeypatch.setattr(interpreter, "times", times, raising=False)
    return interpreter


@runs
@pytest.mark.parametrize("kind", ["symmetric", "both"])  # the next test has the other
def test_every_product_of_the_rotation(small, kind):
    row = rotation.product(small, 20, kind)
    times = row["microseconds"]
    assert {name.split()[0] for name in times} >= {*rotation.FORMS, rotation.MM}
    assert set(rotation.KINDS) == set(rotation.OPTIONS)
    assert any("written before" in name for name in times)
    assert rotation.PARTS_MM in row["errors"]
    assert all(us > 0 for us in times.values())
    text = tables._products({"stages": {"products": {"x": row}}})
    assert f"| 20 | {kind} | " in text[-2]


@runs
def test_a_wrong_product_of_the_rotation_is_not_timed(small, monkeypatch):
    from infodisent.kernels import rotation_parts

    plain = rotation_parts.multiply
    wrong = lambda a, b, out, *rest, **options: (  # noqa: E731
        plain(a, b, out, *rest, **options), out.mul_(1 + 1e-4)
    )  # fmt: skip
    monkeypatch.setattr(rotation_parts, "multiply", wrong)
    with pytest.raises(WrongResultError, match="parts 16x16x16 is off by"):
        rotation.product(small, 20, "whole")


@runs
@pytest.mark.usefixtures("small")
def test_the_rotation_by_parts():
    a = torch.randn(6, 6, requires_grad=True)
    exact = a.detach().double().requires_grad_()
    u, truth = rotation.by_parts(a), torch.matrix_exp(exact - exact.mT)
    (d_a,) = torch.autograd.grad(u.sum(), a)
    (d_truth,) = torch.autograd.grad(truth.sum(), exact)
    assert check_close(u, truth, 1e-6, "U") > 0
    check_close(d_a, d_truth, 1e-5, "dA")


@pytest.mark.skipif(
    INTERPRETED or torch.cuda.is_available() or importlib.util.find_spec("triton") is None,
    reason="this is the interpreter, or there is a GPU, or no Triton",
)
def test_in_the_interpreter():
    passed = re.search(r"(\d+) passed", kernel_compile.interpret(__file__))
    assert int(passed[1]) >= 16
