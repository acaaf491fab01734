"""Memory that all processes of a job see, where they run on one machine.

What one writes is the others' as soon as they have waited for it (`Meeting`), without a message
that holds it. They wait at pipes, which is shorter than an empty message over gloo. ``torchrun -m
benchmarks.divided_rotation``, with ``--messages`` and without, shows what both save.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import secrets
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from infodisent import ranks

_MARK = 64
"""Bytes in front that say whose memory it is; a cache line, so that what follows is aligned."""
_BOOT = "/proc/sys/kernel/random/boot_id"
_NUMBERS = 4
"""That the leading process tells the others at once, at most."""


def shared_memory(count: int) -> Tensor | None:
    """Zeros that all processes of the job share; every one has to call it, with the same count.

    It has no name in any file system and is gone with the last process that has it, however that
    ends. Pages that nobody writes take no memory.

    Args:
        count: bytes.

    Returns:
        ``[count]`` uint8; None, in every process, where they are not on one machine, or the system
        has no such memory (it is Linux that does).

    Raises:
        RankError: another process has ended.
    """
    mark = secrets.token_bytes(_MARK)
    descriptor = _made(mark, count) if ranks.leads() else None
    try:
        if not _is_one_machine():
            return None
        process, number, mark = ranks.told((os.getpid(), descriptor, mark))
        memory = None if number is None else _opened(process, number, mark, count)
        there = ranks.everyones(memory is not None)  # and nobody needs the descriptor any more
    finally:
        if descriptor is not None:
            os.close(descriptor)
    if memory is None or not all(there):
        return None
    return torch.frombuffer(memory, dtype=torch.uint8, offset=_MARK, count=count)


class Meeting:
    """A place where all processes of a job on one machine wait for each other.

    Every one has to make it, at once.

    Raises:
        MemoryError: in all of them, if one has no room for a pipe to every other one, or may not
            open theirs.
        RankError: another process has ended.
    """

    def __init__(self) -> None:
        others = [rank for rank in range(ranks.world()) if rank != ranks.rank()]
        self._from: list[int] = []
        self._to: list[int] = []
        weakref.finalize(self, _close, self._from, self._to).atexit = False
        writing: dict[int, int] = {}
        opened = True
        try:
            with contextlib.suppress(OSError):
                for rank in others:
                    reading, writing[rank] = os.pipe()
                    self._from.append(reading)
            everyones = ranks.everyones((os.getpid(), writing))
            try:
                for rank in others:
                    process, ends = everyones[rank]
                    end = f"/proc/{process}/fd/{ends[ranks.rank()]}"
                    self._to.append(os.open(end, os.O_WRONLY))
            except (KeyError, OSError):
                opened = False
            everyone = all(ranks.everyones(opened))
        finally:  # the last one to have this end is who writes to it
            _close(list(writing.values()))
        if not everyone:
            raise MemoryError("processes of one machine may not open each other's pipes")

    def __call__(self) -> None:
        """Wait until every process is here.

        Raises:
            RankError: another process has ended, or somebody's waiting was interrupted before.
        """
        here = False
        try:
            with contextlib.suppress(BrokenPipeError):
                for descriptor in self._to:
                    os.write(descriptor, b".")
                here = bool(self._from) and all(os.read(pipe, 1) for pipe in self._from)
        finally:
            if not here:  # later meetings would be one off: nobody may believe in one
                _close(self._from, self._to)
        if not here:
            raise ranks.ended()


def _close(*several: list[int]) -> None:
    for descriptors in several:
        while descriptors:
            os.close(descriptors.pop())


def _is_one_machine() -> bool:
    """Whether a number of a process means the same to all of them."""
    try:
        numbers = os.readlink("/proc/self/ns/pid"), Path(_BOOT).read_text()
    except OSError:
        numbers = None
    everyones = ranks.everyones(numbers)
    return None not in everyones and len(set(everyones)) == 1


def _made(mark: bytes, count: int) -> int | None:
    """Descriptor of new memory that begins with a mark; None where there is no such thing."""
    try:
        descriptor = os.memfd_create("infodisent")
    except (AttributeError, OSError):
        return None
    try:
        os.truncate(descriptor, _MARK + count)
        os.pwrite(descriptor, mark, 0)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _opened(process: int, descriptor: int, mark: bytes, count: int) -> mmap.mmap | None:
    """The memory of a process of this machine; None if there is none with this mark."""
    with contextlib.suppress(OSError, ValueError):
        with Path(f"/proc/{process}/fd/{descriptor}").open("r+b", buffering=0) as file:
            memory = mmap.mmap(file.fileno(), _MARK + count)
        if memory[:_MARK] == mark:  # of another machine the number is somebody else's
            return memory
    return None


class Workspace:
    """Matrices of one size and dtype in shared memory, made when first asked for.

    All processes have to ask for the same in the same order.

    Args:
        like: ``[C, C]`` on the CPU.

    Attributes:
        meet: to be called where what the others wrote is read next, or what they read is written.

    Raises:
        MemoryError: there is no such memory here.
        RankError: another process has ended.
    """

    def __init__(self, like: Tensor) -> None:
        self._shape, self._dtype = like.shape, like.dtype
        # two places for numbers: while the others read one, the next ones are written
        self._places = _room((2, _NUMBERS), torch.float64)
        self._said = 0
        self.meet = Meeting()
        self._matrices: list[Tensor] = []
        self._stacks: list[Tensor] = []
        self._free: list[int] = []  # of the stacks; in the leading process

    def matrix(self, number: int) -> Tensor:
        """Uninitialised: ``[C, C]``, the same one for the same number.

        Raises:
            MemoryError: there was such memory before, and now there is none.
        """
        while len(self._matrices) <= number:
            self._matrices.append(self._new(1)[0])
        return self._matrices[number]

    def stack(self, count: int, owner: object) -> Tensor:
        """Uninitialised: ``[count, C, C]``, nobody else's while its owner lives.

        Args:
            count: the same at every call.
            owner: of this process. What it has may only be used by all of them together, so it is
                enough that the leading process's is alive.
        """
        (found,) = self.told(1, lambda: [self._free.pop() if self._free else len(self._stacks)])
        number = int(found)
        if number == len(self._stacks):
            self._stacks.append(self._new(count))
        if ranks.leads():
            weakref.finalize(owner, self._free.append, number).atexit = False
        return self._stacks[number]

    def told(self, count: int, find: Callable[[], Sequence[float]]) -> list[float]:
        """So many numbers that the leading process finds; the others wait.

        Args:
            count: at most 4.
            find: called in the leading process.
        """
        place = self._places[self._said % 2, :count]
        self._said += 1
        if ranks.leads():
            place.copy_(torch.tensor(find(), dtype=torch.float64))
        self.meet()
        told: list[float] = place.tolist()
        return told

    def _new(self, count: int) -> Tensor:
        return _room((count, *self._shape), self._dtype)


@torch.inference_mode(False)
def _room(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Shared memory for so many numbers, or MemoryError; whoever asks first, everybody writes."""
    count = math.prod(shape)
    memory = shared_memory(count * dtype.itemsize)
    if memory is None:
        raise MemoryError(f"no memory that processes share, for {count} numbers")
    return memory.view(dtype).view(shape)


class _Job:
    """What this process has of a job: workspaces by size and dtype.

    Args:
        group: of torch, by which the job is known; not kept alive, as it holds threads.
    """

    def __init__(self, group: object) -> None:
        self.group = weakref.ref(group)
        self.spaces: dict[tuple[torch.Size, torch.dtype], Workspace | None] = {}


_jobs: list[_Job] = []
"""The present one, if there is one."""


def workspace(like: Tensor) -> Workspace | None:
    """The job's workspace of matrices like this one; None where processes share no memory.

    Every process has to call it with the same size and dtype.
    """
    if not _jobs or _jobs[0].group() is not dist.group.WORLD:
        _jobs[:] = [_Job(dist.group.WORLD)]
    (job,) = _jobs
    key = like.shape, like.dtype
    if key not in job.spaces:
        try:
            job.spaces[key] = Workspace(like)
        except MemoryError:
            job.spaces[key] = None
    return job.spaces[key]
