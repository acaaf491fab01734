"""Times deletion / insertion and misalignment beside the loops that are in use, on a CPU.

    python -m benchmarks.judge_speed                            # random maps and pictures, seconds
    python -m benchmarks.judge_speed --run runs/fit --images 1000 --pictures 16 --quantus

Four contests, of the same maps, order and head; what both sides compute is compared before a time
is printed:

- cells: `cell_curves`, deletion and insertion, beside a pass of the head for every step of every
  image (RISE's loop), and beside Quantus's PixelFlipping, which only deletes (``--quantus``).
- misalignment, noise and pgd: beside the released benchmark's loop, which takes 40 forward and
  backward passes of a batch of 8 with the maps of all units, along a gradient that is zero, and so
  finds what noise alone finds; and beside the same loop with the true gradient.
- pixels: `pixel_curves` beside RISE's loop, an image and a step at a time.

Times are seconds an image; the last column is theirs over ours.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from infodisent.allocator import keep_memory
from infodisent.backbones.preprocess import transform_from
from infodisent.backbones.torchvision_import import ensure_torchvision
from infodisent.bench.machine import machine
from infodisent.classifier import InfoDisentClassifier, attach
from infodisent.data.pictures import load_picture
from infodisent.evaluation.faithfulness import cell_curves, pixel_curves
from infodisent.evaluation.images import maps_of
from infodisent.evaluation.misalignment import EPSILON, STEPS, misalignment
from infodisent.explanations.posthoc import evidence, shapley_cells
from infodisent.explanations.unit_maps import UnitMaps
from infodisent.files import write_json
from infodisent.methods import Head
from infodisent.training.run import open_run

BAR = 5.0
"""How much less time than the loops is promised for cells and misalignment."""
PIXEL_STEPS = 32


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


@torch.no_grad()
def loop_over_cells(head: Head, maps: Tensor, saliency: Tensor, classes: Tensor) -> Tensor:
    """Deletion and insertion curves of each image, a pass a step: ``[2, B, P + 1]``."""
    both = []
    for x, order, label in zip(
        maps, saliency.argsort(dim=1, descending=True, stable=True), classes
    ):
        curves: list[list[float]] = [[], []]
        for step in range(len(order) + 1):
            for curve, keep in zip(curves, (order[step:], order[:step]), strict=True):
                masked = torch.zeros_like(x)
                masked[keep] = x[keep]
                chance = head(masked[None], input_fmt="NLC").softmax(1)[0, label]
                curve.append(float(chance))
        both.append(curves)
    return torch.tensor(both).transpose(0, 1)


class OnMasks(nn.Module):
    """A head as a classifier of masks of its maps, ``[B, 1, side, side]`` of ones and zeros.

    Quantus deletes single numbers of all channels; of pictures with one channel these are cells.
    """

    def __init__(self, head: Head, maps: Tensor) -> None:
        super().__init__()
        self.head, self.maps = head, maps

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.maps * x.flatten(2).mT, input_fmt="NLC")
        return logits


def quantus_deletion(head: Head, maps: Tensor, saliency: Tensor, classes: Tensor) -> Any:
    """Quantus's PixelFlipping of cells, all images in one batch: its curves, ``[B, P]``."""
    import quantus

    side = round(maps.shape[1] ** 0.5)
    metric = quantus.PixelFlipping(
        features_in_step=1, perturb_baseline=0.0, return_auc_per_sample=False, normalise=False,
        abs=False, disable_warnings=True,
    )  # fmt: skip
    return metric(
        model=OnMasks(head, maps).eval(), x_batch=torch.ones(len(maps), 1, side, side).numpy(),
        y_batch=classes.numpy(), a_batch=saliency.unflatten(1, (side, side))[:, None].numpy(),
        softmax=True, channel_first=True, batch_size=len(maps),
    )  # fmt: skip


