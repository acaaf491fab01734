"""Problems for `tests.simulator.cuda`, by name; each asserts what must come out, to the bit.

Maps, rotations and gradients are small integers: every product and sum is exact, in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from infodisent import reference
from infodisent.backends.cuda import channels_last, module, rotate_pool_backward

F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32


@dataclass(frozen=True)
class Case:
    """A problem.

    Attributes:
        run: asserts, and returns what must have the same bits with every seed.
        processors: of the device.
        allowed: kinds of findings that are known, and harmless.
    """

    run: Callable[[], Sequence[Tensor]]
    processors: int = 2
    allowed: frozenset[str] = field(default=frozenset())


def integers(*size: int, most: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(-most, most + 1, size, generator=g).double()


def problem(b: int, p: int, c: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x [B, P, C] and u [C, C] in float64, of numbers that the products are exact for."""
    x, u = integers(b, p, c, most=3), integers(c, c, most=1, seed=1)
    if dtype == F32:  # with a part that bfloat16 does not hold beside the other
        x = x + integers(b, p, c, most=1, seed=2) * 2.0**-9
    x[..., c // 2] = 0.0
    u[c // 3] = 0.0  # a channel of zeros: nowhere
    u[c // 4, :] = u[c // 4, :].abs()
    x[:, :, ::5] = x[:, :, ::5].abs()
    return x, u


def spoilt(x: Tensor) -> Tensor:
    """With NaN and Inf at some places."""
    b, p, c = x.shape
    x = x.clone()
    x[0, p - 1, c - 1] = float("nan")
    x[b // 2, p // 2, 0] = float("inf")
    x[b - 1, 0, 1], x[b - 1, 0, 2] = float("-inf"), float("inf")
    return x


def pooled(x: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The pool by its definition, in float64, the first of equal pixels."""
    y = reference.rotate_pool(x, u, input_fmt="NLC")
    values = []
    for value, side in ((y.pos, 1.0), (y.neg, -1.0)):
        v = (x @ u.T * side).clamp(min=0.0)
        same = (v == value[:, None]) | (v.isnan() & value.isnan()[:, None])
        values.append(torch.where(value != 0, same.int().argmax(1), -1).int())
    return y.pos, y.neg, *values


def check_pool(found: Sequence[Tensor], x: Tensor, u: Tensor) -> Sequence[Tensor]:
    for ours, wanted in zip(found, pooled(x, u), strict=True):
        torch.testing.assert_close(ours.double(), wanted.double(), rtol=0, atol=0, equal_nan=True)
    return found


def forward(
    b: int,
    p: int,
    c: int,
    *,
    dtype: torch.dtype = BF16,
    tile: str | None = None,
    cluster: int | None = None,
    prefix: int = 0,
    special: bool = False,
    fp8: bool = False,
    processors: int = 2,
) -> Case:
    def run() -> Sequence[Tensor]:
        x, u = problem(b, p, c, F16 if fp8 else dtype)
        x = spoilt(x) if special else x
        before = torch.full((b, prefix, c), float("nan"), dtype=x.dtype)
        mine = torch.cat([before, x], 1).to(dtype)[:, prefix:]
        found = module.rotate_pool(mine, u.to(dtype), tile=tile, cluster=cluster, fp8=fp8)
        return check_pool(found, x, u)

    # boxes of whole images leave the last columns of a slot as they were; wgmma reads them, and
    # what comes of these columns is dropped
    images = int(tile[-4]) if tile is not None and tile[-3:] in ("x49", "x64") else 1
    gaps = prefix > 0 and images > 1
    return Case(run, processors, frozenset({"uninitialised"} if gaps else ()))


def laid_out(b: int, p: int, c: int, *, dtype: torch.dtype, prefix: int = 0, gap: int = 0) -> Case:
    """A map as convolutions leave it, through the layout kernel and the product."""

    def run() -> Sequence[Tensor]:
        x, u = problem(b, p, c, dtype)
        before, behind = (torch.full((b, c, n), float("nan"), dtype=x.dtype) for n in (prefix, gap))
        planes = torch.cat([before, x.mT, behind], 2).to(dtype)
        rows = channels_last.channels_last(planes.mT[:, prefix : prefix + p])
        assert rows.is_contiguous()
        torch.testing.assert_close(rows.double(), x, rtol=0, atol=0)
        return [rows, *check_pool(module.rotate_pool(rows, u.to(dtype)), x, u)]

    return Case(run)


def gradient(
    b: int,
    p: int,
    c: int,
    *,
    dtype: torch.dtype = BF16,
    cluster: int | None = None,
    splits: int | None = None,
    out: torch.dtype | None = None,
    prefix: int = 0,
    special: bool = False,
    overflow: bool = False,
    processors: int = 2,
) -> Case:
    def run() -> Sequence[Tensor]:
        x = integers(b, p, c, most=3)
        grads = [integers(b, c, most=4, seed=s) for s in (3, 4)]
        g = torch.Generator().manual_seed(5)
        last = max(p - 1, 1) if special else p  # nobody chooses the last pixel then
        indices = [torch.randint(-1, last, (b, c), generator=g).int() for _ in range(2)]
        indices[1][:, c // 2] = indices[0][:, c // 2]
        if overflow:
            grads[0][0, 3] = float("inf")
            indices[0][0, 3] = 0
        truth = torch.zeros(c, c, dtype=torch.float64)
        for grad, index in zip(grads, indices, strict=True):
            there = index.clamp(min=0).long()[..., None].expand(-1, -1, c)
            chosen = torch.gather(x, 1, there)  # [B, C, C]: of each channel its pixel
            truth += torch.einsum("bc,bck->ck", torch.where(index >= 0, grad, 0.0), chosen)
        whole = torch.cat([torch.full((b, prefix, c), 2.0, dtype=x.dtype), x], 1).to(dtype)
        mine = whole[:, prefix:]
        if special:
            mine[0, p - 1, 5], mine[b - 1, p - 1, c - 1] = float("inf"), float("nan")
        found = rotate_pool_backward.grad_u(
            *(t.float() for t in grads),
            mine,
            *indices,
            out or dtype,
            cluster=cluster,
            splits=splits,
        )
        ours, wanted = found.double(), truth.to(found.dtype).double()
        torch.testing.assert_close(ours, wanted, rtol=0, atol=0, equal_nan=True)
        return [found]

    return Case(run, processors)


CASES: dict[str, Case] = {
    "4x49": forward(9, 49, 128, tile="4x49", cluster=1),
    "4x49 pair": forward(9, 49, 256, tile="4x49", cluster=2),
    "4x49 f16 pair": forward(5, 49, 256, dtype=F16, tile="4x49", cluster=2),
    "4x49 many turns": forward(18, 49, 256, tile="4x49", cluster=1, processors=1),
    "4x49 prefix": forward(5, 49, 128, tile="4x49", cluster=1, prefix=1),
    "4x49 long": forward(2, 49, 768, tile="4x49", cluster=2),
    "4x49 ragged": forward(5, 49, 72, tile="4x49", cluster=1),
    "4x49 ragged pair": forward(5, 49, 200, tile="4x49", cluster=2),
    "4x49 special": forward(5, 49, 64, tile="4x49", cluster=1, special=True),
    "4x49 float32": forward(5, 49, 128, dtype=F32, tile="4x49", cluster=1),
    "4x49 float32 pair": forward(5, 49, 256, dtype=F32, tile="4x49", cluster=2),
    "4x49 float32 special": forward(5, 49, 64, dtype=F32, tile="4x49", special=True),
    "4x49 fp8": forward(5, 49, 128, tile="4x49", cluster=1, fp8=True),
    "4x49 fp8 many turns": forward(18, 49, 256, tile="4x49", cluster=2, fp8=True),
    "3x49": forward(7, 49, 128, tile="3x49", cluster=1),
    "3x49 many turns": forward(13, 49, 512, tile="3x49", cluster=2),
    "3x49 prefix": forward(5, 49, 128, tile="3x49", cluster=1, prefix=2),
    "3x49 fp8": forward(5, 49, 128, tile="3x49", cluster=1, fp8=True),
    "1x196": forward(2, 196, 128, tile="1x196", cluster=1),
    "1x196 pair": forward(2, 196, 256, tile="1x196", cluster=2),
    "1x196 prefix": forward(2, 196, 256, tile="1x196", cluster=2, prefix=1),
    "1x196 fp8 float32": forward(2, 196, 128, dtype=F32, tile="1x196", fp8=True),
    "1x197": forward(2, 197, 128, tile="1x197", cluster=1),
    "1x197 f16": forward(2, 197, 64, dtype=F16, tile="1x197", cluster=1),
    "1x197 fp8": forward(2, 197, 64, tile="1x197", cluster=1, fp8=True),
    "1x144": forward(2, 144, 128, dtype=F16, tile="1x144", cluster=1),
    "1x144 pair": forward(3, 144, 256, tile="1x144", cluster=2),
    "1x144 fp8": forward(2, 144, 64, dtype=F16, tile="1x144", cluster=1, fp8=True),
    "3x64": forward(4, 64, 128, tile="3x64", cluster=1),
    "3x64 f16 pair": forward(7, 64, 256, dtype=F16, tile="3x64", cluster=2),
    "3x64 float32 pair": forward(4, 64, 256, dtype=F32, tile="3x64", cluster=2),
    "3x64 fp8": forward(4, 64, 128, tile="3x64", cluster=1, fp8=True),
    "flat": forward(4, 70, 128, tile="flat", cluster=1),
    "flat pair": forward(4, 70, 256, tile="flat", cluster=2),
    "flat many turns": forward(12, 70, 136, tile="flat", cluster=1, processors=1),
    "flat prefix": forward(3, 70, 128, tile="flat", cluster=1, prefix=1),
    "flat prefix 256": forward(3, 256, 128, tile="flat", cluster=2, prefix=1),
    "flat special": forward(4, 70, 64, tile="flat", cluster=1, special=True),
    "flat f16 whole": forward(1, 1100, 64, dtype=F16),
    "flat float32": forward(3, 70, 64, dtype=F32, tile="flat", cluster=1),
    "flat float32 special": forward(3, 70, 64, dtype=F32, tile="flat", special=True),
    "flat fp8": forward(3, 70, 128, tile="flat", cluster=1, fp8=True),
    "few 1x49": forward(3, 49, 128, tile="few 1x49", cluster=1),
    "few 1x49 pair": forward(3, 49, 256, tile="few 1x49", cluster=2),
    "few 1x49 f16 turns": forward(3, 49, 200, dtype=F16, tile="few 1x49", processors=1),
    "few 1x49 float32 special": forward(3, 49, 72, dtype=F32, tile="few 1x49", special=True),
    "few 1x49 fp8": forward(3, 49, 128, tile="few 1x49", cluster=1, fp8=True),
    "few 2x49": forward(5, 49, 128, tile="few 2x49", cluster=1),
    "few 2x49 pair": forward(5, 49, 256, tile="few 2x49", cluster=2),
    "few 2x49 prefix": forward(3, 49, 128, tile="few 2x49", cluster=1, prefix=1),
    "few flat": forward(2, 70, 128, tile="few flat", cluster=1),
    "few flat f16 pair": forward(3, 70, 256, dtype=F16, tile="few flat", cluster=2),
    "few flat prefix": forward(3, 70, 72, tile="few flat", cluster=1, prefix=1),
    "part of 64": forward(1, 49, 128, tile="part of 64", processors=8),
    "part of 64 f16": forward(2, 49, 264, dtype=F16, tile="part of 64", processors=8),
    "part of 64 special": forward(3, 64, 72, tile="part of 64", special=True, processors=4),
    "part of 64 float32": forward(2, 5, 128, dtype=F32, tile="part of 64", processors=4),
    "part of 64 fp8": forward(2, 49, 128, tile="part of 64", fp8=True, processors=4),
    "part of 64 prefix": forward(2, 49, 768, tile="part of 64", prefix=1, processors=4),
    "part of 224": forward(1, 196, 128, tile="part of 224", processors=8),
    "part of 224 prefix": forward(2, 196, 136, tile="part of 224", prefix=1, processors=8),
    "part of 224 float32 special": forward(3, 197, 64, dtype=F32, tile="part of 224", special=True),
    "default": forward(1, 49, 512, processors=132),
    "default float32": forward(1, 196, 64, dtype=F32),
    "planes 49": laid_out(3, 49, 136, dtype=BF16),
    "planes 196 f16": laid_out(2, 196, 72, dtype=F16),
    "planes 49 float32": laid_out(2, 49, 64, dtype=F32),
    "planes prefix": laid_out(2, 49, 128, dtype=BF16, prefix=1),
    "planes gap": laid_out(1, 50, 64, dtype=F32, prefix=3, gap=170),
    "planes long": laid_out(1, 1100, 64, dtype=BF16),
    "dU": gradient(5, 49, 256, cluster=1),
    "dU pair": gradient(5, 49, 256, cluster=2),
    "dU f16 pair": gradient(5, 49, 256, dtype=F16, cluster=2),
    "dU many turns": gradient(3, 49, 512, cluster=1, processors=1),
    "dU prefix": gradient(4, 49, 128, cluster=1, prefix=1),
    "dU prefix parts": gradient(5, 47, 256, cluster=2, splits=2, prefix=2),
    "dU 31": gradient(6, 31, 128, cluster=1),
    "dU 7": gradient(5, 7, 128, cluster=1),
    "dU 196": gradient(2, 196, 128, cluster=1),
    "dU parts": gradient(4, 49, 256, cluster=2, splits=2),
    "dU float32": gradient(3, 30, 128, cluster=1, out=F32),
    "dU 60 pair": gradient(3, 60, 256, cluster=2),
    "dU 100": gradient(2, 100, 72, cluster=1),
    "dU special": gradient(3, 49, 128, cluster=1, special=True),
    "dU overflow": gradient(3, 49, 128, cluster=1, overflow=True),
    "dU f16 overflow": gradient(3, 49, 256, dtype=F16, cluster=2, splits=2, overflow=True),
    "dU f16 special": gradient(3, 49, 256, dtype=F16, cluster=2, special=True),
}
