"""What a training would cost: bytes, memory and seconds a stage, from rates.

The arithmetic of a job (`Job`) and a machine's rates (`Rates`), which
`infodisent.training.calibration` measures or somebody states.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from infodisent.checks import check_positive

EVALUATIONS = 50
"""Of loss and gradient that the linear probe's L-BFGS takes. Counted on EfficientNet maps: 37 to 41
on ELPV's two classes (250 to 2,624 images), 41 to 50 on Flowers-17's (250 to 1,360)."""
LOGIT_BYTES = 2
ROW = 4
HELD = 5
"""Batches in memory at most: two that are ready and one that is being read, see
`infodisent.data.reader`, and when a step asks for the next one, that and the one before. An epoch
of fewer holds its own and the last one of the epoch before."""


@dataclass(frozen=True)
class Rates:
    """What a machine does in a second.

    Attributes:
        decode: images that one process decodes and resizes.
        forward: images through the backbone, a device.
        step: maps of training steps, in memory, a device; of an image with two views, two.
        fixed_step: images of training steps on units that were pooled before, which every device
            takes all of; None for as many as `step`. See `Stage.pool_is_fixed`.
        copy: augmented copies that one process decodes and makes; None for as many as `decode`.
        pool: images through the head, a device: evaluation and the search for prototypes.
        probe: rows of one evaluation of the linear probe.
        read, write: bytes of the disk.
        extract: images of an extraction, files to maps, where decoding and the backbone share the
            processors; None for what `decode` and `forward` make where they do not disturb each
            other.
        extract_copies: the same of augmented copies.
        extract_start: seconds before an extraction's first images.
        first_figures: seconds that a process takes once, before its first figures of merit.
        step_start: seconds of a training step whatever its maps, which are in `step` as a batch
            that is full has them.
        cores: processors; where `shared`, decoding takes them from the backbone.
        shared: the device is the processor itself.
        step_bytes: of memory, that a step needs besides its maps and weights, the optimiser's
            moments among it; None for as much as the gradient and two moments.
    """

    decode: float
    forward: float
    step: float
    pool: float
    probe: float
    read: float
    write: float
    cores: int = 1
    shared: bool = False
    fixed_step: float | None = None
    copy: float | None = None
    step_bytes: int | None = None
    extract: float | None = None
    extract_copies: float | None = None
    extract_start: float = 0.0
    first_figures: float = 0.0
    step_start: float = 0.0

    def __post_init__(self) -> None:
        for name in ("extract_start", "first_figures", "step_start"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"Rates: {name} is {getattr(self, name)}, must be finite and >= 0")
        for name in ("fixed_step", "copy", "step_bytes", "extract", "extract_copies"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"Rates: {name} is {value}, must be finite and > 0, or None")
        for name in ("decode", "forward", "step", "pool", "probe", "read", "write"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"Rates: {name} is {value}, must be finite and > 0")
        check_positive("Rates", "cores", self.cores)


@dataclass(frozen=True)
class Passes:
    """A stage of a training, as far as its cost goes, see `infodisent.methods.stages.Stage`.

    Attributes:
        epochs: passes over the training images; None for `Job.passes`.
        fixed: its pool is: all images are pooled once, and the steps read no maps.
        views: maps of every image in a step: 1 or 2.
    """

    epochs: int | None = None
    fixed: bool = False
    views: int = 1

    def __post_init__(self) -> None:
        if self.epochs is not None:
            check_positive("Passes", "epochs", self.epochs)
        check_positive("Passes", "views", self.views)


@dataclass(frozen=True)
class Job:
    """A training, as far as its cost goes.

    Attributes:
        train, held_out: images.
        channels, pixels: C and P of the stored maps.
        classes: K.
        original_classes: columns of the original head's logits, stored beside the maps.
        item_bytes: of one number of the stored maps.
        batch_size: images of a step, over all devices.
        epochs: passes over the training images of a stage that has no number of its own; None for
            what `FitConfig` takes.
        devices: that work at the same time, each a process of its own.
        workers: processes that decode, a device; 0 decodes in a thread beside the backbone.
        probe: a linear probe is fitted.
        parameters: of the head.
        stages: of the training.
        compared: stages of every other head that trains for comparison, such as the same without
            rotation.
        view_pairs: pairs of augmented copies of every training image that are stored, where a stage
            compares two views.
    """

    train: int
    held_out: int
    channels: int
    pixels: int
    classes: int
    original_classes: int = 0
    item_bytes: int = 2
    batch_size: int = 256
    epochs: int | None = None
    devices: int = 1
    workers: int = 0
    probe: bool = True
    parameters: int = 0
    stages: tuple[Passes, ...] = (Passes(),)
    compared: tuple[tuple[Passes, ...], ...] = ()
    view_pairs: int = 2

    def __post_init__(self) -> None:
        sizes = ("train", "channels", "pixels", "classes", "batch_size", "devices", "view_pairs")
        for name in sizes:
            check_positive("Job", name, getattr(self, name))

    @property
    def images(self) -> int:
        """All of them."""
        return self.train + self.held_out

    @property
    def trainings(self) -> tuple[tuple[Passes, ...], ...]:
        """Stages of every head that trains."""
        return (self.stages, *self.compared)

    @property
    def views(self) -> int:
        """Maps of an image in the steps of the stage that has most."""
        return max(stage.views for stages in self.trainings for stage in stages)

    @property
    def copies(self) -> int:
        """Augmented copies that are stored."""
        return self.views * self.view_pairs * self.train if self.views > 1 else 0

    @property
    def map_bytes(self) -> int:
        """Of one map in the store."""
        return self.item_bytes * self.channels * self.pixels

    @property
    def image_bytes(self) -> int:
        """Of one image in the store: its map and its logits."""
        return self.map_bytes + LOGIT_BYTES * self.original_classes

    @property
    def store_bytes(self) -> int:
        """Of everything that is stored."""
        return self.images * self.image_bytes + self.copies * self.map_bytes

    @property
    def passes(self) -> int:
        """Epochs of one stage: 15, or 120 steps if that is more."""
        steps = math.ceil(self.train / self.batch_size)
        return self.epochs or max(15, math.ceil(120 / steps))


@dataclass(frozen=True)
class StageCost:
    """What one stage takes.

    Attributes:
        name: of the stage.
        seconds: it takes.
        bound: what it waits for: "decoding", "backbone", "disk", "head" or "probe".
        parts: seconds of everything that it does at the same time, by the same names.
    """

    name: str
    seconds: float
    bound: str
    parts: dict[str, float]


@dataclass(frozen=True)
class Plan:
    """The cost of a job.

    Attributes:
        job: it is of.
        store: bytes on the disk.
        memory: bytes that every process needs for training besides torch and the backbone:
            batches (`HELD`), the head, what a step needs, and weights and moments once more, for
            the state that is written.
        epoch: seconds of one pass of the training over maps, in as many views as it has.
        stages: in their order.
    """

    job: Job
    store: int
    memory: int
    epoch: float
    stages: tuple[StageCost, ...]

    @property
    def seconds(self) -> float:
        """Of all stages."""
        return sum(stage.seconds for stage in self.stages)


def plan(job: Job, rates: Rates) -> Plan:
    """The cost of `job` at `rates`.

    Reading, computing and decoding go on at the same time, so a stage takes as long as the slowest
    of them; where decoding shares the processors with the backbone, their work adds up. Disks are
    taken as shared by all devices of the job, decoding processes as its own of every device.
    """
    of_images = (rates.decode, rates.extract, rates.extract_start)
    stages = [_extraction("extraction", job, rates, job.images, of_images, job.image_bytes)]
    if job.probe:
        averages = job.images * job.map_bytes / rates.read
        seconds = EVALUATIONS * job.train / rates.probe + rates.first_figures
        stages.append(_cost("linear probe", {"disk": averages, "probe": seconds}, together=False))
    if job.copies:
        of_copies = (rates.copy or rates.decode, rates.extract_copies, 0.0)
        stages.append(_extraction("views", job, rates, job.copies, of_copies, job.map_bytes))
    stages.append(_training(job, rates))
    heads = len(job.trainings)
    scored = _reading(job, rates, heads * job.held_out)
    scored["head"] += 0.0 if job.probe else rates.first_figures
    stages.append(_cost("evaluation", scored))
    stages.append(_cost("prototypes", _reading(job, rates, job.train)))
    batch = math.ceil(min(job.batch_size, job.train) / job.devices) * job.views * job.map_bytes
    held = min(HELD, math.ceil(job.train / job.batch_size) + 1)
    weights = ROW * job.parameters
    memory = held * batch + 4 * weights + (rates.step_bytes or 3 * weights)
    epoch = max(_pass(job, rates, job.views).values())
    return Plan(job, job.store_bytes, memory, epoch, tuple(stages))


def _extraction(
    name: str,
    job: Job,
    rates: Rates,
    images: int,
    speed: tuple[float, float | None, float],
    stored: int,
) -> StageCost:
    """So many images to maps of `stored` bytes.

    `speed`: images that a process decodes in a second, images a second of the whole if that is
    known, and seconds before the first.
    """
    decode, whole, start = speed
    decoding = images / decode
    backbone = images / (rates.forward * job.devices)
    disk = images * stored / rates.write
    if rates.shared:
        # every processor does both: what decoding takes of one is spread over all
        busy = backbone + decoding / rates.cores
        busy = start + (images / (whole * job.devices) if whole else busy)
        parts = {"backbone": busy, "disk": disk, "decoding": decoding / max(1, job.workers)}
        return _cost(name, parts)
    decoding /= job.devices * max(1, job.workers)
    return _cost(name, {"decoding": decoding, "backbone": backbone + start, "disk": disk})


def _training(job: Job, rates: Rates) -> StageCost:
    """All stages of all trainings; what a stage waits for may differ from the next one's."""
    parts, seconds = {"head": 0.0, "disk": 0.0}, 0.0
    for stage in (stage for stages in job.trainings for stage in stages):
        epochs, steps = stage.epochs or job.passes, 0.0
        one = _pass(job, rates, stage.views)
        if stage.fixed:
            steps = epochs * job.train / (rates.fixed_step or rates.step)
            epochs, one = 1, _reading(job, rates, job.train)
        waited = {name: epochs * value for name, value in one.items()}
        seconds += max(waited.values()) + steps
        parts["head"] += waited["head"] + steps
        parts["disk"] += waited["disk"]
    bound = max(parts, key=lambda part: parts[part])
    return StageCost("training", seconds, bound, parts)


def _pass(job: Job, rates: Rates, views: int) -> dict[str, float]:
    """An epoch of steps with so many maps of every image."""
    maps = views * job.train
    # a batch that is not full takes longer a map
    full = job.train / min(job.batch_size, job.train)
    head = maps / (rates.step * job.devices) + (math.ceil(full) - full) * rates.step_start
    return {"head": head, "disk": maps * job.map_bytes / rates.read}


def _reading(job: Job, rates: Rates, images: int) -> dict[str, float]:
    compute = images / (rates.pool * job.devices)
    return {"head": compute, "disk": images * job.map_bytes / rates.read}


def _cost(name: str, parts: dict[str, float], *, together: bool = True) -> StageCost:
    slowest = max(parts, key=lambda part: parts[part])
    seconds = parts[slowest] if together else sum(parts.values())
    return StageCost(name, seconds, slowest, parts)