def released_attack(
    model: InfoDisentClassifier, images: Tensor, *, true_gradient: bool, seed: int = 0
) -> Tensor:
    """Activation change, PAC, ``[B]``, by the released benchmark's way of going.

    Batches of 8; at every one of 40 steps the maps of all units, the strongest's greatest value,
    and a backward pass: of that value, or, as released, of the cross-entropy of a single logit,
    whose gradient is 0. Boxes are made an image at a time, as there.
    """
    units = UnitMaps(model.head)
    g = torch.Generator().manual_seed(seed)
    rows: Any = torch.arange
    parts = []
    for x in images.split(8):
        with torch.no_grad():
            maps = maps_of(model, x)
            pool = model.head.pool(maps, input_fmt="NLC")
            labels = model.head.classify(pool.pooled).argmax(1)
            unit = (pool.pos * model.head.class_weights()[labels]).argmax(1)
            table = units.of_images(maps)[rows(len(x)), :, unit].clamp_min(0)
        outside = torch.stack([_outside(t, model, x.shape[2:]) for t in table])
        start = torch.rand(x.shape, generator=g) * 2 - 1
        change = EPSILON * start * outside
        lowest = torch.full((len(x),), torch.inf)
        for _ in range(STEPS + 1):
            change = change.detach().requires_grad_()
            every = units.of_images(maps_of(model, x + change))  # of all units, as released
            value = every[rows(len(x)), :, unit].clamp_min(0).amax(1)
            lowest = torch.minimum(lowest, value.detach())
            loss = value.sum()
            if not true_gradient:
                loss = nn.functional.cross_entropy(value[:, None], rows(len(x)) * 0)
            (gradient,) = torch.autograd.grad(loss, change)
            step = change - EPSILON / STEPS * gradient.sign()
            change = step.clamp(-EPSILON, EPSILON) * outside
        parts.append(100 * (1 - lowest / table.amax(1)))
    return torch.cat(parts)


def _outside(cells: Tensor, model: InfoDisentClassifier, size: torch.Size) -> Tensor:
    """1 outside of the box around the highest 5 %, ``[1, H, W]``."""
    grid = cells.unflatten(0, model.grid_size(size))[None, None]
    large = nn.functional.interpolate(grid, tuple(size), mode="bicubic")[0, 0]
    y, x = (large >= large.flatten().quantile(0.95)).nonzero(as_tuple=True)
    outside = torch.ones(1, *size)
    edge = [round(10 / 224 * side) for side in size]
    outside[:, max(0, int(y.min()) - edge[0]) : int(y.max()) + edge[0] + 1,
            max(0, int(x.min()) - edge[1]) : int(x.max()) + edge[1] + 1] = 0  # fmt: skip
    return outside


@torch.no_grad()
def loop_over_pixels(
    model: InfoDisentClassifier, images: Tensor, saliency: Tensor, classes: Tensor
) -> Tensor:
    """Deletion and insertion over pixels, an image and a step at a time: ``[2, B, steps + 1]``."""
    from infodisent.evaluation.faithfulness import _blurred

    count = images.shape[2] * images.shape[3]
    ends = torch.linspace(0, count, PIXEL_STEPS + 1).round().long().tolist()
    both = []
    for image, flat, label in zip(images, saliency.flatten(1), classes):
        order = flat.argsort(descending=True, stable=True)
        curves = []
        for start, finish in ((image, torch.zeros_like(image)), (_blurred(image), image)):
            picture, curve = start.clone().flatten(1), []
            for before, end in itertools.pairwise([0, *ends]):
                picture[:, order[before:end]] = finish.flatten(1)[:, order[before:end]]
                logits = model(picture.unflatten(1, image.shape[1:])[None])
                curve.append(float(logits.softmax(1)[0, label]))
            curves.append(curve)
        both.append(curves)
    return torch.tensor(both).transpose(0, 1)


def inputs(args: argparse.Namespace) -> tuple[InfoDisentClassifier, Tensor, Tensor]:
    """A model in evaluation mode, maps ``[images, P, C]``, pictures ``[pictures, 3, H, W]``."""
    if args.run is None:
        torch.manual_seed(0)
        model = attach("tf_efficientnet_lite0", 200).eval()
        with torch.no_grad():
            for parameter in model.head.parameters():
                parameter.normal_(0, 0.05)
        return model, torch.randn(args.images, 49, 1280), torch.randn(args.pictures, 3, 224, 224)
    loaded, _, run = open_run(args.run)
    store = run.trained_store()
    chosen = store.indices("val")
    maps = store.gather(chosen[torch.arange(args.images) % len(chosen)])
    to_input = transform_from(loaded.transform)
    files = [store.files[i] for i in chosen[: args.pictures].tolist()]
    pictures = [to_input(load_picture(file).image) for file in files]
    return loaded.model.eval(), maps, torch.stack(pictures)


