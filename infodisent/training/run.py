"""The main job, start to end: images -> features -> heads -> figures of merit -> one folder."""

from __future__ import annotations

import dataclasses
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from infodisent.data.features import FeatureStore, extract
from infodisent.data.images import ImageSet
from infodisent.evaluation.accuracy import Evaluation, evaluate_head, linear_probe, original_head
from infodisent.explanations.prototypes import Prototypes, find_prototypes
from infodisent.files import locked, read_json, reading, write_json
from infodisent.training import checkpoint
from infodisent.training.fit import FitConfig, fit_head, new_head
from infodisent.version import __version__

if TYPE_CHECKING:
    from infodisent.classifier import InfoDisentClassifier

MODEL, STATE, METRICS, PROTOTYPES, FEATURES = (
    "model.safetensors",
    "training.safetensors",
    "metrics.json",
    "prototypes.safetensors",
    "features",
)


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: holds ``model.safetensors``, ``metrics.json``, ``features/`` and the rest.
        metrics: what ``metrics.json`` holds; ``metrics["rows"]`` is the comparison table.
    """

    folder: Path
    metrics: dict[str, Any] = field(repr=False)

    @property
    def store(self) -> FeatureStore:
        """The run's features."""
        return FeatureStore(self.folder / FEATURES)


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
    images: ImageSet,
    out: str | os.PathLike[str],
    config: FitConfig | None = None,
    *,
    batch_size: int = 32,
    num_workers: int = 0,
    dtype: str = "float16",
    compare_identity: bool = True,
    keep: int = 5,
    overwrite: bool = False,
    progress: bool = True,
) -> Run:
    """Extract, train, compare, save; every step goes on where an interrupted run ended.

    Args:
        model: from `infodisent.attach`, with as many classes as `images`. Its head's options count;
            its head's weights are started anew from ``config.seed``.
        images: from `infodisent.data.images.scan_folder`.
        out: folder of the run.
        config: of the training.
        batch_size, num_workers, dtype: of the extraction, see `infodisent.data.features.extract`.
        compare_identity: also train the same head without rotation, to see what the rotation does.
        keep: prototypes per channel and side.
        overwrite: replace a run of other images, weights or options.
        progress: show progress bars.

    Raises:
        ValueError: the number of classes differs, a split is empty, or `out` holds another run.
    """
    config = config or FitConfig()
    folder = Path(out)
    if model.num_classes != len(images.classes):
        raise ValueError(
            f"fit: the model has {model.num_classes} classes, the images {len(images.classes)}"
        )
    options = {
        "batch_size": batch_size,
        "num_workers": num_workers,
        "dtype": dtype,
        "overwrite": overwrite,
    }
    with locked(folder):
        if overwrite:  # nothing of an old run may stand beside new features
            for name in (STATE, MODEL, PROTOTYPES, METRICS):
                (folder / name).unlink(missing_ok=True)
        return _fit(model, images, folder, config, compare_identity, keep, progress, options)


def _fit(
    model: InfoDisentClassifier,
    images: ImageSet,
    folder: Path,
    config: FitConfig,
    compare_identity: bool,
    keep: int,
    progress: bool,
    extraction: dict[str, Any],
) -> Run:
    laps = _Laps()
    store = extract(
        model,
        images,
        folder / FEATURES,
        progress=progress,
        **extraction,
    )
    laps.lap("extract")
    train, test = store.indices("train"), store.indices("val")
    for split, indices in (("train", train), ("val", test)):
        if not len(indices):
            raise ValueError(f"fit: no readable image is in the {split} split of {images.root}")
    rows: list[tuple[str, Evaluation]] = []
    original = original_head(store, test)
    if original is not None:
        rows.append(("original head", original))
    rows.append(("linear probe", linear_probe(store, train, test)))
    laps.lap("baselines")

    state = folder / STATE
    options = model.head.options()
    head = new_head(model.num_features, len(images.classes), config.seed, model.head, **options)
    model.head = head.to(next(model.head.parameters()).device)
    history = fit_head(model.head, store, config, train=train, state=state, progress=progress)
    rows.append(("InfoDisent", evaluate_head(model.head, store, test)))
    laps.lap("train")
    if compare_identity and options["rotate"]:
        plain = new_head(
            model.num_features, len(images.classes), config.seed, **{**options, "rotate": False}
        )
        fit_head(plain, store, config, train=train, progress=progress, label="the same with U = I")
        rows.append(("no rotation", evaluate_head(plain, store, test)))
        laps.lap("train with U = I")

    metrics = _metrics(model, images, store, rows)
    metrics |= {"config": dataclasses.asdict(config), "head": options, "history": history}
    checkpoint.save(folder / MODEL, model, images.classes, info={"metrics": metrics})
    find_prototypes(model.head, store, k=keep, progress=progress).save(folder / PROTOTYPES)
    laps.lap("prototypes")
    metrics["seconds"] = laps.seconds
    write_json(folder / METRICS, metrics)
    return Run(folder, metrics)


