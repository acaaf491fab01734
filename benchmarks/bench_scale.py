"""What disks and processes do to a training: the store's reader, and steps from disk and memory.

    python -m benchmarks.bench_scale --folder runs/scale                  # 10 GB a size on disk
    python -m benchmarks.bench_scale --folder runs/scale --gigabytes 1 --only resnet50

Stores of random maps, of ResNet-50's and ViT-B/16's size, are made in the folder and stay there.
Read sequentially as ``dd`` does (4 MiB at a time), and in the order of a training, each from a disk
whose pages were dropped from memory; then the same steps of training on maps from the store and on
maps that are in memory, in turn; then in one process with all threads and in one process a
processor. Results: ``results/cpu-scale.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.cpu_report import commit
from infodisent import ranks
from infodisent.bench.machine import machine
from infodisent.data.reader import block_order, read_ahead
from infodisent.data.store import MANIFEST, FeatureStore, shard_path
from infodisent.files import read_json, write_json, write_tensors
from infodisent.methods import build_head
from infodisent.progress import bar
from infodisent.training.calibration import training_step
from infodisent.training.sources import MIXED, stretch

TARGET = Path(__file__).parent / "results" / "cpu-scale.json"
SIZES = {"resnet50": (2048, 49), "vit_b_16": (768, 196)}
"""(C, P) of the maps."""
SHARD = 512
CLASSES = 100
BATCH = 256
STEPS = 6
"""Of one timed round."""
ROUNDS = 5


def make_store(folder: Path, channels: int, pixels: int, gigabytes: float) -> FeatureStore:
    """A store of random float16 maps, as `extract` would have written it."""
    count = max(1, round(gigabytes * 1e9 / (2 * channels * pixels * SHARD))) * SHARD
    made: dict[str, Any] = {"test": [channels, pixels, count]}
    if (folder / MANIFEST).is_file() and read_json(folder / MANIFEST)["made_from"] == made:
        return FeatureStore(folder)
    maps = torch.randn(SHARD, pixels, channels).relu_().half()
    with bar(True) as display:
        task = display.add_task(f"write {folder.name}", total=count // SHARD, note="")
        for number in range(count // SHARD):
            item = torch.arange(SHARD) + number * SHARD
            tensors = {"features": maps.roll(number, 0), "item": item}
            written = {"made_from": made, "skipped": []}
            write_tensors(shard_path(folder, number), tensors, written)
            display.advance(task)
    items = [[f"{i}.png", i % CLASSES, "train", ""] for i in range(count)]
    meta = {
        "made_from": made, "items": items, "classes": [str(k) for k in range(CLASSES)],
        "channels": channels, "pixels": pixels, "grid": [1, pixels], "shard_size": SHARD,
    }  # fmt: skip
    write_json(folder / MANIFEST, meta)
    return FeatureStore(folder)


def drop(store: FeatureStore) -> None:
    """Let the system forget the store's pages."""
    os.sync()
    for path in store.path.glob("shard-*.safetensors"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def sequential(store: FeatureStore) -> float:
    """Bytes a second of reading the files one after the other."""
    drop(store)
    room, total, start = bytearray(1 << 22), 0, time.perf_counter()
    for path in sorted(store.path.glob("shard-*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while got := file.readinto(room):
                total += got
    return total / (time.perf_counter() - start)


def shuffled(store: FeatureStore, cold: bool) -> float:
    """Bytes a second of one epoch in the order of a training."""
    if cold:
        drop(store)
    torch.manual_seed(0)
    positions = torch.arange(len(store) if cold else min(len(store), 2048))
    block = stretch(store)
    batches = block_order(positions, block, MIXED).split(BATCH)
    files = store.files_of_maps()
    assert files is not None
    if not cold:
        for _ in read_ahead(files, batches, torch.device("cpu")):
            pass
    start, total = time.perf_counter(), 0
    for maps in read_ahead(files, batches, torch.device("cpu"), block * MIXED // BATCH):
        total += maps.nbytes
    return total / (time.perf_counter() - start)


def batches_from(store: FeatureStore) -> Iterator[Tensor]:
    """This process's part of one batch after the other, from the store, without end."""
    files = store.files_of_maps()
    assert files is not None
    block = stretch(store)
    while True:
        order = block_order(torch.arange(len(store)), block, MIXED)
        whole = order[: len(order) // BATCH * BATCH]
        parts = [ranks.piece(batch) for batch in whole.split(BATCH)]
        yield from read_ahead(files, parts, torch.device("cpu"), block * MIXED // BATCH)


def training(store: FeatureStore) -> dict[str, float]:
    """Steps a second on maps from a cold disk and on maps in memory, in turn; medians."""
    torch.manual_seed(0)
    drop(store)
    step = training_step(build_head("infodisent", store.channels, CLASSES, input_fmt="NLC"))
    from_disk = batches_from(store)
    kept = next(from_disk)
    step(kept), step(next(from_disk))
    sources: dict[str, Callable[[], Tensor]] = {
        "from disk": lambda: next(from_disk),
        "from memory": lambda: kept,
    }
    rates: dict[str, list[float]] = {name: [] for name in sources}
    for _ in range(ROUNDS):
        for name, maps in sources.items():
            ranks.barrier()
            start = time.perf_counter()
            for _ in range(STEPS):
                step(maps())
            rates[name].append(STEPS / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in rates.items()}


def in_processes(folder: Path, processes: int, threads: int) -> dict[str, float]:
    """`training` in so many processes of so many threads each."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", "benchmarks.bench_scale", "--train", str(folder), "--threads", str(threads)]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    line = next(text for text in done.stdout.splitlines() if text.startswith("{"))
    rates: dict[str, float] = json.loads(line)
    return rates


def markdown(report: dict[str, Any]) -> str:
    """Facts and the table."""
    facts = ", ".join(f"{name} {value}" for name, value in report["machine"].items())
    lines = [
        f"{facts}, commit {report['commit']}",
        "",
        "| maps | store, GB | sequential, GB/s | shuffled, cold | of sequential | shuffled, warm "
        "| steps/s from memory | from disk | disk / memory | processes of one thread: steps/s | "
        "of one process |",
        "|---" * 11 + "|",
    ]
    for name, row in report["rows"].items():
        gb = {key: row[key] / 1e9 for key in ("bytes", "sequential", "cold", "warm")}
        one, several = row["one process"], row["processes"]
        lines.append(
            f"| {name} | {gb['bytes']:.1f} | {gb['sequential']:.2f} | {gb['cold']:.2f} | "
            f"{gb['cold'] / gb['sequential']:.2f} | {gb['warm']:.2f} | {one['from memory']:.2f} | "
            f"{one['from disk']:.2f} | {one['from disk'] / one['from memory']:.2f} | "
            f"{row['count']} × {several['from disk']:.2f} | "
            f"{several['from disk'] / one['from disk']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Make the stores that are missing, measure, write the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--folder", type=Path, help="where the stores are made")
    parser.add_argument("--gigabytes", type=float, default=10)
    parser.add_argument("--only", choices=SIZES)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=TARGET)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.train:
        ranks.start()
        rates = training(FeatureStore(arguments.train))
        if ranks.leads():
            print(json.dumps(rates), flush=True)
        ranks.stop()
        return
    if arguments.folder is None:
        parser.error("--folder is needed: where the stores are made")
    report = read_json(arguments.out) if arguments.out.is_file() else {"rows": {}}
    report |= {"machine": machine(), "commit": commit()}
    for name, size in SIZES.items():
        if arguments.only not in (None, name):
            continue
        store = make_store(arguments.folder / name, *size, arguments.gigabytes)
        row: dict[str, Any] = {"bytes": len(store) * store.image_bytes}
        rates: dict[str, list[float]] = {"sequential": [], "cold": [], "warm": []}
        for _ in range(3):
            rates["sequential"].append(sequential(store))
            rates["cold"].append(shuffled(store, cold=True))
            rates["warm"].append(shuffled(store, cold=False))
        row |= {key: statistics.median(values) for key, values in rates.items()}
        row["count"] = arguments.threads
        row["one process"] = in_processes(store.path, 1, arguments.threads)
        row["processes"] = in_processes(store.path, arguments.threads, 1)
        report["rows"][name] = row
        write_json(arguments.out, report)
    print(markdown(report))


if __name__ == "__main__":
    main()
