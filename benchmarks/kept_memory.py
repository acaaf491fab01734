"""What it brings a backbone on a CPU that freed memory is kept (`infodisent.allocator`).

    python -m benchmarks.kept_memory                     # EfficientNet-Lite0 and ResNet-50, printed
    python -m benchmarks.kept_memory --backbone resnet34 --batch-size 8

Processes that keep it and that do not take turns. Random weights: the time does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

import torch

from infodisent.allocator import keep_memory
from infodisent.backbones.torchvision_import import ensure_torchvision
from infodisent.progress import bar

ROUNDS, PASSES, SIZE = 3, 7, 224


def passes(backbone: str, batch: int, kept: bool) -> dict[str, float]:
    """Median milliseconds and faults of a pass, and the peak in MiB, of this process."""
    import resource

    ensure_torchvision()
    import timm

    if kept and not keep_memory():
        sys.exit("kept_memory: the C library here is not glibc, or MALLOC_… or GLIBC_TUNABLES set")
    model = timm.create_model(backbone).eval().to(memory_format=torch.channels_last)
    x = torch.randn(batch, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
    seconds = []
    with torch.inference_mode():
        model(x)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(PASSES):
            start = time.perf_counter()
            model(x)
            seconds.append(time.perf_counter() - start)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "milliseconds": statistics.median(seconds) * 1e3,
        "faults": (used.ru_minflt - before) / PASSES,
        "peak MiB": used.ru_maxrss / 1024,
    }


def main() -> None:
    """Print a line a backbone, or, as a child, figures of one process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--backbone", nargs="+", default=["tf_efficientnet_lite0", "resnet50"])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--child", choices=("kept", "given back"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        kept = chosen.child == "kept"
        print(json.dumps(passes(chosen.backbone[0], chosen.batch_size, kept)))
        return
    for backbone in chosen.backbone:
        runs: dict[str, list[dict[str, float]]] = {"given back": [], "kept": []}
        own = [sys.executable, "-m", "benchmarks.kept_memory", "--backbone", backbone]
        own += ["--batch-size", str(chosen.batch_size), "--child"]
        with bar(True) as display:
            task = display.add_task(f"passes of {backbone}", total=2 * ROUNDS, note="")
            for _ in range(ROUNDS):
                for name, found in runs.items():
                    done = subprocess.run(
                        [*own, name], stdout=subprocess.PIPE, text=True, check=True
                    )
                    found.append(json.loads(done.stdout))
                    display.advance(task)
        middle = {
            name: {key: statistics.median(run[key] for run in found) for key in found[0]}
            for name, found in runs.items()
        }
        ratio = middle["kept"]["milliseconds"] / middle["given back"]["milliseconds"]
        print(f"{backbone}, {chosen.batch_size} images: kept / given back {ratio:.2f}", flush=True)
        for name, figures in middle.items():
            print(f"  {name}: " + ", ".join(f"{v:.0f} {k}" for k, v in figures.items()))


if __name__ == "__main__":
    main()
