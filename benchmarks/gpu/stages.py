"""The stages of the report in the order of their value: what a first minute must tell comes first.

A stage is a list of items. An item is a name and a function that returns a row, a dictionary with
"ok"; what it raises makes a row too. Rows are kept by stage and name, so that a second start knows
what is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from benchmarks.gpu import (
    cases,
    exact,
    limits,
    once,
    pool_checks,
    pools,
    random_shapes,
    rotation,
    tools,
)
from benchmarks.gpu.cases import Report
from benchmarks.gpu.machine import Machine
from infodisent import backends, ops

BUDGETS = (1, 10, 30)
"""Minutes; each has what the ones before have, and more."""
Item = tuple[str, Callable[[], Report]]


class Stage(NamedTuple):
    """Some items, and the seconds after which one of them is taken for one that hangs."""

    name: str
    title: str
    limit: float
    items: Callable[[Machine, int], Iterable[Item]]


def budget(minutes: float) -> int:
    """The largest of `BUDGETS` that so many minutes have room for."""
    return max([b for b in BUDGETS if b <= minutes], default=BUDGETS[0])


def _machine(machine: Machine, minutes: int) -> Iterator[Item]:
    yield "driver and clocks", lambda: {**machine.clocks(), "ok": True}
    yield "who can serve", lambda: {"answers": answers(machine), "ok": bool(machine.ours)}


def answers(machine: Machine) -> Report:
    """By operator and dtype: "ok" or the reason of each backend."""
    return {
        f"{op}, {name}": dict(backends.explain(op, machine.device, dtype))
        for op in ops.OPERATORS
        for name, dtype in cases.DTYPES.items()
    }


def _ceilings(machine: Machine, minutes: int) -> Iterator[Item]:
    yield "ceilings", lambda: limits.ceilings(machine)


def _part(part: str) -> Callable[[Machine, int], Iterator[Item]]:
    def items(machine: Machine, minutes: int) -> Iterator[Item]:
        for case in cases.cases(part, machine, minutes):
            yield str(case), lambda case=case: cases.compare(case, machine)

    return items


def _rotation(machine: Machine, minutes: int) -> Iterator[Item]:
    if minutes >= 10:
        for channels in machine.channels:
            yield f"C = {channels}", lambda c=channels: limits.rotation(machine, c)


def _products(machine: Machine, minutes: int) -> Iterator[Item]:
    if minutes >= 10 and "triton" in machine.ours:
        for channels in machine.channels if minutes >= 30 else machine.channels[:1]:
            for kind in rotation.KINDS:
                yield (
                    f"C = {channels}, {kind}",
                    lambda c=channels, kind=kind: rotation.product(machine, c, kind),
                )


def _overhead(machine: Machine, minutes: int) -> Iterator[Item]:
    if minutes >= 10:
        yield "calls of nothing", lambda: limits.overhead(machine)


def _compiled(machine: Machine, minutes: int) -> Iterator[Item]:
    if minutes >= 30:
        for case in cases.compiled_cases(machine):
            yield (
                f"{case.op}, {case}",
                lambda case=case: cases.compare(case, machine, compile_too=True),
            )


def _cuda(machine: Machine, minutes: int) -> Iterator[Item]:
    if minutes >= 30 and "cuda" in machine.ours:
        yield "every stage", lambda: tools.script("benchmarks.gpu_cuda", 800, "--rounds", "15")


def _tests(machine: Machine, minutes: int) -> Iterator[Item]:
    if minutes >= 30 and "triton" in machine.ours:
        for file in tools.test_files():
            yield file, lambda file=file: tools.tests(file, 580)


def _rotation_in_full(machine: Machine, minutes: int) -> Iterator[Item]:
    if minutes >= 30 and "triton" in machine.ours:
        yield (
            "every size",
            lambda: tools.script("benchmarks.gpu_rotation", 580, "--rounds", "15"),
        )


def _sanitizer(machine: Machine, minutes: int) -> Iterator[Item]:
    if minutes >= 30:
        for check in ("memcheck", "racecheck", "initcheck", "synccheck"):
            yield check, lambda check=check: tools.sanitize(machine, check, 420)


def _profile(machine: Machine, minutes: int) -> Iterator[Item]:
    if minutes >= 30:
        for name in machine.ours:
            yield name, lambda name=name: tools.profile(machine, name, 300)


STAGES = (
    Stage("machine", "driver, clocks, who can serve what", 60, _machine),
    Stage("integers", "whole numbers, exact", 180, exact.items),
    Stage("operators", "every operator once", 300, once.items),
    Stage("random", "random shapes", 300, random_shapes.items),
    Stage(
        "pools, integers", "pools of prototypes: whole numbers, ties", 180, pool_checks.exact_items
    ),
    Stage("pools, random", "pools of prototypes: random shapes", 300, pool_checks.random_items),
    Stage("ceilings", "what the machine can do", 60, _ceilings),
    Stage("forward", "rotate_pool, forward", 180, _part("forward")),
    Stage("backward", "rotate_pool, forward + backward for U", 180, _part("backward")),
    Stage("head", "infodisent_head, forward", 180, _part("head")),
    Stage("pools", "pools of prototypes, beside the published forms", 240, pools.items),
    Stage("rotation", "rotation, forward + backward", 180, _rotation),
    Stage("products", "one product of the rotation", 180, _products),
    Stage("overhead", "the host's time", 60, _overhead),
    Stage("compiled", "beside torch.compile, max-autotune", 400, _compiled),
    Stage("profile", "ncu", 360, _profile),
    Stage("sanitizer", "compute-sanitizer", 480, _sanitizer),
    Stage("cuda", "benchmarks.gpu_cuda", 860, _cuda),
    Stage("rotation in full", "benchmarks.gpu_rotation", 640, _rotation_in_full),
    Stage("tests", "tests/kernels", 640, _tests),
)
