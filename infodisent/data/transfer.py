"""Batches from pinned memory to a GPU, while the GPU computes with the ones before.

A copy on the stream that computes would wait for everything launched before it. So copies have a
stream of their own, and a batch is on its way before the one in front of it is handed out.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, cuda

Staged = tuple[Tensor, Tensor]
"""Rows as they were read, ``[n, P, C]``, and their positions, ``[n]`` int64."""


def staging(count: int, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised buffer ``[count, *shape]`` for rows on their way to `device`.

    For a GPU in pinned memory. torch keeps such memory and gives it out again when the copies from
    it are done, so that pinning costs time at the beginning only.
    """
    pinned = device.type == "cuda"
    return torch.empty(count, *shape, dtype=dtype, pin_memory=pinned)


class Buffers:
    """Memory for rows on the CPU that is given out again when nothing refers to it any more.

    The system clears the pages of new memory, which takes as long as reading a batch into them.
    """

    def __init__(self) -> None:
        self._free: list[Any] = []

    def rows(
        self, count: int, shape: tuple[int, int], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """As `staging`, which it is for a GPU."""
        size = count * shape[0] * shape[1] * dtype.itemsize
        if device.type != "cpu" or not size:
            return staging(count, shape, dtype, device)
        memory = next((m for m in self._free if len(m) >= size), None)
        if memory is None:
            self._free.clear()  # too small for what is wanted now
            memory = torch.empty(size, dtype=torch.uint8).numpy()
        else:
            self._free = [m for m in self._free if m is not memory]
        lent = memory[:size]  # an array of its own: it ends with the last tensor of this memory
        weakref.finalize(lent, _give_back, weakref.ref(self), memory).atexit = False
        return torch.from_numpy(lent).view(dtype).view(count, *shape)


def _give_back(buffers: weakref.ref[Buffers], memory: Any) -> None:
    owner = buffers()
    if owner is not None:
        owner._free.append(memory)


def transferred(
    staged: Iterable[Staged],
    device: torch.device,
    decoded: Callable[[Tensor, Tensor], Tensor],
) -> Iterator[Tensor]:
    """The batches on `device`, each decoded there from the rows and their positions.

    To a GPU nothing is waited for by the caller's thread, but by the stream that is current when a
    batch is asked for.
    """
    if device.type != "cuda":
        for rows, positions in staged:
            yield decoded(rows.to(device), positions)
        return
    side = cuda.Stream(device)
    waiting: tuple[Tensor, cuda.Event] | None = None
    for rows, positions in staged:
        with cuda.stream(side):
            maps = decoded(rows.to(device, non_blocking=True), positions)
            sent = side.record_event()
        if waiting is not None:
            yield _arrived(*waiting)
        waiting = maps, sent
    if waiting is not None:
        yield _arrived(*waiting)


def _arrived(maps: Tensor, sent: cuda.Event) -> Tensor:
    """The batch, for the current stream: what it does next with it waits for the copy."""
    stream = cuda.current_stream(maps.device)
    stream.wait_event(sent)
    maps.record_stream(stream)  # its memory is the copying stream's, which must not reuse it yet
    return maps
