"""Times a training step of each method's head from cached maps beside the published form's, CPU.

    python -m benchmarks.method_steps                # cpu-method-steps.json and .md
    python -m benchmarks.method_steps --only tesnet  # measures one (again), keeps the others

A step goes from maps to the new parameters: layers, similarities, all terms of the loss, backward,
the optimiser. Both sides have the same layers, numbers and updates; the published one keeps dense
maps ``[B, M, H, W]`` and pools them by `max_pool2d`, as the repositories do, and torch's default
optimiser where `infodisent.training` has the fused one. Losses are compared before anything is
timed. Another method is an entry of `ENTRIES`.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from benchmarks.cpu_report import commit
from benchmarks.pools_report import RESULTS, WatchedClock
from infodisent.allocator import keep_memory
from infodisent.bench import timing
from infodisent.bench.machine import machine
from infodisent.files import read_json, write_json, write_text
from infodisent.layout import to_bpc
from infodisent.methods.pipnet import PIPNetHead
from infodisent.methods.protopnet import EPSILON, ProtoPNetHead
from infodisent.methods.protopool import ProtoPoolHead
from infodisent.methods.stages import LoopOptions, TrainingBatch
from infodisent.methods.tesnet import TesNetHead
from infodisent.training.steps import adamw

TARGET = RESULTS / "cpu-method-steps.json"
CLASSES, CHANNELS, SIDE, BATCH = 200, 512, 7, 80
"""Of CUB-200 with ResNet-34 at 224 x 224, in the published batches."""
BAR, ROUNDS, THREADS = 5.0, 7, 2
PROGRESS = 0.5
"""Of the stage: some terms grow with it."""

Loss = Callable[[Any, Tensor, Tensor], Tensor]
"""Head, map ``[B, C, H, W]``, labels ``[B]`` to the loss of a step."""


Groups = list[dict[str, Any]]
Optimizer = Callable[[Groups], torch.optim.Optimizer]
"""Parameter groups to what moves them."""


def our_optimizer(groups: Groups) -> torch.optim.Optimizer:
    """That of `infodisent.training.epochs`."""
    return adamw(groups, torch.device("cpu"))


def published_optimizer(groups: Groups) -> torch.optim.Optimizer:
    """The same updates by torch's default implementation, which the repositories take."""
    return torch.optim.AdamW(groups, weight_decay=0.0)


def embedded(head: Any, x: Tensor) -> Tensor:
    """The head's two layers as convolutions, ``[B, D, H, W]``."""
    first, between, second, end = head.add_on
    x = between(F.conv2d(x, first.weight[:, :, None, None], first.bias))
    result: Tensor = end(F.conv2d(x, second.weight[:, :, None, None], second.bias))
    return result


def least(distance: Tensor) -> Tensor:
    """Minimum over the pixels of a dense map, ``[B, M]``."""
    return -F.max_pool2d(-distance, distance.shape[2:]).flatten(1)


def by_masks(head: Any, distance: Tensor, labels: Tensor, most: float) -> tuple[Tensor, Tensor]:
    """Cluster and separation from ``[B, M]``, as ``most - max((most - d) * mask)``."""
    own = head.own().float()  # [M, K]
    mask = own[:, labels].mT
    cluster = most - ((most - distance) * mask).amax(1)
    separation = most - ((most - distance) * (1 - mask)).amax(1)
    return cluster.mean(), separation.mean()


def wrong_weights(head: Any) -> Tensor:
    """The last layer's magnitudes but for own classes'."""
    wrong: Tensor = 1 - head.own().float().mT
    return (head.last.weight * wrong).norm(p=1)


def published_protopnet(head: Any, x: Tensor, labels: Tensor) -> Tensor:
    """Norms by a convolution with ones, dense distances, masks by multiplication."""
    x = embedded(head, x)
    weight = head.prototypes[:, :, None, None]
    norms = F.conv2d(x**2, torch.ones_like(weight))
    own = (weight**2).sum(dim=(1, 2, 3))[:, None, None]
    distance = least(F.relu(norms + (own - 2 * F.conv2d(x, weight))))
    logits = head.last(torch.log((distance + 1) / (distance + EPSILON)))
    cluster, separation = by_masks(head, distance, labels, head.dimension)
    loss = F.cross_entropy(logits, labels) + head.cluster * cluster
    return loss - head.separation * separation + head.wrong_weight * wrong_weights(head)


