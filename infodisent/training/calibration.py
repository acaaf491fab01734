"""Measures a machine's rates for `infodisent.training.plan`: about half a minute."""

from __future__ import annotations

import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from infodisent import ranks
from infodisent.backbones.backbone import evaluating
from infodisent.backbones.preprocess import transform_config, transform_from
from infodisent.classifier import InfoDisentClassifier
from infodisent.data.augmentation import VIEWS
from infodisent.data.encoding import DTYPES, FLOAT8, computed_dtype
from infodisent.data.images import Sample
from infodisent.data.pictures import load_picture
from infodisent.data.shards import CACHED
from infodisent.evaluation.accuracy import Figures
from infodisent.methods import Head
from infodisent.methods.rotations import turn_rotations
from infodisent.methods.stages import LoopOptions, Stage
from infodisent.training.config import FitConfig
from infodisent.training.extraction_rate import (
    copies_of,
    extraction_rate,
    images_of,
    photograph,
)
from infodisent.training.fit import compared_heads
from infodisent.training.footprint import peak_bytes
from infodisent.training.objective import Objective
from infodisent.training.plan import Job, Passes, Rates
from infodisent.training.steps import Step, Tools, adamw, grad_scaler

SECONDS = 3.0
"""Each rate is measured for."""
ROOM = 1 << 28
"""Bytes written and read for the disk's rates: 256 MiB."""
_ROWS = 2048
TRAINED = 17.0
"""Spectral norm of ``A - A^T`` after a training: 17.2 of the default head after 120 steps on four
classes of EfficientNet-Lite0's maps. A step of 256 images takes 1.23 times the first one's then."""
COMPUTED = {1: computed_dtype(DTYPES[FLOAT8]), 2: torch.float16, 4: torch.float32}
"""What maps are computed with, by the bytes of a stored number."""


