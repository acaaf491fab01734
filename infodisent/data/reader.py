"""Reads rows of a feature store at the speed of its disk, ahead of the computation.

Rows are read by system calls into buffers of this process, several at a time, and not through the
memory map: a map counts as memory of the process as far as it was touched, and reads in pages.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from infodisent.data.encoding import computed_dtype, decode
from infodisent.data.prefetch import prefetched
from infodisent.data.rows import locate
from infodisent.data.transfer import Buffers, Staged, transferred

GAP = 1 << 20
"""Bytes between two wanted rows of a file that a disk reads along sooner than it skips them."""
CPU = torch.device("cpu")
AHEAD = 2
"""Batches that are ready before they are asked for."""
AT_ONCE = 64
"""Rows of a batch where all rows are wanted, in their order."""


class ShardFiles:
    """The maps of a store by position, read from its files.

    Args:
        paths: of the shards, safetensors files with a tensor "features" ``[n, P, C]``.
        starts: position of every shard's first row, and behind them the number of rows.
        shape: ``(P, C)``.
        dtype: of the stored maps.
        threads: that read one batch.
        scale: of float8 maps, every row's, ``[N]`` float32.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        starts: Tensor,  # [shards + 1] int64
        shape: tuple[int, int],
        dtype: torch.dtype,
        threads: int = 4,
        *,
        scale: Tensor | None = None,
    ) -> None:
        self.shape, self.dtype, self.starts = shape, dtype, starts
        self.row_bytes = shape[0] * shape[1] * dtype.itemsize
        self._paths, self.threads, self._scale = list(paths), threads, scale
        self._first: dict[int, int] = {}  # byte of a shard's file where its rows begin
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="infodisent-read")

    def read(
        self,
        positions: Tensor,  # [n] int64
        out: Tensor,  # [n, P, C]
    ) -> None:
        """The maps at `positions`, into `out`, contiguous and of the stored dtype.

        Raises:
            IndexError: a position outside the store.
            OSError: a file cannot be read, or ends too early.
        """
        if not out.numel():
            return
        # a flat view of the bytes: rows are written where they belong, nothing is copied again
        room = out.view(-1).view(torch.uint8).numpy().data
        wanted: list[tuple[int, int, int]] = []  # shard, row of it, row of `out`
        for shard, here, within in locate(positions, self.starts):
            rows = sorted(zip(within.tolist(), here.tolist(), strict=True))
            wanted += [(shard, row, place) for row, place in rows]
        share = -(-len(wanted) // self.threads)
        jobs = [
            self._pool.submit(self._read, wanted[at : at + share], room)
            for at in range(0, len(wanted), share)
        ]
        for job in jobs:
            job.result()

    def decoded(
        self,
        raw: Tensor,  # [n, P, C] of `dtype`, on any device
        positions: Tensor,  # [n] int64
    ) -> Tensor:
        """The maps that rows read at `positions` stand for: bfloat16 of float8, others as they are.

        On the device of `raw`, so that a GPU is sent a byte a number.
        """
        if self._scale is None:
            return raw
        return decode(raw, self._scale[positions], computed_dtype(self.dtype))

    def expect(
        self,
        positions: Tensor,  # [n] int64
    ) -> None:
        """Tell the system which maps will be wanted soon: it reads them in long stretches."""
        if not hasattr(os, "posix_fadvise"):
            return
        gap = max(1, GAP // self.row_bytes)
        for shard, _, within in locate(positions, self.starts):
            rows = within.sort().values
            cuts = ((rows[1:] - rows[:-1]) > gap).nonzero().flatten() + 1
            with self._file(shard) as (descriptor, first):
                for stretch in rows.tensor_split(cuts):
                    begin, end = int(stretch[0]), int(stretch[-1]) + 1
                    at, size = first + begin * self.row_bytes, (end - begin) * self.row_bytes
                    os.posix_fadvise(descriptor, at, size, os.POSIX_FADV_WILLNEED)

    def _read(self, wanted: Sequence[tuple[int, int, int]], room: memoryview) -> None:
        size = self.row_bytes
        for shard, rows in itertools.groupby(wanted, key=lambda row: row[0]):
            with self._file(shard) as (descriptor, first):
                for _, row, place in rows:
                    target, at, done = room[place * size :][:size], first + row * size, 0
                    while done < size:
                        got = os.preadv(descriptor, [target[done:]], at + done)
                        if not got:
                            raise OSError(f"{self._paths[shard]} ends too early")
                        done += got

    @contextlib.contextmanager
    def _file(self, shard: int) -> Iterator[tuple[int, int]]:
        """A shard's descriptor, and the byte where its rows begin.

        Opened for every use: a store has thousands of files, a process may open a thousand.
        """
        descriptor = os.open(self._paths[shard], os.O_RDONLY)
        try:
            if shard not in self._first:
                length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
                header = json.loads(os.pread(descriptor, length, 8))
                self._first[shard] = 8 + length + int(header["features"]["data_offsets"][0])
            yield descriptor, self._first[shard]
        finally:
            os.close(descriptor)


def read_ahead(
    files: ShardFiles,
    batches: Sequence[Tensor],  # [n_i] int64 each
    device: torch.device,
    window: int = 0,
) -> Iterator[Tensor]:
    """The maps of one batch after the other, ``[n_i, P, C]``, on `device`.

    A thread reads while the caller computes; to a GPU the copies go from pinned memory, beside what
    it computes, see `infodisent.data.transfer`. Float8 maps arrive as bfloat16, see
    `ShardFiles.decoded`, others as they are stored.

    Args:
        files: of the store.
        batches: positions.
        device: where the maps are wanted.
        window: batches whose maps lie close together, see `block_order`: the system is told of a
            whole window ahead. 0 tells of a few batches.
    """
    yield from transferred(staged_rows(files, batches, device, window), device, files.decoded)


def staged_rows(
    files: ShardFiles,
    batches: Sequence[Tensor],  # [n_i] int64 each
    device: torch.device,
    window: int = 0,
) -> Iterator[Staged]:
    """The rows of one batch after the other as stored, read ahead into buffers for `device`."""
    step, buffers = window or 2 * AHEAD, Buffers()

    def read() -> Iterator[Staged]:
        for number, positions in enumerate(batches):
            if number % step == 0:  # the window behind this one; at the start this one, too
                begin = 0 if number == 0 else number + step
                soon = batches[begin : number + 2 * step]
                if soon:
                    files.expect(torch.cat(list(soon)))
            rows = buffers.rows(len(positions), files.shape, files.dtype, device)
            files.read(positions, rows)
            yield rows, positions

    yield from prefetched(read(), AHEAD)


def block_order(
    positions: Tensor,  # [n] int64
    block: int,
    window: int,
) -> Tensor:
    """A random order in which a disk reads stretches, not single rows: ``[n]`` int64.

    The positions, sorted, are cut into blocks; the blocks are shuffled, and within every `window`
    of consecutive blocks all rows are. From torch's global generator.

    Args:
        positions: of the rows.
        block: rows of a block.
        window: blocks that are mixed with each other.
    """
    blocks = list(positions.sort().values.split(block))
    order = torch.randperm(len(blocks)).tolist()
    parts = []
    for at in range(0, len(order), window):
        rows = torch.cat([blocks[i] for i in order[at : at + window]])
        parts.append(rows[torch.randperm(len(rows))])
    return torch.cat(parts) if parts else positions
