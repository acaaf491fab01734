"""How long a chunk of rotate_pool should be where library products serve it.

    python benchmarks/chunk.py

Prints the time of `infodisent.backends.native.rotate_pool.by_library` as a multiple of the bare
matrix product, for chunks of several lengths, for maps whose channels are neighbours in memory and
for NCHW maps; medians of interleaved rounds.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from infodisent.backends.native import rotate_pool as native
from infodisent.bench.shapes import AT_224
from infodisent.bench.timing import host_clock, medians

ROWS = (256, 512, 1024, 2048, 4096)
MAPS = (
    (16, AT_224["resnet34"]),
    (64, AT_224["resnet34"]),
    (16, AT_224["vit_base_patch16_224"]),
    (64, AT_224["densenet121"]),
    (16, AT_224["resnet50"]),
    (64, AT_224["resnet50"]),
)
"""Images in a batch, and the map."""


def main() -> None:
    """Print one line a map and layout."""
    print("map (B, P, C)       layout  product ms  " + "".join(f"{rows:>8}" for rows in ROWS))
    for batch, size in MAPS:
        pixels, channels = size.pixels, size.channels
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
            rounds = 15 if batch * pixels * channels**2 < 4e9 else 7
            seconds = medians(functions, rounds, host_clock())
            ratios = "".join(f"{seconds[rows] / seconds['product']:8.3f}" for rows in ROWS)
            product = 1e3 * seconds["product"]
            print(f"{(batch, pixels, channels)!s:20}{layout:8}{product:10.2f}  {ratios}")


if __name__ == "__main__":
    main()
