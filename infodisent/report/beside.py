"""Pictures of several methods beside each other, an image each, and their figures in a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from infodisent.data.annotation_formats import read_annotations
from infodisent.data.annotations import Annotations
from infodisent.data.records import Reading
from infodisent.data.tar_index import INDEX
from infodisent.evaluation.beside import Beside, chosen_methods, explain_beside
from infodisent.explanations.prototypes import relocate
from infodisent.explanations.request import class_named
from infodisent.files import replacing, write_json
from infodisent.progress import bar
from infodisent.report.figure import figure_name
from infodisent.report.held_out import balanced, existing, wrong_indices
from infodisent.report.sources import find_sources, limited
from infodisent.report.table import check_folder
from infodisent.training.checkpoint import Architecture, Checkpoint
from infodisent.training.run import Run, open_run

FIGURES = "beside.json"
FOLDER = "beside"


@dataclass
class BesideFiles:
    """What was written.

    Attributes:
        folder: with a PNG for every image and ``beside.json``.
        results: of every image.
        failures: why others were left out.
    """

    folder: Path
    results: list[Beside] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def means(self) -> dict[str, dict[str, float]]:
        """The mean over images of every figure by the title of its method."""
        found: dict[str, dict[str, list[float]]] = {}
        for result in self.results:
            for method in result.methods:
                figures = {"deletion": method.deletion, "insertion": method.insertion}
                figures |= method.localisation | {"seconds": method.seconds}
                for key, value in figures.items():
                    found.setdefault(method.title, {}).setdefault(key, []).append(value)
        return {
            title: {key: sum(values) / len(values) for key, values in figures.items()}
            for title, figures in found.items()
        }


def write_beside(
    folder: str | os.PathLike[str],
    names: Sequence[str | os.PathLike[str]] | None,
    *,
    out: str | os.PathLike[str],
    methods: str = "all",
    limit: int = 8,
    samples: int | None = None,
    annotations: str | None = None,
    class_name: str | None = None,
    wrong_only: bool = False,
    images_root: str | os.PathLike[str] | None = None,
    reading: Reading | None = None,
    module: Architecture | None = None,
    progress: bool = True,
) -> BesideFiles:
    """Explain images of a run by several methods: ``beside/001-photo.png`` … and ``beside.json``.

    Args:
        folder: of the run.
        names: files, folders, patterns; None for the run's own held-out images.
        out: folder for ``beside``.
        methods, samples, class_name: see `infodisent.evaluation.beside.explain_beside`.
        limit: images at most.
        annotations: "KIND:FOLDER" of the objects' masks, see `infodisent.data.annotation_formats`.
        wrong_only: of the held-out images only those that are predicted wrongly.
        images_root: where the run's images are now, if they were moved.
        reading: splits and columns of data sets among `names`.
        module: as for `infodisent.training.run.open_run`.
        progress: show a progress bar.

    Raises:
        ModuleNotFoundError: a method needs the extra ``posthoc``.
        ValueError: nothing to explain, an unknown method or class.
    """
    chosen = chosen_methods(methods)  # before anything is read
    check_folder(out, "explain")
    known = None if annotations is None else read_annotations(annotations)
    loaded, _, run = open_run(folder, module=module)
    if class_name is not None:
        class_named(loaded.classes, class_name)
    if names is None:
        files = _held_out(loaded, run, limit, wrong_only, images_root)
    else:
        sources = find_sources(
            names, loaded.classes, command="explain", reading=reading, index=run.folder / INDEX
        )
        files = [item.path for item in limited(sources, limit)]
    written = BesideFiles(Path(out) / FOLDER)
    options: dict[str, Any] = {"class_name": class_name, "methods": chosen}
    if samples is not None:
        options["samples"] = samples
    with bar(progress) as display:
        task = display.add_task("beside", total=len(files), note="")
        for file in files:
            try:
                result = explain_beside(loaded, file, mask=_mask(known, file), **options)
            except (OSError, ValueError) as error:
                written.failures.append(str(error))
                continue
            written.results.append(result)
            with replacing(written.folder / figure_name(len(written.results), file)) as temporary:
                result.plot().savefig(temporary, dpi=110, format="png")
            display.advance(task)
    if not written.results:
        raise ValueError(f"explain: no image can be read: {'; '.join(written.failures[:3])}")
    write_json(
        written.folder / FIGURES,
        {
            "kind": "beside",
            "means": written.means(),
            "images": [result.to_dict() for result in written.results],
        },
    )
    return written


def _held_out(
    loaded: Checkpoint,
    run: Run,
    count: int,
    wrong_only: bool,
    images_root: str | os.PathLike[str] | None,
) -> list[str]:
    """Held-out images, evenly from the classes."""
    store = run.trained_store() if wrong_only else run.store
    indices = store.indices("val")
    if wrong_only:
        indices = wrong_indices(loaded, store, indices)
    files = relocate(store.files, run.metrics["images"].get("root", ""), images_root)
    chosen, _ = existing(files, balanced(store.labels, indices, 0), count)
    if not chosen:
        raise ValueError(
            "explain: no held-out image is there to explain; if they were moved, pass --images-root"
        )
    return [files[i] for i in chosen]


def _mask(known: Annotations | None, file: str) -> torch.Tensor | None:
    at = None if known is None else known.find(file)
    found = known.mask_of(at) if known is not None and at is not None else None
    return None if found is None else found[0]
