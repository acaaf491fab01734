"""The pools of prototypes on a GPU: whole numbers to the last bit, ties, and random problems."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.gpu.cases import DTYPES, FIRST, Report
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.random_shapes import IMAGES, in_parts, outcome
from infodisent import ops, reference
from infodisent.backends.table import BY_NAME
from infodisent.bench import peers as ways
from infodisent.contract import Pool
from infodisent.testing import WrongResultError, check_close, require, similarity_at

SIZES = ((3, 49, 64, 70), (2, 196, 40, 130), (1, 1, 8, 3))
"""(B, P, C, M): several images in a tile, several tiles, hardly anything."""
ROUNDING = 2**-14
"""Of values and of what float64 has at the places; float32 products may be of three halves."""


def _servers(machine: Machine, op: str) -> list[str]:
    return [name for name in machine.ours if op in BY_NAME[name].stems]


def exact_items(machine: Machine, minutes: int) -> Iterator[tuple[str, Callable[[], Report]]]:
    """By backend, dtype and size; a first minute has room for one of each."""
    dtypes = DTYPES if minutes >= 10 else FIRST
    for dtype in dtypes:
        for size in SIZES if minutes >= 10 else SIZES[:1]:
            for op, run in (("similarity_pool", integers), ("softmax_pool", ties)):
                for name in _servers(machine, op):
                    yield (
                        f"{name}: {op}, {dtype}, {'x'.join(map(str, size))}",
                        lambda run=run, name=name, s=size, d=dtype: run(machine, name, s, d),
                    )


def _whole(machine: Machine, size: tuple[int, ...], dtype: str) -> tuple[Tensor, Tensor]:
    """Map [B, P, C] of small integers, whose pixels come twice, and prototypes."""
    batch, pixels, channels, count = size
    g = torch.Generator().manual_seed(pixels)
    x = torch.randint(-2, 3, (batch, -(-pixels // 2), channels), generator=g)
    x = torch.cat([x, x], 1)[:, :pixels]
    v = torch.randint(-2, 3, (count, channels), generator=g)
    return tuple(t.to(machine.device, DTYPES[dtype]) for t in (x, v))  # type: ignore[return-value]


def integers(machine: Machine, name: str, size: tuple[int, ...], dtype: str) -> Report:
    """Values and places of products and distances, and both gradients, to the last bit."""
    x, v = (t.requires_grad_() for t in _whole(machine, size, dtype))
    call = ways.by(name, ops.similarity_pool)
    pool = call(x, v, similarity="l2", second="dot", input_fmt="NLC")
    wide = [t.detach().double().requires_grad_() for t in (x, v)]
    truth = reference.similarity_pool(*wide, similarity="l2", second="dot", input_fmt="NLC")
    for field in ("value", "index", "second_value", "second_index"):
        same = torch.equal(getattr(pool, field).double(), getattr(truth, field).double())
        require(same, f"{name}: {field} is not exact")
    g = torch.Generator().manual_seed(1)
    grads = [
        torch.randint(-2, 3, pool.value.shape, generator=g).to(machine.device).float()
        for _ in range(2)
    ]
    found = torch.autograd.grad((pool.value, pool.second_value), (x, v), grads)
    wanted = torch.autograd.grad(
        (truth.value, truth.second_value), wide, [grad.double() for grad in grads]
    )
    for what, ours, right in zip(("dX", "dV"), found, wanted, strict=True):
        require(torch.equal(ours, right.to(ours.dtype)), f"{name}: {what} is not exact")
    return {"ok": True}


def ties(machine: Machine, name: str, size: tuple[int, ...], dtype: str) -> Report:
    """Of pixels that are equal the first has the softmax's maximum, and its place."""
    x, v = _whole(machine, size, dtype)
    call = ways.by(name, ops.softmax_pool)
    for prototypes in (v, None):
        pool = call(x, prototypes, input_fmt="NLC")
        truth = reference.softmax_pool(
            x.double(), None if prototypes is None else v.double(), input_fmt="NLC"
        )
        check_close(pool.value, truth.value, ROUNDING, f"{name}: values")
        require(
            (pool.index < -(-x.shape[1] // 2)).all(),
            f"{name}: a place is the second of two equal pixels",
        )
    return {"ok": True}


def random_items(machine: Machine, minutes: int) -> Iterator[tuple[str, Callable[[], Report]]]:
    """So many as go into the time, where a backend has the operators."""
    return in_parts(machine, minutes, several) if _servers(machine, "similarity_pool") else iter(())


def several(machine: Machine, start: int, stop: int) -> Report:
    """The problems of these numbers."""
    return outcome(machine, start, stop, mismatch)


def _there(
    x: Tensor,  # [B, P, C] float64
    v: Tensor,  # [M, C] float64
    index: Tensor,  # [B, M] int64
    similarity: str,
) -> Tensor:
    """What float64 has at the places, [B, M]."""
    if similarity == "softmax":
        return (x @ v.mT).softmax(2).gather(1, index[:, None])[:, 0]
    return similarity_at(x, v, index, similarity)


def mismatch(machine: Machine, number: int) -> str:
    """What is wrong with the forward or the gradients of one problem, or nothing.

    The gradients are judged at the places found: of two pixels that are equal up to rounding either
    may be the best.
    """
    g = torch.Generator().manual_seed(number)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=g))

    h, w = IMAGES[draw(0, len(IMAGES))]
    batch, channels, count = draw(1, 9), 8 * draw(1, 20) - draw(0, 2), draw(1, 200)
    dtype = list(DTYPES.values())[draw(0, 3)]
    similarity = ("dot", "cosine", "l2", "softmax")[draw(0, 4)]
    x = torch.randn(batch, channels, h, w, generator=g).to(machine.device, dtype)
    if draw(0, 2):
        x = x.contiguous(memory_format=torch.channels_last)
    v = torch.randn(count, channels, generator=g).to(machine.device)
    v = (v / channels**0.5 if similarity == "softmax" else v).to(
        dtype if draw(0, 2) else torch.float32
    )
    valid = None
    if draw(0, 2):
        valid = torch.rand(batch, h * w, generator=g).to(machine.device) < 0.6
        valid[:, draw(0, h * w)] = True
    op = "softmax_pool" if similarity == "softmax" else "similarity_pool"
    names = _servers(machine, op)
    name = names[number % len(names)]
    options = {} if similarity == "softmax" else {"similarity": similarity}
    what = f"{number}: {similarity} {tuple(x.shape)} {dtype}, {count} {v.dtype}, {name}"
    x, v = x.requires_grad_(), v.requires_grad_()
    try:
        pool: Pool = ways.by(name, getattr(ops, op))(x, v, valid=valid, **options)
        _judge(pool, x, v, valid, similarity, op, options)
    except WrongResultError as error:
        return f"{what}: {error}"
    return ""


def _judge(
    pool: Pool,
    x: Tensor,  # [B, C, H, W]
    v: Tensor,  # [M, C]
    valid: Tensor | None,  # [B, P] bool
    similarity: str,
    op: str,
    options: dict[str, str],
) -> None:
    wide = [t.detach().double().requires_grad_() for t in (x, v)]
    with torch.no_grad():
        truth = getattr(reference, op)(*wide, valid=valid, **options).value
    check_close(pool.value, truth, ROUNDING, "values")
    require(((pool.index >= 0) & (pool.index < x[0, 0].numel())).all(), "places are outside")
    index = pool.index.long()
    if valid is not None:
        require(valid.gather(1, index).all(), "places are of pixels that do not count")
    there = _there(wide[0].flatten(2).mT, wide[1], index, similarity)
    check_close(there, truth, ROUNDING, "places")
    grad = torch.randn_like(pool.value)
    found = torch.autograd.grad(pool.value, (x, v), grad)
    wanted = torch.autograd.grad(there, wide, grad.double())
    for ours, right, name in zip(found, wanted, ("dX", "dV"), strict=True):
        rounding = 2 * torch.finfo(ours.dtype).eps if ours.dtype.itemsize == 2 else 1e-4
        check_close(ours, right, rounding, name)
