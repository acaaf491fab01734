"""The main job, start to end: images -> features -> heads -> figures of merit -> one folder."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from infodisent import ranks
from infodisent.backbones.weights import load_backbone
from infodisent.checks import check_positive
from infodisent.classifier import InfoDisentClassifier
from infodisent.data.augmentation import Augmentation
from infodisent.data.extraction import extract
from infodisent.data.images import ImageSet, all_for_testing, as_image_set
from infodisent.data.notices import print_notices
from infodisent.data.records import Reading
from infodisent.data.tar_index import INDEX
from infodisent.devices import pick_device
from infodisent.evaluation.accuracy import evaluate_head, linear_probe, original_head
from infodisent.evaluation.original import Mapped, original_classifier
from infodisent.explanations.prototypes import find_prototypes
from infodisent.files import locked, sweep, write_json
from infodisent.methods.stages import LoopOptions
from infodisent.training import checkpoint
from infodisent.training.course import stops_early
from infodisent.training.fit import Callback, FitConfig, compared_heads, fit_head, new_head
from infodisent.training.folder import (
    DRAWN,
    FEATURES,
    METRICS,
    MODEL,
    PROFILE,
    PROTOTYPES,
    STATE,
    TRAINED_FEATURES,
    VIEWS,
    WRITTEN,
    Run,
    open_run,
)
from infodisent.training.maps import LIVE_BATCH, trained, training_maps
from infodisent.training.metrics import Rows, described, worst_classes
from infodisent.training.tracking import LOGS, check_logs, loggers, write_history
from infodisent.training.validation import best_epoch

__all__ = [
    "MODEL",
    "PROTOTYPES",
    "Run",
    "evaluate_run",
    "fit",
    "load_backbone",
    "open_run",
    "pick_device",
]


class _Laps:
    """Seconds each stage took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self._start = round(now - self._start, 2), now


