"""From a finished run to what people look at: figures, prototype sheets, the page."""

from __future__ import annotations

import difflib
import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from infodisent.backbones.backbone import evaluating
from infodisent.data.store import FeatureStore
from infodisent.explanations.evidence import Explanation
from infodisent.explanations.local import explain_many
from infodisent.explanations.predictions import predict_images
from infodisent.explanations.prototypes import Prototypes, find_prototypes, relocate
from infodisent.progress import bar, console
from infodisent.report.figure import explanation_figure, prototypes_figure, save_figure
from infodisent.report.page import write_page
from infodisent.report.pictures import Pictures
from infodisent.report.sources import find_sources, limited
from infodisent.report.table import check_folder
from infodisent.training.checkpoint import Checkpoint
from infodisent.training.run import PROTOTYPES, Run, open_run

PAGE = "report.html"


def report_run(run: Run, *, count: int = 16, seed: int = 0, progress: bool = True) -> Path:
    """Explain held-out images of a run: a PNG each in ``figures/``, and the page.

    Images are taken evenly from the classes, wrong predictions included as they come.

    Args:
        run: from `infodisent.training.run.fit`.
        count: images to explain, at least 1; fewer if fewer are held out.
        seed: of the choice.
        progress: show progress bars.

    Returns:
        Path of the page, ``report.html`` in the run's folder.

    Raises:
        FileNotFoundError: none of the held-out images is where it was.
    """
    page = report_held_out(run.folder, count, seed=seed, progress=progress)
    assert page is not None  # only a report of wrong predictions may have nothing to show
    return page


def report_held_out(
    folder: str | os.PathLike[str],
    count: int = 16,
    *,
    wrong_only: bool = False,
    out: str | os.PathLike[str] | None = None,
    images_root: str | os.PathLike[str] | None = None,
    class_name: str | None = None,
    top: int = 4,
    top_opposing: int = 2,
    seed: int = 0,
    progress: bool = True,
) -> Path | None:
    """Explain held-out images of a run, evenly from the classes, with what they really are.

    Args:
        folder: of the run.
        count: images to explain, at least 1; fewer if fewer are held out.
        wrong_only: only those that the model gets wrong.
        out: folder for page and figures; default: the run's.
        images_root: where the run's images are now, if they were moved.
        class_name: class to explain; default: the predicted one.
        top, top_opposing: see `infodisent.explain`.
        seed: of the choice.
        progress: show progress bars and notices.

    Returns:
        Path of the page; None where `wrong_only` finds no image.

    Raises:
        FileNotFoundError: none of the images is where it was.
        ValueError: `count` is below 1, an unknown class, or features of another model.
    """
    if count < 1:
        raise ValueError(f"report: count is {count}, must be >= 1")
    target = Path(folder if out is None else out)
    check_folder(target, "report")
    loaded, prototypes, run = open_run(folder)
    class_index = _class_index(loaded, class_name)
    store = run.store
    indices = store.indices("val")
    if wrong_only:
        if store.meta["made_from"] != run.metrics["features"]:
            raise ValueError(
                f"{run.folder}: its features are not those its model was trained on; run fit again"
            )
        everything, indices = len(indices), wrong_indices(loaded, store, indices)
        if not len(indices):
            _say(progress, f"none of the {everything:,} held-out images is predicted wrongly")
            return None
        _say(progress, f"{len(indices):,} of {everything:,} held-out images are predicted wrongly")
    root = run.metrics["images"].get("root", "")
    files = relocate(store.files, root, images_root)
    ordered = _balanced(store.labels, indices, seed)
    chosen, lost = _existing(files, ordered, count)
    chosen.sort(key=lambda i: _label(store.labels, i))  # class after class
    if not chosen:
        raise FileNotFoundError(
            f"none of the {len(ordered)} held-out images is where it was ({files[lost[0]]}); "
            "if they were moved, pass images_root (--images-root DIR)"
        )
    if lost:
        _say(progress, f"{len(lost)} held-out image(s) are lost and left out, as {files[lost[0]]}")
    single = loaded.task == "multiclass"
    explanations = explain_many(
        loaded.model,
        [files[i] for i in chosen],
        true_names=[store.classes[int(store.labels[i])] for i in chosen] if single else None,
        on_error=lambda image, error: _say(progress, str(error)),
        classes=loaded.classes,
        class_index=class_index,
        top=top,
        top_opposing=top_opposing,
        transform=loaded.transform,
        progress=progress,
        task=loaded.task,
    )
    if not explanations:
        raise ValueError(f"report: none of the {len(chosen)} held-out images can be read")
    prototypes = prototypes.relocated(root, images_root)
    return _publish(explanations, prototypes, target, run.metrics, progress)


