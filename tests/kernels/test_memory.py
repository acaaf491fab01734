"""What a call of the kernels leaves behind: nothing on the device but its results.

A tensor that is made in a call and kept for the next is refused by
``torch.compile(mode="reduce-overhead")``, where it lies in the memory of a CUDA graph.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from infodisent.kernels import infodisent_head as head
from infodisent.kernels import rotate_pool as forward
from infodisent.kernels import rotate_pool_backward as backward
from infodisent.kernels import rotation

from tests.kernels import kernel_compile
from tests.kernels.marks import compiles

META = {"device": "meta"}


def _pool(batch: int, pixels: int, dtype: torch.dtype, channels: int = 512) -> None:
    x = torch.empty(batch, pixels, channels, dtype=dtype, **META)
    forward.rotate_pool(x, torch.empty(channels, channels, **META))


def _head() -> None:
    x, u = torch.empty(1, 577, 512, **META).half(), torch.empty(512, 512, **META)
    head.infodisent_head(x, u, torch.empty(10, 512, **META), None, True, "one")


def _backward() -> None:
    x, u = torch.empty(3, 49, 512, **META).half(), torch.empty(512, 512, **META)
    grad, place = torch.empty(3, 512, **META), torch.empty(3, 512, dtype=torch.int32, **META)
    backward.rotate_pool_backward(grad, grad, x, u, place, place, True, True)


def _rotation() -> None:
    a = torch.empty(64, 64, **META)
    _, kept, numbers = rotation.rotation(a, "full", "tf32x3")
    rotation.rotation_backward(a, a, kept, numbers, "full", "tf32x3")


CALLS: dict[str, Callable[[], None]] = {
    "whole images": lambda: _pool(256, 49, torch.bfloat16),
    "split steps": lambda: _pool(1, 49, torch.bfloat16, 2048),
    "across images": lambda: _pool(4, 577, torch.float32),
    "head in one launch": _head,
    "gradients": _backward,
    "rotation": _rotation,
}


def _alive() -> set[int]:
    gc.collect()
    return {id(o) for o in gc.get_objects() if issubclass(type(o), torch.Tensor)}


@compiles
@pytest.mark.parametrize("name", CALLS)
def test_no_tensor_outlives_a_call(name):
    before = _alive()
    with kernel_compile.recorder() as launches:
        CALLS[name]()
    assert launches
    del launches
    assert not _alive() - before


@compiles
@pytest.mark.parametrize(
    ("name", "count"), [("whole images", 0), ("split steps", 1), ("across images", 1)]
)
def test_scratch_is_cleared_by_one_launch_at_most(name, count, monkeypatch):
    """Which the launches of the recorder do not show."""
    cleared = []
    plain = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *a, **k: (cleared.append(a), plain(*a, **k))[1])
    with kernel_compile.recorder():
        CALLS[name]()
    assert len(cleared) == count
