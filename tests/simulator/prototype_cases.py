"""Problems of the simulator: gradients of `similarity_pool`, and `softmax_alignment` both ways."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from infodisent.kernels import similarity_pool_backward as gradients
from infodisent.kernels import softmax_alignment as alignment
from torch import Tensor

from infodisent.contract import Best
from infodisent.testing import check_close, random_map, require, similarity_at
from tests.simulator.triton import Case

F32, BF16 = torch.float32, torch.bfloat16


def _views_backward(
    similarities: tuple[str, ...], batch: int, pixels: int, channels: int, prototypes: int, *,
    dtype: torch.dtype = BF16, nchw: bool = False,
) -> Case:  # fmt: skip
    """At places of no search, but for some pixels that win nothing, which hold NaN."""

    def run(arch: int) -> Sequence[Tensor]:
        x, _, _ = random_map(batch, pixels, channels, dtype=dtype, seed=3)
        g = torch.Generator().manual_seed(4)
        v = torch.randn(prototypes, channels, generator=g)
        size = (batch, prototypes)
        places = [torch.randint(0, 2 * pixels // 3 + 1, size, generator=g) for _ in similarities]
        leaves = x.double().requires_grad_(), v.double().requires_grad_()
        grads = tuple(torch.randn(size, generator=g) for _ in similarities)
        values = [similarity_at(*leaves, *one) for one in zip(places, similarities, strict=True)]
        truth = torch.autograd.grad(values, leaves, [grad.double() for grad in grads])
        x[:, 2 * pixels // 3 + 1 :] = float("nan")
        x = x.mT.contiguous().mT if nchw else x
        best = tuple(
            Best(value.detach().float(), place.int())
            for value, place in zip(values, places, strict=True)
        )
        found = gradients.similarity_pool_backward(
            grads, best, x, v, similarities, True, True
        )  # fmt: skip
        for one, true, name in zip(found, truth, ("dX", "dV"), strict=True):
            check_close(one, true, 1e-2 if one.dtype == BF16 else 1e-5, name)
        return found

    return run


def _alignment(
    batch: int, pixels: int, channels: int, *, dtype: torch.dtype = F32, nchw: bool = False,
    one_side: bool = False,
) -> Case:  # fmt: skip
    def run(arch: int) -> Sequence[Tensor]:
        g = torch.Generator().manual_seed(5)
        first, second = torch.randn(2, batch, pixels, channels, generator=g).to(dtype)
        first[0, 0, 0] = float("nan")
        if nchw:
            first, second = (x.mT.contiguous().mT for x in (first, second))
        loss, statistics = alignment.softmax_alignment(first, second)
        a, b = (x.double().requires_grad_() for x in (first, second))
        truth = a.logsumexp(2) + b.logsumexp(2) - (a + b).logsumexp(2)
        grad = torch.randn(loss.shape, generator=g)
        slopes = torch.autograd.grad(truth, (a, b), grad.double())
        d_first, d_second = torch.empty_like(first), torch.empty_like(second)
        side = None if one_side else d_second
        alignment.softmax_alignment_backward(grad, first, second, statistics, d_first, side)
        require(bool(loss[0, 0].isnan() & d_first[0, 0].isnan().all()), "NaN is lost")
        finite = torch.ones(batch, pixels, dtype=torch.bool)
        finite[0, 0] = False
        allowed = 1e-2 if dtype == BF16 else 1e-5
        check_close(loss[finite], truth.detach()[finite], 1e-5, "loss")
        for one, true in zip((d_first, side), slopes, strict=True):
            if one is not None:
                check_close(one[finite], true[finite], allowed, "gradient")
        return loss, statistics, d_first

    return run


CASES: dict[str, Case] = {
    "views backward dot": _views_backward(("dot",), 3, 49, 64, 300),
    "views backward l2, NCHW": _views_backward(("l2",), 9, 20, 40, 70, nchw=True),
    "views backward cosine, C=33": _views_backward(("cosine",), 3, 49, 33, 70, dtype=F32),
    "views backward two, C=136": _views_backward(("cosine", "l2"), 2, 16, 136, 30),
    "alignment rows, C=300": _alignment(2, 9, 300),
    "alignment bfloat16, one side": _alignment(2, 9, 40, dtype=BF16, one_side=True),
    "alignment NCHW": _alignment(2, 70, 40, nchw=True),
}
