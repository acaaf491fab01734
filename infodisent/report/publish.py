"""From a finished run to what people look at: figures, prototype sheets, the page."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from infodisent.explanations.evidence import Explanation
from infodisent.explanations.local import explain_many
from infodisent.explanations.prototypes import Prototypes, find_prototypes
from infodisent.progress import bar
from infodisent.report.figure import explanation_figure, prototypes_figure, save_figure
from infodisent.report.page import write_page
from infodisent.report.pictures import Pictures
from infodisent.training.checkpoint import Architecture, Checkpoint
from infodisent.training.run import PROTOTYPES, Run, open_run

PAGE = "report.html"


def report_run(
    run: Run,
    *,
    count: int = 16,
    seed: int = 0,
    module: Architecture | None = None,
    progress: bool = True,
) -> Path:
    """Explain held-out images of a run: a PNG each in ``figures/``, and the page.

    Images are taken evenly from the classes, wrong predictions included as they come.

    Args:
        run: from `infodisent.training.run.fit`.
        count: images to explain, at least 1; fewer if fewer are held out.
        seed: of the choice.
        module: as for `open_run`.
        progress: show progress bars.

    Returns:
        Path of the page, ``report.html`` in the run's folder.
    """
    loaded, prototypes, _ = open_run(run.folder, module=module)
    store = run.store
    chosen = _balanced(store.labels, store.indices("val"), count, seed)
    explanations = explain_many(
        loaded.model,
        [store.files[i] for i in chosen],
        true_names=[store.classes[int(store.labels[i])] for i in chosen],
        classes=loaded.classes,
        transform=loaded.transform,
        task=loaded.task,
        progress=progress,
    )
    return _publish(explanations, prototypes, run.folder, run.metrics, progress)


def report_images(
    loaded: Checkpoint,
    prototypes: Prototypes,
    images: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    metrics: dict[str, Any],
    class_name: str | None = None,
    top: int = 4,
    top_opposing: int = 2,
    intensity_range: tuple[float, float] | None = None,
    page: int | None = None,
    progress: bool = True,
) -> tuple[Path, list[str]]:
    """Explain given images: a PNG each in ``out/figures/``, and the page ``out/report.html``.

    Returns:
        Path of the page, and the reasons why images were skipped that cannot be read.

    Raises:
        ValueError: `class_name` is none of the model's classes, or no image can be read.
        NotADirectoryError: `out` is a file.
    """
    if Path(out).exists() and not Path(out).is_dir():
        raise NotADirectoryError(f"{out} is a file, expected a folder for the results")
    class_index = None
    if class_name is not None:
        if class_name not in loaded.classes:
            raise ValueError(
                f"explain: class is {class_name!r}, the model knows {', '.join(loaded.classes)}"
            )
        class_index = loaded.classes.index(class_name)
    failures: list[str] = []
    explanations = explain_many(
        loaded.model,
        images,
        on_error=lambda image, error: failures.append(str(error)),
        classes=loaded.classes,
        class_index=class_index,
        top=top,
        top_opposing=top_opposing,
        transform=loaded.transform,
        task=loaded.task,
        intensity_range=intensity_range,
        page=page,
        progress=progress,
    )
    if not explanations:
        raise ValueError(f"explain: no image can be read: {'; '.join(failures[:3])}")
    written = _publish(explanations, prototypes, Path(out), metrics, progress)
    return written, failures


def draw_prototypes(
    folder: str | os.PathLike[str],
    channels: str | None = None,
    keep: int = 5,
    out: str | os.PathLike[str] | None = None,
    *,
    module: Architecture | None = None,
    progress: bool = True,
) -> Path:
    """Draw what channels of a run mean; finds the prototypes anew if more are asked for.

    Args:
        folder: of the run.
        channels: comma-separated channel numbers; default: the two heaviest of every class, at most
            sixteen.
        keep: images per channel and side.
        out: PNG to write; default: ``prototypes.png`` in the run.
        module: as for `open_run`.
        progress: show progress bars.

    Raises:
        ValueError: `channels` is not a list of numbers, or one is out of range.
    """
    loaded, prototypes, run = open_run(folder, module=module)
    if channels is None:
        weight = loaded.model.head.class_weights()  # [K, M]
        heaviest = weight.topk(min(2, weight.shape[1]), dim=1).indices.flatten().tolist()
        chosen = list(dict.fromkeys(heaviest))[:16]
    elif re.fullmatch(r"\s*\d+(\s*,\s*\d+)*\s*", channels):
        chosen = [int(c) for c in channels.split(",")]
    else:
        raise ValueError(f"channels is {channels!r}, expected numbers such as 3,17,200")
    keep = min(keep, run.metrics["images"]["train"])
    if keep > prototypes.k:
        prototypes = find_prototypes(loaded.model.head, run.store, k=keep, progress=progress)
        prototypes.save(run.folder / PROTOTYPES)
    target = Path(out) if out is not None else run.folder / "prototypes.png"
    figure = prototypes_figure(prototypes, chosen, k=keep, unit=loaded.model.head.unit)
    save_figure(figure, target)
    return target


def _balanced(labels: torch.Tensor, indices: torch.Tensor, count: int, seed: int) -> list[int]:
    """`count` of the indices, as evenly from the classes as they allow, class after class."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = indices[torch.randperm(len(indices), generator=generator)]
    turns: dict[int, int] = {}
    keyed = []
    for i in shuffled.tolist():
        label = int(labels[i])
        turns[label] = turns.get(label, -1) + 1
        keyed.append((turns[label], label, i))
    return [i for _, _, i in sorted(sorted(keyed)[:count], key=lambda k: (k[1], k[0]))]


def _publish(
    explanations: Sequence[Explanation],
    prototypes: Prototypes,
    folder: Path,
    metrics: dict[str, Any],
    progress: bool,
) -> Path:
    """Draw a figure for each explanation and write the page; returns the page's path."""
    pictures = Pictures(prototypes.transform)
    with bar(progress) as display:
        task = display.add_task("draw figures", total=len(explanations), note="")
        for number, explanation in enumerate(explanations, 1):
            figure = explanation_figure(explanation, prototypes, pictures=pictures)
            save_figure(figure, folder / "figures" / _figure_name(number, explanation))
            display.advance(task)
    page = folder / PAGE
    write_page(
        page,
        explanations,
        prototypes,
        title=f"Why {metrics['backbone'] or 'the model'} decides as it does",
        summary=metrics["rows"],
    )
    return page


def _figure_name(number: int, explanation: Explanation) -> str:
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(explanation.path).stem)[:60] or "image"
    return f"{number:03d}-{stem}.png"
