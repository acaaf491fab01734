"""Measures a machine's rates for `infodisent.training.plan`: about half a minute."""

from __future__ import annotations

import copy
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from infodisent import ranks
from infodisent.backbones.backbone import evaluating
from infodisent.backbones.preprocess import transform_config, transform_from
from infodisent.classifier import InfoDisentClassifier
from infodisent.data.encoding import DTYPES, FLOAT8, computed_dtype
from infodisent.data.pictures import load_picture
from infodisent.data.shards import CACHED
from infodisent.methods import Head
from infodisent.methods.stages import LoopOptions, Stage
from infodisent.training.plan import Job, Rates
from infodisent.training.steps import adamw

SECONDS = 3.0
"""Each rate is measured for."""
ROOM = 1 << 28
"""Bytes written and read for the disk's rates: 256 MiB."""
_ROWS = 2048
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
    known, device = dict(given or {}), model.head.device
    count = max(1, job.batch_size // job.devices)
    maps = torch.rand(count, job.pixels, job.channels)
    maps = maps.to(device, COMPUTED[job.item_bytes])

    def forward() -> object:
        return model.head(maps, input_fmt="NLC")

    measured: dict[str, Callable[[], float]] = {
        "decode": lambda: _decoding(model, pictures, seconds),
        "forward": lambda: _backbone(model, seconds),
        "step": lambda: _step_rate(model.head, maps, seconds),
        "pool": lambda: _rate(torch.inference_mode()(forward), count, seconds, device),
        "probe": lambda: _probe(job, seconds),
    }
    if any(fixed for _, fixed in job.stages):
        measured["fixed_step"] = lambda: _fixed_step_rate(model.head, job, seconds)
        if all(fixed for _, fixed in job.stages):  # no step pools
            measured["step"] = measured.pop("fixed_step")
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
    return Rates(**known, cores=cores or 1, shared=device.type == "cpu")


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
    some: list[str | bytes] = list(pictures[:: max(1, len(pictures) // 32)]) or [_photograph()]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a process that decodes
    try:

        def run() -> None:
            for picture in some:
                transform(load_picture(picture).image)

        return _rate(run, len(some), seconds, torch.device("cpu"))
    finally:
        torch.set_num_threads(threads)


def _photograph() -> bytes:
    """A JPEG file with the detail of a photograph: noise of every scale."""
    random = np.random.default_rng(0)
    scales = [
        np.asarray(
            Image.fromarray(random.integers(0, 256, (h, w, 3), np.uint8)).resize((500, 375)),
            np.float32,
        )
        for h, w in ((375, 500), (94, 125), (24, 32), (6, 8))
    ]
    pixels = sum(scale * share for scale, share in zip(scales, (0.1, 0.15, 0.25, 0.5), strict=True))
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.float32).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def training_step(head: Head) -> Callable[[Tensor], None]:
    """A training step of the first stage that has the pool in it, on maps ``[n, P, C]``.

    Of several processes each brings its part of the maps, see `infodisent.ranks`. Of a head whose
    pool is fixed in every stage, a step of the first stage with the pool before it.
    """
    stages = trained_stages(head)
    stage = next((stage for stage in stages if not stage.pool_is_fixed), stages[0])
    optimizer = adamw([dict(group) for group in stage.groups], head.device)

    def step(maps: Tensor) -> None:
        if ranks.world() > 1:
            logits = head.classify(ranks.gathered(head.pool(maps, input_fmt="NLC").pooled))
        else:
            logits = head(maps, input_fmt="NLC")
        labels = torch.arange(len(logits), device=logits.device) % head.num_classes
        loss = nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        ranks.average_gradients(stage.parameters())
        optimizer.step()
        head.after_step()

    return step


def _step_rate(
    head: Head,
    maps: Tensor,  # [n, P, C]
    seconds: float,
) -> float:
    """Images a second of training steps; of a copy of the head, which stays as it is."""
    step = training_step(copy.deepcopy(head).train())
    return _rate(lambda: step(maps), len(maps), seconds, maps.device)


def trained_stages(head: Head) -> list[Stage]:
    """The stages in which something trains, see `infodisent.training.fit.fit_head`."""
    return [stage for stage in head.stages(LoopOptions()) if stage.parameters()]


def _fixed_step_rate(head: Head, job: Job, seconds: float) -> float:
    """Images a second of training steps on pooled units, all of a step's; of a copy of the head."""
    head = copy.deepcopy(head).train()
    stage = next(stage for stage in trained_stages(head) if stage.pool_is_fixed)
    optimizer = adamw([dict(group) for group in stage.groups], head.device)
    units = torch.rand(job.batch_size, head.num_features, device=head.device)
    labels = torch.arange(len(units), device=head.device) % head.num_classes

    def step() -> None:
        loss = nn.functional.cross_entropy(head.classify(units), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        head.after_step()

    return _rate(step, len(units), seconds, head.device)


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
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(f"{place} is not a folder; give one (--out) on the store's disk")
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