def published_tesnet(head: Any, x: Tensor, labels: Tensor) -> Tensor:
    """Two dense maps, projections and cosines, and all pairs of the classes' D x D projectors."""
    x = embedded(head, x)
    weight = F.normalize(head.prototypes)[:, :, None, None]
    projection = -least(-F.conv2d(x, weight))
    distance = least(-F.conv2d(F.normalize(x), weight))
    logits = head.last(projection)
    cluster, separation = by_masks(head, distance, labels, head.dimension)
    bases = head.prototypes.view(head.num_classes, head.per_class, head.dimension)
    gram = bases @ bases.mT - torch.eye(head.per_class)
    projectors = bases.mT @ bases
    apart = (projectors[:, None] - projectors[None] + 1e-10).norm(dim=(2, 3))  # [K, K] of K²·D²
    subspaces = apart.sum(dtype=torch.float64).float() / (2 * math.sqrt(2))
    loss = F.cross_entropy(logits, labels) + head.cluster * cluster
    loss = loss - head.separation * separation + head.wrong_weight * wrong_weights(head)
    return loss + head.orthogonal * gram.abs().sum() - head.subspaces * subspaces


def published_protopool(head: Any, x: Tensor, labels: Tensor) -> Tensor:
    """Dense distances, their minima and means, and slots by einsum; choices are a plain softmax."""
    layer, end = head.add_on
    x = end(F.conv2d(x, layer.weight[:, :, None, None], layer.bias))
    weight = head.prototypes[:, :, None, None]
    norms = F.conv2d(x**2, torch.ones_like(weight))
    own = (weight**2).sum(dim=(1, 2, 3))[:, None, None]
    dense = F.relu(norms + (own - 2 * F.conv2d(x, weight)))
    near, mean = least(dense), F.avg_pool2d(dense, dense.shape[2:]).flatten(1)
    share = head.assignment.softmax(-1)  # [K, slots, M]
    slots = [torch.einsum("bm,ksm->bks", d, share).flatten(1) for d in (near, mean)]
    best, average = (torch.log((d + 1) / (d + EPSILON)) for d in slots)
    loss = F.cross_entropy(head.last(best - average), labels)
    unit = F.normalize(head.assignment, dim=-1)
    alike = torch.einsum("ksm,ktm->kst", unit, unit).sum() / (head.slots * head.num_classes) - 1
    presence = share.detach().sum(1)[labels]  # [B, M]
    mask = torch.zeros_like(presence).scatter_(
        1, presence.topk(min(head.slots, head.num_features)).indices, 1.0
    )
    most = head.dimension
    cluster = (most - ((most - near) * mask).amax(1)).mean()
    separation = (most - ((most - near) * (1 - mask)).amax(1)).mean()
    eye = torch.eye(head.num_classes).repeat_interleave(head.slots, dim=1)
    wrong = (head.last.weight * (1 - eye)).norm(p=1)
    loss = loss + head.cluster * cluster - head.separation * separation
    return loss + head.orthogonality * alike + head.wrong_weight * wrong


def published_pipnet(head: Any, x: Tensor, labels: Tensor) -> Tensor:
    """Dense softmaxes of two views, their products, maxima and logarithms; pretraining's loss."""
    del labels
    shares = F.conv2d(x, head.layer.weight[:, :, None, None], head.layer.bias).softmax(1)
    one, other = shares.chunk(2)
    alike = [
        -torch.log((a * b.detach()).sum(1) + 1e-12).mean() for a, b in ((one, other), (other, one))
    ]
    found = F.max_pool2d(shares, shares.shape[2:]).flatten(1)
    present = [-torch.log(torch.tanh(view.sum(0)) + 1e-8).mean() for view in found.chunk(2)]
    epoch = math.floor(PROGRESS * head.pretraining) + 1
    total: Tensor = epoch / head.pretraining * sum(alike) / 2 + 5 * sum(present) / 2
    return total


@dataclass(frozen=True)
class Entry:
    """One method.

    Attributes:
        title: its name for people.
        head: makes its head.
        published: the loss as the published code has it.
        side: of the map; None for `SIDE`.
    """

    title: str
    head: Callable[[], Any]
    published: Loss
    side: int | None = None


ENTRIES = {
    "protopnet": Entry(
        "ProtoPNet, 2000 × 128",
        lambda: ProtoPNetHead(CHANNELS, CLASSES, similarity="l2"),
        published_protopnet,
    ),
    "tesnet": Entry(
        "TesNet, 2000 × 64",
        lambda: TesNetHead(CHANNELS, CLASSES, dimension=64),
        published_tesnet,
    ),
    "protopool": Entry(
        "ProtoPool, 202 × 128, 10 slots a class",
        lambda: ProtoPoolHead(
            CHANNELS, CLASSES, pool_size=CLASSES + 2, slots=min(10, CLASSES), similarity="l2"
        ),
        published_protopool,
    ),
    "pipnet": Entry(
        "PIP-Net, 768, pretraining",
        lambda: PIPNetHead(CHANNELS, CLASSES, num_prototypes=768),
        published_pipnet,
        side=26,
    ),
}


