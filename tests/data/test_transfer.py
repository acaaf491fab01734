"""The way to a GPU, on doubles of torch's streams that put off every copy as long as they may."""

from __future__ import annotations

import contextlib
import types

import pytest
import torch

from infodisent.data import reader, residence, transfer
from infodisent.data.reader import ShardFiles, read_ahead
from infodisent.data.store import FeatureStore

GPU = torch.device("cuda", 0)


class Event:
    def __init__(self, jobs):
        self.jobs = jobs


class Stream:
    """Does what was put into it when somebody waits for an event of it, not before."""

    def __init__(self, device):
        self.device, self.jobs = device, []

    def record_event(self):
        jobs, self.jobs = self.jobs, []
        return Event(jobs)

    def wait_event(self, event):
        for job in event.jobs:
            job()


class Rows:
    """A tensor on its way: a copy that a stream has still to make."""

    def __init__(self, log, name):
        self.log, self.name, self.device, self.there, self.recorded = log, name, GPU, False, None

    def to(self, device, non_blocking):
        assert device == GPU
        assert non_blocking
        self.log.append(f"copy {self.name}")
        self.stream.jobs.append(lambda: setattr(self, "there", True))
        return self

    def record_stream(self, stream):
        self.recorded = stream


@pytest.fixture
def cuda(monkeypatch):
    current = Stream(GPU)

    @contextlib.contextmanager
    def chosen(stream):
        Rows.stream = stream
        yield
        Rows.stream = None

    double = types.SimpleNamespace(
        Stream=Stream, Event=Event, stream=chosen, current_stream=lambda device: current,
        OutOfMemoryError=torch.cuda.OutOfMemoryError, mem_get_info=lambda device: (1000, 2000),
        memory_reserved=lambda device: 300, memory_allocated=lambda device: 100,
    )  # fmt: skip
    monkeypatch.setattr(transfer, "cuda", double)
    monkeypatch.setattr(residence, "cuda", double)
    return types.SimpleNamespace(current=current, double=double)


def test_a_batch_is_on_its_way_before_the_one_in_front_is_used(cuda):
    log = []
    staged = [(Rows(log, i), torch.tensor([i])) for i in range(3)]
    for i, maps in enumerate(transfer.transferred(staged, GPU, lambda raw, _: raw)):
        log.append(f"use {i}")
        assert maps.name == i
        assert maps.there  # what computes has waited for the copy
        assert maps.recorded is cuda.current
    assert log == ["copy 0", "copy 1", "use 0", "copy 2", "use 1", "use 2"]
    assert list(transfer.transferred([], GPU, lambda raw, _: raw)) == []


def test_buffers_for_a_gpu_are_pinned(monkeypatch):
    asked = {}
    monkeypatch.setattr(transfer.torch, "empty", lambda *size, **options: asked.update(options))
    transfer.staging(2, (3, 4), torch.float16, GPU)
    assert asked["pin_memory"] is True
    transfer.staging(2, (3, 4), torch.float16, torch.device("cpu"))
    assert asked["pin_memory"] is False


def test_free_memory_counts_what_torch_holds_in_reserve(cuda):
    assert residence.free_memory(GPU) == 1000 + 300 - 100
    assert residence.free_memory(torch.device("cpu")) == 0


@pytest.mark.parametrize("dtype", ["float16", "float8"])
def test_rows_that_stay_on_a_device(dtype, tmp_path, tiny, image_folder, monkeypatch):
    """The CPU stands in for the GPU: everything but where the bytes lie."""
    from infodisent.data.extraction import extract
    from infodisent.data.images import scan_folder

    images = scan_folder(image_folder)
    store = extract(tiny, images, tmp_path / "f", dtype=dtype, shard_size=10, progress=False)
    cpu, order = torch.device("cpu"), torch.randperm(len(store))
    assert not store.keep_on(cpu)  # the system keeps the pages
    size = len(store) * store.image_bytes
    for free, fits in ((2 * size - 1, False), (2 * size, True)):
        monkeypatch.setattr(residence, "free_memory", lambda device, free=free: free)
        rows = residence.resident(store.files_of_maps(), cpu)
        assert (rows is not None) == fits
    store._resident = rows
    monkeypatch.setattr(ShardFiles, "read", lambda *a: pytest.fail("read from the disk"))
    wanted = store.gather(order, dtype=None)
    assert torch.equal(torch.cat(list(store.read(order.split(5)))), wanted)

    def full(*arguments):
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(residence, "ResidentRows", full)
    assert residence.resident(store.files_of_maps(), cpu) is None


def test_files_are_looked_for_once(store, monkeypatch):
    files = store.files_of_maps()
    monkeypatch.setattr(type(store.path), "is_file", lambda path: pytest.fail("looked again"))
    assert store.files_of_maps() is files
    assert len(list(store.read([torch.tensor([0, 3])]))) == 1


def test_reading_uses_the_way_to_the_device(store, monkeypatch):
    seen = []

    def spy(staged, device, decoded):
        seen.append(device)
        return (decoded(rows, positions) for rows, positions in staged)

    monkeypatch.setattr(reader, "transferred", spy)
    monkeypatch.setattr(
        transfer,
        "staging",
        lambda count, shape, dtype, device: torch.empty(count, *shape, dtype=dtype),
    )
    assert isinstance(store, FeatureStore)
    got = next(iter(read_ahead(store.files_of_maps(), [torch.tensor([1])], GPU)))
    assert torch.equal(got, store.gather(torch.tensor([1]), dtype=None))
    assert seen == [GPU]


def test_memory_is_given_out_again_when_nothing_refers_to_it():
    buffers, cpu = transfer.Buffers(), torch.device("cpu")
    first = buffers.rows(4, (3, 5), torch.float16, cpu)
    assert (first.shape, first.dtype, first.data_ptr() % 64) == ((4, 3, 5), torch.float16, 0)
    place, held = first.data_ptr(), first[2, :, 1:]
    del first, held
    part = buffers.rows(2, (3, 5), torch.bfloat16, cpu)
    assert part.data_ptr() == place
    view = part[1].fill_(7)
    del part  # the view is left
    other = buffers.rows(4, (3, 5), torch.float16, cpu).zero_()
    assert other.data_ptr() != place
    assert (view == 7).all()
    del buffers, other  # what is out outlives them
    assert (view == 7).all()
    assert transfer.Buffers().rows(0, (3, 5), torch.float16, cpu).shape == (0, 3, 5)
