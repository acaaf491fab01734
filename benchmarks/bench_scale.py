"""What disks and processes do to a training: the store's reader, and steps from disk and memory.

    python -m benchmarks.bench_scale --folder runs/scale                 # 2 GB a size: 8 minutes
    python -m benchmarks.bench_scale --folder runs/scale --gigabytes 10  # 20 GB in all
    python -m benchmarks.bench_scale --folder runs/scale --only "resnet50 disk" --again
    python benchmarks/tables.py                                          # the Markdown

Stores of random maps, of ResNet-50's and ViT-B/16's size, are made in the folder and stay there.
Parts, each of either size, are kept in the results file as soon as they are measured, and not
repeated:

extraction   images a second of `extract`, from JPEG files, by the backbone with random weights
disk         bytes a second of reading the store one file after the other as ``dd`` does (4 MiB at a
             time), and in the order of a training, each from a disk whose pages were dropped from
             memory; and in that order from pages that are in memory
steps        steps of training a second on maps from a cold disk, and on maps in memory, in turn: in
             one process with all threads, and in one process a processor, which take turns, too
memory       peak of a training beyond what its process held before, of one epoch on the store and
             of as many steps on a quarter of it; medians of processes
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.cpu_report import commit
from benchmarks.plan_check import make_pictures
from benchmarks.pools_report import WatchedClock, peak_memory
from infodisent import ranks
from infodisent.bench.machine import machine
from infodisent.classifier import attach
from infodisent.data.extraction import extract
from infodisent.data.images import scan_folder
from infodisent.data.manifest import MANIFEST
from infodisent.data.reader import block_order, read_ahead
from infodisent.data.store import FeatureStore, shard_path
from infodisent.files import read_json, write_json, write_tensors
from infodisent.methods import build_head
from infodisent.progress import bar
from infodisent.training.calibration import training_step
from infodisent.training.fit import FitConfig, fit_head, new_head
from infodisent.training.sources import MIXED, stretch

MODULE = "benchmarks.bench_scale"
TARGET = Path(__file__).parent / "results" / "scale-cpu.json"
SIZES = {"resnet50": (2048, 49), "vit_b_16": (768, 196)}
"""(C, P) of the maps."""
NAMES = {"resnet50": "resnet50", "vit_b_16": "vit_base_patch16_224"}
"""timm's, of the backbones whose maps have these sizes."""
SHARD = 512
QUARTER = "-quarter"
CLASSES = 100
BATCH = 256
SECONDS = 4.0
"""Of one timed round, about."""
LAUNCHES = 5
"""Of the jobs of one process and of several, which take turns: what machines do from one minute to
the next is more than what is judged. Medians."""
PARTS = ("extraction", "disk", "steps", "memory")
LIMITS = {
    "shuffled / sequential": (0.7, 1),
    "disk / memory": (0.9, 1),
    "processes / one": (0.9, 1),
    "memory, all / a quarter": (1.1, -1),
}
"""Bars: at least (1) or at most (-1) so much."""


def make_store(folder: Path, channels: int, pixels: int, gigabytes: float) -> FeatureStore:
    """A store of random float16 maps, as `extract` would have written it."""
    shards = max(1, round(gigabytes * 1e9 / (2 * channels * pixels * SHARD)))
    made: dict[str, Any] = {"test": [channels, pixels]}
    kept = read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else {}
    if "transform" in kept and len(kept["items"]) == shards * SHARD:
        return FeatureStore(folder)
    shutil.rmtree(folder, ignore_errors=True)
    maps = torch.randn(SHARD, pixels, channels).relu_().half()
    with bar(True) as display:
        task = display.add_task(f"write {folder.name}", total=shards, note="")
        for number in range(shards):
            item = torch.arange(SHARD) + number * SHARD
            tensors = {"features": maps.roll(number, 0), "item": item}
            written = {"made_from": made, "skipped": []}
            write_tensors(shard_path(folder, number), tensors, written)
            display.advance(task)
    write_json(folder / MANIFEST, {
        "items": [[f"{i}.png", i % CLASSES, "train", ""] for i in range(shards * SHARD)],
        "made_from": made, "classes": list(map(str, range(CLASSES))),
        "channels": channels, "pixels": pixels, "grid": [1, pixels], "shard_size": SHARD,
        "transform": {"input_size": [3, 1, 1], "mean": [0.5] * 3, "std": [0.5] * 3},
    })  # fmt: skip
    return FeatureStore(folder)


