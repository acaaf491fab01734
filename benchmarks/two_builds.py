"""`rotate_pool` of two builds of the native module, interleaved in one process; bits must agree.

    python -m benchmarks.two_builds OLD/_C.so --old-commit NAME    # results/cpu-two-builds.json

For changes of ``csrc/cpu`` that are to cost nothing: the old build beside the installed one.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.cpu_report import commit
from benchmarks.pools_report import THREADS, WatchedClock
from infodisent.allocator import keep_memory
from infodisent.backends.native import module
from infodisent.bench.machine import machine
from infodisent.bench.timing import medians
from infodisent.contract import Extremes
from infodisent.files import write_json
from infodisent.testing import require

TARGET = Path(__file__).parent / "results" / "cpu-two-builds.json"
SIZES = ((16, 512, 49), (16, 768, 196), (16, 2048, 49))
"""B, C, P."""
WAYS = (
    ("float32", torch.float32, 1),
    ("float32, screened", torch.float32, 2),
    ("bfloat16", torch.bfloat16, 0),
)
"""Label, dtype of map and U, and `screen` of `module.rotate_pool`: never what a timing decided."""
ROUNDS = 31


def load(path: str) -> Any:
    """Another build of `infodisent._C`."""
    spec = importlib.util.spec_from_file_location("_C", path)
    assert spec is not None
    assert spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    return build


def compare(builds: dict[str, Any], size: tuple[int, int, int], way: int) -> dict[str, Any]:
    """Median milliseconds of both builds, and the ratio."""
    batch, channels, pixels = size
    label, dtype, screen = WAYS[way]
    g = torch.Generator().manual_seed(0)
    x = torch.randn(batch, pixels, channels, generator=g).to(dtype)
    u = torch.linalg.qr(torch.randn(channels, channels, generator=g))[0].contiguous().to(dtype)

    def pooled(build: Any) -> Callable[[], Extremes]:
        def run() -> Extremes:
            module._module = build
            return module.rotate_pool(x, u, 0, screen)

        return run

    runs = {name: pooled(build) for name, build in builds.items()}
    old, new = (run() for run in runs.values())
    same = all(torch.equal(a, b) for a, b in zip(old, new, strict=True))
    require(same, f"{label} {size}: the builds differ")
    clock = WatchedClock()
    seconds = medians(runs, ROUNDS, clock, warmup=2)
    times = {name: round(1e3 * value, 3) for name, value in seconds.items()}
    row = {"size": list(size), "dtype": label, "milliseconds": times}
    row |= {"new / old": round(seconds["new"] / seconds["old"], 3), "same bits": True}
    return row | {"used by others": round(clock.share, 3)}


def main() -> None:
    """Compare and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("old", help="the other build, a file _C*.so")
    parser.add_argument("--old-commit", required=True, help="what it was built from")
    chosen = parser.parse_args()
    torch.set_num_threads(THREADS)
    keep_memory(all_of_it=True)
    builds = {"old": load(chosen.old), "new": module._module}
    report = {"machine": machine(), "old": chosen.old_commit, "new": commit(), "rounds": ROUNDS}
    rows = []
    for size in SIZES:
        for way in range(len(WAYS)):
            rows.append(compare(builds, size, way))
            print(*rows[-1].values(), flush=True)
    write_json(TARGET, report | {"rows": rows})


if __name__ == "__main__":
    main()
