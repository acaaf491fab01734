"""Rows of a store, read from its files ahead of the computation."""

from __future__ import annotations

import pytest
import torch

from infodisent.data.reader import ShardFiles, block_order, read_ahead
from infodisent.files import write_tensors

SIZES = (5, 1, 7)


@pytest.fixture(params=[torch.float16, torch.float32, torch.bfloat16], ids=str)
def files(request, tmp_path):
    torch.manual_seed(0)
    shards = [torch.randn(n, 3, 4).to(request.param) for n in SIZES]
    paths = [tmp_path / f"shard-{i:05d}.safetensors" for i in range(len(SIZES))]
    for path, shard in zip(paths, shards, strict=True):
        write_tensors(path, {"item": torch.arange(len(shard)), "features": shard}, {})
    starts = torch.tensor([0, *SIZES]).cumsum(0)
    return ShardFiles(paths, starts, (3, 4), request.param, threads=3), torch.cat(shards)


def test_rows_in_any_order_and_twice(files):
    reader, whole = files
    for wanted in ([3], [12, 0, 5, 6, 0, 11], list(range(13)), []):
        positions = torch.tensor(wanted, dtype=torch.int64)
        out = torch.empty(len(wanted), 3, 4, dtype=reader.dtype)
        reader.expect(positions)
        reader.read(positions, out)
        assert torch.equal(out, whole[positions])
    with pytest.raises(IndexError, match="0 … 12"):
        reader.read(torch.tensor([13]), torch.empty(1, 3, 4, dtype=reader.dtype))


@pytest.mark.parametrize("window", [0, 2])
def test_batches_come_in_their_order(files, window):
    reader, whole = files
    batches = torch.randperm(13).split(2)
    got = list(read_ahead(reader, batches, torch.device("cpu"), window))
    assert all(torch.equal(g, whole[b]) for g, b in zip(got, batches, strict=True))
    assert list(read_ahead(reader, [], torch.device("cpu"), window)) == []


def test_a_truncated_file_is_named(files):
    reader, _ = files
    path = reader._paths[1]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(OSError, match=r"shard-00001.* ends too early"):
        list(read_ahead(reader, [torch.tensor([0, 5])], torch.device("cpu")))


def test_an_order_of_blocks():
    torch.manual_seed(0)
    positions = torch.randperm(1000)[:900]
    order = block_order(positions, block=10, window=9)
    assert torch.equal(order.sort().values, positions.sort().values)
    ranks = torch.searchsorted(positions.sort().values, order)
    for part in ranks.split(90):  # a window: 9 blocks of 10 that lie anywhere, rows mixed
        assert len(torch.unique(part // 10)) == 9
        assert (part[1:] > part[:-1]).float().mean() < 0.7
    firsts = (ranks // 10)[::10]
    assert (firsts[1:] > firsts[:-1]).float().mean() < 0.7  # blocks are not in order either
    assert not torch.equal(block_order(positions, 10, 9), order)
    assert torch.equal(block_order(positions[:0], 10, 9), positions[:0])
