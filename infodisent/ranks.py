"""Several processes that do one job together, as ``torchrun`` starts them; one alone by default.

Everything here works, and costs nothing, in a process of its own: it is rank 0 of 1.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Item = TypeVar("Item")
PATIENCE = datetime.timedelta(hours=12)
"""How long ranks wait for each other: one may decode images while the others are done."""
_NEEDED = ("RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets besides WORLD_SIZE."""
_BROKEN = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL", "gloo")


class RankError(RuntimeError):
    """Another process of the job has ended."""


def start() -> None:
    """Join the other processes that ``torchrun`` started; nothing to do without it, or again.

    Every process takes the GPU of its local rank where there are GPUs.

    Raises:
        RuntimeError: the others cannot be reached, or the environment is not torchrun's.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if not dist.is_available() or dist.is_initialized() or size in ("", "0", "1"):
        return
    lacking = [name for name in _NEEDED if not os.environ.get(name)]
    if lacking or not size.isdecimal():
        without = f"without {', '.join(lacking)}" if lacking else "no number"
        raise RuntimeError(
            f"the environment has WORLD_SIZE {size!r}, {without}: start several processes with "
            "torchrun, or unset WORLD_SIZE for one alone"
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=PATIENCE)
    else:
        dist.init_process_group("gloo", timeout=PATIENCE)
    from infodisent.progress import console

    console.quiet = not leads()


def stop() -> None:
    """Leave the other processes, after everybody has come here."""
    if world() > 1:
        barrier()
        dist.destroy_process_group()


def world() -> int:
    """How many processes do the job."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if world() > 1 else 0


def leads() -> bool:
    """Whether this process is the one that writes files and speaks to the user."""
    return rank() == 0


def barrier() -> None:
    """Wait until every process is here."""
    if world() > 1:
        with _others():
            dist.barrier()


@contextlib.contextmanager
def leader_first() -> Iterator[None]:
    """The block in the leading process, then in all others: they find what it wrote."""
    if not leads():
        barrier()
    try:
        yield
    finally:
        if leads():
            barrier()


def share(items: Sequence[Item]) -> Sequence[Item]:
    """This process's part of a list: every `world`-th item from the `rank`-th."""
    return items[rank() :: world()]


def piece(
    rows: Tensor,  # [n, ...]
) -> Tensor:
    """This process's part of a batch: consecutive rows, about ``n / world`` of them."""
    return rows.tensor_split(world())[rank()]


def told(value: Item) -> Item:
    """What the leading process has as `value`, in every process."""
    if world() == 1:
        return value
    box: list[Any] = [value]
    with _others():
        dist.broadcast_object_list(box, src=0)
    told_value: Item = box[0]
    return told_value


def everyones(value: Item) -> list[Item]:
    """The `value` of every process, by rank."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    with _others():
        dist.all_gather_object(values, value)
    return values


def total(
    value: Tensor,
) -> Tensor:
    """The sum over the processes of a tensor of one shape, in every process."""
    if world() == 1:
        return value
    value = value.clone()
    with _others():
        dist.all_reduce(value)
    return value


def exchange(
    rows: Tensor,  # [n, ...], contiguous
    boundaries: Sequence[int],
) -> None:
    """Rows ``boundaries[k] ... boundaries[k + 1] - 1`` become those of rank k, in every process.

    `boundaries` is the same in all of them, ``[world + 1]``.
    """
    if world() == 1:
        return
    with _others():
        waiting = [
            dist.broadcast(rows[first:last], src=owner, async_op=True)
            for owner, (first, last) in enumerate(itertools.pairwise(boundaries))
            if first < last
        ]
        for work in waiting:
            if work is not None:
                work.wait()


def gathered(
    rows: Tensor,  # [n, ...], of any n
    whole: int | None = None,
) -> Tensor:
    """The rows of all processes behind each other, by rank; undoes `piece`.

    With `whole`, the number of rows of all of them, each process must have those that `piece` gives
    it of so many; without, they tell each other how many they have, one more message.

    With gradients: each process must go on to compute the same from the whole. The gradient of its
    own rows is then `world` times what one process would have, so that the mean over processes of
    every parameter's gradient (`average_gradients`) is the gradient
    of the whole batch, for parameters before and behind this call.
    """
    if world() == 1:
        return rows
    sizes = _sizes(rows) if whole is None else _sizes_of_pieces(whole)
    if sizes[rank()] != len(rows):
        raise ValueError(f"gathered: {len(rows)} rows, of {whole} this process has {sizes[rank()]}")
    together: Tensor = _Gather.apply(rows, sizes)  # type: ignore[no-untyped-call]
    return together


def _sizes(rows: Tensor) -> list[int]:
    """How many rows every process has, by asking them."""
    counts = [0] * world()
    counts[rank()] = len(rows)
    sizes: list[int] = total(torch.tensor(counts, device=rows.device)).tolist()
    return sizes


def _sizes_of_pieces(whole: int) -> list[int]:
    """How many of `whole` rows `piece` gives every process: the first have one more."""
    each, more = divmod(whole, world())
    return [each + (number < more) for number in range(world())]


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Every gradient becomes its mean over the processes, in place; see `gathered`."""
    if world() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    # what is reduced is memory: one process may have its weights channels-last, another not
    rows = [gradient.contiguous() for gradient in gradients]
    with _others():
        waiting = [dist.all_reduce(row, async_op=True) for row in rows]
        for work in waiting:
            if work is not None:
                work.wait()
    for gradient, row in zip(gradients, rows, strict=True):
        if row is not gradient:
            gradient.copy_(row)
        gradient.div_(world())


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int]) -> Tensor:
        most = max(sizes)
        padded = rows.new_zeros(most, *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        with _others():
            dist.all_gather(parts, padded)
        ctx.first, ctx.count = sum(sizes[: rank()]), len(rows)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        own = gradients[0][ctx.first : ctx.first + ctx.count]
        return own * world(), None


@contextlib.contextmanager
def _others() -> Iterator[None]:
    """Say plainly that another process has ended."""
    try:
        yield
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _BROKEN):
            raise
        raise ended() from error


def ended() -> RankError:
    """To be raised where another process is seen to have ended."""
    return RankError(
        f"rank {rank()}: another process of this job has ended; what was finished is kept, run "
        "the same command again to go on"
    )
