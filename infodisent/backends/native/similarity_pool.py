"""Compare and pool in one compiled pass; gradients by gather-accumulate over the winners.

``csrc/cpu/similarity_pool.cpp`` multiplies and pools a few rows at a time in registers, as
`rotate_pool` does, and computes values that would cancel from the winners' own numbers. Processors
without its instructions, and float64, are served by the sparse backend.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from infodisent.backends.native import module
from infodisent.backends.native.rotate_pool import laid_out
from infodisent.backends.sparse import similarity_pool as by_library
from infodisent.contract import Best, empty_best
from infodisent.layout import value_dtype


def similarity_pool(
    x: Tensor,  # [B, P, C], any strides
    prototypes: Tensor,  # [M, C]
    valid: Tensor | None,  # [B, P] bool
    similarities: tuple[str, ...],
) -> tuple[Best, ...]:
    """Forward. Beside the results it takes 8 MiB for the part of x in use (16 where it is laid out
    as rows first; one image, where that is more) and a panel of prototypes a thread."""
    if not module.is_fused() or value_dtype(x.dtype, prototypes.dtype) == torch.float64:
        return by_library.similarity_pool(x, prototypes, valid, similarities)
    outputs = tuple(empty_best(len(x), len(prototypes), torch.float32, "cpu") for _ in similarities)
    module.similarity_pool(x, prototypes.float().contiguous(), valid, similarities, outputs)
    return outputs


def similarity_pool_backward(
    grads: tuple[Tensor, ...],  # [B, M] each
    best: tuple[Best, ...],  # of the forward
    x: Tensor,  # [B, P, C]
    prototypes: Tensor,  # [M, C]
    similarities: tuple[str, ...],
    need_x: bool,
    need_prototypes: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """dX [B, P, C] and dV [M, C] in the dtypes of x and prototypes, each only if needed.

    "dot" and "cosine" are sums of winners' rows, one pass for both; "cosine" adds a multiple of
    every row to itself. "l2" sums differences, so that a distance of 0 has no gradient.
    """
    dtype = value_dtype(x.dtype, prototypes.dtype)
    if dtype == torch.float64:
        x = x.to(dtype)
    sums = _Sums(x, prototypes.to(dtype).contiguous(), need_x, need_prototypes)
    plain: list[tuple[Tensor, Tensor]] = []
    for grad, found, similarity in zip(grads, best, similarities, strict=True):
        weight, index = grad.to(dtype).contiguous(), found.index.contiguous()
        if similarity == "l2":
            sums.add([(2 * weight, index)], differences=True)
        elif similarity == "cosine":
            plain.append((sums.cosine_weights(weight, index, found.value), index))
        else:
            plain.append((weight, index))
    if plain:
        sums.add(plain, differences=False)
    dx, dv = sums.dx, sums.dv
    return None if dx is None else dx.to(x.dtype), None if dv is None else dv.to(prototypes.dtype)


class _Sums:
    """dX and dV, to which one kind of similarity after another is added."""

    def __init__(self, x: Tensor, v: Tensor, need_x: bool, need_prototypes: bool) -> None:
        self.x, self.v = x, v
        self.dx = torch.zeros(x.shape, dtype=v.dtype, device="cpu") if need_x else None
        self.dv = torch.zeros_like(v) if need_prototypes else None

    def add(self, sides: list[tuple[Tensor, Tensor]], *, differences: bool) -> None:
        """Add ``weight · row`` of winner and prototype to each other, or ``weight · difference``.

        sides: weights [B, M] and places [B, M] int32, of one similarity or two.
        """
        for start, stop, rows in self._rows(differences):
            weights = [weight[start:stop] for weight, _ in sides]
            places = [place[start:stop] for _, place in sides]
            if self.dx is not None:
                pixels = rows if differences else None
                module.grad_x(self.v, weights, places, self.dx[start:stop], True, pixels)
            if self.dv is not None and differences:
                against = [-weight for weight in weights]
                module.grad_u(rows, against, places, self.dv, True, self.v)
            elif self.dv is not None:
                module.grad_u(rows, weights, places, self.dv, True)

    def _rows(self, differences: bool) -> Iterator[tuple[int, int, Tensor]]:
        """Images start … stop as rows [n, P, C] that the sums can read."""
        x = self.x
        wide = differences and self.dx is not None  # where x is subtracted from it must be laid out
        if (x.dtype == self.v.dtype and x.is_contiguous()) or (x.stride(2) == 1 and not wide):
            if len(x):
                yield 0, len(x), x
            return
        yield from laid_out(x, self.v.dtype)

    def cosine_weights(self, grad: Tensor, index: Tensor, value: Tensor) -> Tensor:
        """``g / (‖x‖ ‖v‖)`` [B, M]; what goes to the winner and the prototype itself is added."""
        norm = torch.linalg.vector_norm
        x_norms = norm(self.x, dim=2, dtype=self.v.dtype)  # [B, P]
        x_norm, v_norm = x_norms.gather(1, index.long()), norm(self.v, dim=1)
        none = (x_norm == 0) | (v_norm == 0)
        scale = torch.where(none, 0, grad / (x_norm * v_norm).masked_fill_(none, 1))
        drawn = torch.where(none, 0, grad * value)  # d(value)/d(unit x) has this part along x
        if self.dx is not None:
            along = torch.zeros_like(x_norms).scatter_add_(1, index.long(), -drawn)
            lost = along == 0
            along = (along / x_norms / x_norms).masked_fill_(lost, 0)
            rows = self.x.to(self.v.dtype)
            if not bool(x_norms.isfinite().all()):  # 0 times what did not win may be NaN
                rows = rows.masked_fill(lost[:, :, None], 0)
            self.dx.addcmul_(rows, along[:, :, None])
        if self.dv is not None:
            # summed by grad_u, in the order of the images: torch.sum's order depends on threads
            along = torch.empty(len(self.v), 1, dtype=self.v.dtype, device="cpu")
            one = drawn.new_ones(1, 1, 1).expand(len(drawn), 1, 1)
            module.grad_u(one, [-drawn], [torch.zeros_like(index)], along, False)
            norm_v = v_norm.masked_fill(v_norm == 0, 1)[:, None]
            self.dv.addcmul_(self.v, along / norm_v / norm_v)
        return scale
