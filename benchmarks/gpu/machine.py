"""What the report runs on: a GPU, or in a rehearsal the CPU with its own backends and tiny maps.

All that differs between the two is here. Whatever is not is tested without a GPU.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from infodisent.backends.cuda import module as cuda
from infodisent.backends.native import module as native
from infodisent.backends.table import BY_NAME
from infodisent.bench import shapes, timing
from infodisent.bench.machine import processor
from infodisent.version import __version__

ROOT = Path(__file__).parents[2]
CODE = ("infodisent", "kernels", "csrc")
"""Folders whose contents decide whether results of an earlier run still hold. The report's own code
is not among them: who mends a table or a stage keeps what was measured."""
Size = tuple[int, int, int]


class Times(NamedTuple):
    """What was measured, by implementation.

    Attributes:
        seconds: medians.
        how: "graph" (replays of a CUDA graph), "launched" (from Python, the host ahead of the
            device) or "waits" (it waits for the device, and the host's time is in it).
        clocks: of the device while it worked, see `Machine.clocks`.
    """

    seconds: dict[str, float]
    how: dict[str, str]
    clocks: dict[str, Any]

    def figures(self) -> dict[str, Any]:
        """As they stand in a row of the report."""
        microseconds = {name: round(s * 1e6, 2) for name, s in self.seconds.items()}
        return {"microseconds": microseconds, "how": self.how, "clocks": self.clocks}


class Machine:
    """A CUDA GPU.

    Attributes:
        device: where tensors are.
        sizes: (C, H, W) by backbone, one of each size.
        channels: sizes of the rotation.
        batches: of the timed maps, the bars' first.
        classes: of the head.
        rounds: that medians are of.
        busy, queued: seconds that the device works before its clock is asked for, and runs that it
            is given to work at meanwhile.
        wide: most channels of the maps of integers.
        shapes: random ones, by minutes; a multiple of `together`, which are one item.
        pools: sizes of the pools of prototypes.
        large, copied: size of the product and number of the floats that show what is possible.
    """

    device = "cuda"
    sizes: Mapping[str, Size] = {name: shapes.SHAPES[name] for name in shapes.EACH_SIZE[::-1]}
    channels: tuple[int, ...] = shapes.CHANNELS[::-1]
    pools: Mapping[str, shapes.PoolSize] = shapes.POOLS
    batches: tuple[int, ...] = (256, 64, 8, 1, 1024)
    classes = 1000
    rounds = 15
    busy = 0.2
    queued = 20
    wide = 512
    shapes: Mapping[int, int] = {1: 100, 10: 300, 30: 2000}
    together = 10
    large = 8192
    copied = 1 << 28

    @property
    def ours(self) -> dict[str, tuple[str, ...]]:
        """Backends that are judged, and who may serve a row of that name; the first is the base.

        The gradients that `cuda` has no kernel for are those of `triton`.
        """
        both = {"triton": ("triton",), "cuda": ("cuda", "triton")}
        if cuda.device_objection(torch.device(self.device)) is not None:
            del both["cuda"]
        return both

    def about(self, commit: str | None = None) -> dict[str, Any]:
        """Machine, versions and code: what results hold for."""
        import triton

        properties = torch.cuda.get_device_properties(0)
        return {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "l2_mib": getattr(properties, "L2_cache_size", 0) / 2**20,
            "driver": self.clocks().get("driver", "unknown"),
            "triton": triton.__version__,
            "cuda": torch.version.cuda,
            "cuda_module": cuda.describe(),
            **versions(commit),
        }

    def clocks(self) -> dict[str, Any]:
        """Driver, clocks in MHz, watts and degrees, as nvidia-smi tells them now."""
        names = {
            "driver": "driver_version",
            "sm_mhz": "clocks.sm",
            "most_sm_mhz": "clocks.max.sm",
            "memory_mhz": "clocks.mem",
            "watts": "power.draw",
            "most_watts": "power.limit",
            "degrees": "temperature.gpu",
        }
        command = ["nvidia-smi", f"--query-gpu={','.join(names.values())}", "-i", "0"]
        command += ["--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        except (OSError, subprocess.SubprocessError) as error:
            return {"unknown": str(error).splitlines()[0]}
        return parsed(dict(zip(names, done.stdout.split(","), strict=False)))

    def busy_clocks(self, run: timing.Work) -> dict[str, Any]:
        """`clocks` while the device works at `run`."""
        end = time.perf_counter() + self.busy
        while time.perf_counter() < end:
            run()
        for _ in range(self.queued):
            run()
        told = self.clocks()
        self.synchronise()
        told.pop("driver", None)
        return told

    def synchronise(self) -> None:
        """Wait for the device."""
        torch.cuda.synchronize()

    def alive(self) -> bool:
        """Whether the device still takes work from this process."""
        try:
            torch.ones(1, device=self.device).add_(1)
            self.synchronise()
        except (RuntimeError, AssertionError):  # the second: of a torch that knows no GPU
            return False
        return True

    def captured(self, run: timing.Work) -> timing.Work:
        """A replay of a CUDA graph of the work."""
        return timing.captured(run)

    def clock(self) -> Any:
        """A clock for the works of one comparison."""
        return timing.event_clock()

    def times(
        self,
        runs: Mapping[str, timing.Work],
        rounds: int | None = None,
        launched: Collection[str] = (),
    ) -> Times:
        """Medians of interleaved runs without the host's time, of graphs wherever that is possible.

        What cannot be captured is launched from Python behind a device that is kept busy.

        launched: names of works that are known to wait for the device: capturing is not tried.
        """
        works: dict[str, timing.Work] = {}
        how = {}
        for name, run in runs.items():
            try:
                if name in launched:
                    works[name], how[name] = run, "launched"
                    continue
                works[name], how[name] = self.captured(run), "graph"
            except RuntimeError:
                self.synchronise()
                works[name], how[name] = run, "launched"
        clock = self.clock()
        seconds = timing.medians(works, rounds or self.rounds, clock, warmup=3)
        for name, work in works.items():
            if work in clock.waits:
                how[name] = "waits"
        return Times(seconds, how, self.busy_clocks(next(iter(works.values()))))

    def peak_memory(self, run: timing.Work) -> float:
        """MiB that a run needs beside its inputs."""
        return timing.peak_memory(run)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """By torch.compile, which searches for a minute."""
        torch.compiler.reset()
        return torch.compile(function, mode="max-autotune-no-cudagraphs", dynamic=False)

    def tool(self, name: str) -> str | None:
        """Path of one of NVIDIA's tools, or None."""
        usual = Path("/usr/local/cuda/bin") / name
        return shutil.which(name) or (str(usual) if usual.is_file() else None)


class _HostClock:
    """The host's clock with the face of `timing.EventClock`."""

    waits: frozenset[timing.Work] = frozenset()

    def __call__(self, run: timing.Work) -> float:
        return timing.host_clock()(run)


class Rehearsal(Machine):
    """The CPU in the place of a GPU: the same stages, on tiny maps, by the backends for CPUs."""

    device = "cpu"
    sizes: Mapping[str, Size] = {"resnet50": (24, 3, 3), "vit_base_patch16_224": (16, 4, 4)}
    channels = (24, 12)
    pools: Mapping[str, shapes.PoolSize] = {
        name: size._replace(
            batch=3, prototypes=size.prototypes and 10, channels=8, height=3, width=2
        )
        for name, size in shapes.POOLS.items()
    }
    batches = (4, 1)
    classes = 5
    rounds = 2
    busy = 0.0
    queued = 1
    wide = 24
    shapes: Mapping[int, int] = {1: 4, 10: 8, 30: 12}
    together = 4
    large = 64
    copied = 1 << 12

    @property
    def ours(self) -> dict[str, tuple[str, ...]]:
        """The backends for CPUs that are here."""
        names = ["sparse"] if native.objection() else ["native", "sparse"]
        return {name: (name,) for name in names if name in BY_NAME}

    def about(self, commit: str | None = None) -> dict[str, Any]:
        """The CPU; the name says that nothing was measured."""
        return {"device": "rehearsal, no GPU", "processor": processor(), **versions(commit)}

    def clocks(self) -> dict[str, Any]:
        """What nvidia-smi might say."""
        return parsed({"driver": "none", "sm_mhz": "1755", "watts": " [N/A]"})

    def synchronise(self) -> None:
        """Nothing runs by itself here."""

    def captured(self, run: timing.Work) -> timing.Work:
        """The work itself."""
        return run

    def clock(self) -> Any:
        """The host's."""
        return _HostClock()

    def peak_memory(self, run: timing.Work) -> float:
        """It is not measured."""
        run()
        return 0.0

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function: to compile for a CPU shows nothing of a GPU."""
        return function

    def tool(self, name: str) -> str | None:
        """None."""
        return None


def parsed(told: Mapping[str, str]) -> dict[str, Any]:
    """Numbers where there are some; what nvidia-smi does not know is left out."""
    values: dict[str, Any] = {}
    for name, text in told.items():
        text = text.strip()
        if text.replace(".", "", 1).isdigit() and name != "driver":
            values[name] = float(text)
        elif not text.startswith("["):
            values[name] = text
    return values


def versions(commit: str | None = None) -> dict[str, str]:
    """Of Python, torch, this package, its commit, and a digest of its code as it is."""
    if commit is None:
        command = ["git", "describe", "--always", "--dirty"]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            commit = done.stdout.strip()
        except OSError:
            commit = ""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "infodisent": __version__,
        "commit": commit or "unknown",
        "code": code_digest(),
    }


def code_digest() -> str:
    """Of all that is measured, so that an edit of it makes a new report."""
    digest = hashlib.sha256()
    for folder in CODE:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".cu", ".cuh", ".h", ".cpp"):
                digest.update(path.relative_to(ROOT).as_posix().encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
