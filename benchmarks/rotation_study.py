"""What the rotation is worth: one head, its channels turned in different ways, or not at all.

    python -m benchmarks.rotation_study --features runs/methods      # all of it, resumable
    python -m benchmarks.rotation_study --features runs/methods --seeds 1 --variants "U = I"
    python benchmarks/tables.py                                      # the page of results

Every variant trains by the default recipe on the same stored maps of EfficientNet-Lite0 (those of
`benchmarks.methods_report`), and is judged on the held-out images by the figures of
`infodisent judge`. Where U is fixed, it is made first and only the class weights train: so a
rotation's own worth is told apart from that of learning it together with the classifier. Finished
runs are kept in the results file and not repeated. Seeds differ in initial weights, the order of
batches, and random rotations.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import image_sets
from benchmarks.cpu_report import commit
from infodisent import demo
from infodisent.bench.machine import machine
from infodisent.data.store import FeatureStore
from infodisent.evaluation.disentanglement import channel_purity, spatial_entropy
from infodisent.evaluation.faithfulness import cell_curves
from infodisent.evaluation.sizes import global_size
from infodisent.explanations.posthoc import EXPLAINERS
from infodisent.explanations.sparsity import exact, explanation_sizes
from infodisent.files import read_json
from infodisent.methods import Head
from infodisent.methods.infodisent import InfoDisentHead
from infodisent.methods.stages import Stage, TrainingOptions
from infodisent.training.fit import FitConfig, fit_head, new_head

MODULE = "benchmarks.rotation_study"
TARGET = Path(__file__).parent / "results" / "rotation-study.json"
THREADS = 2
BATCH = 32
"""Images judged at a time."""
TURNS = 20.0
"""Radians of the greatest angle of a random rotation (the semicircle law's edge)."""


class FixedRotationHead(InfoDisentHead):
    """InfoDisent whose rotation does not train."""

    def stages(self, config: TrainingOptions) -> tuple[Stage, ...]:
        """The class weights alone."""
        groups = [{"params": list(self.fc.parameters()), "lr": config.lr}]
        return (Stage("train", groups, pool_is_fixed=True),)


def fixed(store: FeatureStore, seed: int, skew: Tensor) -> InfoDisentHead:
    """A head with ``U = exp(skew)``."""
    torch.manual_seed(seed)
    head = FixedRotationHead(store.channels, len(store.classes))
    assert head.rotation is not None
    with torch.no_grad():
        head.rotation.A.copy_(skew / 2)
    return head


def random_rotation(store: FeatureStore, seed: int) -> InfoDisentHead:
    """A rotation that mixes all channels: its angles go round several times."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(store.channels, store.channels, generator=generator)
    return fixed(store, seed, (normal - normal.mT) * (TURNS / (8 * store.channels) ** 0.5))


def principal_axes(store: FeatureStore, seed: int) -> InfoDisentHead:
    """Channels along the principal axes of the training pixels about 0, the strongest first."""
    moments = torch.zeros(store.channels, store.channels, dtype=torch.float64)
    for maps, _, _ in store.batches(store.indices("train"), BATCH):
        pixels = maps.flatten(0, 1)
        moments += (pixels.mT @ pixels).double()
    axes = torch.linalg.eigh(moments).eigenvectors.flip(1)
    axes = axes * axes.sum(0).sign()  # the maps are mostly positive; so are their projections
    return fixed(store, seed, logarithm(axes.mT))


def logarithm(
    orthogonal: Tensor,  # [C, C] float64
) -> Tensor:
    """The real skew S with ``exp(S)`` equal to it; of determinant -1, to it with a row negated.

    From the eigenvalues ``e^(i t)`` of a normal matrix: S has ``i t`` for the same vectors.
    """
    if torch.linalg.det(orthogonal) < 0:
        orthogonal = torch.cat([orthogonal[:-1], -orthogonal[-1:]])
    values, vectors = torch.linalg.eig(orthogonal)
    skew = (vectors * (1j * values.angle())) @ torch.linalg.inv(vectors)
    skew = (skew.real - skew.real.mT) / 2
    error = float((torch.linalg.matrix_exp(skew) - orthogonal).abs().max())
    if error > 1e-8:
        raise ArithmeticError(f"the logarithm of a rotation is off by {error:.1e}")
    return skew


def pure_rotation(store: FeatureStore, seed: int) -> InfoDisentHead:
    """U trained for EPIC's purity, without regard to this classifier."""
    epic = new_head(store.channels, len(store.classes), seed, method="epic")
    train = store.indices("train")
    fit_head(epic, store, FitConfig(seed=seed), train=train, progress=False)
    parameter = epic.get_parameter("rotation.A").detach()
    return fixed(store, seed, parameter - parameter.mT)


def learned(**options: Any) -> Callable[[FeatureStore, int], Head]:
    """A head of the package by its options."""

    def build(store: FeatureStore, seed: int) -> Head:
        return new_head(store.channels, len(store.classes), seed, **options)

    return build


Build = Callable[[FeatureStore, int], Head]
VARIANTS: dict[str, tuple[Build, dict[str, Any]]] = {
    "U = I": (learned(rotate=False), {}),
    "U = I, no L1": (learned(rotate=False), {"l1": 0.0}),
    "U = I, top 5 pixels": (learned(rotate=False, pooling="topk"), {}),
    "random U": (random_rotation, {}),
    "principal axes": (principal_axes, {}),
    "U of EPIC's purity": (pure_rotation, {}),
    "learned U": (learned(), {}),
    "learned U, no L1": (learned(), {"l1": 0.0}),
    "learned U, top 5 pixels": (learned(pooling="topk"), {}),
    "learned U, SIDE-like": (learned(method="side-like"), {}),
}
"""How a head is made, and what differs from the default `FitConfig`."""


def one(folder: Path, variant: str, seed: int) -> dict[str, Any]:
    """Train and judge a variant once, in this process."""
    torch.set_num_threads(THREADS)
    store = FeatureStore(folder)
    train, test = store.indices("train"), store.indices("val")
    build, options = VARIANTS[variant]
    head = build(store, seed)
    fit_head(head, store, FitConfig(seed=seed, **options), train=train, progress=False)
    return judged(head, store, train, test)


@torch.no_grad()
def judged(head: Head, store: FeatureStore, train: Tensor, test: Tensor) -> dict[str, Any]:
    """Means over the held-out images, and of the channels."""
    head.eval()
    columns: dict[str, list[Tensor]] = {}
    for maps, labels, _ in store.batches(test, BATCH):
        pooled = head.pool(maps, input_fmt="NLC").pooled
        classes = head.classify(pooled).argmax(1)
        size = explanation_sizes(head.contributions(exact(pooled), classes)).double()
        found = {
            "accuracy": (classes == labels).double(),
            "size": torch.where(size > 0, size, torch.nan),
            "entropy": spatial_entropy(head, maps).double(),
        }
        with contextlib.suppress(ValueError):  # no closed form for means of several pixels
            for name in ("evidence", "random"):
                curves = cell_curves(head, maps, EXPLAINERS[name](head, maps, classes), classes)
                of = "" if name == "evidence" else " random"
                found |= {f"deletion{of}": curves.deletion, f"insertion{of}": curves.insertion}
        for name, values in found.items():
            columns.setdefault(name, []).append(values)
    figures = {name: torch.cat(values).nanmean().item() for name, values in columns.items()}
    figures["size"] = torch.cat(columns["size"]).nanmedian().item()
    used = head.class_weights().gt(1e-3).any(0)
    of_training = (maps for maps, _, _ in store.batches(train, BATCH))
    purity = channel_purity(head, of_training, by="max")
    figures |= {
        "purity": purity.mean().item(),
        "purity used": purity[used].mean().item(),
        "used": global_size(head)[0],
        "held_out": len(test),
    }
    rotation = getattr(head, "rotation", None)
    if rotation is not None:  # 1: no channel moved
        figures["diagonal"] = rotation().diagonal().abs().mean().item()
    return {name: round(value, 5) for name, value in figures.items()}


COLUMNS: dict[str, tuple[str, str]] = {
    "accuracy": ("accuracy", ".1%"),
    "size": ("channels for 95 %", ".0f"),
    "used": ("channels used", ".0f"),
    "purity used": ("purity of used", ".3f"),
    "purity": ("of all", ".3f"),
    "entropy": ("entropy, nats", ".2f"),
    "deletion": ("deletion ↓", ".3f"),
    "insertion": ("insertion ↑", ".3f"),
    "diagonal": ("mean abs. U_cc", ".2f"),
}
"""Titles and forms of the figures, in the order of the table."""


LEGEND = """Means over the seeds ± their standard deviation. *Channels for 95 %*: median number,
largest contributions first, that carry 95 % of the predicted class's logit. *Used*: with a weight
above 0.001 for some class. *Purity*: EPIC's, of a channel's five strongest training images; *of
used*: mean over the used channels. *Entropy*: PiPS', of where a channel is active. *Deletion,
insertion*: area under the class's probability as feature cells vanish or appear in the order of the
head's evidence; by a random order see the JSON file. *U_cc*: 1 where no channel moved."""


def markdown(report: dict[str, Any]) -> str:
    """The page of results."""
    facts = ", ".join(f"{k} {v}" for k, v in report["machine"].items())
    parts = ["# What the rotation is worth", f"{facts}, commit {report['commit']}"]
    for name in dict.fromkeys(run["images"] for run in report["runs"].values()):
        parts += [f"## {name}", table(report, name)]
    parts.append(LEGEND.replace("\n", " "))
    return "\n\n".join(parts) + "\n"


def table(report: dict[str, Any], images: str) -> str:
    """Markdown: a variant a line, in the order of `VARIANTS`."""
    titles = [title for title, _ in COLUMNS.values()]
    lines = [f"| | seeds | {' | '.join(titles)} |", "|---" * (len(titles) + 2) + "|"]
    for variant in VARIANTS:
        runs = [
            run
            for run in report["runs"].values()
            if (run["images"], run["variant"]) == (images, variant)
        ]
        if runs:
            cells = [_cell(runs, name, form) for name, (_, form) in COLUMNS.items()]
            lines.append(f"| {variant} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(runs: list[dict[str, Any]], name: str, form: str) -> str:
    values = [run[name] for run in runs if name in run]
    if not values:
        return "–"
    mean = format(statistics.mean(values), form)
    if len(values) == 1:
        return mean
    spread = statistics.stdev(values)
    return f"{mean} ± {100 * spread:.1f}" if name == "accuracy" else f"{mean} ± {spread:{form}}"


def main() -> None:
    """Extract what is missing, make the runs that are missing, write the report."""
    if sys.argv[1:2] == ["--one"]:
        folder, variant, seed = sys.argv[2:]
        print(json.dumps(one(Path(folder), variant, int(seed))))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    image_sets.add_options(parser)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=TARGET)
    arguments = parser.parse_args()
    model = demo.efficientnet_lite0(2)
    stores = image_sets.extracted(model, arguments)
    report = read_json(arguments.out) if arguments.out.is_file() else {"runs": {}}
    report |= {"machine": machine(), "commit": commit()}
    wanted = [
        image_sets.Run(
            f"{name}, {variant}, {seed}",
            stores[name].path,
            (variant, str(seed)),
            {"images": name, "variant": variant, "seed": seed},
        )
        for seed in range(arguments.seeds)
        for name in stores
        for variant in arguments.variants
    ]
    image_sets.add_runs(MODULE, report, wanted, arguments.out)
    print(markdown(report))


if __name__ == "__main__":
    main()
