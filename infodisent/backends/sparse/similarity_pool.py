"""Compare and pool by chunks of images; exact values from the winners; gradients of the winners.

A product of a chunk's pixels with the prototypes, a scale and a shift a pixel, the maximum: that
finds the winners. Where the value would cancel ("l2", "cosine") it is computed anew from the
winner's own numbers; and where a distance is so small that rounding may have hidden a nearer pixel,
or a number left the range, the distances of that image and prototype are computed one by one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from infodisent.backends.sparse import winners
from infodisent.contract import Best, empty_best
from infodisent.layout import value_dtype


def similarity_pool(
    x: Tensor,  # [B, P, C], any strides
    prototypes: Tensor,  # [M, C]
    valid: Tensor | None,  # [B, P] bool
    similarities: tuple[str, ...],
) -> tuple[Best, ...]:
    """Forward. Beside the results it takes a few chunks (`winners.CHUNK_BYTES`, or one image)."""
    batch, pixels, channels = x.shape
    dtype = value_dtype(x.dtype, prototypes.dtype)
    v = prototypes.to(dtype)
    outputs = tuple(empty_best(batch, len(v), dtype, x.device) for _ in similarities)
    size = len(v) * max(pixels, channels if similarities != ("dot",) else 1)
    for start, stop in winners.chunks(batch, size, dtype.itemsize):
        part = _Part(x[start:stop], v, None if valid is None else valid[start:stop])
        for similarity, output in zip(similarities, outputs, strict=True):
            best = part.best(similarity)
            output.value[start:stop] = best.value
            output.index[start:stop] = best.index
    return outputs


class _Part:
    """Some images and their products with the prototypes."""

    def __init__(self, x: Tensor, v: Tensor, valid: Tensor | None):
        self.v, self.place = v, None
        if valid is not None:
            # In the place of a pixel that does not count stands the first that does: it changes no
            # maximum, and where it wins the place is that one's.
            pixel = torch.arange(valid.shape[1], device=x.device)
            first = valid.to(torch.uint8).argmax(dim=1, keepdim=True)
            self.place = torch.where(valid, pixel, first)  # [n, P]
            x = torch.take_along_dim(x, self.place[:, :, None], dim=1)
        self.rows = winners.rows(x, v.dtype)  # [n·P, C]
        self.x = self.rows.view(x.shape)
        self.products = (self.rows @ v.mT).view(*x.shape[:2], len(v))  # [n, P, M]

    def best(self, similarity: str) -> Best:
        """The best pixels [n, M] by one similarity."""
        value, index = self._keys(similarity).max(dim=1)
        if similarity == "l2":
            value, index = self._distances(value, index)
        elif similarity == "cosine":
            value = self._cosines(index)
        if self.place is not None:
            index = torch.take_along_dim(self.place, index, dim=1)
        return Best(value, index.to(torch.int32))

    def _keys(self, similarity: str) -> Tensor:
        """[n, P, M], the larger the more alike; one prototype's differ by a factor or a shift."""
        if similarity == "dot":
            return self.products
        square = self.x.square().sum(dim=2, keepdim=True)
        if similarity == "l2":
            return torch.sub(self.products, square, alpha=0.5)
        norm = square.sqrt()
        return self.products * torch.where(norm == 0, 0, norm.reciprocal())

    def _winners(self, index: Tensor) -> Tensor:
        """The winners' rows, [n, M, C]."""
        n, pixels, channels = self.x.shape
        first = torch.arange(0, n * pixels, pixels, device=index.device)
        rows = self.rows.index_select(0, (index + first[:, None]).flatten())
        return rows.view(n, -1, channels)

    def _cosines(self, index: Tensor) -> Tensor:
        winner = self._winners(index)
        dot = (winner * self.v).sum(dim=2)
        norm = torch.linalg.vector_norm
        scale = norm(winner, dim=2) * norm(self.v, dim=1)
        return torch.where(scale == 0, 0, dot / scale)

    def _distances(self, key: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        winner = self._winners(index)
        distance = (winner - self.v).square_().sum(dim=2)
        # What the search may be off by, twice: it saw n/2 - S, each a sum of C products.
        terms = 8 * (self.v.shape[1] + 8) * _rounding(self.v)
        bound = terms * (winner.square().sum(dim=2) + self.v.square().sum(dim=1))
        doubtful = ~(distance > bound) | ~key.isfinite()
        if not distance.is_cuda or not torch.cuda.is_current_stream_capturing():
            self._compare_again(doubtful, distance, index)
        return distance, index

    def _compare_again(self, doubtful: Tensor, distance: Tensor, index: Tensor) -> None:
        """Distances of all pixels, one by one, for the images and prototypes in doubt."""
        images, prototypes = doubtful.nonzero(as_tuple=True)
        step = max(1, winners.CHUNK_BYTES // (self.x[0].numel() * self.v.dtype.itemsize))
        for i, m in zip(images.split(step), prototypes.split(step), strict=True):
            all_distances = (self.x[i] - self.v[m, None]).square_().sum(dim=2)  # [k, P]
            distance[i, m], index[i, m] = all_distances.min(dim=1)


def _rounding(v: Tensor) -> float:
    """Relative error of a number that enters a product of the library."""
    if v.is_cuda and v.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32:
        return 2.0**-11
    return torch.finfo(v.dtype).eps


def similarity_pool_backward(
    grads: tuple[Tensor, ...],  # [B, M] each
    indices: tuple[Tensor, ...],  # [B, M] int32 each
    x: Tensor,  # [B, P, C]
    prototypes: Tensor,  # [M, C]
    similarities: tuple[str, ...],
    need_x: bool,
    need_prototypes: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """dX [B, P, C] and dV [M, C] in the dtypes of x and prototypes, each only if needed."""
    batch, pixels, channels = x.shape
    dtype = value_dtype(x.dtype, prototypes.dtype)
    v = prototypes.to(dtype)
    dx = torch.zeros(x.shape, dtype=dtype, device=x.device) if need_x else None
    dv = torch.zeros_like(v) if need_prototypes else None
    for grad, index, similarity in zip(grads, indices, similarities, strict=True):
        grad, index = grad.to(dtype), index.long()
        size = channels * (pixels + (0 if similarity == "dot" else len(v)))
        for start, stop in winners.chunks(batch, size, dtype.itemsize):
            part = _Gradient(x[start:stop], v, grad[start:stop], index[start:stop])
            d_winner, d_prototype = part.rows(similarity)
            if dx is not None:
                dx[start:stop] += part.by_pixel(d_winner)
            if dv is not None:
                dv += part.by_prototype(d_prototype)
    return None if dx is None else dx.to(x.dtype), None if dv is None else dv.to(prototypes.dtype)


class _Gradient:
    """The gradient of some images, by one similarity."""

    def __init__(self, x: Tensor, v: Tensor, grad: Tensor, index: Tensor):
        self.x, self.v, self.grad, self.index = x, v, grad, index

    def rows(self, similarity: str) -> tuple[Tensor | None, Tensor | None]:
        """d(value)/d(winner) and d(value)/d(prototype), [n, M, C].

        None for "dot": the one is the prototype, the other the winner.
        """
        if similarity == "dot":
            return None, None
        winner = torch.take_along_dim(self.x, self.index[:, :, None], dim=1).to(self.v.dtype)
        if similarity == "l2":
            difference = (winner - self.v).mul_(2)
            return difference, -difference
        x_norm = torch.linalg.vector_norm(winner, dim=2, keepdim=True)
        v_norm = torch.linalg.vector_norm(self.v, dim=1, keepdim=True)
        none = (x_norm == 0) | (v_norm == 0)
        x_unit = winner / torch.where(x_norm == 0, 1, x_norm)
        v_unit = self.v / torch.where(v_norm == 0, 1, v_norm)
        cosine = (x_unit * v_unit).sum(dim=2, keepdim=True)
        d_winner = (v_unit - cosine * x_unit) / x_norm
        d_prototype = (x_unit - cosine * v_unit) / v_norm
        return d_winner.masked_fill_(none, 0), d_prototype.masked_fill_(none, 0)

    def by_pixel(self, rows: Tensor | None) -> Tensor:
        """dX [n, P, C]: every winner gets its rows, times the gradients."""
        n, pixels, channels = self.x.shape
        if self.x.device.type in winners.GATHERING:
            return winners.pixels_of_sums(
                self.grad[None], self.index[None], self.v if rows is None else rows, pixels
            )
        added = self.grad[:, :, None] * (self.v if rows is None else rows)
        first = torch.arange(0, n * pixels, pixels, device=self.x.device)
        out = torch.zeros(n * pixels, channels, dtype=self.v.dtype, device=self.x.device)
        out.index_add_(0, (self.index + first[:, None]).flatten(), added.flatten(0, 1))
        return out.view(n, pixels, channels)

    def by_prototype(self, rows: Tensor | None) -> Tensor:
        """dV [M, C]."""
        if rows is not None:
            return torch.einsum("nm,nmc->mc", self.grad, rows)
        if self.x.device.type in winners.GATHERING:
            return winners.sum_of_pixels(self.grad[None], self.index[None], self.x)
        winner = torch.take_along_dim(self.x, self.index[:, :, None], dim=1).to(self.v.dtype)
        return torch.einsum("nm,nmc->mc", self.grad, winner)