def quarter(store: FeatureStore) -> Path:
    """A store of the first quarter of the shards, which are the same files."""
    folder = store.path.with_name(f"{store.path.name}{QUARTER}")
    shards = max(1, len(store) // SHARD // 4)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for number in range(shards):
        os.link(shard_path(store.path, number), shard_path(folder, number))
    write_json(folder / MANIFEST, {**store.meta, "items": store.meta["items"][: shards * SHARD]})
    return folder


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
    """This process's part of one batch after the other, from a cold store, without end."""
    files = store.files_of_maps()
    assert files is not None
    block = stretch(store)
    while True:
        drop(store)
        order = block_order(torch.arange(len(store)), block, MIXED)
        whole = order[: len(order) // BATCH * BATCH]
        parts = [ranks.piece(batch) for batch in whole.split(BATCH)]
        yield from read_ahead(files, parts, torch.device("cpu"), block * MIXED // BATCH)


def steps(store: FeatureStore, rounds: int) -> dict[str, float]:
    """Steps a second on maps from a cold disk and on maps in memory, in turn; medians."""
    torch.manual_seed(0)
    step = training_step(build_head("infodisent", store.channels, CLASSES, input_fmt="NLC"))
    from_disk = batches_from(store)
    kept = next(from_disk)
    step(kept), step(next(from_disk))
    start = time.perf_counter()
    step(kept)
    count = ranks.told(max(2, round(SECONDS / (time.perf_counter() - start))))
    sources: dict[str, Callable[[], Tensor]] = {
        "from disk": lambda: next(from_disk),
        "from memory": lambda: kept,
    }
    rates: dict[str, list[float]] = {name: [] for name in sources}
    for _ in range(rounds):
        for name, maps in sources.items():
            ranks.barrier()
            start = time.perf_counter()
            for _ in range(count):
                step(maps())
            rates[name].append(count / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in rates.items()}


def training_memory(store: FeatureStore) -> float:
    """MiB of a training beyond what this process held before it."""
    head = new_head(store.channels, CLASSES, 0, method="infodisent")
    train = store.indices("train")
    # what is read and built once: libraries, threads
    fit_head(head, store, FitConfig(epochs=1), train=train[:64], progress=False)
    epochs = 4 if store.path.name.endswith(QUARTER) else 1
    return peak_memory(
        lambda: fit_head(head, store, FitConfig(epochs=epochs), train=train, progress=False)
    )


def extraction(pictures: Path, name: str) -> dict[str, float]:
    """Images a second."""
    model, images = attach(NAMES[name], 2), scan_folder(pictures)
    folder = pictures.parent / f"extracted-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    start = time.perf_counter()
    stored = extract(model, images, folder)
    seconds = time.perf_counter() - start
    count = len(stored)
    shutil.rmtree(folder)
    return {"images": count, "images/s": count / seconds}


def disk(store: FeatureStore, rounds: int) -> dict[str, float]:
    """Medians of `sequential` and of both kinds of `shuffled`, which take turns."""
    rates: dict[str, list[float]] = {"sequential": [], "cold": [], "warm": []}
    for _ in range(rounds):
        rates["sequential"].append(sequential(store))
        rates["cold"].append(shuffled(store, cold=True))
        rates["warm"].append(shuffled(store, cold=False))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {"bytes": len(store) * store.image_bytes, **medians}


def apart(folder: Path, part: str, rounds: int, threads: int, processes: int = 1) -> Any:
    """What `one` finds in so many processes of so many threads each."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", MODULE, "--one", part, "--folder", str(folder)]
    command += ["--rounds", str(rounds), "--threads", str(threads)]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout[-1000:] + done.stderr[-2000:])
    return json.loads(next(t for t in done.stdout.splitlines() if t.startswith('{"found"')))[
        "found"
    ]


def one(part: str, folder: Path, rounds: int) -> None:
    """Print what a part finds in this process, or in those that torchrun has started."""
    ranks.start()
    found = {
        "disk": lambda: disk(FeatureStore(folder), rounds),
        "steps": lambda: steps(FeatureStore(folder), rounds),
        "memory": lambda: training_memory(FeatureStore(folder)),
        **{name: lambda name=name: extraction(folder, name) for name in SIZES},
    }[part]()
    if ranks.leads():
        print("\n" + json.dumps({"found": found}), flush=True)
    ranks.stop()


def measure(name: str, part: str, options: argparse.Namespace) -> dict[str, Any]:
    """One part of one size, each in processes of its own."""
    rounds, threads = options.rounds, options.threads
    if part == "extraction":
        pictures = make_pictures(options.folder, options.pictures)
        return dict(apart(pictures, name, rounds, threads))
    store = make_store(options.folder / name, *SIZES[name], options.gigabytes)
    if part == "disk":
        return dict(apart(store.path, part, rounds, threads))
    if part == "steps":
        found = [
            (apart(store.path, part, rounds, threads), apart(store.path, part, rounds, 1, threads))
            for _ in range(LAUNCHES)
        ]
        one, several = (_medians(kind) for kind in zip(*found, strict=True))
        return {
            "one": one,
            "processes": several,
            "count": threads,
            "disk / memory": _median(a["from disk"] / a["from memory"] for a, _ in found),
            "processes / one": _median(b["from disk"] / a["from disk"] for a, b in found),
        }
    few = quarter(store)
    return {
        "images": [len(store), len(FeatureStore(few))],
        "MiB": [
            _median(apart(path, part, rounds, threads) for _ in range(rounds))
            for path in (store.path, few)
        ],
    }


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)


def _medians(found: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: _median(one[name] for one in found) for name in found[0]}


def ratios(parts: dict[str, Any], name: str) -> dict[str, float]:
    """What is judged of a size, as far as it was measured."""
    found: dict[str, float] = {}
    if read := parts.get(f"{name} disk"):
        found["shuffled / sequential"] = read["cold"] / read["sequential"]
    if rates := parts.get(f"{name} steps"):
        found |= {what: rates[what] for what in ("disk / memory", "processes / one")}
    if peaks := parts.get(f"{name} memory"):
        found["memory, all / a quarter"] = peaks["MiB"][0] / peaks["MiB"][1]
    return found


def markdown(report: dict[str, Any]) -> str:
    """Facts, what was measured, and which bars hold."""
    facts = ", ".join(f"{name} {value}" for name, value in report["machine"].items())
    parts = report["parts"]
    lines = [
        f"{facts}, commit {report['commit']}",
        "",
        "| maps | what | measured |",
        "|---|---|---|",
    ]
    for key, found in parts.items():
        name, part = key.split()
        lines += [f"| {name} | {what} | {value} |" for what, value in _lines(part, found)]
    lines += ["", "| maps | ratio | measured | bar | holds |", "|---|---|---|---|---|"]
    for name in SIZES:
        for what, value in ratios(parts, name).items():
            limit, sign = LIMITS[what]
            holds = "yes" if sign * value >= sign * limit else "**no**"
            wanted = f"{'≥' if sign > 0 else '≤'} {limit}"
            lines.append(f"| {name} | {what} | {value:.2f} | {wanted} | {holds} |")
    busy = max((found["others"] for found in parts.values()), default=0.0)
    lines += [
        "",
        "Ratios of steps are medians over pairs of jobs, not quotients of the rates above. "
        f"Others used up to {busy:.0%} of the processors during a part.",
    ]
    return "\n".join(lines) + "\n"


def _lines(part: str, found: dict[str, Any]) -> list[tuple[str, str]]:
    """What was measured in a part, for people."""
    if part == "extraction":
        return [(f"extraction of {found['images']} images", f"{found['images/s']:.1f} images/s")]
    if part == "disk":
        size = f"store of {found['bytes'] / 1e9:.1f} GB, "
        titles = {"sequential": "one file after the other", "cold": "order of a training",
                  "warm": "order of a training, in memory"}  # fmt: skip
        return [(size + title, f"{found[k] / 1e9:.2f} GB/s") for k, title in titles.items()]
    if part == "memory":
        return [
            (f"peak of a training on {count} images", f"{peak:.0f} MiB")
            for count, peak in zip(found["images"], found["MiB"], strict=True)
        ]
    titles = {"one": "one process", "processes": f"{found['count']} processes of one thread"}
    return [
        (f"{title}, maps {source}", f"{rate:.2f} steps/s")
        for kind, title in titles.items()
        for source, rate in found[kind].items()
    ]


def main() -> None:
    """Make the stores that are missing, measure, write the report after every part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="where the stores are made")
    parser.add_argument("--gigabytes", type=float, default=2, help="of a store")
    parser.add_argument("--pictures", type=int, default=96, help="that are extracted")
    parser.add_argument("--rounds", type=int, default=3, help="of which a median is")
    parser.add_argument("--only", default="", help="parts whose name has this in it")
    parser.add_argument("--again", action="store_true", help="also what was measured before")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=TARGET)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.one:
        return one(arguments.one, arguments.folder, arguments.rounds)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    report = read_json(arguments.out) if arguments.out.is_file() else {"parts": {}}
    report |= {"machine": machine(), "commit": commit()}
    wanted = [(n, p) for n in SIZES for p in PARTS if arguments.only in f"{n} {p}"]
    for name, part in wanted:
        known = report["parts"].get(f"{name} {part}")
        if known and known["gigabytes"] == arguments.gigabytes and not arguments.again:
            continue
        clock, found = WatchedClock(), {}
        clock(lambda n=name, p=part, f=found: f.update(measure(n, p, arguments)))
        found |= {"gigabytes": arguments.gigabytes, "seconds": round(clock.seconds, 1)}
        report["parts"][f"{name} {part}"] = found | {"others": clock.share}
        write_json(arguments.out, report)
    print(markdown(report))
    return None


if __name__ == "__main__":
    main()
