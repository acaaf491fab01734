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
from infodisent.backends.native import module, rotate_pool
from infodisent.bench.machine import machine
from infodisent.bench.timing import medians
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
ROUNDS = 15


def load(path: str) -> Any:
    """Another build of `infodisent._C`."""
    spec = importlib.util.spec_from_file_location("_C", path)
    assert spec is not None
    assert spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    return build


def compare(builds: dict[str, Any], size: tuple[int, int, int], way: int) -> list[dict[str, Any]]:
    """Forward and the gradient of U: median milliseconds of both builds, and the ratio."""
    batch, channels, pixels = size
    label, dtype, screen = WAYS[way]
    g = torch.Generator().manual_seed(0)
    x = torch.randn(batch, pixels, channels, generator=g).to(dtype)
    u = torch.linalg.qr(torch.randn(channels, channels, generator=g))[0].contiguous().to(dtype)
    grad = torch.randn(batch, channels, generator=g)
    places = module.rotate_pool(x, u, 0, screen)[2:]

    def with_build(build: Any, run: Callable[[], Any]) -> Callable[[], Any]:
        def swapped() -> Any:
            module._module = build
            return run()

        return swapped

    def forward() -> Any:
        return module.rotate_pool(x, u, 0, screen)

    def backward() -> Any:
        return rotate_pool.rotate_pool_backward(grad, grad, x, u, *places, False, True)[1:]

    rows = []
    for what, run in (("forward", forward), ("dU", backward)):
        runs = {name: with_build(build, run) for name, build in builds.items()}
        results = [one() for one in runs.values()]
        same = all(torch.equal(a, b) for a, b in zip(*results, strict=True))
        require(same, f"{label} {size} {what}: the builds differ")
        clock = WatchedClock()
        seconds = medians(runs, ROUNDS, clock, warmup=2)
        times = {name: round(1e3 * value, 3) for name, value in seconds.items()}
        row = {"size": list(size), "what": what, "dtype": label, "milliseconds": times}
        row |= {"new / old": round(seconds["new"] / seconds["old"], 3)}
        rows.append({**row, "same bits": True, "used by others": round(clock.share, 3)})
        print(*rows[-1].values(), flush=True)
    return rows


def main() -> None:
    """Compare and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("old", help="the other build, a file _C*.so")
    parser.add_argument("--old-commit", required=True, help="what it was built from")
    chosen = parser.parse_args()
    torch.set_num_threads(THREADS)
    builds = {"old": load(chosen.old), "new": module._module}
    report = {"machine": machine(), "old": chosen.old_commit, "new": commit(), "rounds": ROUNDS}
    rows = [row for s in SIZES for way in range(len(WAYS)) for row in compare(builds, s, way)]
    write_json(TARGET, report | {"rows": rows})


if __name__ == "__main__":
    main()