def contests(
    args: argparse.Namespace, show: Callable[[dict[str, Any]], None] = lambda row: None
) -> list[dict[str, Any]]:
    """Every contest's row, shown as soon as it is known."""
    model, maps, pictures = inputs(args)
    model.requires_grad_(False)
    # as `open_run` leaves it; the loops get the model as it is otherwise
    model.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    plain = copy.deepcopy(model)
    plain.backbone.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    head = model.head
    with torch.no_grad():
        classes = head(maps, input_fmt="NLC").argmax(1)
    saliency = shapley_cells(head, maps, classes).float()  # no two cells alike, whose order is free
    few = slice(0, min(args.loop_images, len(maps)))
    part = maps[few], saliency[few], classes[few]
    cell_curves(head, *part)  # warm
    rows = []

    def row(what: str, peer: str, own: float, theirs: float, error: float, bar: bool) -> None:
        kept = {"what": what, "beside": peer, "seconds": own, "their_seconds": theirs}
        rows.append({**kept, "ratio": theirs / own, "difference": error, "bar": bar})
        show(rows[-1])
        if error > (2e-2 if "misalignment" in what else 1e-3):
            raise SystemExit(f"{what}: differs from {peer} by {error}")

    own, ours = timed(lambda: cell_curves(head, maps, saliency, classes))
    theirs, curves = timed(lambda: loop_over_cells(head, *part))
    error = float((ours.deletion_curve[few] - curves[0]).abs().max())
    error = max(error, float((ours.insertion_curve[few] - curves[1]).abs().max()))
    row("cells, both", "a pass a step", own / len(maps), theirs / len(part[0]), error, True)
    if args.quantus:
        theirs, found = timed(lambda: quantus_deletion(head, *part))
        error = float((torch.tensor(found) - ours.deletion_curve[few, 1:]).abs().max())
        row("cells, both", "Quantus, deletion", own / len(maps), theirs / len(part[0]), error, True)
    count = len(pictures)
    labels = torch.zeros(count, dtype=torch.int64)
    attack = functools.partial(misalignment, model, pictures, labels)
    for name, true_gradient in (("noise", False), ("pgd", True)):
        own, found_here = timed(functools.partial(attack, attack=name))
        run = functools.partial(released_attack, plain, pictures, true_gradient=true_gradient)
        theirs, pac = timed(run)
        error = float((found_here.pac - pac).abs().nan_to_num().max()) / 100
        peer = "its loop, true gradient" if true_gradient else "the released loop"
        row(f"misalignment, {name}", peer, own / count, theirs / count, error, not true_gradient)
        if true_gradient and args.epsilon:
            faint = functools.partial(attack, attack=name, epsilon=args.epsilon)
            own, _ = timed(faint)
            kept = {"what": f"misalignment, pgd, ε {args.epsilon:g}", "beside": "–"}
            rows.append({**kept, "seconds": own / count})
            show(rows[-1])
    with torch.no_grad():
        seen = maps_of(model, pictures)
        classes = head(seen, input_fmt="NLC").argmax(1)
    grid = model.grid_size(pictures.shape[2:])
    places = evidence(head, seen, classes).unflatten(1, grid)
    large = nn.functional.interpolate(places[:, None], pictures.shape[2:], mode="bilinear")[:, 0]
    judge = functools.partial(pixel_curves, model, pictures, large, classes, steps=PIXEL_STEPS)
    own, by_pixels = timed(judge)
    theirs, curves = timed(lambda: loop_over_pixels(plain, pictures, large, classes))
    error = float((by_pixels.deletion_curve - curves[0]).abs().max())
    error = max(error, float((by_pixels.insertion_curve - curves[1]).abs().max()))
    row("pixels, both", "RISE's loop", own / count, theirs / count, error, False)
    return rows


def show(row: dict[str, Any]) -> None:
    line = f"{row['what']:28s} {row['beside']:24s} {row['seconds']:9.4f} s"
    if "ratio" in row:
        missed = "  below the bar" if row["bar"] and row["ratio"] < BAR else ""
        line += f" {row['their_seconds']:9.4f} s {row['ratio']:7.1f} x{missed}"
    print(f"{line}   1,000 images: {row['seconds'] * 1000 / 60:.1f} min", flush=True)


def markdown(stored: dict[str, Any]) -> str:
    """The table of a file that ``--json`` wrote."""
    facts = ", ".join(f"{k} {v}" for k, v in stored["machine"].items())
    lines = ["| what | beside | ours, s an image | theirs | ratio |", "|---|---|---|---|---|"]
    for row in stored["rows"]:
        theirs = f"{row['their_seconds']:.4f} | {row['ratio']:.1f}" if "ratio" in row else "– | –"
        lines.append(f"| {row['what']} | {row['beside']} | {row['seconds']:.4f} | {theirs} |")
    return "\n".join([f"{facts}, threads {stored['threads']}", "", *lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--run", type=Path, help="folder of a run; default: random data")
    parser.add_argument("--images", type=int, default=64, help="maps for the curves over cells")
    parser.add_argument("--loop-images", type=int, default=8, help="of them that loops get")
    parser.add_argument("--pictures", type=int, default=2, help="pictures to attack and delete")
    parser.add_argument("--epsilon", type=float, default=0.01, help="of one more pgd; 0: none")
    parser.add_argument("--quantus", action="store_true", help="also Quantus (pip install quantus)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    ensure_torchvision()
    torch.set_num_threads(args.threads)
    keep_memory(all_of_it=True)
    rows = contests(args, show)
    if args.json:
        write_json(args.json, {"machine": machine(), "threads": args.threads, "rows": rows})


if __name__ == "__main__":
    main()
