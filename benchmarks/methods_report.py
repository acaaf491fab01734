"""Every method on real images: accuracy, explanation size, prototypes, time and memory.

    python -m benchmarks.methods_report --features runs/methods            # all of it, resumable
    python -m benchmarks.methods_report --features runs/methods --methods protopnet,tesnet --seeds 1
    python -m benchmarks.methods_report --features runs/methods --option tesnet.dimension=128
    python -m benchmarks.methods_report --features runs/methods --cited --seeds 1
    python benchmarks/tables.py                                            # the Markdown

ELPV comes from the demo extra; other image sets are folders given with ``--images NAME=FOLDER``.
The backbone is EfficientNet-Lite0 with ImageNet weights, frozen; every method trains by its default
options from the same stored maps, each run in a process of its own, whose peak memory beyond what
it held before the training is in the row. The images are split once; seeds differ in initial
weights and the order of batches. ``--option METHOD.KEY=VALUE`` makes runs of a method with another
option of its own, or of `FitConfig` where it has none of that name (several: ``,KEY=VALUE``), which
are rows of their own; ``--cited`` those of which a docstring of `infodisent.methods` says what they
change. Without ``--methods`` either makes no other runs. Finished runs are kept in the results file
and not repeated. A time counts only if little else ran on the machine beside it; `--retime` makes
those runs again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import image_sets
from benchmarks.cpu_report import commit
from benchmarks.pools_report import WatchedClock, peak_memory
from infodisent import demo
from infodisent.bench.machine import machine
from infodisent.data.store import FeatureStore
from infodisent.data.views import ViewStore, extract_views
from infodisent.evaluation.accuracy import evaluate_head, linear_probe, original_head
from infodisent.files import read_json
from infodisent.methods import METHODS, Head, build_head
from infodisent.methods.stages import LoopOptions
from infodisent.training.fit import FitConfig, fit_head, new_head

MODULE = "benchmarks.methods_report"
TARGET = Path(__file__).parent / "results" / "methods.json"
THREADS = 2
CITED = (
    "protopnet.similarity=l2",
    "protopool.pool_size=20",
    "protopool.drop_rate=0.0",
    "protoquant.temperature=0.1",
    "prototree.channel_drop=0.0",
    "tesnet.dimension=64",
    "tesnet.activation=none",
    "pipnet.num_prototypes=0",
    "side-like.per_class=10",
    "tree.trees=200",
)
"""Options whose effect a docstring speaks of."""
QUIET = 0.5
"""Processors that others may keep busy during a run whose time counts."""


Options = dict[str, Any]
"""Of a method, by name, where they are not the defaults."""


def one(folder: Path, method: str, seed: int, options: Options) -> dict[str, Any]:
    """Train and evaluate a method once, in this process."""
    torch.set_num_threads(THREADS)
    own = METHODS[method].option_names()
    of_head = {key: value for key, value in options.items() if key in own}
    of_fit = {key: value for key, value in options.items() if key not in own}
    store = FeatureStore(folder)
    train, test = store.indices("train"), store.indices("val")
    head = new_head(store.channels, len(store.classes), seed, method=method, **of_head)
    for maps, _, _ in store.batches(train[:64], 64, dtype=None):  # what is read and built once
        head(maps, input_fmt="NLC")
    pairs = views_of(folder) if needs_views(method) else None
    config, history = FitConfig(seed=seed, **of_fit), []
    clock, memory = WatchedClock(), 0.0

    def train_head() -> None:
        history.extend(fit_head(head, store, config, train=train, views=pairs, progress=False))

    def watched() -> None:
        nonlocal memory
        memory = peak_memory(train_head)

    seconds = clock(watched)
    figures = evaluate_head(head, store, test).as_dict()
    return {
        "held_out": figures.pop("images"),
        **figures,
        "units": head.num_features,
        "epochs": len(history),
        "seconds": round(seconds, 1),
        "others": round(max(0.0, clock.others / seconds), 2),
        "memory": round(memory, 1),
        **purity_of(head),
    }


def purity_of(head: Head) -> dict[str, Any]:
    """Mean purity of the positive channels before and after, of a head that turns them for that."""
    purity = getattr(head, "purity", None)
    return {} if purity is None else {"purity": [round(p, 4) for p in purity[:, 0].tolist()]}


def parsed(text: str) -> tuple[str, Options]:
    """A method and its options, from ``METHOD.KEY=VALUE,KEY=VALUE``; values as in JSON, or words.

    Raises:
        ValueError: it is not of that form, or there is no such method or option.
    """
    method, dot, rest = text.partition(".")
    if not dot or method not in METHODS:
        raise ValueError(
            f"--option: {text!r} is not METHOD.KEY=VALUE, where METHOD is one of "
            f"{', '.join(METHODS)}"
        )
    allowed = {*METHODS[method].option_names(), *FitConfig.__dataclass_fields__} - {"seed"}
    options: Options = {}
    for pair in rest.split(","):
        key, equals, value = pair.partition("=")
        if not equals or key not in allowed:
            raise ValueError(
                f"--option: {pair!r} is not KEY=VALUE, where KEY is one of "
                f"{', '.join(sorted(allowed))}"
            )
        try:
            options[key] = json.loads(value)
        except json.JSONDecodeError:
            options[key] = value
    return method, options


def worded(options: Options) -> str:
    """Options as they were given: ``KEY=VALUE,KEY=VALUE``; "" for none."""
    return ",".join(
        f"{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in options.items()
    )


def needs_views(method: str) -> bool:
    """Whether a method compares two views of an image."""
    stages = build_head(method, 8, 2).stages(LoopOptions())
    return any(stage.views > 1 for stage in stages)


def views_of(folder: Path) -> ViewStore:
    """The views beside a store."""
    return ViewStore(folder.with_name(f"{folder.name}-views"))


def baselines(store: FeatureStore) -> dict[str, Any]:
    """Accuracy of the original head, if it knows the classes, and of a linear probe."""
    train, test = store.indices("train"), store.indices("val")
    start = time.perf_counter()
    probe = linear_probe(store, train, test).accuracy
    seconds = time.perf_counter() - start
    original = original_head(store, test)
    return {
        "original head": None if original is None else original.accuracy,
        "linear probe": probe,
        "linear probe seconds": round(seconds, 1),
        "train": len(train),
        "held_out": len(test),
        "classes": len(store.classes),
    }


def markdown(report: dict[str, Any]) -> str:
    """Facts, and a table an image set."""
    facts = ", ".join(f"{k} {v}" for k, v in report["machine"].items())
    parts = [f"{facts}, commit {report['commit']}"]
    for name, known in report["baselines"].items():
        about = f"{known['classes']} classes, {known['train']} training and {known['held_out']} "
        parts += [f"## {name}: {about}held-out images", table(report, name)]
    parts.append(
        "Accuracy: mean over the seeds ± their standard deviation. Size: median number of units, "
        "largest contributions first, that carry 95 % of the predicted class's score, and in "
        "brackets of the sum of all magnitudes. Used: units with a weight for some class. Time of "
        "a training from stored maps, two threads; memory: peak beyond what the process held "
        "before. –: not defined, or not measured on a machine that was quiet enough."
    )
    return "\n\n".join(parts) + "\n"


def table(report: dict[str, Any], images: str) -> str:
    """Markdown: one line a method on one image set, the best accuracy first."""
    known = report["baselines"][images]
    lines = [
        "| head | seeds | accuracy | minus probe | size (by magnitude) | used of units | s | MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in ("original head", "linear probe"):
        if known[name] is not None:
            off = 100 * (known[name] - known["linear probe"])
            lines.append(f"| {name} | | {known[name]:.1%} | {off:+.1f} | | | | |")
    of_row: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in report["runs"].values():
        if run["images"] == images and run["method"] in METHODS:
            of_row.setdefault((run["method"], worded(run.get("options", {}))), []).append(run)
    rows = []
    for (method, options), runs in of_row.items():
        mean = statistics.mean(run["accuracy"] for run in runs)
        title = METHODS[method].title + (f", `{options}`" if options else "")
        # defaults first, the options below them
        rows.append((bool(options), -mean, _row(title, runs, mean, known["linear probe"])))
    return "\n".join(lines + [row for *_, row in sorted(rows)] + purity_lines(of_row))


def purity_lines(of_row: dict[tuple[str, str], list[dict[str, Any]]]) -> list[str]:
    """A sentence below a table for every row whose runs have a purity."""
    lines = []
    for (method, options), runs in of_row.items():
        pairs = [run["purity"] for run in runs if run.get("purity")]
        if pairs:
            before, after = (statistics.mean(pair[i] for pair in pairs) for i in (0, 1))
            title = METHODS[method].title + (f", `{options}`" if options else "")
            lines += [
                "",
                f"{title}: mean purity of the positive channels {before:.3f} → {after:.3f}",
            ]
    return lines


def summary(report: dict[str, Any]) -> str:
    """Markdown for README: one line a method, by its mean distance to the linear probe."""
    sets = report["baselines"]
    lines = [
        "| `--method` | "
        + " | ".join(f"{name}, minus probe" for name in sets)
        + " | size | used of units |",
        "|---" * (len(sets) + 3) + "|",
    ]
    rows = []
    for method in METHODS:
        runs = [
            run
            for run in report["runs"].values()
            if run["method"] == method and not run.get("options")
        ]
        cells, distances = [], []
        for name, known in sets.items():
            values = [run["accuracy"] for run in runs if run["images"] == name]
            if not values:
                cells.append("–")
                continue
            off = 100 * (statistics.mean(values) - known["linear probe"])
            distances.append(off)
            cells.append(f"{statistics.mean(values):.1%}, {off:+.1f}")
        if distances:
            of_units = f"{_mean(runs, 'units_used')} of {_mean(runs, 'units')}"
            size = f"{_mean(runs, 'magnitude_size')}"
            line = f"| `{method}` | {' | '.join(cells)} | {size} | {of_units} |"
            rows.append((-statistics.mean(distances), line))
    return "\n".join(lines + [line for _, line in sorted(rows)])


def _row(title: str, runs: list[dict[str, Any]], mean: float, probe: float) -> str:
    spread = statistics.stdev([run["accuracy"] for run in runs]) if len(runs) > 1 else None
    accuracy = f"{mean:.1%}" + ("" if spread is None else f" ± {100 * spread:.1f}")
    seconds = [run["seconds"] for run in runs if run["others"] <= QUIET]
    memory = [run["memory"] for run in runs if run["memory"] is not None]
    units = f"{_mean(runs, 'units_used')} of {_mean(runs, 'units')}"
    size = f"{_mean(runs, 'explanation_size')} ({_mean(runs, 'magnitude_size')})"
    time_ = f"{statistics.median(seconds):.0f}" if seconds else "–"
    return (
        f"| {title} | {len(runs)} | {accuracy} | {100 * (mean - probe):+.1f} | {size} | {units} | "
        f"{time_} | {f'{statistics.median(memory):.0f}' if memory else '–'} |"
    )


def _mean(runs: list[dict[str, Any]], name: str) -> str:
    values = [run[name] for run in runs if run.get(name) is not None]
    if not values:
        return "–"
    return f"{statistics.mean(values):.1f}".removesuffix(".0")


def main() -> None:
    """Extract what is missing, make the runs that are missing, write the report."""
    if sys.argv[1:2] == ["--one"]:
        folder, method, seed, options = sys.argv[2:]
        print(json.dumps(one(Path(folder), method, int(seed), json.loads(options))))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    image_sets.add_options(parser)
    parser.add_argument("--methods", help="names, comma-separated; default: all")
    parser.add_argument("--option", action="append", default=[], metavar="METHOD.KEY=VALUE")
    parser.add_argument("--cited", action="store_true", help="the options of docstrings' figures")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--retime", action="store_true", help="repeat runs that were disturbed")
    parser.add_argument("--out", type=Path, default=TARGET)
    arguments = parser.parse_args()
    given = [*arguments.option, *(CITED if arguments.cited else ())]
    methods = (arguments.methods or ("" if given else ",".join(METHODS))).split(",")
    methods = [name for name in methods if name]
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        parser.error(f"--methods: {', '.join(unknown)}; allowed are {', '.join(METHODS)}")
    try:
        rows: list[tuple[str, Options]] = [*((m, {}) for m in methods), *map(parsed, given)]
    except ValueError as error:
        parser.error(str(error))
    model = demo.efficientnet_lite0(2)
    stores = image_sets.extracted(model, arguments)
    empty: dict[str, Any] = {"runs": {}, "baselines": {}}
    report = read_json(arguments.out) if arguments.out.is_file() else empty
    report |= {"machine": machine(), "commit": commit()}
    if any(needs_views(method) for method, _ in rows):
        for store in stores.values():
            extract_views(model, store, store.path.with_name(f"{store.path.name}-views"))
    for name, store in stores.items():
        if name not in report["baselines"]:
            report["baselines"][name] = baselines(store)
    wanted = []
    for seed, name, (method, options) in itertools.product(range(arguments.seeds), stores, rows):
        key = " ".join(filter(None, (name, method, worded(options), str(seed))))
        call = method, str(seed), json.dumps(options)
        about = {"images": name, "method": method, "seed": seed}
        about |= {"options": options} if options else {}
        wanted.append(image_sets.Run(key, stores[name].path, call, about))

    def disturbed(known: dict[str, Any]) -> bool:
        return bool(arguments.retime and known["others"] > QUIET)

    image_sets.add_runs(MODULE, report, wanted, arguments.out, disturbed)
    print(markdown(report))


if __name__ == "__main__":
    main()
