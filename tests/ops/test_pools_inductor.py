"""The pools of prototypes under Inductor, in the modes people use; what is there on a CPU.

`tests/kernels/test_memory.py` tries the kernels in CUDA graphs ("reduce-overhead" on a GPU).
"""

from __future__ import annotations

import pytest
import torch

from infodisent import ops


def similarity(x, v):
    pool = ops.similarity_pool(x, v, similarity="l2", second="cosine", mean=True)
    return (pool.value - pool.second_value * pool.mean).sum()


def softmax(x, v):
    return ops.softmax_pool(x, v, temperature=0.5).value.square().sum()


def scores(x, v):
    return ops.softmax_pool(x * v.sum()).value.square().sum()


def alignment(x, v):
    return ops.softmax_alignment(x, x * v.mean()).sum()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune-no-cudagraphs"])
@pytest.mark.parametrize("loss", [similarity, softmax, scores, alignment])
def test_inductor(loss, mode):
    torch.compiler.reset()
    x, v = torch.randn(3, 12, 4, 5).requires_grad_(), torch.randn(7, 12).requires_grad_()
    compiled = torch.compile(loss, fullgraph=True, mode=mode)
    for _ in range(2):  # "reduce-overhead" records what the first calls do
        for ours, wanted in zip(
            torch.autograd.grad(compiled(x, v), (x, v)),
            torch.autograd.grad(loss(x, v), (x, v)),
            strict=True,
        ):
            torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)
