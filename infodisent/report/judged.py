"""Judge the explanations of a run: compute, keep in the run's folder, draw several side by side."""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from infodisent import ranks
from infodisent.backbones.preprocess import transform_from
from infodisent.data.annotation_formats import read_annotations
from infodisent.data.archives import is_there
from infodisent.data.images import ImageDataset
from infodisent.data.store import FeatureStore
from infodisent.evaluation.annotated import judge_annotated
from infodisent.evaluation.disentanglement import duplicate_prototypes
from infodisent.evaluation.judgement import MEASURES, Judgement, judge_features, judge_pictures
from infodisent.evaluation.misalignment import EPSILON
from infodisent.explanations.prototypes import relocate
from infodisent.files import write_json
from infodisent.progress import bar
from infodisent.report.annotated import AnnotatedImages
from infodisent.report.judgement_file import FORMAT, check_place
from infodisent.report.judgement_file import read_judgement as read_judgement
from infodisent.report.pooled import write_images
from infodisent.training import checkpoint
from infodisent.training.folder import JUDGED, MODEL, Run, open_run
from infodisent.version import __version__

_BATCH = 8
"""Pictures at a time."""
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKS = "osD^vP"
"""Okabe and Ito's colours; the marks say the same without colour."""


def judge_run(
    folder: str | os.PathLike[str],
    *,
    images: int = 1000,
    pictures: int = 16,
    seed: int = 0,
    again: bool = False,
    epsilons: Sequence[float] = (EPSILON,),
    annotations: str | None = None,
    images_root: str | os.PathLike[str] | None = None,
    module: checkpoint.Architecture | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Figures of a run's explanations on its held-out images, also written to its ``judge.json``.

    What is there already of the same model and arguments is read back. Several processes
    (`infodisent.ranks`) divide the work; the leading one writes.

    Args:
        folder: of the run.
        images: at most so many held-out images, and training images for purity, drawn by `seed`.
        pictures: at most so many of them are changed and go through the backbone again, which is
            most of the time; 0 leaves these figures out.
        seed: of what is drawn.
        again: compute in any case.
        epsilons: of the attacks on pictures, see `infodisent.evaluation.misalignment`.
        annotations: "KIND:FOLDER" of parts and masks of the images, see
            `infodisent.data.annotation_formats`; at most `images` of the annotated are judged.
        images_root: where the images are now, if they were moved.
        module: as for `open_run`.
        progress: show a progress bar.

    Raises:
        ValueError: an argument is out of range, or the run has no held-out images.
        FileNotFoundError: a file of the run is missing, or its pictures are.
        PermissionError, IsADirectoryError: the figures cannot be written.
    """
    if images < 1 or pictures < 0:
        raise ValueError(
            f"judge: images is {images} and pictures {pictures}, must be >= 1 and >= 0"
        )
    loaded, prototypes, run = open_run(folder, module=module)
    arguments: dict[str, Any] = {"images": images, "pictures": pictures, "seed": seed}
    if tuple(epsilons) != (EPSILON,):  # as older versions wrote it where nothing else is asked for
        arguments["epsilons"] = list(epsilons)
    if annotations is not None:
        arguments["annotations"] = annotations
    made_from = {"model": _digest(run.folder / MODEL), "version": __version__, **arguments}
    stored = run.folder / JUDGED
    if stored.is_file() and not again:
        known = read_judgement(run.folder)
        if known["made_from"] == made_from and known["format"] == FORMAT:
            return known
    check_place(run.folder)
    store, model = run.trained_store(), loaded.model
    test = _drawn(store.indices("val"), images, seed)
    train = _drawn(store.indices("train"), images, seed)
    if not len(test):
        raise ValueError(f"judge: {run.folder} has no held-out images")
    shown = _drawn(test, pictures, seed)
    files = relocate(store.files, run.metrics["images"].get("root", ""), images_root)
    if len(shown) and not any(is_there(files[i]) for i in shown.tolist()):
        raise FileNotFoundError(
            f"judge: the pictures are not where they were, such as {files[int(shown[0])]}; say "
            "where with --images-root, or leave their figures out with --pictures 0"
        )
    independent = store.task == "multilabel"
    known_parts: AnnotatedImages | None = None
    groups: tuple[int, ...] = ()
    if annotations is not None:
        known_parts, groups = _annotated(annotations, files, store, images, seed, loaded.transform)
    with bar(progress) as display:
        task = display.add_task("features", total=len(test) + len(train), note="")
        judged = judge_features(
            model.head, store, test, train, seed=seed,
            advance=lambda count: display.advance(task, count),
        )  # fmt: skip
        twice = duplicate_prototypes(prototypes)
        judged.add_number("duplicates", twice.part, images=len(store.indices("train")))
        if len(shown):
            changed = display.add_task("pictures", total=len(shown), note="")
            more = judge_pictures(
                model,
                _pictures(files, store, shown, loaded.transform, judged.notes),
                independent=independent,
                epsilons=epsilons,
                seed=seed,
                advance=lambda count: display.advance(changed, count),
            )
            judged.extend(more)
        if known_parts is not None:
            parts = display.add_task("parts and masks", total=len(known_parts), note="")
            judged.extend(
                judge_annotated(
                    model, known_parts, groups=groups, seed=seed,
                    advance=lambda count: display.advance(parts, count),
                )
            )  # fmt: skip
            judged.notes += _notes_of(known_parts)
    result = {
        "kind": "judgement",
        "format": FORMAT,
        "made_from": made_from,
        "backbone": run.metrics["backbone"],
        "method": model.head.method,
        "title": model.head.title,
        "unit": model.head.unit,
        "judged_images": {
            "held out": len(test),
            "training": len(train),
            "pictures": len(shown),
            **({"annotated": len(known_parts)} if known_parts is not None else {}),
        },
        "rows": _in_order(judged),
        "notes": judged.notes,
        "recipe": _recipe(run, store),
        "run_seed": run.metrics.get("config", {}).get("seed"),
    }
    if ranks.leads():
        write_images(run.folder, judged, made_from)
        write_json(stored, result)
    ranks.barrier()
    return result


def _recipe(run: Run, store: FeatureStore) -> dict[str, Any]:
    """What runs of one method have in common, whatever their seed."""
    metrics = run.metrics
    config = {k: v for k, v in metrics.get("config", {}).items() if k != "seed"}
    images = metrics["images"]
    return {
        **{key: metrics.get(key) for key in ("backbone", "method", "head", "task")},
        "config": config,
        "classes": images.get("classes", list(store.classes)),
        "images": [images.get(key, len(store.indices(key))) for key in ("train", "val")],
    }


def unlike_images(judged: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What makes runs no fair comparison, a sentence for each whose classes or images differ.

    Args:
        judged: what `judge_run` returns, by the name of the run; the first is what others are
            compared with.
    """
    (first, known), *others = judged.items()
    notes = []
    for name, other in others:
        recipes = [run.get("recipe") or {} for run in (known, other)]  # none of an older version
        differ = [
            key
            for key in ("classes", "images")
            if all(key in recipe for recipe in recipes) and recipes[0][key] != recipes[1][key]
        ]
        if differ:
            notes.append(
                f"{name} has other {' and '.join(differ)} than {first}: their figures are not of "
                "the same images"
            )
    return notes


def _drawn(indices: Tensor, count: int, seed: int) -> Tensor:
    """At most `count` of them, in their order."""
    if len(indices) <= count:
        return indices
    g = torch.Generator().manual_seed(seed)
    return indices[torch.randperm(len(indices), generator=g)[:count].sort().values]


def _pictures(
    files: Sequence[str],
    store: FeatureStore,
    shown: Tensor,
    config: Mapping[str, Any],
    notes: list[str],
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of pictures as the backbone is fed, with their labels; unreadable ones are noted."""
    data = ImageDataset([files[i] for i in shown.tolist()], transform_from(config), config)
    for part in torch.arange(len(shown)).split(_BATCH):
        good, unreadable = [], []
        for i in part.tolist():
            _, picture, _ = data[i]
            if isinstance(picture, str):
                unreadable.append(picture)
            else:
                good.append((picture, store.labels[shown[i]]))
        notes += [f"left out: {reason}" for reason in unreadable]
        if good:
            pictures, labels = zip(*good, strict=True)
            yield torch.stack(pictures), torch.stack(labels)


def _annotated(
    given: str,
    files: Sequence[str],
    store: FeatureStore,
    count: int,
    seed: int,
    config: Mapping[str, Any],
) -> tuple[AnnotatedImages, tuple[int, ...]]:
    """At most `count` of the held-out images that are annotated, and the groups of their parts."""
    if store.task == "multilabel":
        raise ValueError("judge: part and mask metrics ask for one class an image")
    known, held_out = read_annotations(given), store.indices("val")
    annotated = torch.tensor([known.find(files[i]) is not None for i in held_out.tolist()])
    chosen = _drawn(held_out[annotated], count, seed) if annotated.any() else held_out
    images = AnnotatedImages(
        known, [files[i] for i in chosen.tolist()], store.labels[chosen], config
    )
    return images, known.groups


def _notes_of(images: AnnotatedImages) -> list[str]:
    unreadable = (reason for reasons in ranks.everyones(images.unreadable) for reason in reasons)
    notes = [f"left out: {reason}" for reason in dict.fromkeys(unreadable)]
    sources = sum(ranks.everyones(images.sources), Counter[str]())
    if sources:
        of = ", ".join(f"{count} from {source}" for source, count in sources.items())
        notes.append(f"masks of objects: {of}")
    return notes


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _in_order(judged: Judgement) -> list[dict[str, Any]]:
    order = list(MEASURES)
    return sorted(judged.rows, key=lambda row: order.index(row["measure"]))


def comparison_figure(judgements: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Every figure as a panel, every run as a mark with its interval.

    Args:
        judgements: what `judge_run` returned, by the name to show.

    Raises:
        ValueError: none is given.
    """
    if not judgements:
        raise ValueError("comparison_figure: no judgement is given")
    tables = {name: by_measure(known) for name, known in judgements.items()}
    keys = [
        key for key in dict.fromkeys(k for t in tables.values() for k in t) if key[1] != "random"
    ]
    keys.sort(key=lambda key: list(MEASURES).index(key[0]))
    columns = min(4, len(keys))
    rows = math.ceil(len(keys) / columns)
    height = 0.75 + 0.24 * len(tables)
    figure = Figure(figsize=(3.3 * columns, height * rows + 0.5), facecolor="white",
                    layout="constrained")  # fmt: skip
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel in panels[len(keys) :]:
        panel.set_axis_off()
    for panel, key in zip(panels, keys, strict=False):
        _draw(panel, key, tables)
    seeds = any("runs" in row for rows_ in tables.values() for row in rows_.values())
    over = "images and seeds (a tick a seed)" if seeds else "images"
    figure.supxlabel(f"mean over {over} and its 95 % interval", fontsize=8, color="#555b66")
    return figure


def by_measure(judgement: Mapping[str, Any]) -> dict[tuple[str, str], Mapping[str, Any]]:
    """The rows of a judgement by their measure and what they are of."""
    known = (row for row in judgement["rows"] if row["measure"] in MEASURES)
    return {(row["measure"], row["of"]): row for row in known}


def _draw(
    panel: Any,
    key: tuple[str, str],
    tables: Mapping[str, Mapping[tuple[str, str], Mapping[str, Any]]],
) -> None:
    measure = MEASURES[key[0]]
    names = list(tables)
    for place, name in enumerate(names):
        row = tables[name].get(key)
        if row is None or row["mean"] is None:
            continue
        for mean in row.get("runs", ()):  # of every seed, where several are pooled
            panel.plot([mean], [place + 0.22], "|", color="#555b66", markersize=5)
        color, mark = _COLORS[place % len(_COLORS)], _MARKS[place % len(_MARKS)]
        if row["low"] is not None:
            panel.plot([row["low"], row["high"]], [place, place], color=color, linewidth=2)
        panel.plot([row["mean"]], [place], mark, color=color, markersize=6)
    panel.set_yticks(range(len(names)), names, fontsize=7)
    panel.set_ylim(len(names) - 0.4, -0.6)
    where = " (pixels)" if key[0].startswith("pixel_") else ""
    of = f", {key[1]}" if key[1] else ""
    panel.set_title(f"{measure.title}{where}{of}", fontsize=8, loc="left")
    arrow = {"lower": "← better", "higher": "better →"}.get(measure.better, "")
    panel.set_xlabel(arrow, fontsize=7, color="#555b66",
                     loc="left" if measure.better == "lower" else "right")  # fmt: skip
    panel.tick_params(axis="x", labelsize=7)
    panel.xaxis.set_major_locator(MaxNLocator(5))  # numbers do not touch
    panel.ticklabel_format(axis="x", useOffset=False)  # a number taken off all would be missed
    panel.grid(axis="x", alpha=0.3)
    panel.margins(x=0.12)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
