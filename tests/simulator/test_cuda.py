"""A sample of the problems of `cuda_cases` on the simulator, and that it finds planted faults.

All of them, with three seeds: ``python -m tests.simulator.cuda --seeds 0 1 2``.
"""

from __future__ import annotations

import contextlib
import re

import pytest

from tests.simulator import cuda

REASON = cuda.missing()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")
SAMPLE = (
    "4x49 ragged", "4x49 f16 pair", "flat prefix", "few 2x49 pair", "part of 64",
    "part of 224 float32 special", "4x49 fp8", "planes prefix", "dU prefix parts", "dU f16 special",
)  # fmt: skip


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    cuda.connect()
    return cuda.Program(cuda.build(tmp_path_factory.getbasetemp().parent))


@pytest.mark.parametrize("name", SAMPLE)
def test_clean(program, name):
    """No finding, right results, and the same bits in two orders of execution."""
    from tests.simulator.cuda_cases import CASES

    for good, line in cuda.lines(program, {name: CASES[name]}, [0, 1]):
        assert good, line


def without(pattern: str) -> cuda.Change:
    return lambda kernel, ptx: re.sub(pattern, "", ptx)


FAULTS: dict[str, tuple[str, cuda.Change]] = {
    "products are not waited for": ("4x49 ragged", without(r"wgmma\.wait_group\S*\s+\S+;")),
    "stores are not released": (
        "part of 64",
        lambda kernel, ptx: ptx.replace(
            "mbarrier.arrive.release.cluster.shared::cluster",
            "mbarrier.arrive.relaxed.cluster.shared::cluster",
        ),
    ),
    "the block goes on before all has been brought": ("planes 49", without(r"bar\.sync\s+0;")),
}
"""Problem, and the change that makes its PTX wrong."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(program, fault):
    from tests.simulator.cuda_cases import CASES

    name, change = FAULTS[fault]
    changed = []

    def planted(kernel: str, ptx: str) -> str:
        changed.append(change(kernel, ptx) != ptx)
        return change(kernel, ptx)

    case = CASES[name]
    with cuda.simulated(program, case.processors, change=planted) as device:
        with contextlib.suppress(AssertionError):  # wrong numbers, too
            case.run()
    assert any(changed), "there is nothing to plant it in"
    assert len(device.findings)