def our_loss(head: Any, maps: Tensor, labels: Tensor) -> Tensor:
    """What `infodisent.training.epochs` computes in a step; `maps` ``[B, P, C]``."""
    pooled, extra = head.training_pool(maps, input_fmt="NLC")
    stage = head.stages(LoopOptions())[0].name
    batch = TrainingBatch(labels, pooled, extra, stage, PROGRESS)
    loss = head.loss(F.cross_entropy, head.classify(pooled), batch)
    penalty = head.penalty(LoopOptions(), batch)
    result: Tensor = loss if penalty is None else loss + penalty
    return result


def step(head: Any, loss: Loss, x: Tensor, labels: Tensor, optimizer_of: Optimizer) -> timing.Work:
    """One step of the first stage, whose parameters alone train."""
    stage = head.stages(LoopOptions())[0]
    for parameter in head.parameters():
        parameter.requires_grad_(False)
    for parameter in stage.parameters():
        parameter.requires_grad_(True)
    optimizer = optimizer_of([dict(group) for group in stage.groups])

    def run() -> None:
        optimizer.zero_grad()
        loss(head, x, labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        head.after_step()

    return run


def measure(name: str) -> dict[str, Any]:
    """One row: both losses compared, then both steps in turn."""
    entry = ENTRIES[name]
    torch.manual_seed(0)
    side = SIDE if entry.side is None else min(entry.side, 4 * SIDE)
    x = torch.randn(BATCH, CHANNELS, side, side).relu_()
    labels = torch.randint(CLASSES, (BATCH,))
    rows = to_bpc(x, "NCHW").contiguous()
    ours, theirs = entry.head().train(), entry.head().train()
    with torch.no_grad():
        if hasattr(ours, "prototypes"):  # as published: in the positive corner
            ours.prototypes.abs_()
    theirs.load_state_dict(ours.state_dict())
    values = {"ours": our_loss(ours, rows, labels), "published": entry.published(theirs, x, labels)}
    found, wanted = (value.item() for value in values.values())
    if not math.isclose(found, wanted, rel_tol=1e-4, abs_tol=1e-4):
        raise ValueError(f"{name}: our loss is {found}, the published form's {wanted}")
    del values
    runs = {"ours": step(ours, our_loss, rows, labels, our_optimizer)}
    runs["published"] = step(theirs, entry.published, x, labels, published_optimizer)
    clock = WatchedClock()
    seconds = timing.samples(runs, ROUNDS, clock)
    medians = {side: statistics.median(times) for side, times in seconds.items()}
    return {
        "method": name,
        "milliseconds": {side: round(1e3 * value, 2) for side, value in medians.items()},
        "speedup": round(medians["published"] / medians["ours"], 2),
        "loss": {"ours": found, "published": wanted},
        "rounds": ROUNDS,
        "used by others": round(clock.share, 3),
        "measured": time.strftime("%Y-%m-%d"),
    }


def markdown(report: dict[str, Any]) -> str:
    """The whole report."""
    facts = {**report["machine"], "commit": report["commit"]}
    lines = [
        ", ".join(f"{key} {value}" for key, value in facts.items()),
        "",
        f"A training step from cached maps, float32, {BATCH} × {CHANNELS} × {SIDE} × {SIDE}, "
        f"{CLASSES} classes, medians of {ROUNDS} interleaved rounds. Others' CPU: share of the "
        "processors' time that went to other processes; rows with more than a few percent are "
        "rough.",
        "",
        "| method | ours, ms | published, ms | faster | asked | | others' CPU |",
        "|---" * 7 + "|",
    ]
    for row in report["results"]:
        ours, published = (row["milliseconds"][side] for side in ("ours", "published"))
        holds = "holds" if row["speedup"] >= BAR else "**missed**"
        lines.append(
            f"| {ENTRIES[row['method']].title} | {ours:.1f} | {published:.1f} | "
            f"{row['speedup']:.2f}× | {BAR:.0f}× | {holds} | {row['used by others']:.0%} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run and write both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", choices=tuple(ENTRIES), default=tuple(ENTRIES))
    chosen = parser.parse_args().only
    torch.set_num_threads(THREADS)
    keep_memory(all_of_it=True)
    about = {"machine": machine(), "commit": commit()}
    stored = read_json(TARGET) if TARGET.is_file() else {}
    same = {key: stored.get(key) for key in about} == about
    rows = {row["method"]: row for row in stored.get("results", [])} if same else {}
    for name in chosen:
        rows[name] = measure(name)
        report = {**about, "results": [rows[key] for key in ENTRIES if key in rows]}
        write_json(TARGET, report)
        write_text(TARGET.with_suffix(".md"), markdown(report))
    print(TARGET.with_suffix(".md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
