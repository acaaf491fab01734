"""What a training would cost: bytes, memory and seconds a stage, from rates.

The arithmetic of a job (`Job`) and a machine's rates (`Rates`), which
`infodisent.training.calibration` measures or somebody states.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from infodisent.checks import check_positive

EVALUATIONS = 120
"""Of loss and gradient that the linear probe's L-BFGS takes: 60 to 300 on the sets at hand."""
LOGIT_BYTES = 2
ROW = 4


@dataclass(frozen=True)
class Rates:
    """What a machine does in a second.

    Attributes:
        decode: images that one process decodes and resizes.
        forward: images through the backbone, a device.
        step: images of training steps on maps in memory, a device.
        fixed_step: images of training steps on units that were pooled before, which every device
            takes all of; None for as many as `step`. See `Stage.pool_is_fixed`.
        pool: images through the head, a device: evaluation and the search for prototypes.
        probe: rows of one evaluation of the linear probe.
        read, write: bytes of the disk.
        cores: processors; where `shared`, decoding takes them from the backbone.
        shared: the device is the processor itself.
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

    def __post_init__(self) -> None:
        if self.fixed_step is not None and not 0 < self.fixed_step < math.inf:
            raise ValueError(
                f"Rates: fixed_step is {self.fixed_step}, must be finite and > 0, or None"
            )
        for name in ("decode", "forward", "step", "pool", "probe", "read", "write"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"Rates: {name} is {value}, must be finite and > 0")
        check_positive("Rates", "cores", self.cores)


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
        trainings: heads that train: 2 where the same without rotation is compared.
        probe: a linear probe is fitted.
        units: M of the head.
        parameters: of the head.
        stages: of the training: its passes over maps, None for `passes`, and whether its pool is
            fixed: then all are pooled once, and the steps read no maps.
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
    trainings: int = 1
    probe: bool = True
    units: int = 0
    parameters: int = 0
    stages: tuple[tuple[int | None, bool], ...] = ((None, False),)

    def __post_init__(self) -> None:
        for name in ("train", "channels", "pixels", "classes", "batch_size", "devices"):
            check_positive("Job", name, getattr(self, name))

    @property
    def images(self) -> int:
        """All of them."""
        return self.train + self.held_out

    @property
    def image_bytes(self) -> int:
        """Of one image in the store."""
        maps = self.item_bytes * self.channels * self.pixels
        return maps + LOGIT_BYTES * self.original_classes

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
        memory: bytes that every process needs besides torch and the backbone: batches in flight,
            and the head with its gradient and the optimiser's two moments.
        epoch: seconds of one pass of the training.
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
    whole, one = job.images * job.image_bytes, _pass(job, rates)
    stages = [_extraction(job, rates)]
    if job.probe:
        averages = whole / rates.read
        seconds = EVALUATIONS * job.train / rates.probe
        stages.append(_cost("linear probe", {"disk": averages, "probe": seconds}, together=False))
    stages.append(_training(job, rates))
    heads = job.trainings
    stages.append(_cost("evaluation", _reading(job, rates, heads * job.held_out)))
    stages.append(_cost("prototypes", _reading(job, rates, job.train)))
    batch = math.ceil(job.batch_size / job.devices) * job.item_bytes * job.channels * job.pixels
    memory = 4 * batch + 4 * ROW * job.parameters
    return Plan(job, whole, memory, max(one.values()), tuple(stages))


def _extraction(job: Job, rates: Rates) -> StageCost:
    decode = job.images / rates.decode
    backbone = job.images / (rates.forward * job.devices)
    disk = job.images * job.image_bytes / rates.write
    if rates.shared:
        # every processor does both: what decoding takes of one is spread over all
        busy = backbone + decode / rates.cores
        parts = {"backbone": busy, "disk": disk, "decoding": decode / max(1, job.workers)}
        return _cost("extraction", parts)
    decode /= job.devices * max(1, job.workers)
    return _cost("extraction", {"decoding": decode, "backbone": backbone, "disk": disk})


def _training(job: Job, rates: Rates) -> StageCost:
    """All stages of all trainings; what a stage waits for may differ from the next one's."""
    parts, seconds = {"head": 0.0, "disk": 0.0}, 0.0
    for own, fixed in job.stages:
        epochs, steps = own or job.passes, 0.0
        one = _pass(job, rates)
        if fixed:
            steps = epochs * job.train / (rates.fixed_step or rates.step)
            epochs, one = 1, _reading(job, rates, job.train)
        waited = {name: epochs * value for name, value in one.items()}
        seconds += max(waited.values()) + steps
        parts["head"] += waited["head"] + steps
        parts["disk"] += waited["disk"]
    parts = {name: job.trainings * value for name, value in parts.items()}
    bound = max(parts, key=lambda part: parts[part])
    return StageCost("training", job.trainings * seconds, bound, parts)


def _pass(job: Job, rates: Rates) -> dict[str, float]:
    compute = job.train / (rates.step * job.devices)
    return {"head": compute, "disk": job.train * job.image_bytes / rates.read}


def _reading(job: Job, rates: Rates, images: int) -> dict[str, float]:
    compute = images / (rates.pool * job.devices)
    return {"head": compute, "disk": images * job.image_bytes / rates.read}


def _cost(name: str, parts: dict[str, float], *, together: bool = True) -> StageCost:
    slowest = max(parts, key=lambda part: parts[part])
    seconds = parts[slowest] if together else sum(parts.values())
    return StageCost(name, seconds, slowest, parts)