def report_sources(
    folder: str | os.PathLike[str],
    names: Sequence[str | os.PathLike[str]],
    *,
    out: str | os.PathLike[str],
    limit: int = 64,
    wrong_only: bool = False,
    images_root: str | os.PathLike[str] | None = None,
    class_name: str | None = None,
    top: int = 4,
    top_opposing: int = 2,
    progress: bool = True,
) -> tuple[Path | None, list[str]]:
    """Explain files, folders and patterns with a run's model; folders may name the true classes.

    Args:
        folder: of the run.
        names: see `infodisent.report.sources.find_sources`.
        out: folder for page and figures.
        limit: images to explain at most; what is left out is said.
        wrong_only: only images that the model gets wrong; their folders must name their classes.
        images_root, class_name, top, top_opposing, progress: see `report_held_out`.

    Returns:
        Path of the page, None where `wrong_only` finds no image, and the reasons why images were
        skipped that cannot be read.

    Raises:
        ValueError: nothing to explain, an unknown class, or no image can be read.
        NotADirectoryError: `out` is a file.
    """
    check_folder(out, "explain")
    loaded, prototypes, run = open_run(folder)
    single = loaded.task == "multiclass"
    sources = find_sources(names, loaded.classes if single else (), command="explain")
    for line in sources.notices():
        _say(progress, line)
    failures: list[str] = []
    if wrong_only:
        if not sources.known:
            raise ValueError(
                "explain: --wrong-only needs images whose folders are called as the model's "
                f"classes ({listed(loaded.classes)}), or --held-out"
            )
        judged = predict_images(
            loaded.model,
            sources.paths,
            classes=loaded.classes,
            true_names=[item.true_name for item in sources.items],
            transform=loaded.transform,
            progress=progress,
        )
        failures = [p.error for p in judged if p.error]
        known = sources.known
        sources.items = [
            item for item, p in zip(sources.items, judged, strict=True) if p.correct is False
        ]
        _say(progress, f"{len(sources.items):,} of {known:,} images are predicted wrongly")
        if not sources.items:
            return None, failures
    chosen = limited(sources, limit)
    if len(chosen) < len(sources.items):
        total = len(sources.items)
        _say(
            progress, f"{len(chosen):,} of {total:,} images are explained; --limit {total} for all"
        )
    page, unreadable = report_images(
        loaded,
        prototypes.relocated(run.metrics["images"].get("root", ""), images_root),
        [item.path for item in chosen],
        out,
        metrics=run.metrics,
        class_name=class_name,
        true_names=[item.true_name for item in chosen],
        top=top,
        top_opposing=top_opposing,
        progress=progress,
    )
    return page, failures + unreadable


