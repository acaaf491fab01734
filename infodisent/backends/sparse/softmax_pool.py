"""Softmax at every pixel and the maximum over pixels, by chunks of images.

Scores, exponentials and the gradient of scores exist for one chunk at a time; what is kept of a
pixel is its largest score and its sum of exponentials. The gradient of a softmax is dense, but only
pixels that are some prototype's best have one: with G_p the sum of ``grad·value`` over those,
``dw_pm = s_pm / T · (grad_m [p is m's pixel] - G_p)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from infodisent.backends.sparse import winners
from infodisent.contract import Best, empty_best
from infodisent.layout import value_dtype


def chunks(x: Tensor, prototypes: int, itemsize: int) -> list[tuple[int, int]]:
    """Ranges of images of x [B, P, C] whose scores take about `winners.CHUNK_BYTES`."""
    batch, pixels, _ = x.shape
    return winners.chunks(batch, pixels * prototypes, itemsize)


def computed_in(x: Tensor, prototypes: Tensor | None, bias: Tensor | None) -> torch.dtype:
    """float64 if an input is, else float32."""
    return value_dtype(x.dtype, *(t.dtype for t in (prototypes, bias) if t is not None))


def scores(
    x: Tensor,  # [n, P, C]
    prototypes: Tensor | None,  # [M, C]
    temperature: float,
    bias: Tensor | None,  # [M]
    dtype: torch.dtype,
) -> Tensor:
    """``x_p·v_m + temperature·bias_m``, [n, P, M]; x itself, in `dtype`, without prototypes."""
    x = x.to(dtype)
    if prototypes is None:
        return x
    product = torch.mm(x.reshape(-1, x.shape[2]), prototypes.to(dtype).mT)
    if bias is not None:
        product += bias.to(dtype) * temperature
    return product.view(*x.shape[:2], -1)


def softmax_pool(
    x: Tensor,  # [B, P, C]
    prototypes: Tensor | None,  # [M, C]
    temperature: float,
    bias: Tensor | None,  # [M]
    valid: Tensor | None,  # [B, P] bool
) -> tuple[Best, Tensor]:
    """Best [B, M] and normalizer [2, B, P], see `infodisent.backends.operators`."""
    batch, pixels, _ = x.shape
    count = x.shape[2] if prototypes is None else len(prototypes)
    dtype = computed_in(x, prototypes, bias)
    best = empty_best(batch, count, dtype, x.device)
    normalizer = torch.empty(2, batch, pixels, dtype=dtype, device=x.device)
    lowest = torch.finfo(dtype).min
    for start, stop in chunks(x, count, dtype.itemsize):
        part = slice(start, stop)
        w = scores(x[part], prototypes, temperature, bias, dtype)
        top = w.amax(dim=2)  # [n, P]
        below = (w - top[:, :, None]).mul_(1 / temperature)
        e = below.exp()
        total = e.sum(dim=2)
        normalizer[0, part], normalizer[1, part] = top, total
        # of all that count: -Inf is more than a pixel that does not
        ranks = below.sub_(total.log()[:, :, None]).clamp_min_(lowest)
        if valid is not None:
            ranks.masked_fill_(~valid[part, :, None], -torch.inf)
        rank, index = ranks.max(dim=1)  # [n, M]
        value = e.gather(1, index[:, None])[:, 0] / total.gather(1, index)
        best.value[part] = value.masked_fill_(rank == -torch.inf, -torch.inf)
        best.index[part] = index
    return best, normalizer


def softmax_pool_backward(
    grad: Tensor,  # [B, M]
    best: Best,
    normalizer: Tensor,  # [2, B, P]
    x: Tensor,  # [B, P, C]
    prototypes: Tensor | None,  # [M, C]
    temperature: float,
    bias: Tensor | None,  # [M]
    dx: Tensor | None,  # [B, P, C], to be written
    need_prototypes: bool,
    need_bias: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Write dX; dV [M, C] and dbias [M], if needed."""
    dtype = computed_in(x, prototypes, bias)
    count = best.value.shape[1]
    collected = Collected(x, prototypes, bias, dtype, temperature, dx, need_prototypes, need_bias)
    for start, stop in chunks(x, count, dtype.itemsize):
        part = slice(start, stop)
        w = scores(x[part], prototypes, temperature, bias, dtype)
        top, total = normalizer[:, part].unbind()
        index = best.index[part].long()[:, None]  # [n, 1, M]
        value = best.value[part].masked_fill(best.value[part] == -torch.inf, 0)[:, None]
        share = grad[part, None].to(dtype) * value
        dw = torch.zeros_like(w, memory_format=torch.contiguous_format).scatter_(1, index, share)
        common = dw.sum(dim=2, keepdim=True)  # [n, P, 1]: G_p
        torch.sub(w, top[:, :, None], out=dw).mul_(1 / temperature).exp_()
        dw.mul_(common / -total[:, :, None]).masked_fill_(common == 0, 0)
        dw.scatter_(1, index, value * (grad[part, None].to(dtype) - common.mT.gather(2, index)))
        collected.add(part, dw.mul_(1 / temperature), best.index[part])
    return collected.results()


class Collected:
    """What backward adds up over chunks: dX written, dV and dbias summed."""

    def __init__(
        self,
        x: Tensor,  # [B, P, C]
        prototypes: Tensor | None,  # [M, C]
        bias: Tensor | None,  # [M]
        dtype: torch.dtype,
        temperature: float,
        dx: Tensor | None,  # [B, P, C]
        need_prototypes: bool,
        need_bias: bool,
    ) -> None:
        self.x, self.prototypes, self.bias, self.dx = x, prototypes, bias, dx
        self.temperature = temperature
        self.v = None if prototypes is None else prototypes.to(dtype)
        self.dv = torch.zeros_like(self.v) if need_prototypes and self.v is not None else None
        self.db = None
        if need_bias and bias is not None:
            self.db = torch.zeros(bias.shape, dtype=dtype, device=x.device)

    def add(
        self,
        part: slice,
        dw: Tensor,  # [n, P, M]
        index: Tensor,  # [n, M] int32
    ) -> None:
        """The gradient of the scores of some images, and the pixels that have one."""
        if self.v is None:
            if self.dx is not None:
                self.dx[part] = dw
            return
        rows = dw.view(-1, dw.shape[2])
        if self.dx is not None:
            self.dx[part] = torch.mm(rows, self.v).view(*dw.shape[:2], -1)
        if self.dv is not None:
            # what other pixels hold is multiplied by zero, and may be NaN
            others = torch.ones(dw.shape[:2], dtype=torch.bool, device=dw.device)
            others.scatter_(1, index.long(), False)
            x = self.x[part].to(dw.dtype).masked_fill(others[:, :, None], 0)
            self.dv.addmm_(rows.mT, x.reshape(-1, x.shape[2]))
        if self.db is not None:
            self.db.add_(rows.sum(dim=0))

    def results(self) -> tuple[Tensor | None, Tensor | None]:
        """dV and dbias in the dtypes of what they belong to."""
        dv, db = self.dv, self.db
        if dv is not None and self.prototypes is not None:
            dv = dv.to(self.prototypes.dtype)
        if db is not None and self.bias is not None:
            db = db.mul_(self.temperature).to(self.bias.dtype)
        return dv, db
