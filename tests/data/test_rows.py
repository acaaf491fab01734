"""Tables of rows: in memory or in a file, the same; sharded tables are read by index."""

from __future__ import annotations

import os

import pytest
import torch

from infodisent.data import rows
from infodisent.data.rows import ShardedRows, empty_rows, row_blocks


def test_beyond_the_limit_a_file_without_a_name(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "IN_MEMORY", 4 * 10 * 3)
    assert not torch.is_tensor(mapped_at(empty_rows(10, 3, tmp_path), tmp_path))
    table = empty_rows(11, 3, tmp_path)
    assert (table.shape, table.dtype) == ((11, 3), torch.float32)
    assert mapped_at(table, tmp_path)
    assert list(tmp_path.iterdir()) == []
    values = torch.randn(11, 3)
    table[:] = values
    assert torch.equal(table, values)
    assert torch.equal(table[torch.tensor([10, 0])], values[[10, 0]])


def mapped_at(table, folder):
    """The line of the process's memory map that says `table` lies in a file of `folder`."""
    address = table.data_ptr()
    with open("/proc/self/maps") as maps:  # noqa: PTH123
        for line in maps:
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            if start <= address < end:
                return line if str(folder) in line else ""
    return ""


def test_where_the_folder_cannot_take_it(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "IN_MEMORY", 0)
    table = empty_rows(4, 2, tmp_path / "gone")
    table.fill_(1)
    assert table.sum() == 8

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):  # and not a signal when it is written
        empty_rows(4, 2, tmp_path)


@pytest.mark.parametrize(("count", "width"), [(0, 3), (1, 3), (1000, 7), (5, 10**9)])
def test_blocks_cover_every_row_once(count, width, monkeypatch):
    monkeypatch.setattr(rows, "BLOCK", 4 * 7 * 300)
    blocks = list(row_blocks(count, width))
    assert [i for part in blocks for i in range(count)[part]] == list(range(count))
    assert all(
        (b.stop - b.start) * width * 4 <= rows.BLOCK or b.stop - b.start == 1 for b in blocks
    )


def test_sharded_rows_are_those_of_the_joined_table():
    parts = [torch.randn(n, 4, dtype=d) for n, d in ((3, torch.float16), (0, torch.float16),
                                                    (5, torch.float32))]  # fmt: skip
    table, whole = ShardedRows(parts), torch.cat([part.float() for part in parts])
    assert table.shape == (8, 4)
    assert len(table) == 8
    index = torch.tensor([7, 0, 3, 3, 2])
    assert torch.equal(table[index], whole[index])
    assert table[index[:0]].shape == (0, 4)
    for wrong in (-1, 8):
        with pytest.raises(IndexError, match=r"0 … 7"):
            table[torch.tensor([wrong])]