def report_images(
    loaded: Checkpoint,
    prototypes: Prototypes,
    images: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    metrics: dict[str, Any],
    class_name: str | None = None,
    true_names: Sequence[str | None] | None = None,
    top: int = 4,
    top_opposing: int = 2,
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
    class_index = _class_index(loaded, class_name)
    failures: list[str] = []
    explanations = explain_many(
        loaded.model,
        images,
        true_names=true_names,
        on_error=lambda image, error: failures.append(str(error)),
        classes=loaded.classes,
        class_index=class_index,
        top=top,
        top_opposing=top_opposing,
        transform=loaded.transform,
        progress=progress,
        task=loaded.task,
    )
    if not explanations:
        raise ValueError(f"explain: no image can be read: {'; '.join(failures[:3])}")
    page = _publish(explanations, prototypes, Path(out), metrics, progress)
    return page, failures


def draw_prototypes(
    folder: str | os.PathLike[str],
    channels: str | None = None,
    keep: int = 5,
    out: str | os.PathLike[str] | None = None,
    *,
    images_root: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Path:
    """Draw what channels of a run mean; finds the prototypes anew if more are asked for.

    Args:
        folder: of the run.
        channels: comma-separated channel numbers; default: the two heaviest of every class, at most
            sixteen.
        keep: images per channel and side.
        out: PNG to write; default: in the run, ``prototypes.png``, or with the channels' numbers in
            its name where they are chosen.
        images_root: where the run's images are now, if they were moved.
        progress: show progress bars.

    Raises:
        ValueError: `channels` is not a list of numbers, or one is out of range.
    """
    loaded, prototypes, run = open_run(folder)
    if channels is None:
        weight = loaded.model.head.class_weights()  # [K, M]
        heaviest = weight.topk(min(2, weight.shape[1]), dim=1).indices.flatten().tolist()
        chosen = list(dict.fromkeys(heaviest))[:16]
    elif re.fullmatch(r"\s*\d+(\s*,\s*\d+)*\s*", channels):
        chosen = list(dict.fromkeys(int(c) for c in channels.split(",")))
    else:
        raise ValueError(f"channels is {channels!r}, expected numbers such as 3,17,200")
    for channel in chosen:
        prototypes.check_channel(channel)
    target = Path(out) if out is not None else run.folder / _sheet_name(channels and chosen)
    if target.is_dir():
        target /= _sheet_name(channels and chosen)
    check_folder(target.parent, "prototypes")
    keep = min(keep, run.metrics["images"]["train"])
    if keep > prototypes.k:
        prototypes = find_prototypes(loaded.model.head, run.store, k=keep, progress=progress)
        prototypes.save(run.folder / PROTOTYPES)
    prototypes = prototypes.relocated(run.metrics["images"].get("root", ""), images_root)
    pictures = Pictures(prototypes.transform)
    unit = loaded.model.head.unit
    figure = prototypes_figure(prototypes, chosen, k=keep, unit=unit, pictures=pictures)
    save_figure(figure, target)
    _say_lost(pictures, progress)
    return target


def _sheet_name(channels: Sequence[int] | str | None) -> str:
    """The file of a sheet of chosen channels, or of the default ones."""
    if not channels:
        return "prototypes.png"
    numbers = "-".join(map(str, channels))
    if len(numbers) > 80:  # too long for a file name: a checksum tells sheets apart
        numbers = f"{'-'.join(map(str, channels[:8]))}-{zlib.crc32(numbers.encode()):08x}"
    return f"prototypes-{numbers}.png"


@torch.no_grad()
def wrong_indices(
    loaded: Checkpoint,
    store: FeatureStore,
    indices: torch.Tensor,  # [n] int64
) -> torch.Tensor:
    """Those of the stored images that the model gets wrong; multi-label: in any label."""
    head, wrong = loaded.model.head, [indices[:0]]
    with evaluating(head):
        for maps, labels, at in store.batches(indices, 256):
            logits = head.classify(head.pool(maps.to(head.device), input_fmt="NLC").pooled).cpu()
            if labels.ndim == 2:
                wrong.append(at[((logits > 0) != (labels > 0.5)).any(1)])
            else:
                wrong.append(at[logits.argmax(1) != labels])
    return torch.cat(wrong)


def _class_index(loaded: Checkpoint, name: str | None) -> int | None:
    """Position of a class, ValueError with those that are spelt alike where there is none."""
    if name is None or name in loaded.classes:
        return None if name is None else loaded.classes.index(name)
    lower = {known.lower(): known for known in loaded.classes}
    close = [lower[n] for n in difflib.get_close_matches(name.lower(), list(lower), 3, 0.5)]
    hint = f"; did you mean {', '.join(map(repr, close))}?" if close else ""
    raise ValueError(f"explain: class is {name!r}, the model knows {listed(loaded.classes)}{hint}")


def listed(names: Sequence[str], most: int = 20) -> str:
    """Names for a message, not more than a person reads."""
    rest = f" … ({len(names):,} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _balanced(labels: torch.Tensor, indices: torch.Tensor, seed: int) -> list[int]:
    """All the indices in an order whose first few, however many, are evenly from the classes.

    Of several labels the first counts.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = indices[torch.randperm(len(indices), generator=generator)]
    turns: dict[int, int] = {}
    keyed = []
    for i in shuffled.tolist():
        label = _label(labels, i)
        turns[label] = turns.get(label, -1) + 1
        keyed.append((turns[label], label, i))
    return [i for _, _, i in sorted(keyed)]


def _label(labels: torch.Tensor, i: int) -> int:
    return int(labels[i].argmax() if labels.ndim == 2 else labels[i])


def _existing(
    files: Sequence[str], ordered: Sequence[int], count: int
) -> tuple[list[int], list[int]]:
    """The first `count` whose files exist, and those passed over because theirs do not."""
    chosen: list[int] = []
    lost: list[int] = []
    for i in ordered:
        if len(chosen) == count:
            break
        (chosen if os.path.isfile(files[i]) else lost).append(i)
    return chosen, lost


def _say(progress: bool, text: str) -> None:
    if progress:
        console.print(text, markup=False, highlight=False)


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
        pictures=pictures,
    )
    _say_lost(pictures, progress)
    return page


def _say_lost(pictures: Pictures, progress: bool) -> None:
    """One notice about all the prototypes whose pictures are placeholders."""
    lost = pictures.lost()
    if lost:
        _say(
            progress,
            f"{len(lost)} of {pictures.count} prototype pictures are lost and drawn as grey tiles, "
            f"such as {lost[0]}; if the images were moved, pass --images-root DIR",
        )


def _figure_name(number: int, explanation: Explanation) -> str:
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(explanation.path).stem)[:60] or "image"
    return f"{number:03d}-{stem}.png"