def _metrics(
    model: InfoDisentClassifier,
    images: ImageSet,
    store: FeatureStore,
    rows: list[tuple[str, Evaluation]],
) -> dict[str, Any]:
    return {
        "version": __version__,
        "torch": torch.__version__,
        "backbone": model.spec["name"],
        "channels": store.channels,
        "features": store.meta["made_from"],
        "images": {
            "root": images.root,
            "classes": list(images.classes),
            "train": store.splits.count("train"),
            "val": store.splits.count("val"),
            "skipped": [list(s) for s in store.skipped],
        },
        "rows": [{"head": name, **result.as_dict()} for name, result in rows],
    }


def open_run(folder: str | os.PathLike[str]) -> tuple[checkpoint.Checkpoint, Prototypes, Run]:
    """Read back a folder that `fit` has written.

    Raises:
        FileNotFoundError: a file of the run is missing; the message names it.
        ValueError: one is damaged.
    """
    base = Path(folder)
    if not base.is_dir():
        raise FileNotFoundError(f"{base} is not a run: no such folder (made by `infodisent fit`)")
    loaded = checkpoint.load(base / MODEL)
    with reading(base / PROTOTYPES):
        prototypes = Prototypes.load(base / PROTOTYPES)
    metrics = read_json(base / METRICS)
    with reading(base / METRICS):
        for key in ("backbone", "rows", "images", "features"):
            metrics[key]
    return loaded, prototypes, Run(base, metrics)


def evaluate_run(
    folder: str | os.PathLike[str],
    images: str | os.PathLike[str] | None = None,
    *,
    progress: bool = True,
) -> dict[str, Any]:
    """Figures of a run's model on its held-out images, or on another folder of class folders.

    Args:
        folder: of the run.
        images: ``images/<class>/<image>``; every class must be one of the model's. All of them are
            scored, whatever split they are in. Features are kept beside the run's own.

    Raises:
        ValueError: a class the model does not know, or no readable images.
    """
    loaded, _, run = open_run(folder)
    if images is None:
        store = run.store
        if store.meta["made_from"] != run.metrics["features"]:
            raise ValueError(
                f"{run.folder}: its features are not those its model was trained on; run fit again"
            )
        test = store.indices("val")
        rows = [("InfoDisent", evaluate_head(loaded.model.head, store, test))]
        original = original_head(store, test)
        if original is not None:
            rows.insert(0, ("original head", original))
        return {**run.metrics, "rows": [{"head": n, **r.as_dict()} for n, r in rows]}
    from infodisent.data.images import all_for_testing

    found = all_for_testing(images, loaded.classes)
    name = f"evaluate-{Path(found.root).name}"
    store = extract(loaded.model, found, run.folder / name, overwrite=True, progress=progress)
    everything = torch.arange(len(store))
    rows = [("InfoDisent", evaluate_head(loaded.model.head, store, everything))]
    return _metrics(loaded.model, found, store, rows)


def pick_device(name: str | None) -> torch.device:
    """The named device, or CUDA where it is present.

    Raises:
        ValueError: no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("allowed are cpu, cuda and mps")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used: {error}") from error
    return device


def load_backbone(model: InfoDisentClassifier, path: str | os.PathLike[str]) -> None:
    """Load a backbone's weights from a local file, without running any code from it.

    Args:
        path: ``.safetensors``, or a PyTorch file of plain tensors (read with ``weights_only``).

    Raises:
        FileNotFoundError: no such file.
        ValueError: unreadable, or the weights do not fit the architecture.
    """
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"{source} is not a file")
    try:
        if source.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(source)
        else:
            state = torch.load(source, map_location="cpu", weights_only=True)
            state = state.get("state_dict", state)
        model.backbone.model.load_state_dict(state)
    except Exception as error:  # each reader fails in ways of its own; all mean "not usable"
        raise ValueError(
            f"{source} does not hold weights for {model.spec['name']}: {error}"
        ) from error
