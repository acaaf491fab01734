"""How many kernels a call launches: counted where the launcher is a recorder, and by a trace."""

from __future__ import annotations

import pytest
import torch
from infodisent.kernels import infodisent_head as head
from infodisent.kernels import rotate_pool as forward
from infodisent.kernels import rotate_pool_backward as backward

from tests.kernels import kernel_compile
from tests.kernels.marks import compiles

pytestmark = compiles

B, P, C, K = 256, 49, 2048, 1000


def inputs(dtype: torch.dtype, device: str, layout: str = "rows", batch: int = B):
    x = torch.empty(batch, P, C, dtype=dtype, device=device)
    if layout == "NCHW":
        x = torch.empty(batch, C, P, dtype=dtype, device=device).mT
    return x, torch.empty(C, C, dtype=dtype, device=device)


def names(run) -> list[str]:
    with kernel_compile.recorder() as launches:
        run()
    return [kernel.__name__ for kernel, _ in launches]


@pytest.mark.parametrize("batch", [1, 8, B])
def test_rotate_pool_is_one_launch(batch):
    x, u = inputs(torch.bfloat16, "meta", batch=batch)
    assert names(lambda: forward.rotate_pool(x, u)) == ["rotate_pool_kernel"]


def test_other_layouts_are_laid_out_by_one_more():
    x, u = inputs(torch.bfloat16, "meta", "NCHW")
    assert names(lambda: forward.rotate_pool(x, u)) == ["rows_kernel", "rotate_pool_kernel"]


def test_float32_is_split_first():
    x, u = inputs(torch.float32, "meta")
    launched = names(lambda: forward.rotate_pool(x, u))
    assert launched == ["split_kernel", "rows_kernel", "rotate_pool_kernel"]


@pytest.mark.parametrize(("launches", "count"), [("one", 1), ("two", 2)])
@pytest.mark.parametrize("batch", [1, 64])
def test_the_head_in_one_launch_or_two(launches, count, batch):
    x, u = inputs(torch.bfloat16, "meta", batch=batch)
    weight = torch.empty(K, C, device="meta")
    launched = names(lambda: head.infodisent_head(x, u, weight, None, True, launches))
    assert len(launched) == count, launched


@pytest.mark.parametrize(
    ("need_x", "need_u", "wanted"),
    [
        (False, False, []),
        (False, True, ["grad_u_kernel"]),
        (True, False, ["grad_x_kernel"]),
        (True, True, ["grad_x_kernel", "grad_u_kernel"]),
    ],
)
def test_only_the_gradients_asked_for(need_x, need_u, wanted):
    x, u = inputs(torch.bfloat16, "meta")
    grads = [torch.empty(B, C, device="meta") for _ in range(2)]
    places = [torch.empty(B, C, dtype=torch.int32, device="meta") for _ in range(2)]
    launched = names(
        lambda: backward.rotate_pool_backward(*grads, x, u, *places, need_x, need_u)
    )  # fmt: skip
    assert [name for name in launched if name != "add_kernel"] == wanted


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a trace needs a GPU")
@pytest.mark.parametrize(("launches", "count"), [("one", 1), ("two", 2)])
def test_a_trace_sees_as_many(launches, count):
    x, u = (t.normal_() for t in inputs(torch.bfloat16, "cuda", batch=16))
    weight = torch.rand(K, C, device="cuda")

    def run():
        head.infodisent_head(x, u, weight, None, True, launches)

    run()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as trace:
        run()
        torch.cuda.synchronize()
    kernels = [
        event.name
        for event in trace.events()
        if event.device_type == torch.autograd.DeviceType.CUDA and "Mem" not in event.name
    ]
    assert len(kernels) == count, kernels