def fit(
    model: InfoDisentClassifier,
    images: ImageSet | Any,
    out: str | os.PathLike[str],
    config: FitConfig | None = None,
    *,
    features: str | os.PathLike[str] | None = None,
    original_classes: Mapped | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    dtype: str = "float16",
    extract_amp: str = "none",
    compiled: bool = False,
    compare_identity: bool = True,
    keep: int = 5,
    probe: bool = True,
    view_pairs: int = 2,
    train_backbone: bool = False,
    augmentation: Augmentation | None = None,
    callbacks: Sequence[Callback] = (),
    log: Sequence[str] = (),
    profile: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Run:
    """Extract, train, compare, save; every step goes on where an interrupted run ended.

    Several processes that have called `infodisent.ranks.start` (``torchrun -m infodisent fit``) do
    it together; the leading one writes.

    Args:
        model: from `infodisent.attach`, with as many classes as `images`. Its head's options count;
            its head's weights are started anew from ``config.seed``.
        images: from `infodisent.data.images.scan_folder`, or any labelled images that
            `infodisent.data.images.as_image_set` takes, such as a torch data set.
        out: folder of the run.
        config: of the training.
        features: folder of the features, which several runs may share; default: in `out`. A shared
            one is never overwritten.
        original_classes: for classes whose name the original head does not know, its own name for
            them, column or WordNet id, see `infodisent.evaluation.original.match_classes`.
        batch_size, num_workers, dtype, extract_amp, compiled: of the extraction, see
            `infodisent.data.extraction.extract`.
        compare_identity: also train the heads that the method names for comparison, such as the
            same without rotation, see `Head.ablations`.
        keep: prototypes per channel and side.
        probe: also train a linear probe for comparison, see `linear_probe`.
        view_pairs: augmented copies of every training image, two views each, that are stored for a
            method that compares views (PIP-Net): ``2 · view_pairs`` backbone passes an image more.
        train_backbone: train the backbone with the head, from images that are augmented anew in
            every step, at ``config.backbone_lr``; batch norms keep their statistics. Features are
            extracted before, for the yardsticks and labels, and after, for everything else; the
            model that is saved has no original classifier any more. Takes `model` as it is before
            training, also to go on with an interrupted run.
        augmentation: of the copies; default `infodisent.data.augmentation.Augmentation()`.
        callbacks: called after every epoch of the head, see `fit_head`; not for the comparisons.
        log: how every epoch's figures are written, of `infodisent.training.tracking.LOGS`: "csv",
            a table ``training.csv``; "tensorboard", the folder ``tensorboard``.
        profile: write what torch's profiler says of a few steps to the folder ``profile``.
        overwrite: replace a run of other images, weights or options.
        progress: show progress bars.

    Raises:
        ValueError: the number of classes differs, a split is empty, or `out` holds another run.
    """
    config = config or (FitConfig(batch_size=LIVE_BATCH) if train_backbone else FitConfig())
    check_positive("fit", "view_pairs", view_pairs)
    check_logs("fit", log)
    folder = Path(out)
    with ranks.leader_first():
        images = as_image_set(images, out, seed=config.seed, overwrite=overwrite, progress=progress)
    if model.num_classes != len(images.classes):
        raise ValueError(
            f"fit: the model has {model.num_classes} classes, the images {len(images.classes)}"
        )
    weights = config.class_weights
    if not isinstance(weights, str) and len(weights) != len(images.classes):
        raise ValueError(
            f"fit: class_weights has {len(weights)} numbers, the images have "
            f"{len(images.classes)} classes"
        )
    if images.task == "multilabel" and not model.head.multilabel:
        raise ValueError(f"fit: {model.head.title} does not learn images with several labels")
    options = {
        "batch_size": batch_size,
        "num_workers": num_workers,
        "dtype": dtype,
        "amp": extract_amp,
        "compiled": compiled,
        "out": folder / FEATURES if features is None else Path(features),
        "overwrite": overwrite and features is None,
    }
    with locked(folder) if ranks.leads() else contextlib.nullcontext():
        if ranks.leads():
            sweep(folder)
        if overwrite and ranks.leads():  # nothing of an old run may stand beside new features
            drawn = (path for name in DRAWN for path in folder.glob(name))
            for path in (*(folder / name for name in WRITTEN), *drawn):
                path.unlink(missing_ok=True)
        ranks.barrier()
        chosen = _Choices(
            compare_identity,
            keep,
            probe,
            tuple(callbacks),
            tuple(log),
            profile,
            progress,
            original_classes,
            view_pairs,
            train_backbone,
            augmentation or Augmentation(),
        )
        return _fit(model, images, folder, config, chosen, options)


@dataclass(frozen=True)
class _Choices:
    """Arguments of `fit` that its stages read."""

    compare_identity: bool
    keep: int
    probe: bool
    callbacks: tuple[Callback, ...]
    log: tuple[str, ...]
    profile: bool
    progress: bool
    original_classes: Mapped | None
    view_pairs: int
    train_backbone: bool
    augmentation: Augmentation


def _fit(
    model: InfoDisentClassifier,
    images: ImageSet,
    folder: Path,
    config: FitConfig,
    chosen: _Choices,
    extraction: dict[str, Any],
) -> Run:
    laps, progress = _Laps(), chosen.progress
    store = extract(
        model,
        images,
        progress=progress,
        **extraction,
    )
    laps.lap("extract")
    train, test = store.indices("train"), store.indices("val")
    for split, indices in (("train", train), ("val", test)):
        if not len(indices):
            raise ValueError(f"fit: no readable image is in the {split} split of {images.root}")
    rows: Rows = []
    original = original_head(store, test, chosen.original_classes)
    if original is not None:
        rows.append(("original head", original))
    if chosen.probe:
        rows.append(("linear probe", linear_probe(store, train, test)))
    laps.lap("baselines")

    state = folder / STATE
    options = model.head.options()
    head = new_head(model.num_features, len(images.classes), config.seed, model.head, **options)
    model.head = head.to(model.head.device)
    own = original_classifier(model.backbone, store, chosen.original_classes)
    if own is not None and not chosen.train_backbone:
        model.head.start_weights(*own)
    views, live = training_maps(
        model,
        store,
        folder / VIEWS if store.path == folder / FEATURES else Path(f"{store.path}-views"),
        config,
        live=chosen.train_backbone,
        pairs=chosen.view_pairs,
        augmentation=chosen.augmentation,
        batch_size=extraction["batch_size"],
        num_workers=extraction["num_workers"],
        compiled=extraction["compiled"],
        overwrite=extraction["overwrite"],
        progress=progress,
    )
    if views is not None:
        laps.lap("views")
    history = fit_head(
        model.head,
        store,
        config,
        train=train,
        views=views,
        live=live,
        state=state,
        callbacks=(*chosen.callbacks, *(loggers(chosen.log, folder) if ranks.leads() else ())),
        profile=folder / PROFILE if chosen.profile else None,
        progress=progress,
    )
    if "csv" in chosen.log and ranks.leads():  # of a run that was killed between two writes
        write_history(folder / LOGS["csv"], history)
    if live is not None:
        trained(model.backbone)
        laps.lap("train")
        changed = {"out": folder / TRAINED_FEATURES, "overwrite": True}
        store = extract(model, images, progress=progress, **{**extraction, **changed})
        laps.lap("extract again")
        test = store.indices("val")
    rows.append((model.head.title, evaluate_head(model.head, store, test)))
    if live is None:
        laps.lap("train")
    compare = chosen.compare_identity and live is None  # another head has other maps then
    for title, ablation in compared_heads(model.head, config.seed) if compare else ():
        label = f"train {title}"
        fit_head(ablation, store, config, train=train, views=views, progress=progress, label=label)
        rows.append((title, evaluate_head(ablation, store, test)))
        laps.lap(f"train {title}")

    metrics = described(model, images, store, rows)
    metrics["train_backbone"] = live is not None
    metrics |= {"config": config.as_dict(), "head": options, "history": history}
    metrics["head_notices"] = list(model.head.notices())
    if chosen.original_classes is not None:
        metrics["original_classes"] = dict(chosen.original_classes)
    if store.path != folder / FEATURES:  # beside the run it is found after both have moved
        places = [os.path.relpath(store.path, folder), str(store.path.absolute())]
        metrics["features_folder"] = places
    stages = model.head.stages(LoopOptions())
    if config.patience is not None and len(stages) == 1 and stops_early(stages, 0):
        metrics["kept_epoch"] = best_epoch(history) + 1
    if ranks.leads():
        checkpoint.save(
            folder / MODEL, model, images.classes, info={"metrics": metrics}, task=store.task
        )
    prototypes = find_prototypes(model.head, store, k=chosen.keep, progress=progress)
    if ranks.leads():
        prototypes.save(folder / PROTOTYPES)
    laps.lap("prototypes")
    metrics["seconds"] = laps.seconds
    if ranks.leads():
        write_json(folder / METRICS, metrics)
    ranks.barrier()
    return Run(folder, metrics)


def evaluate_run(
    folder: str | os.PathLike[str],
    images: str | os.PathLike[str] | None = None,
    *,
    reading: Reading | None = None,
    module: checkpoint.Architecture | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Figures of a run's model on its held-out images, or on another folder of class folders.

    Args:
        folder: of the run.
        images: ``images/<class>/<image>``, or a CSV of them; every class must be one of the
            model's. Of a folder of splits the held-out one is scored, otherwise all images.
            Features are kept beside the run's own. Or a data set by name, see
            `infodisent.data.readers`, of which the held-out split is scored.
        reading: splits and columns of that.
        module: as for `open_run`.

    Raises:
        ValueError: a class the model does not know, or no readable images.
    """
    loaded, _, run = open_run(folder, module=module)
    if images is None:
        store = run.trained_store()
        test = store.indices("val")
        head = loaded.model.head
        rows: Rows = [(head.title, evaluate_head(head, store, test))]
        original = original_head(store, test, run.metrics.get("original_classes"))
        if original is not None:
            rows.insert(0, ("original head", original))
        return {
            **run.metrics,
            "rows": [{"head": n, **r.as_dict()} for n, r in rows],
            "worst_classes": {n: worst_classes(r, store.classes) for n, r in rows},
        }
    with ranks.leader_first():  # it downloads, and keeps where the images lie
        others = all_for_testing(
            images, loaded.classes, loaded.task, reading=reading, index=run.folder / INDEX
        )
    if progress:
        print_notices(others)
    name = f"evaluate-{Path(others.root).name}"
    store = extract(loaded.model, others, run.folder / name, overwrite=True, progress=progress)
    head, everything = loaded.model.head, torch.arange(len(store))
    rows = [(head.title, evaluate_head(head, store, everything))]
    return described(loaded.model, others, store, rows)
