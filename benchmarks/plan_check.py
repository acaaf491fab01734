"""What `infodisent plan` says before a run beside what the run then takes, at two sizes.

    python -m benchmarks.plan_check --folder runs/plan             # about six minutes on two cores
    python -m benchmarks.plan_check --folder runs/plan --again     # measure all of it anew
    python -m benchmarks.plan_check --folder runs/plan --cases infodisent=200 --out FILE
    python benchmarks/tables.py                                    # the Markdown

Photograph-like JPEG files are made in the folder, in four classes of which a quarter is held out.
For every method and number of images the command ``infodisent plan`` is asked first; then
extraction, the views of a method that compares two, and ``fit`` run, each in a process of its own
that starts with nothing but what the stages before have left on the disk. The backbone is
EfficientNet-Lite0 with ImageNet weights (demo extra). Finished cases are kept in the results file.
Figures count only if little else ran on the machine: what others used is in the rows.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.cpu_report import commit
from benchmarks.pools_report import WatchedClock, resident
from infodisent import demo
from infodisent.allocator import keep_memory
from infodisent.bench.machine import machine
from infodisent.data.extraction import extract
from infodisent.data.images import scan_folder
from infodisent.data.store import FeatureStore
from infodisent.data.views import extract_views
from infodisent.files import read_json, write_json
from infodisent.progress import bar
from infodisent.training.extraction_rate import photograph
from infodisent.training.folder import FEATURES, VIEWS
from infodisent.training.run import fit

MODULE = "benchmarks.plan_check"
TARGET = Path(__file__).parent / "results" / "plan-check.json"
CASES = ("infodisent=600", "infodisent=2400", "pipnet=100", "pipnet=400")
"""Methods and how many images."""
CLASSES = 4
BAR = 0.25
"""By how much a figure may be off, of what was planned."""
COUNTS = 0.1
"""Part of the whole time from which on a stage is judged by itself."""
STAGES = {
    "extraction": "extract",
    "linear probe": "baselines",
    "views": "views",
    "training, evaluation": "train",
    "prototypes": "prototypes",
}
"""Stages by the names of a plan, and how the names of the laps begin that `fit` takes for them."""
EVERY = 0.01
"""Seconds between two looks at the memory."""


def make_pictures(folder: Path, count: int) -> Path:
    """So many JPEG files of 500 x 375 pixels in class folders, each with a tint of its class."""
    place, random = folder / f"pictures-{count}", np.random.default_rng(count)
    if (place / "done").is_file():
        return place / "images"
    bases = [np.asarray(Image.open(io.BytesIO(photograph(seed)))) for seed in range(8)]
    tints = random.normal(0, 8, (CLASSES, 3))
    for number in range(count):
        path = place / "images" / f"class-{number % CLASSES}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        moved = np.roll(bases[number % len(bases)], random.integers(0, 375, 2), (0, 1))
        tint = tints[number % CLASSES] + random.normal(0, 8, 3)
        pixels = np.clip(moved + tint, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path, "JPEG", quality=90)
    (place / "done").touch()
    return place / "images"


def planned(pictures: Path, folder: Path, method: str) -> dict[str, Any]:
    """What the command says of a training on these pictures."""
    splits = [item.split for item in scan_folder(pictures).items]
    command = [sys.executable, "-m", "infodisent", "plan", "--json", "--classes", str(CLASSES)]
    command += ["--images", str(splits.count("train")), "--held-out", str(splits.count("val"))]
    command += ["--backbone", demo.BACKBONE, "--method", method, "--out", str(folder)]
    command += ["--pictures", str(pictures), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"infodisent plan: {(done.stdout + done.stderr)[-2000:]}")
    said: dict[str, Any] = json.loads(done.stdout)
    return said


class Memory:
    """Bytes of memory that belong to no file, as they are from time to time; Linux.

    Attributes:
        seen: seconds of `time.perf_counter`, and the bytes then.
    """

    def __init__(self) -> None:
        self.seen: list[tuple[float, int]] = []
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Memory:
        self.seen.append((time.perf_counter(), resident()))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ends.wait(EVERY):
            self.seen.append((time.perf_counter(), resident()))

    def most(self, start: float, end: float) -> int:
        """The most between two times, beyond what there was at first."""
        return max(used for at, used in self.seen if start <= at <= end) - self.seen[0][1]


def one(stage: str, pictures: Path, folder: Path, method: str) -> dict[str, Any]:
    """Run a stage in this process: "extract", "views", or "fit", which is all the others."""
    images = scan_folder(pictures)
    model = demo.efficientnet_lite0(CLASSES, method=method)
    clock, figures = WatchedClock(), {}
    if stage == "extract":
        figures["seconds"] = {stage: clock(lambda: extract(model, images, folder / FEATURES))}
    elif stage == "views":
        store = FeatureStore(folder / FEATURES)
        seconds = clock(lambda: extract_views(model, store, folder / VIEWS))
        figures["seconds"] = {stage: seconds}
    else:
        figures = _fit(model, images, folder, clock)
    return figures | {"others": clock.share}


def _fit(model: Any, images: Any, folder: Path, clock: WatchedClock) -> dict[str, Any]:
    """Seconds of the laps of `fit`, and the most memory while the method's head trains."""
    some = torch.rand(64, model.backbone.grid_size((224, 224))[0] ** 2, model.num_features)
    model.head(some.half(), input_fmt="NLC")  # what is read and built once
    del some
    runs: list[Any] = []
    with Memory() as memory:
        clock(lambda: runs.append(fit(model, images, folder, progress=False)))
    laps = runs[0].metrics["seconds"]
    end = memory.seen[0][0]
    for name, seconds in laps.items():
        start, end = end, end + seconds
        if name == "train":
            return {"seconds": laps, "memory": memory.most(start, end)}
    raise RuntimeError(f"fit: there is no lap for the training, only {', '.join(laps)}")


