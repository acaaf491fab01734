"""Tables of one row an image: too large for memory at times, read in parts always."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

IN_MEMORY = 1 << 30
"""Bytes up to which a table is kept in memory: 1 GiB, that is 131,072 images of 2048 channels."""

BLOCK = 1 << 26
"""Bytes of a table that are worked on at a time: 64 MiB."""


def empty_rows(count: int, width: int, folder: Path) -> Tensor:
    """An uninitialised table ``[count, width]`` float32.

    Up to `IN_MEMORY` bytes it is in memory. Beyond, it is a memory map of a file in `folder` that
    has no name any more: the system writes its pages back as it needs the memory, and the file is
    gone with the table, however the process ends. Where `folder` cannot be written to, the file is
    where the system keeps temporary ones.
    """
    if 4 * count * width <= IN_MEMORY:
        return torch.empty(count, width)
    try:
        file = _reserved(4 * count * width, folder)
    except OSError:  # read-only, or full
        file = _reserved(4 * count * width, None)
    with file:
        return torch.from_numpy(np.memmap(file, np.float32, "r+", shape=(count, width)))


def _reserved(size: int, folder: Path | None) -> IO[bytes]:
    """A nameless file of `size` bytes; OSError where there is no room, not a crash when written."""
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (the caller closes it)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
    except OSError:
        file.close()
        raise
    return file


def row_blocks(count: int, width: int) -> Iterator[slice]:
    """Slices that cover ``range(count)``, each of at most `BLOCK` bytes of float32 rows."""
    size = max(1, BLOCK // (4 * width))
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


class ShardedRows:
    """Tables of several files behind each other, read by index and never joined.

    Args:
        parts: ``[n_i, width]`` each, of any floating-point dtypes.

    Attributes:
        shape: ``(sum of n_i, width)``.
    """

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self._parts = list(parts)
        self._starts = torch.tensor([0, *(len(part) for part in parts)]).cumsum(0)
        self.shape = (int(self._starts[-1]), parts[0].shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(
        self,
        indices: Tensor,  # [n] int64
    ) -> Tensor:
        """The rows at `indices`, ``[n, width]`` float32.

        Raises:
            IndexError: an index outside 0 … len - 1.
        """
        rows = torch.empty(len(indices), self.shape[1])
        for part, here, within in locate(indices, self._starts):
            rows[here] = self._parts[part][within].float()
        return rows


def locate(
    indices: Tensor,  # [n] int64
    starts: Tensor,  # [parts + 1] int64, rising from 0
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Where rows lie that are kept in several parts.

    Yields ``(part, here, within)``: ``indices[here]`` are the rows ``within`` that part.

    Raises:
        IndexError: an index outside 0 … ``starts[-1] - 1``.
    """
    if len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= int(starts[-1])):
        raise IndexError(f"feature indices must be in 0 … {int(starts[-1]) - 1}")
    part_of = torch.searchsorted(starts, indices.contiguous(), right=True) - 1
    for part in part_of.unique().tolist():
        here = (part_of == part).nonzero().flatten()
        yield part, here, indices[here] - starts[part]
