"""From a finished run to what people look at: figures, prototype sheets, the page."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from infodisent.data.records import Reading
from infodisent.data.tar_index import INDEX
from infodisent.explanations.predictions import predict_images
from infodisent.explanations.prototypes import Prototypes, relocate
from infodisent.explanations.request import class_named, listed
from infodisent.progress import bar
from infodisent.report.about import Subject, about_run, chosen_text
from infodisent.report.changed import changed_notice
from infodisent.report.compared import classes_note, opened_runs
from infodisent.report.figure import explanation_figure, figure_name, save_figure
from infodisent.report.held_out import balanced, existing, label_of, wrong_indices
from infodisent.report.notices import say, say_lost
from infodisent.report.page import write_page
from infodisent.report.pagedata import Side
from infodisent.report.pictures import Pictures
from infodisent.report.sheet import draw_prototypes
from infodisent.report.shelf import PROTOTYPE_SIDE
from infodisent.report.sources import find_sources, limited
from infodisent.report.table import check_folder
from infodisent.training.checkpoint import Architecture, Checkpoint
from infodisent.training.run import Run, open_run

PAGE = "report.html"
__all__ = [
    "PAGE",
    "draw_prototypes",
    "report_held_out",
    "report_images",
    "report_run",
    "report_sources",
]


def report_run(
    run: Run,
    *,
    count: int = 16,
    seed: int = 0,
    images_root: str | os.PathLike[str] | None = None,
    module: Architecture | None = None,
    progress: bool = True,
) -> Path:
    """Explain held-out images of a run: a PNG each in ``figures/``, and the page.

    Images are taken evenly from the classes, wrong predictions included as they come.

    Args:
        run: from `infodisent.training.run.fit`.
        count: images to explain, at least 1; fewer if fewer are held out.
        seed: of the choice.
        images_root: where the run's images are now, if they were moved.
        module: as for `infodisent.training.run.open_run`.
        progress: show progress bars.

    Returns:
        Path of the page, ``report.html`` in the run's folder.

    Raises:
        FileNotFoundError: none of the held-out images is where it was.
    """
    options: dict[str, Any] = {"images_root": images_root, "module": module, "progress": progress}
    page = report_held_out(run.folder, count, seed=seed, **options)
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
    module: Architecture | None = None,
    progress: bool = True,
    **extras: Any,
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
        module: as for `infodisent.training.run.open_run`.
        progress: show progress bars and notices.
        extras: see `publish`.

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
    loaded, prototypes, run = open_run(folder, module=module)
    extras["compare"] = opened_runs(extras.get("compare", ()), loaded.classes, module, class_name)
    class_index = None if class_name is None else class_named(loaded.classes, class_name)
    store = run.trained_store() if wrong_only else run.store
    indices = store.indices("val")
    if wrong_only:
        everything, indices = len(indices), wrong_indices(loaded, store, indices)
        if not len(indices):
            say(progress, f"none of the {everything:,} held-out images is predicted wrongly")
            return None
        say(progress, f"{len(indices):,} of {everything:,} held-out images are predicted wrongly")
    root = run.metrics["images"].get("root", "")
    files = relocate(store.files, root, images_root)
    ordered = balanced(store.labels, indices, seed)
    chosen, lost = existing(files, ordered, count)
    chosen.sort(key=lambda i: label_of(store.labels, i))  # class after class
    if not chosen:
        raise FileNotFoundError(
            f"none of the {len(ordered)} held-out images is where it was ({files[lost[0]]}); "
            "if they were moved, pass images_root (--images-root DIR)"
        )
    if lost:
        say(progress, f"{len(lost)} held-out image(s) are lost and left out, as {files[lost[0]]}")
    single = loaded.task == "multiclass"
    subject = Subject(loaded, prototypes.relocated(root, images_root), run.metrics, run)
    side = subject.explained(
        [files[i] for i in chosen],
        true_names=[store.classes[int(store.labels[i])] for i in chosen] if single else None,
        on_error=lambda image, error: say(progress, str(error)),
        class_index=class_index,
        top=top,
        top_opposing=top_opposing,
        progress=progress,
    )
    unread = len(chosen) - len(side.explanations)
    if wrong_only:  # stored maps are rounded: a tie may fall the other way
        wrong = [i for i, e in enumerate(side.explanations) if e.correct is not True]
        side = side.of(wrong) if wrong else side
    if not side.explanations:
        raise ValueError(f"report: none of the {len(chosen)} held-out images can be read")
    told = chosen_text(
        len(side.explanations), len(indices), seed, wrong_only=wrong_only, lost=len(lost) + unread
    )
    asked: dict[str, Any] = {"class_name": class_name, "top": top, "top_opposing": top_opposing}
    return publish(subject, side, target, chosen=told, asked=asked, progress=progress, **extras)


def report_sources(
    folder: str | os.PathLike[str],
    names: Sequence[str | os.PathLike[str]],
    *,
    out: str | os.PathLike[str],
    limit: int = 64,
    more: str = "--limit {} for all",
    wrong_only: bool = False,
    images_root: str | os.PathLike[str] | None = None,
    class_name: str | None = None,
    top: int = 4,
    top_opposing: int = 2,
    intensity_range: tuple[float, float] | None = None,
    page: int | None = None,
    reading: Reading | None = None,
    module: Architecture | None = None,
    progress: bool = True,
    **extras: Any,
) -> tuple[Path | None, list[str]]:
    """Explain files, folders and patterns with a run's model; folders may name the true classes.

    Args:
        folder: of the run.
        names: see `infodisent.report.sources.find_sources`.
        out: folder for page and figures.
        limit: images to explain at most; what is left out is said.
        more: how to get the rest, ``{}`` for how many there are.
        wrong_only: only images that the model gets wrong; their folders must name their classes.
        intensity_range, page: how files are read, see `infodisent.data.pictures.load_picture`.
        reading: splits and columns of data sets among them.
        images_root, class_name, top, top_opposing, module, progress, extras: see
            `report_held_out`.

    Returns:
        Path of the page, None where `wrong_only` finds no image, and the reasons why images were
        skipped that cannot be read.

    Raises:
        ValueError: nothing to explain, an unknown class, or no image can be read.
        NotADirectoryError: `out` is a file.
    """
    check_folder(out, "explain")
    loaded, prototypes, run = open_run(folder, module=module)
    extras["compare"] = opened_runs(extras.get("compare", ()), loaded.classes, module, class_name)
    single = loaded.task == "multiclass"
    classes, index = loaded.classes if single else (), run.folder / INDEX
    sources = find_sources(names, classes, command="explain", reading=reading, index=index)
    for line in sources.notices():
        say(progress, line)
    failures: list[str] = []
    decoding: dict[str, Any] = {"intensity_range": intensity_range, "page": page}
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
            **decoding,
            progress=progress,
        )
        failures = [p.error for p in judged if p.error]
        known = sources.known
        sources.items = [
            item
            for item, p in zip(sources.items, judged, strict=True)
            if p.correct is False or p.abstained
        ]
        say(progress, f"{len(sources.items):,} of {known:,} images are predicted wrongly")
        if not sources.items:
            return None, failures
    chosen = limited(sources, limit)
    if len(chosen) < len(sources.items):
        total = len(sources.items)
        say(progress, f"{len(chosen):,} of {total:,} images are explained; {more.format(total)}")
    written, unreadable = report_images(
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
        run=run,
        **decoding,
        **extras,
    )
    return written, failures + unreadable


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
    intensity_range: tuple[float, float] | None = None,
    page: int | None = None,
    progress: bool = True,
    run: Run | None = None,
    **extras: Any,
) -> tuple[Path, list[str]]:
    """Explain given images: a PNG each in ``out/figures/``, and the page ``out/report.html``.

    Args:
        run: that `loaded` is of, whose features say how usual an image is.
        extras: see `publish`.

    Returns:
        Path of the page, and the reasons why images were skipped that cannot be read.

    Raises:
        ValueError: `class_name` is none of the model's classes, or no image can be read.
        NotADirectoryError: `out` is a file.
    """
    if Path(out).exists() and not Path(out).is_dir():
        raise NotADirectoryError(f"{out} is a file, expected a folder for the results")
    class_index = None if class_name is None else class_named(loaded.classes, class_name)
    failures: list[str] = []
    subject = Subject(loaded, prototypes, metrics, run)
    side = subject.explained(
        images,
        true_names=true_names,
        on_error=lambda image, error: failures.append(str(error)),
        class_index=class_index,
        top=top,
        top_opposing=top_opposing,
        intensity_range=intensity_range,
        page=page,
        progress=progress,
    )
    if not side.explanations:
        raise ValueError(f"explain: no image can be read: {'; '.join(failures[:3])}")
    asked: dict[str, Any] = {
        "class_name": class_name, "top": top, "top_opposing": top_opposing,
        "intensity_range": intensity_range, "page": page,
    }  # fmt: skip
    written = publish(subject, side, Path(out), asked=asked, progress=progress, **extras)
    return written, failures


def publish(
    subject: Subject,
    side: Side,
    folder: Path,
    *,
    chosen: str = "The images were named by whoever made this page.",
    name: str = PAGE,
    figures: bool = True,
    attribution: str = "",
    compare: Sequence[str | os.PathLike[str] | Subject] = (),
    asked: Mapping[str, Any] | None = None,
    module: Architecture | None = None,
    progress: bool = True,
) -> Path:
    """Draw a figure for each explanation and write the page; returns the page's path.

    Args:
        subject: the run.
        side: its explanations.
        folder: of page and figures.
        chosen: how the images were chosen, a sentence.
        name: of the page's file.
        figures: draw figures too.
        attribution: whose the photographs are, a sentence; default: what is known of the run's.
        compare: other runs or their folders, whose explanations of the same images stand beside
            these.
        asked: what `side` was explained with, ``class_name`` and options of `explain_many`: the
            other runs read the same images in the same way and explain the same class.
        module: as for `infodisent.training.run.open_run`, of those.
        progress: show progress bars and notices.
    """
    pictures = Pictures(subject.prototypes.transform, PROTOTYPE_SIDE)
    if figures:
        _draw(side, subject.prototypes, pictures, folder, progress)
    files = [e.path for e in side.explanations]
    true = [e.true_name for e in side.explanations]
    options = dict(asked or {})
    class_name = options.pop("class_name", None)
    others, runs = [], opened_runs(compare, subject.loaded.classes, module, class_name)
    for other in runs:
        classes = other.loaded.classes
        index = None if class_name is None else class_named(classes, class_name)
        others.append(
            other.explained(files, true_names=true, class_index=index, progress=progress, **options)
        )
    page = folder / name
    about = about_run(subject, chosen, attribution)
    notes = [classes_note(subject.loaded.classes, run) for run in runs]
    notes.append(changed_notice(subject, [str(file) for file in files]))
    added = [note for note in notes if note]
    for note in added:
        say(progress, note)
    write_page(
        page,
        side.explanations,
        subject.prototypes,
        dataclasses.replace(about, notices=[*about.notices, *added]),
        side=dataclasses.replace(side, pictures=pictures),
        compared=others,
    )
    say_lost(pictures, progress)
    return page


def _draw(
    side: Side, prototypes: Prototypes, pictures: Pictures, folder: Path, progress: bool
) -> None:
    with bar(progress) as display:
        task = display.add_task("draw figures", total=len(side.explanations), note="")
        for number, explanation in enumerate(side.explanations, 1):
            figure = explanation_figure(explanation, prototypes, pictures=pictures)
            save_figure(figure, folder / "figures" / figure_name(number, explanation.path))
            display.advance(task)
