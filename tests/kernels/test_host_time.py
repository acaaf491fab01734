"""Time of the host code with the launcher stubbed out, in calls of ``torch.empty``.

On a GPU it passes while kernels run, unless they are short: then it is what a call costs. What is
left of it there, and the launcher's own share, a CUDA graph takes away: a call can be captured.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from infodisent.kernels import rotate_pool as forward
from infodisent.kernels import rotate_pool_backward as backward

from tests.kernels import kernel_compile
from tests.kernels.marks import compiles

pytestmark = compiles


def seconds(call: Callable[[], object], repeat: int = 40) -> float:
    """The least mean of a few rounds: others work on this machine too."""
    call()
    rounds = []
    for _ in range(7):
        start = time.perf_counter()
        for _ in range(repeat):
            call()
        rounds.append((time.perf_counter() - start) / repeat)
    return min(rounds)


def in_empties(call: Callable[[], object]) -> float:
    with kernel_compile.recorder() as launches:

        def forgetting() -> None:
            call()
            launches.clear()

        return seconds(forgetting) / seconds(lambda: torch.empty(8, 8), 400)


@pytest.mark.parametrize("batch", [1, 8])
def test_forward(batch):
    x, u = torch.empty(batch, 49, 2048).bfloat16(), torch.empty(2048, 2048).bfloat16()
    assert in_empties(lambda: forward.best_tiles(x, "half")) < 8
    assert in_empties(lambda: forward.rotate_pool(x, u)) < 90


def test_backward():
    x, u = torch.empty(8, 49, 512).bfloat16(), torch.empty(512, 512).bfloat16()
    grads, places = torch.empty(2, 8, 512), torch.empty(2, 8, 512, dtype=torch.int32)
    call = lambda: backward.rotate_pool_backward(*grads, x, u, *places, True, True)  # noqa: E731
    assert in_empties(call) < 100
