"""How long a chunk of rotate_pool should be where library products serve it.

    python benchmarks/chunk.py

Prints the time of `infodisent.backends.native.rotate_pool.by_library` as a multiple of the bare
matrix product, for chunks of several lengths, for maps whose channels are neighbours in memory and
for NCHW maps; medians of interleaved rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from infodisent.backends.native import rotate_pool as native

ROWS = (256, 512, 1024, 2048, 4096)
MAPS = (
    (16, 49, 512),
    (64, 49, 512),
    (16, 196, 768),
    (64, 49, 1024),
    (16, 49, 2048),
    (64, 49, 2048),
)


def interleaved(functions: dict[object, Callable[[], object]], rounds: int) -> dict[object, float]:
    """Median milliseconds."""
    times: dict[object, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(t) for name, t in times.items()}


def main() -> None:
    """Print one line a map and layout."""
    print("map (B, P, C)       layout  product ms  " + "".join(f"{rows:>8}" for rows in ROWS))
    for batch, pixels, channels in MAPS:
        u = torch.randn(channels, channels)
        for layout in ("NLC", "NCHW"):
            x = torch.randn(batch, channels, pixels).mT
            x = x.contiguous() if layout == "NLC" else x
            flat = x.reshape(-1, channels)

            def chunked(rows: int, x: torch.Tensor = x, u: torch.Tensor = u) -> None:
                native.CHUNK_ROWS = rows
                native.by_library(x, u)

            functions: dict[object, Callable[[], object]] = {
                "product": lambda flat=flat, u=u: torch.mm(flat, u.mT)
            }
            functions |= {rows: (lambda rows=rows, f=chunked: f(rows)) for rows in ROWS}
            found = interleaved(functions, 15 if batch * pixels * channels**2 < 4e9 else 7)
            ratios = "".join(f"{found[rows] / found['product']:8.3f}" for rows in ROWS)
            print(f"{(batch, pixels, channels)!s:20}{layout:8}{found['product']:10.2f}  {ratios}")


if __name__ == "__main__":
    main()
