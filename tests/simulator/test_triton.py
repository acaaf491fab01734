"""A sample of the problems of `triton_cases` on the simulator, and that it finds planted faults.

All of them, on both architectures and with three seeds (half an hour): ``python -m
tests.simulator.triton --seeds 0 1 2``.
"""

from __future__ import annotations

import contextlib
import re

import pytest

from tests.simulator import triton

REASON = triton.missing()
pytestmark = [
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
    pytest.mark.filterwarnings("ignore:.*FP_FUSION.*"),
]
SAMPLE = (
    "product tf32x3 symmetric", "pool half 49", "pool half split", "pool half across", "nan half",
    "pool half tile after tile", "pool tf32x3 49", "head two half", "head one half",
    "backward half infinite", "rotation tf32x3 ragged, 50",
)  # fmt: skip


@pytest.mark.parametrize("name", SAMPLE)
def test_clean(name):
    """No finding, right results, and the same bits in two orders of execution."""
    from tests.simulator.triton_cases import CASES

    for good, line in triton.lines({name: CASES[name]}, [90], [0, 1]):
        assert good, line


FAULTS = {
    "copies are not waited for": (
        "pool half 49",
        lambda kernel, ptx: re.sub(r"cp\.async\.wait_group\s+\S+;", "", ptx),
    ),
    "parts are counted before they are stored": (
        "pool half split",
        lambda kernel, ptx: re.sub(r"(atom\.global\.gpu\.)acq_rel", r"\1relaxed", ptx),
    ),
    "one row too far": (
        "pool half 49",
        lambda kernel, ptx: re.sub(r"(st\.global\S* \[ %rd\d+ \+) 0 \]", r"\1 65536 ]", ptx),
    ),
}
"""Problem, and the change that makes its PTX wrong."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault):
    from tests.simulator.triton_cases import CASES

    name, change = FAULTS[fault]
    changed = []

    def planted(kernel: str, ptx: str) -> str:
        changed.append(change(kernel, ptx) != ptx)
        return change(kernel, ptx)

    with triton.simulated(90, change=planted) as device:
        with contextlib.suppress(AssertionError):  # wrong numbers, too
            CASES[name](90)
    assert any(changed), "there is nothing to plant it in"
    assert len(device.findings)


def test_other_bits_and_exceptions_are_findings():
    """Of the driver itself."""
    import torch
    from infodisent.kernels.rows import rows

    seeds = iter((1.0, 2.0))

    def drawn(arch: int):
        rows(torch.zeros(1, 16, 16), torch.float32, 1)
        return (torch.full((1,), next(seeds)),)

    def raised(arch: int):
        raise ValueError("as planted")

    found = list(triton.lines({"drawn": drawn, "raised": raised}, [90], [0, 1]))
    assert [good for good, _ in found] == [True, False, False, False]
    assert "other bits" in found[1][1]
    assert "as planted" in found[2][1]


def test_a_maximum_that_is_no_less_than_zero():
    """Which sm_90 has an instruction for, and the simulator none."""
    given = "@%p1 max.relu.s32 \t%r3, %r1, %r2;\n\tmax.relu.s32 %r4, %r4, -5;"
    wanted = "@%p1 max.s32 %r3, %r1, %r2; @%p1 max.s32 %r3, %r3, 0;\n\t"
    assert triton._plain(given) == wanted + "max.s32 %r4, %r4, -5; max.s32 %r4, %r4, 0;"