def measure_rates(
    model: InfoDisentClassifier,
    job: Job,
    folder: Path,
    *,
    pictures: Sequence[str] = (),
    given: Mapping[str, float] | None = None,
    seconds: float = SECONDS,
    say: Callable[[str], object] = lambda _: None,
) -> Rates:
    """Rates of this machine, with the model on its device.

    Args:
        model: as it is to be trained.
        job: sizes of what is timed.
        folder: on the disk where the store will be.
        pictures: some of the images; default: a photograph-like JPEG of 500 x 375 pixels.
        given: rates that are known, by name; they are not measured.
        seconds: for every rate.
        say: told what is being measured.

    Raises:
        OSError: the folder cannot be written to.
    """
    if not pictures:
        with tempfile.TemporaryDirectory() as place:
            file = Path(place) / "photograph.jpg"
            file.write_bytes(photograph())
            return measure_rates(
                model, job, folder, pictures=[str(file)], given=given, seconds=seconds, say=say
            )
    known, device = dict(given or {}), model.head.device
    count = max(1, min(job.batch_size, job.train) // job.devices)
    memory: list[int] = []
    maps = torch.rand(count, job.pixels, job.channels)
    maps = maps.to(device, COMPUTED[job.item_bytes])

    def forward() -> object:
        return model.head(maps, input_fmt="NLC")

    starts = {"extract_start": 0.0, "first_figures": _first_figures(job.classes), "step_start": 0.0}

    def extracted(dataset: Dataset[Sample], original: bool) -> float:
        rate, start = extraction_rate(
            model.backbone,
            dataset,
            _existing(folder),
            seconds,
            item_bytes=job.item_bytes,
            workers=job.workers,
            original=original,
        )
        starts["extract_start"] = starts["extract_start"] or start
        return rate

    measured: dict[str, Callable[[], float]] = {}
    # what is stated of the parts says what the whole takes
    if device.type == "cpu" and not {"decode", "copy", "forward"} & known.keys():
        measured["extract"] = lambda: extracted(
            images_of(model, pictures), bool(job.original_classes)
        )
        if job.copies:
            measured["extract_copies"] = lambda: extracted(copies_of(model, pictures), False)
    measured |= {
        "decode": lambda: _decoding(model, pictures, seconds),
        "forward": lambda: _backbone(model, seconds),
        "step": lambda: _step_rate(model.head, maps, seconds, memory, starts),
        "pool": lambda: _rate(torch.inference_mode()(forward), count, seconds, device),
        "probe": lambda: _probe(job, seconds),
    }
    if all(stage.fixed for stage in job.stages):  # no step pools
        measured["step"] = lambda: _fixed_step_rate(model.head, job, seconds)
    elif any(stage.fixed for stages in job.trainings for stage in stages):
        measured["fixed_step"] = lambda: _fixed_step_rate(model.head, job, seconds)
    if job.copies:
        measured["copy"] = lambda: _copying(model, pictures, seconds)
    for name, measure in measured.items():
        if name not in known:
            say(name)
            with evaluating(model):
                known[name] = measure()
    if "read" not in known or "write" not in known:
        say("disk")
        write, read = _disk(folder)
        known = {"write": write, "read": read, **known}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Rates(
        **known,
        **starts,
        cores=cores or 1,
        shared=device.type == "cpu",
        step_bytes=max(memory, default=0) or None,
    )


def _backbone(model: InfoDisentClassifier, seconds: float) -> float:
    """Images a second, in passes as extraction makes them."""
    device = model.head.device
    images = torch.rand(
        CACHED if device.type == "cpu" else 32, *transform_config(model.backbone)["input_size"]
    )
    weight = next(model.backbone.parameters())
    images = images.to(device, weight.dtype, memory_format=torch.channels_last)
    model.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def run() -> None:
        model.backbone.to_map(model.backbone.raw(images))

    return _rate(run, len(images), seconds, device)


def _rate(run: Callable[[], object], count: int, seconds: float, device: torch.device) -> float:
    """Items a second: of the median of repeated runs, after two to warm up."""

    def timed() -> float:
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    timed(), timed()
    times = [timed()]
    while sum(times) < seconds or len(times) < 3:
        times.append(timed())
    return count / statistics.median(times)


def _decoding(model: InfoDisentClassifier, pictures: Sequence[str], seconds: float) -> float:
    transform = transform_from(transform_config(model.backbone))
    some = pictures[:: max(1, len(pictures) // 32)]

    def run() -> None:
        for picture in some:
            transform(load_picture(picture).image)

    return _rate_of_one_thread(run, len(some), seconds)


def _copying(model: InfoDisentClassifier, pictures: Sequence[str], seconds: float) -> float:
    """Augmented copies a second, in pairs of views, each of a picture that is read for it."""
    made, count = copies_of(model, pictures), VIEWS * 16

    def run() -> None:
        for number in range(count):
            made[number]

    return _rate_of_one_thread(run, count, seconds)


def _rate_of_one_thread(run: Callable[[], object], count: int, seconds: float) -> float:
    """Items a second, as in a process that decodes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _rate(run, count, seconds, torch.device("cpu"))
    finally:
        torch.set_num_threads(threads)


class _GivenMaps:
    """What a `Step` asks of a training's maps, where they are given: labels, and the rows as they
    are.
    """

    def __init__(self, images: int, classes: int) -> None:
        self.store, self.labels = self, torch.arange(images) % classes

    def made(
        self,
        rows: Tensor,  # [n, P, C]
    ) -> Tensor:
        return rows


def training_step(head: Head) -> Callable[[Tensor], object]:
    """A training step, `Step`, on maps ``[n, P, C]``: of the first stage that has the pool in it.

    The maps are n / 2 images where that stage compares two views. Of several processes each brings
    its part of the maps, as many as the others, see `infodisent.ranks`. Of a head whose pool is
    fixed in every stage, a step of the first stage with the pool before it.
    """
    stage = pooling_stage(head)
    steps: dict[int, Step] = {}

    def step(maps: Tensor) -> object:
        images = len(maps) * ranks.world() // stage.views
        if images not in steps:
            steps[images] = _step(head, stage, images)
        return steps[images](0.5, torch.arange(images), maps, None)

    return step


def _step(head: Head, stage: Stage, images: int) -> Step:
    """A step of the stage as it is in the middle, of images of all classes in turn."""
    config, maps, options = FitConfig(), _GivenMaps(images, head.num_classes), LoopOptions()
    groups = [{k: v for k, v in group.items() if k != "rate"} for group in stage.groups]
    optimizer = adamw(groups, head.device)
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    tools = Tools(optimizer, constant, grad_scaler(config, head.device))
    return Step(head, maps, Objective(False), options, config, stage, tools)  # type: ignore[arg-type]


def _step_rate(
    head: Head,
    maps: Tensor,  # [n, P, C]
    seconds: float,
    memory: list[int],
    starts: dict[str, float],
) -> float:
    """Maps a second of training steps, of n images; of a copy of the head, which stays as it is.

    Args:
        head: whose rotation is as far from the identity as training takes it (`TRAINED`).
        maps: of the n images.
        seconds: for a rate.
        memory: where the bytes that a step needs besides are put, if the system tells.
        starts: where what a step takes whatever its maps is put, as "step_start".
    """
    head = copy.deepcopy(head).train()
    turn_rotations(head, TRAINED)
    rows = maps.repeat(pooling_stage(head).views, 1, 1)
    few, step = rows[: 2 * pooling_stage(head).views], training_step(head)
    rate: list[float] = []
    # of all steps: what they give back, the allocator does not give back at once
    used = peak_bytes(
        lambda: rate.append(_rate(lambda: step(rows), len(rows), seconds, maps.device)),
        maps.device,
        lambda: step(few),
    )
    memory += [] if used is None else [used]
    part = maps[: len(maps) // 8].repeat(pooling_stage(head).views, 1, 1)
    if len(part):
        short = len(part) / _rate(lambda: step(part), len(part), seconds / 2, maps.device)
        whole = len(rows) / rate[0]
        of_map = (whole - short) / (len(rows) - len(part))
        starts["step_start"] = min(whole, max(0.0, whole - of_map * len(rows)))
    return rate[0]


def _first_figures(classes: int) -> float:
    """Seconds that the first figures of merit of a process take: torchmetrics is loaded then."""

    def timed() -> float:
        start = time.perf_counter()
        Figures(classes)
        return time.perf_counter() - start

    return max(0.0, timed() - timed())


def trained_stages(head: Head) -> list[Stage]:
    """The stages in which something trains, see `infodisent.training.fit.fit_head`."""
    return [stage for stage in head.stages(LoopOptions()) if stage.parameters()]


def pooling_stage(head: Head) -> Stage:
    """The first stage whose steps pool, or the first."""
    stages = trained_stages(head)
    return next((stage for stage in stages if not stage.pool_is_fixed), stages[0])


def passes_of(head: Head, epochs: int | None = None) -> tuple[Passes, ...]:
    """Its stages, for `Job`; `epochs`: as `FitConfig` has them."""
    stages = trained_stages(head)
    # a method's only stage takes the number that is given, though it has one of its own
    own = epochs if len(stages) == 1 else None
    return tuple(Passes(own or s.epochs, s.pool_is_fixed, s.views) for s in stages)


def _fixed_step_rate(head: Head, job: Job, seconds: float) -> float:
    """Images a second of training steps on pooled units, all of a step's.

    Of a copy of the head, or where its pool is fixed in no stage, of one that it is compared with.
    """
    with_fixed = [
        (one, stage)
        for one in (copy.deepcopy(head), *(other for _, other in compared_heads(head, 0)))
        for stage in trained_stages(one)
        if stage.pool_is_fixed
    ]
    head, stage = with_fixed[0]
    head.train()
    units = torch.rand(job.batch_size, head.num_features, device=head.device)
    step, positions = _step(head, stage, len(units)), torch.arange(len(units))
    return _rate(lambda: step(0.5, positions, None, units), len(units), seconds, head.device)


def _probe(job: Job, seconds: float) -> float:
    """Rows a second of one evaluation of the probe's loss and gradient."""
    rows = torch.randn(min(_ROWS, max(64, job.train)), job.channels)
    labels = torch.arange(len(rows)) % job.classes
    layer = nn.Linear(job.channels, job.classes)

    def run() -> None:
        nn.functional.cross_entropy(layer(rows), labels).backward()  # type: ignore[no-untyped-call]

    return _rate(run, len(rows), seconds, torch.device("cpu"))


def _disk(folder: Path) -> tuple[float, float]:
    """Bytes a second written, until the disk has them, and read, not from memory.

    Where there is no such folder yet, in the one where it will be made: a plan leaves nothing.
    """
    place = _existing(folder)
    block = os.urandom(1 << 22)
    with tempfile.NamedTemporaryFile(dir=place) as file:
        start = time.perf_counter()
        for _ in range(ROOM // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        write = ROOM / (time.perf_counter() - start)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        start = time.perf_counter()
        while file.read(len(block)):
            pass
        return write, ROOM / (time.perf_counter() - start)


def _existing(folder: Path) -> Path:
    """The folder, or where it is not there yet the one in which it will be made."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(f"{place} is not a folder; give one (--out) on the store's disk")
    return place
