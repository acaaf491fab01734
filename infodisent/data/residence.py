"""A store's maps in the memory of a GPU, where they fit.

In the memory of the machine they are without any doing: the system keeps the pages of files that
were read, and rows read from there cost one copy, as rows of a tensor would.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, cuda

from infodisent.data.reader import AT_ONCE, ShardFiles, staged_rows
from infodisent.data.transfer import transferred

SHARE = 0.5
"""Part of a GPU's free memory that a store may take: the rest is the training's."""


def free_memory(device: torch.device) -> int:
    """Bytes of a GPU that nobody uses, what torch holds in reserve included; 0 for a CPU."""
    if device.type != "cuda":
        return 0
    free, _ = cuda.mem_get_info(device)
    return int(free + cuda.memory_reserved(device) - cuda.memory_allocated(device))


class ResidentRows:
    """All rows of a store on a device, as they are stored.

    Args:
        files: of the store.
        device: that keeps them.
    """

    def __init__(self, files: ShardFiles, device: torch.device) -> None:
        self.device, self._files = device, files
        count = int(files.starts[-1])
        # bytes: not every device picks rows of float8 numbers
        self._rows = torch.empty(count, files.row_bytes, dtype=torch.uint8, device=device)
        parts = torch.arange(count).split(AT_ONCE)
        rows = transferred(staged_rows(files, parts, device), device, lambda raw, _: raw)
        for part, raw in zip(parts, rows, strict=True):
            place = slice(int(part[0]), int(part[-1]) + 1)
            self._rows[place] = raw.view(torch.uint8).view(len(part), -1)

    def read(
        self,
        batches: Sequence[Tensor],  # [n_i] int64 each
    ) -> Iterator[Tensor]:
        """The maps of one batch after the other, ``[n_i, P, C]``, see `ShardFiles.decoded`."""
        shape, dtype = self._files.shape, self._files.dtype
        for positions in batches:
            rows = self._rows[positions.to(self.device, non_blocking=True)]
            raw = rows.view(dtype).view(len(positions), *shape)
            yield self._files.decoded(raw, positions)


def resident(files: ShardFiles | None, device: torch.device) -> ResidentRows | None:
    """The rows of a store on `device`, or None where they take more than `SHARE` of its free
    memory, or are in no files."""
    if files is None or not int(files.starts[-1]):
        return None
    if int(files.starts[-1]) * files.row_bytes > SHARE * free_memory(device):
        return None
    try:
        return ResidentRows(files, device)
    except cuda.OutOfMemoryError:  # another process was faster
        return None
