"""The one way to time: implementations take turns, medians count, and a clock says how.

    clock = event_clock() if device == "cuda" else host_clock()
    seconds = medians({"ours": ours, "eager": eager}, rounds=15, clock=clock, warmup=3)

Turns, because a drift of the machine then hits all of them alike. On a GPU `event_clock` writes
half a gigabyte before every run: nothing is left in L2, and the host, which launches the run
meanwhile, is ahead of the device, so that the device's time is measured and not the host's. It
looks whether that was so.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Work = Callable[[], object]
Clock = Callable[[Work], float]
"""Runs the work and returns seconds."""
Name = TypeVar("Name", bound=Hashable)

L2_BYTES = 200 << 20
"""Inputs of this many bytes together are in no cache of a GPU any more when their turn comes."""
_FLUSH_BYTES = 1 << 29
FASTEST_HZ = 3e9
"""No GPU's clock is faster, so that so many cycles are a second at least."""
_flushed: dict[torch.device, Tensor] = {}


def synchronise(device: str) -> None:
    """Wait for the device, where it is one that works by itself."""
    if device == "cuda":
        torch.cuda.synchronize()


def host_clock(device: str = "cpu", calls: int = 1) -> Clock:
    """The host's clock, with the device idle before and after; of one call, the mean of `calls`."""

    def clock(run: Work) -> float:
        synchronise(device)
        start = time.perf_counter()
        for _ in range(calls):
            run()
        synchronise(device)
        return (time.perf_counter() - start) / calls

    return clock


class EventClock:
    """CUDA events around the run, after `flush_cache`, with the host ahead of the device.

    The device is kept busy for `ahead` seconds more than the flush takes. Once all is launched the
    clock looks whether the device has come to the run already: then the time may hold some of the
    host's, it is thrown away, and the device is kept busy for longer from then on.

    Attributes:
        ahead: see above.
        waits: runs for which nothing of that helps, because they wait for the device themselves;
            the host's time is in theirs.
    """

    TRIES = 6

    def __init__(self, ahead: float = 0.0) -> None:
        self.ahead = ahead
        self.waits: set[Work] = set()

    def __call__(self, run: Work) -> float:
        """Seconds of a run."""
        for _ in range(1 if run in self.waits else self.TRIES):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush_cache()
            if self.ahead:
                hold(self.ahead)
            start.record()
            run()
            end.record()
            overtaken = start.query()
            torch.cuda.synchronize()
            milliseconds: float = start.elapsed_time(end)
            if not overtaken:
                break
            if run not in self.waits:
                self.ahead = max(2 * self.ahead, 5e-4)
        else:
            self.waits.add(run)
        return milliseconds / 1e3


def event_clock(ahead: float = 0.0) -> EventClock:
    """A new `EventClock`."""
    return EventClock(ahead)


def hold(seconds: float) -> None:
    """Keep the current GPU busy for at least so long; returns at once."""
    torch.cuda._sleep(int(seconds * FASTEST_HZ))


def flush_cache() -> None:
    """Write more than the current GPU's L2 holds; returns while the device is still at it."""
    device = torch.device("cuda", torch.cuda.current_device())
    if device not in _flushed:
        _flushed[device] = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=device)
    _flushed[device].zero_()


def samples(
    runs: Mapping[Name, Work], rounds: int, clock: Clock, warmup: int = 1
) -> dict[Name, list[float]]:
    """Seconds of every implementation in every round; they take turns."""
    seconds: dict[Name, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        for _ in range(warmup):
            run()
    for _ in range(rounds):
        for name, run in runs.items():
            seconds[name].append(clock(run))
    return seconds


def medians(
    runs: Mapping[Name, Work], rounds: int, clock: Clock, warmup: int = 1
) -> dict[Name, float]:
    """Median seconds of every implementation; they take turns."""
    seconds = samples(runs, rounds, clock, warmup)
    return {name: statistics.median(values) for name, values in seconds.items()}


def captured(run: Work, warmup: int = 3) -> Work:
    """The replay of a CUDA graph of the work; what it reads and writes stays where it is."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles, and makes what outlives a call
        for _ in range(warmup):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    replay: Work = graph.replay
    return replay


def rotating(function: Callable[[Tensor], object], inputs: Sequence[Tensor]) -> Work:
    """Work that takes the next of `inputs` at every call."""
    calls = 0

    def run() -> object:
        nonlocal calls
        calls += 1
        return function(inputs[(calls - 1) % len(inputs)])

    return run


def like(x: Tensor, total_bytes: int = L2_BYTES, most: int = 8) -> list[Tensor]:
    """x and so many random tensors like it that they take `total_bytes` together, or are `most`."""
    copies = max(1, min(most, total_bytes // (x.numel() * x.element_size())))
    return [x, *(torch.randn_like(x) for _ in range(copies - 1))]


def peak_memory(run: Work) -> float:
    """MiB of GPU memory that a run needs beyond what is there before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20