def bytes_below(folder: Path) -> int:
    """Of the maps that lie there."""
    return sum(file.stat().st_size for file in folder.rglob("shard-*.safetensors"))


def measured(pictures: Path, folder: Path, method: str, copies: bool) -> dict[str, Any]:
    """What the run takes; the folder is made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    laps: dict[str, float] = {}
    figures: dict[str, Any] = {"others": 0.0}
    for stage in ("extract", *(("views",) if copies else ()), "fit"):
        command = [sys.executable, "-m", MODULE, "--one", stage, str(pictures), str(folder), method]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{method}, {stage}: {done.stderr[-2000:]}")
        found = json.loads(done.stdout.splitlines()[-1])
        # what is there already, `fit` only looks at
        laps = found.pop("seconds") | laps
        figures |= found | {"others": max(figures["others"], found["others"])}
    return figures | {"laps": laps, "bytes": bytes_below(folder)}


def compare(said: dict[str, Any], took: dict[str, Any]) -> dict[str, Any]:
    """What was planned beside what was measured: seconds a stage, bytes, memory."""
    seconds = {stage["name"]: stage["seconds"] for stage in said["stages"]}
    stages = {
        name: [
            sum(seconds[part] for part in name.split(", ") if part in seconds),
            sum(value for lap, value in took["laps"].items() if lap.startswith(begin)),
        ]
        for name, begin in STAGES.items()
        if name.split(", ")[0] in seconds
    }
    total = [sum(pair[side] for pair in stages.values()) for side in (0, 1)]
    return {
        "seconds": stages | {"all": total},
        "bytes": [said["store"], took["bytes"]],
        "memory": [said["memory"], took["memory"]],
        "others": took["others"],
        "rates": said["rates"],
    }


def judged(row: dict[str, Any]) -> dict[str, bool]:
    """What a case is judged by, and whether it is within `BAR` of the plan."""
    seconds = row["seconds"]
    long = {n: pair for n, pair in seconds.items() if max(pair) >= COUNTS * max(seconds["all"])}
    pairs = long | {"bytes": row["bytes"], "memory": row["memory"]}
    return {name: abs(pair[1] / pair[0] - 1) <= BAR for name, pair in pairs.items()}


def markdown(report: dict[str, Any]) -> str:
    """Facts, a table a case, and what is not within the bar."""
    facts = ", ".join(f"{name} {value}" for name, value in report["machine"].items())
    lines = [
        f"{facts}, commit {report['commit']}",
        "",
        "| case | figure | planned | measured | measured / planned | within 25 % |",
        "|---|---|---|---|---|---|",
    ]
    for case, row in report["cases"].items():
        bars = judged(row)
        pairs = {f"{name}, s": (name, pair, 1.0) for name, pair in row["seconds"].items()}
        pairs["store, MB"] = ("bytes", row["bytes"], 1e6)
        pairs["memory of a training, MB"] = ("memory", row["memory"], 1e6)
        for title, (name, (said, took), unit) in pairs.items():
            verdict = {True: "yes", False: "**no**", None: ""}[bars.get(name)]
            lines.append(
                f"| {case.replace('=', ', ')} | {title} | {said / unit:.1f} | {took / unit:.1f} | "
                f"{took / said:.2f} | {verdict} |"
            )
    busy = max((row["others"] for row in report["cases"].values()), default=0.0)
    lines += [
        "",
        "A case: a method and how many images, a quarter of them held out. A stage is judged where "
        f"it takes a tenth of the time or more. Others used up to {busy:.0%} of the processors "
        "during a stage.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Plan, run and compare every case that is missing; write the report."""
    keep_memory()  # as the commands do
    if sys.argv[1:2] == ["--one"]:
        stage, pictures, folder, method = sys.argv[2:]
        print("\n" + json.dumps(one(stage, Path(pictures), Path(folder), method)))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="for pictures and runs")
    parser.add_argument("--cases", nargs="+", default=CASES, metavar="METHOD=IMAGES")
    parser.add_argument("--again", action="store_true", help="also what was measured before")
    parser.add_argument("--out", type=Path, default=TARGET)
    arguments = parser.parse_args()
    report = read_json(arguments.out) if arguments.out.is_file() else {"cases": {}}
    report |= {"machine": machine(), "commit": commit()}
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with bar(True) as display:
        task = display.add_task("plan and run", total=len(arguments.cases), note="")
        for case in arguments.cases:
            method, count = case.split("=")
            display.update(task, note=case)
            if case not in report["cases"] or arguments.again:
                pictures = make_pictures(arguments.folder, int(count))
                said = planned(pictures, arguments.folder, method)
                copies = any(stage["name"] == "views" for stage in said["stages"])
                folder = arguments.folder / f"run-{os.getpid()}"
                took = measured(pictures, folder, method, copies)
                shutil.rmtree(folder)
                report["cases"][case] = compare(said, took)
                write_json(arguments.out, report)
            display.advance(task)
    print(markdown(report))


if __name__ == "__main__":
    main()
