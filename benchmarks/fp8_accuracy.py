"""What the float8 option of the CUDA module costs in accuracy, emulated on the CPU.

    python -m benchmarks.fp8_accuracy                          # random maps
    python -m benchmarks.fp8_accuracy --run runs/elpv          # and the run's features and head

From the repository root. ``--run`` is a folder that ``infodisent demo`` or ``fit`` has made: a
model, and beside it ``features``. Everything is compared with the same maps in float32, and so are
bfloat16 operands, for scale. "float8" is what casts, scales and packed keys cost, with float32
sums. The tensor cores keep fewer bits of sums of float8 products: "float8, sums of 14 bits" is a
model of that, not of any GPU in particular, and shows no more than its order of magnitude.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import infodisent
from infodisent import ops, reference
from infodisent.backends.cuda import float8 as _float8
from infodisent.bench.machine import machine
from infodisent.bench.shapes import AT_224, OTHERS
from infodisent.contract import Extremes
from infodisent.data.store import FeatureStore
from infodisent.files import write_json

Pool = Callable[[Tensor, Tensor], Extremes]

MAPS = [
    *(AT_224[name] for name in ("resnet50", "resnet34", "densenet121", "convnext_tiny")),
    *(AT_224[name] for name in ("convnext_large", "tf_efficientnet_lite0", "vit_base_patch16_224")),
    OTHERS["vit_base_patch16_224, class token"],
]


def exact(x: Tensor, u: Tensor) -> Extremes:
    """pos, neg, pos_index, neg_index of x [B, P, C] in float32."""
    return Extremes(*reference.rotate_pool(x, u, input_fmt="NLC")[1:])


def bfloat16(x: Tensor, u: Tensor) -> Extremes:
    """The same of operands rounded to bfloat16, float32 sums."""
    return exact(x.bfloat16().float(), u.bfloat16().float())


POOLS: dict[str, Pool] = {
    "float8": _float8.rotate_pool,
    "float8, sums of 14 bits": functools.partial(_float8.rotate_pool, sum_bits=14),
    "bfloat16": bfloat16,
}


def figures(result: Extremes, wanted: Extremes) -> dict[str, float]:
    """How far results are from those in float32."""
    pooled, right = result[0] - result[1], wanted[0] - wanted[1]
    off = (pooled - right).abs()
    places = [(result[i] == wanted[i]).float().mean().item() for i in (2, 3)]
    # of pos and neg each, where there is a value: a small difference of the two says little
    sides = torch.cat([(result[i] - wanted[i]).abs() / wanted[i].clamp_min(1e-30) for i in (0, 1)])
    there = torch.cat([wanted[0] > 0, wanted[1] > 0])
    return {
        "pooled_relative_error": (off.norm() / right.norm()).item(),
        "pooled_largest_error_of_largest_value": (off.max() / right.abs().max()).item(),
        "pos_neg_median_relative_error": sides[there].median().item(),
        "places_that_agree": sum(places) / 2,
    }


def random_maps(batch: int) -> dict[str, Any]:
    """Normal maps, and the same after ReLU, with a random rotation."""
    report = {}
    for size in MAPS:
        name, channels, pixels = size.title, size.channels, size.pixels
        g = torch.Generator().manual_seed(0)
        x = torch.randn(batch, pixels, channels, generator=g)
        u = ops.rotation(torch.randn(channels, channels, generator=g) * 0.01)
        for kind, values in (("normal", x), ("ReLU", x.relu())):
            wanted = exact(values, u)
            report[f"{name}, {kind}"] = {
                "channels": channels,
                "pixels": pixels,
                **{k: figures(pool(values, u), wanted) for k, pool in POOLS.items()},
            }
    return report


@torch.no_grad()
def real_maps(run: Path) -> dict[str, Any]:
    """The held-out images of a run, with its trained rotation and head."""
    store = FeatureStore(run / "features")
    model = infodisent.load(run / "model.safetensors").model
    head = model.head.eval()
    u = head.rotation().float() if head.rotation is not None else torch.eye(store.channels)
    indices = store.indices("val")
    results: dict[str, list[Extremes]] = {"float32": [], **{name: [] for name in POOLS}}
    for x, _, _ in store.batches(indices, 64):
        results["float32"].append(exact(x, u))
        for name, pool in POOLS.items():
            results[name].append(pool(x, u))
    labels = store.labels[indices]
    whole = {
        name: Extremes(*(torch.cat(parts) for parts in zip(*pools, strict=True)))
        for name, pools in results.items()
    }
    logits = {name: head.fc(result[0] - result[1]) for name, result in whole.items()}
    right = logits["float32"]
    # what an explanation shows: the channels with weight
    used = (head.fc.effective_weight() > 0).any(0)
    report: dict[str, Any] = {
        "backbone": model.spec["name"],
        "images": len(indices),
        "channels": store.channels,
        "pixels": store.pixels,
        "channels_with_weight": int(used.sum()),
        "float32": {"accuracy": accuracy(right, labels)},
    }
    for name in POOLS:
        some = tuple(t[:, used] for t in whole[name])
        report[name] = {
            **figures(whole[name], whole["float32"]),
            "channels_with_weight": figures(some, tuple(t[:, used] for t in whole["float32"])),
            "accuracy": accuracy(logits[name], labels),
            "predictions_that_agree": accuracy(logits[name], right.argmax(1)),
            "largest_probability_difference": (
                (logits[name].softmax(1) - right.softmax(1)).abs().max().item()
            ),
        }
    return report


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of rows whose largest logit is the label's."""
    return (logits.argmax(1) == labels).double().mean().item()


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--run", type=Path, help="folder of a run: a model and its features")
    parser.add_argument("--batch", type=int, default=16, help="random images of each size")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/fp8-accuracy.json"))
    arguments = parser.parse_args()
    report: dict[str, Any] = {"machine": machine(), "batch": arguments.batch}
    report["random"] = random_maps(arguments.batch)
    report["real"] = real_maps(arguments.run) if arguments.run else None
    write_json(arguments.out, report)
    for name, row in report["random"].items():
        values = [f"{k} {v['pooled_relative_error']:.2%} {v['places_that_agree']:.1%}"
                  for k, v in row.items() if isinstance(v, dict)]  # fmt: skip
        print(f"{name}: {', '.join(values)}")
    print(report["real"])


if __name__ == "__main__":
    main()
