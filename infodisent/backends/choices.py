"""Which of two GPU backends is the faster one for a size: by what was timed, never by default.

``auto`` takes ``triton`` unless there is evidence for another backend: a committed report of this
kind of GPU (`infodisent.backends.reported`), or timings that ``infodisent tune`` made on this
machine, which go before it. Those are kept in ``$XDG_CACHE_HOME/infodisent/backends.json`` and hold
for this GPU, these versions, kernels and this build. Evidence for a map (dtype, C, P) holds for the
batches that were timed and, where the same backend won at both, for those between two of them. It
must win the forward and not lose the step, forward and gradient of U, since one choice is for both.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from infodisent.backends import selfcheck
from infodisent.backends.reported import REPORTS
from infodisent.files import cache_file as cached
from infodisent.files import read_json, write_json

DEFAULT = "triton"
"""Who serves where nobody has timed."""
Times = dict[str, tuple[float, float]]
"""By backend: microseconds of the forward, and of forward and backward for U."""
_log = logging.getLogger("infodisent")


class Map(NamedTuple):
    """What evidence is about."""

    dtype: str
    channels: int
    pixels: int

    def __str__(self) -> str:
        return f"{self.dtype} {self.channels}x{self.pixels}"


class Timing(NamedTuple):
    """What was timed for one batch of a map."""

    map: Map
    batch: int
    times: Times


class Range(NamedTuple):
    """Batches, both ends included, for which the same backend won."""

    map: Map
    least: int
    most: int
    backend: str
    timing: Timing
    source: str

    def __str__(self) -> str:
        batches = f"B {self.least}" + (f" to {self.most}" if self.most > self.least else "")
        took = ", ".join(f"{name} {us[0]:.1f}" for name, us in self.timing.times.items())
        return f"{self.map}, {batches}: {self.backend} ({took} µs at B {self.timing.batch})"


def winner(times: Times) -> str:
    """The fastest forward of those whose step is no slower than the default's."""
    if DEFAULT not in times:
        return DEFAULT
    able = [name for name, us in times.items() if us[1] <= times[DEFAULT][1]]
    return min(able, key=lambda name: times[name][0])


def ranges(timings: Iterable[Timing], source: str) -> list[Range]:
    """Neighbouring batches of a map with the same winner, as one."""
    found: list[Range] = []
    for timing in sorted(timings, key=lambda t: (t.map, t.batch)):
        name = winner(timing.times)
        last = found[-1] if found else None
        if last and last.map == timing.map and last.backend == name:
            found[-1] = last._replace(most=timing.batch, timing=timing)
        else:
            found.append(Range(timing.map, timing.batch, timing.batch, name, timing, source))
    return found


def cache_file() -> Path:
    """Where timings of this machine are kept."""
    return cached("backends.json")


def machine(device: torch.device, build: str) -> str:
    """What a timing holds for; `build` names the compiled module."""
    return f"{selfcheck.machine(device)}, {build}"


def _stored() -> dict[str, Any]:
    """The file's contents; one that is damaged is said to be so, and counts as empty."""
    try:
        stored = read_json(cache_file())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        _log.warning("infodisent: timings of backends are not read: %s", error)
        return {}
    if not isinstance(stored, dict):
        _log.warning("infodisent: %s holds no timings of backends, it is ignored", cache_file())
        return {}
    return stored


def _timing(entry: Any) -> Timing:
    """A timing of the file, with every number checked."""
    of = Map(str(entry["dtype"]), entry["channels"], entry["pixels"])
    numbers = [of.channels, of.pixels, entry["batch"]]
    if not all(type(n) is int and n > 0 for n in numbers):
        raise ValueError("sizes must be whole numbers above 0")
    times = {str(name): (float(us[0]), float(us[1])) for name, us in entry["times"].items()}
    if not times or not all(us > 0 for pair in times.values() for us in pair):
        raise ValueError("times must be above 0")
    return Timing(of, entry["batch"], times)


def _tuned(key: str) -> list[Timing]:
    timings = []
    entries = _stored().get(key, [])
    for entry in entries if isinstance(entries, list) else [entries]:
        try:
            timings.append(_timing(entry))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            _log.warning("infodisent: %s: %r is no timing (%r)", cache_file(), entry, error)
    return timings


def remember(device: torch.device, build: str, timing: Timing) -> Path:
    """Add a timing to this machine's file, in the place of an older one of the same size."""
    key, path = machine(device, build), cache_file()
    stored = _stored()
    kept = [t for t in _tuned(key) if (t.map, t.batch) != (timing.map, timing.batch)]
    stored[key] = [
        {**t.map._asdict(), "batch": t.batch, "times": t.times}
        for t in sorted([*kept, timing], key=lambda t: (t.map, t.batch))
    ]
    write_json(path, stored)
    evidence.cache_clear()
    return path


def _reported(name: str) -> list[Range]:
    """What committed reports of this kind of GPU say."""
    found = []
    for report in REPORTS:
        if report.device == name and not report.failed:
            timings = [Timing(Map(*row[:3]), row[3], row[4]) for row in report.times]
            found += ranges(timings, report.file)
    return found


@functools.lru_cache(maxsize=16)
def evidence(device: torch.device, build: str) -> tuple[Range, ...]:
    """All there is for a device: this machine's timings first. Read once a process."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    tuned = ranges(_tuned(machine(device, build)), "timed on this machine")
    maps = {entry.map for entry in tuned}
    return (*tuned, *(entry for entry in _reported(name) if entry.map not in maps))


def matters(device: torch.device, build: str) -> bool:
    """Whether the size of a map can decide anything here."""
    return any(entry.backend != DEFAULT for entry in evidence(device, build))


def objection(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    size: tuple[int, int, int],  # B, P, C
    build: str,
) -> str | None:
    """Why ``auto`` does not take a backend other than the default for a map, or None."""
    if os.environ.get(selfcheck.ENV) == "0":
        return f"{selfcheck.ENV}=0: not checked on this machine"
    batch, pixels, channels = size
    wanted = Map(str(dtype).removeprefix("torch."), channels, pixels)
    for entry in evidence(device, build):
        if entry.map == wanted and entry.least <= batch <= entry.most:
            return None if entry.backend == name else f"{entry}, {entry.source}"
    return f"{wanted}, B {batch} was never timed: `infodisent tune` does so"
