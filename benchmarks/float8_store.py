"""What a store in float8 costs in accuracy: the default head on the same images' maps, both ways.

    python -m benchmarks.float8_store --features runs/methods --images flowers17=photos/flowers17
    python benchmarks/tables.py                                            # the Markdown

ELPV comes from the demo extra, other image sets are folders given with ``--images NAME=FOLDER``.
The maps of EfficientNet-Lite0 (ImageNet weights, frozen) are extracted as float16, which
`benchmarks.methods_report` shares, and as float8 (e4m3 with a scale an image, what ``infodisent fit
--feature-dtype float8`` stores), and a head trains and is judged on either with the same seeds: the
split, the initial weights and the order of batches are the same. Finished runs are kept in the
results file and not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import image_sets
from benchmarks.cpu_report import commit
from infodisent import demo
from infodisent.bench.machine import machine
from infodisent.data.encoding import FLOAT8
from infodisent.data.store import FeatureStore
from infodisent.evaluation.accuracy import evaluate_head
from infodisent.files import read_json
from infodisent.training.fit import FitConfig, fit_head, new_head

MODULE = "benchmarks.float8_store"
TARGET = Path(__file__).parent / "results" / "float8-store.json"
DTYPES = ("float16", FLOAT8)
KEPT = ("accuracy", "balanced_accuracy", "loss", "explanation_size", "units_used")


def one(folder: Path, seed: int) -> dict[str, Any]:
    """Train the default head on a store and judge it on the held-out images, in this process."""
    store = FeatureStore(folder)
    head = new_head(store.channels, len(store.classes), seed, method="infodisent")
    fit_head(head, store, FitConfig(seed=seed), progress=False)
    figures = evaluate_head(head, store, store.indices("val")).as_dict()
    return {name: figures[name] for name in KEPT}


def difference(half: FeatureStore, eighth: FeatureStore) -> dict[str, Any]:
    """Sizes of two stores of the same images, and how far the second's maps are from the first's.

    Raises:
        ValueError: they hold other images.
    """
    if half.files != eighth.files:
        raise ValueError(f"{half.path} and {eighth.path} hold other images")
    off = square = 0.0
    for at in torch.arange(len(half)).split(64):
        maps = half.gather(at).double()
        off += float((eighth.gather(at).double() - maps).square().sum())
        square += float(maps.square().sum())
    return {
        "classes": len(half.classes),
        "train": len(half.indices("train")),
        "held_out": len(half.indices("val")),
        "bytes": {name: len(s) * s.image_bytes for name, s in zip(DTYPES, (half, eighth))},
        "relative_error": math.sqrt(off / square),
    }


def markdown(report: dict[str, Any]) -> str:
    """Facts and the table."""
    facts = ", ".join(f"{name} {value}" for name, value in report["machine"].items())
    lines = [
        f"{facts}, commit {report['commit']}",
        "",
        "| images | seeds | accuracy, float16 | float8 | difference, points | loss, float16 | "
        "float8 | size of an explanation | store, MB | maps differ by |",
        "|---" * 10 + "|",
    ]
    for name, about in report["sets"].items():
        both = paired(report["runs"].values(), name)
        if not both:
            continue
        off = [100 * (eighth["accuracy"] - half["accuracy"]) for half, eighth in both]
        accuracy, loss, size = (
            [statistics.mean(pair[side][key] for pair in both) for side in (0, 1)]
            for key in ("accuracy", "loss", "explanation_size")
        )
        megabytes = [about["bytes"][dtype] / 1e6 for dtype in DTYPES]
        spread = f" ± {statistics.stdev(off):.1f}" if len(off) > 1 else ""
        lines.append(
            f"| {name} | {len(both)} | {accuracy[0]:.1%} | {accuracy[1]:.1%} | "
            f"{statistics.mean(off):+.2f}{spread} | {loss[0]:.3f} | {loss[1]:.3f} | "
            f"{size[0]:.1f}, {size[1]:.1f} | {megabytes[0]:.0f}, {megabytes[1]:.0f} | "
            f"{about['relative_error']:.1%} |"
        )
    lines += [
        "",
        "Accuracy on held-out images: mean over the seeds; difference of the same seed's two runs, "
        "mean ± standard deviation. Maps: root of the sum of squared differences, in parts of that "
        "of the maps.",
    ]
    return "\n".join(lines) + "\n"


def paired(runs: Any, images: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The two runs of every seed that has both."""
    of_seed: dict[int, dict[str, Any]] = {}
    for run in runs:
        if run["images"] == images:
            of_seed.setdefault(run["seed"], {})[run["dtype"]] = run
    return [(r[DTYPES[0]], r[DTYPES[1]]) for r in of_seed.values() if len(r) == len(DTYPES)]


def main() -> None:
    """Extract what is missing, make the runs that are missing, write the report."""
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(one(Path(sys.argv[2]), int(sys.argv[3]))))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    image_sets.add_options(parser)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=TARGET)
    arguments = parser.parse_args()
    model = demo.efficientnet_lite0(2)
    stores = {d: image_sets.extracted(model, arguments, d) for d in DTYPES}
    names = list(stores[DTYPES[0]])
    report = read_json(arguments.out) if arguments.out.is_file() else {"runs": {}}
    report |= {"machine": machine(), "commit": commit()}
    report["sets"] = {name: difference(*(stores[d][name] for d in DTYPES)) for name in names}
    wanted = [
        image_sets.Run(
            f"{name} {dtype} {seed}",
            stores[dtype][name].path,
            (str(seed),),
            {"images": name, "dtype": dtype, "seed": seed},
        )
        for seed in range(arguments.seeds)
        for name in names
        for dtype in DTYPES
    ]
    image_sets.add_runs(MODULE, report, wanted, arguments.out)
    print(markdown(report))


if __name__ == "__main__":
    main()
