"""Training steps with the rotation divided over the processes and with all of it in each, in turn.

``torchrun --nproc-per-node=2 -m benchmarks.divided_rotation`` with OMP_NUM_THREADS=1 prints medians
of seconds a step, and of seconds of all processors a step, which other jobs on the machine disturb
less. `infodisent.ops.divided.DIVIDED_FROM` is from here, and, with ``--messages``, which has the
processes share no memory, `DIVIDED_BY_MESSAGES_FROM`.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from infodisent import ranks
from infodisent.methods import build_head
from infodisent.ops import divided
from infodisent.training.calibration import training_step

SIZES = ((256, 49, 64), (384, 49, 64), (512, 49, 64), (768, 196, 256), (2048, 49, 256))
"""(C, P, images of a step)."""


def times(channels: int, pixels: int, images: int, rounds: int) -> dict[str, list[float]]:
    """Medians of seconds a step and of seconds of processors a step."""
    torch.manual_seed(0)
    step = training_step(build_head("infodisent", channels, 100, input_fmt="NLC"))
    maps = torch.randn(images // ranks.world(), pixels, channels).relu_().half()
    step(maps)
    kinds = {"divided": 1, "all in each": channels + 1}
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, first in kinds.items():
            divided.DIVIDED_FROM = divided.DIVIDED_BY_MESSAGES_FROM = first
            ranks.barrier()
            start, used = time.perf_counter(), time.process_time()
            step(maps)
            seconds = time.perf_counter() - start
            used = ranks.total(torch.tensor(time.process_time() - used)).item()
            found[kind].append((seconds, used))
    return {kind: [statistics.median(v) for v in zip(*two)] for kind, two in found.items()}


def main() -> None:
    """Print a row for every size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="of which a median is")
    parser.add_argument("--messages", action="store_true", help="in place of shared memory")
    options = parser.parse_args()
    if options.messages:
        divided.workspace = lambda like: None  # as on several machines
    ranks.start()
    for size in SIZES:
        found = times(*size, options.rounds)
        if ranks.leads():
            text = ", ".join(f"{kind} {s:.3f} s ({u:.3f} s used)" for kind, (s, u) in found.items())
            print(f"C {size[0]}, {size[1]} pixels, {size[2]} images: {text}", flush=True)
    ranks.stop()


if __name__ == "__main__":
    main()
