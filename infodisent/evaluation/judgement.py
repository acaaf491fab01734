"""Every figure of a model's explanations that needs no annotations, with intervals over images.

`judge_features` needs stored maps alone; `judge_pictures` runs the backbone on changed pictures.
What a head has no closed form for is left out, and said. Several processes (`infodisent.ranks`)
have every so-and-so-many-th batch each, and all come to the figures of all batches.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from infodisent import ranks
from infodisent.classifier import InfoDisentClassifier
from infodisent.data.store import FeatureStore
from infodisent.evaluation.disentanglement import channel_purity, spatial_entropy
from infodisent.evaluation.faithfulness import cell_curves, pixel_curves
from infodisent.evaluation.images import maps_of
from infodisent.evaluation.intervals import Interval, bootstrap
from infodisent.evaluation.misalignment import ATTACKS, EPSILON, misalignment
from infodisent.evaluation.sizes import active_size, global_size, pipnet_size, sufficient_size
from infodisent.evaluation.stability import noise_stability, rank_correlation, shuffled
from infodisent.explanations.posthoc import EXPLAINERS
from infodisent.explanations.sparsity import exact, explanation_sizes
from infodisent.methods import Head

_BATCH = 32
"""Images of a store at a time."""
PIXEL_STEPS = 32
"""Steps of deletion and insertion over pixels; RISE has 224, which is seven times the work."""


@dataclass(frozen=True)
class Measure:
    """What a figure is: its title, the group it is printed in, and which way is better.

    Attributes:
        better: "lower", "higher", or "" for figures that are neither.
        form: of the number.
    """

    title: str
    group: str
    better: str
    form: str = "{:.3f}"


_CELLS, _PIXELS = "faithfulness, feature cells", "faithfulness, pixels"
_PARTS, _WHERE = "annotated parts", "localisation, annotated masks"
_SIZE, _MEANING, _CHANGE = "size of explanations", "meaning of units", "changed pictures"

MEASURES: dict[str, Measure] = {
    "accuracy": Measure("accuracy", "prediction", "higher", "{:.1%}"),
    "size95": Measure("units for 95 % of the score", _SIZE, "lower", "{:.1f}"),
    "sufficient": Measure("units that keep the prediction", _SIZE, "lower", "{:.1f}"),
    "pipnet_size": Measure("local size as PIP-Net", _SIZE, "lower", "{:.1f}"),
    "active_size": Measure("units with a value above 0.2", _SIZE, "lower", "{:.1f}"),
    "global_size": Measure("units with some weight", _SIZE, "lower", "{:.0f}"),
    "sparsity": Measure("part of weights that are 0", _SIZE, "higher", "{:.1%}"),
    "deletion": Measure("deletion AUC", _CELLS, "lower"),
    "insertion": Measure("insertion AUC", _CELLS, "higher"),
    "randomised": Measure("rank correlation, shuffled head", _CELLS, "lower"),
    "purity": Measure("channel purity (EPIC)", _MEANING, "higher"),
    "entropy": Measure("spatial entropy (PiPS), nats", _MEANING, "lower"),
    "duplicates": Measure("duplicate prototypes", _MEANING, "lower", "{:.1%}"),
    "consistency": Measure("consistency of parts", _PARTS, "higher", "{:.1%}"),
    "part_stability": Measure("stability of parts", _PARTS, "higher", "{:.1%}"),
    "part_purity": Measure("purity of parts (PIP-Net)", _PARTS, "higher"),
    "pointing": Measure("pointing game", _WHERE, "higher", "{:.1%}"),
    "mass": Measure("mass accuracy", _WHERE, "higher"),
    "rank": Measure("rank accuracy", _WHERE, "higher"),
    "pixel_deletion": Measure("deletion AUC", _PIXELS, "lower"),
    "pixel_insertion": Measure("insertion AUC", _PIXELS, "higher"),
    "same_places": Measure("units at their place in noise", _CHANGE, "higher", "{:.1%}"),
    "same_prediction": Measure("same prediction in noise", _CHANGE, "higher", "{:.1%}"),
    "plc": Measure("misalignment PLC", _CHANGE, "lower", "{:.1f}"),
    "prc": Measure("misalignment PRC", _CHANGE, "lower", "{:.2f}"),
    "pac": Measure("misalignment PAC", _CHANGE, "lower", "{:.1f}"),
    "ac": Measure("misalignment AC", _CHANGE, "lower", "{:.1f}"),
}
"""Every figure by its key in files, in the order of tables."""


@dataclass
class Judgement:
    """Figures as they are gathered.

    Attributes:
        rows: JSON-able: "measure" (a key of `MEASURES`), "of" (an explanation or attack, or ""),
            and the fields of `Interval`; low and high are None where the figure is no mean over
            images.
        notes: what was left out, and why.
        values: of every image, ``[n]``, by measure and what it is of, where a figure is their mean.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    values: dict[tuple[str, str], Tensor] = field(default_factory=dict, repr=False)

    def add(self, measure: str, values: Tensor, of: str = "", seed: int = 0) -> None:
        """A mean over images, ``[n]``."""
        self.values[measure, of] = values.detach().cpu().float()
        self._append(measure, of, bootstrap(values, seed=seed))

    def add_number(self, measure: str, value: float | None, of: str = "", images: int = 0) -> None:
        """A figure without an interval."""
        self._append(measure, of, Interval(value, None, None, images))

    def add_interval(self, measure: str, interval: Interval, of: str = "") -> None:
        """A figure with an interval that is known already."""
        self._append(measure, of, interval)

    def extend(self, other: Judgement) -> None:
        """Take the figures of another, and those of its notes that are new."""
        self.rows += other.rows
        self.values |= other.values
        self.notes += [note for note in other.notes if note not in self.notes]

    def _append(self, measure: str, of: str, interval: Interval) -> None:
        assert measure in MEASURES
        self.rows.append({"measure": measure, "of": of, **asdict(interval)})

    def attempt(self, compute: Callable[[], None]) -> None:
        """Run it; a ValueError, with which closed forms refuse a head, becomes a note."""
        try:
            compute()
        except ValueError as reason:
            if str(reason) not in self.notes:
                self.notes.append(str(reason))


@torch.no_grad()
def judge_features(
    head: Head,
    store: FeatureStore,
    test: Tensor,  # [n] int64
    train: Tensor,  # [m] int64
    *,
    seed: int = 0,
    advance: Callable[[int], None] = lambda images: None,
) -> Judgement:
    """The figures that follow from stored maps.

    Args:
        head: set to evaluation mode.
        store: has the maps and labels.
        test: images to judge on.
        train: images to look for the units' strongest in, for purity.
        seed: of bootstraps and shuffled parameters.
        advance: called with the number of images done, for a progress bar; n + m in all.
    """
    head.eval()
    judged, independent = Judgement(), store.task == "multilabel"
    other = shuffled(head, seed)  # see head_randomisation
    found = Columns()
    keep = found.keep
    own = ranks.share(list(enumerate(test.split(_BATCH))))
    read = store.read([positions for _, positions in own], head.device)
    for (found.batch, positions), maps in zip(own, read, strict=True):
        x, labels = maps.float(), store.labels[positions]
        pooled = head.pool(x, input_fmt="NLC").pooled
        classes = head.classify(pooled).argmax(1)
        if not independent:
            keep("accuracy", classes.cpu() == labels)
        size = explanation_sizes(head.contributions(exact(pooled), classes.cpu())).double()
        keep("size95", torch.where(size > 0, size, torch.nan))
        keep("pipnet_size", pipnet_size(head, pooled, classes))
        keep("active_size", active_size(head, pooled))
        keep("entropy", spatial_entropy(head, x))
        judged.attempt(lambda: _sufficient(head, pooled, keep))  # noqa: B023  (called at once)
        for name in EXPLAINERS:
            judged.attempt(lambda: _cells(head, x, classes, name, independent, other, keep))  # noqa: B023
        advance(len(maps))

    divided = len(train) >= ranks.world()
    mine = ranks.piece(train) if divided else train
    of_training = (_counted(maps, advance) for maps, _, _ in store.batches(mine, _BATCH))
    purities: list[Tensor] = []
    judged.attempt(lambda: purities.append(channel_purity(head, of_training, divided=divided)))
    used, sparsity = global_size(head)
    judged.add_number("global_size", used)
    judged.add_number("sparsity", sparsity)
    if purities:
        judged.add_number("purity", float(purities[0].mean()), images=len(train))
    columns = found.everyones()
    proved = columns.pop(("exact", ""), None)
    if proved is not None and (part := float(proved.mean())) < 1:
        judged.notes.append(
            f"units that keep the prediction: the smallest set for {part:.0%} of the images, for "
            "the others the smallest that was found"
        )
    for (measure, of), values in columns.items():
        judged.add(measure, values, of, seed)
    return judged


class Columns:
    """Values of images by figure, batch by batch.

    Attributes:
        batch: number of the batch, over all processes, that values are of.
    """

    def __init__(self) -> None:
        self.batch = 0
        self._columns: dict[tuple[str, str], list[tuple[int, Tensor]]] = {}

    def keep(self, measure: str, values: Tensor, of: str = "") -> None:
        """Add the values of the batch's images, ``[b]``."""
        column = self._columns.setdefault((measure, of), [])
        column.append((self.batch, values.detach().cpu().double()))

    def everyones(self) -> dict[tuple[str, str], Tensor]:
        """Values of all images, ``[n]``, in their order, whichever process had them."""
        whole: dict[tuple[str, str], list[tuple[int, Tensor]]] = {}
        for columns in ranks.everyones(self._columns):
            for key, parts in columns.items():
                whole.setdefault(key, []).extend(parts)
        ordered = {key: sorted(parts, key=lambda part: part[0]) for key, parts in whole.items()}
        return {key: torch.cat([values for _, values in parts]) for key, parts in ordered.items()}


def _counted(maps: Tensor, advance: Callable[[int], None]) -> Tensor:
    advance(len(maps))
    return maps


Keep = Callable[..., None]


def _sufficient(head: Head, pooled: Tensor, keep: Keep) -> None:
    found = sufficient_size(head, pooled)
    keep("sufficient", found.size)
    keep("exact", found.exact)


def _cells(
    head: Head,
    maps: Tensor,  # [b, P, C]
    classes: Tensor,  # [b] int64
    name: str,
    independent: bool,
    other: Head,
    keep: Keep,
) -> None:
    explainer = EXPLAINERS[name]
    saliency = explainer(head, maps, classes)
    curves = cell_curves(head, maps, saliency, classes, independent=independent)
    keep("deletion", curves.deletion, name)
    keep("insertion", curves.insertion, name)
    if name != "random":
        changed = explainer(other, maps, classes)
        keep("randomised", rank_correlation(saliency, changed), name)


def judge_pictures(
    model: InfoDisentClassifier,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    independent: bool = False,
    epsilons: Sequence[float] = (EPSILON,),
    seed: int = 0,
    advance: Callable[[int], None] = lambda images: None,
) -> Judgement:
    """The figures for which pictures are changed and go through the backbone again.

    Args:
        model: set to evaluation mode.
        batches: images as the backbone is fed, ``[b, 3, H, W]``, and their labels; the same ones in
            every process.
        independent: labels are several an image; misalignment, which asks for one, is left out.
        epsilons: of the attacks, see `misalignment`; rows of another than the published one name
            it.
        seed: of noise, random starts and bootstraps.
        advance: called with the number of images done.
    """
    model.eval()
    judged, columns = Judgement(), Columns()
    keep = columns.keep
    for number, (images, labels) in enumerate(batches):
        if number % ranks.world() != ranks.rank():
            continue
        columns.batch = number
        draw = seed + number  # each batch other noise
        stable = noise_stability(model, images, seed=draw)
        keep("same_places", stable.places)
        keep("same_prediction", stable.prediction)
        for attack, epsilon in () if independent else itertools.product(ATTACKS, epsilons):
            found = misalignment(model, images, labels, attack=attack, epsilon=epsilon, seed=draw)
            of = attack if epsilon == EPSILON else f"{attack}, ε {epsilon:g}"
            for measure in ("plc", "prc", "pac", "ac"):
                keep(measure, getattr(found, measure), of)
        with torch.no_grad():
            maps = maps_of(model, images)
            classes = model.head(maps, input_fmt="NLC").argmax(1)
        grid = model.grid_size(images.shape[2:])
        for name in EXPLAINERS:
            judged.attempt(
                lambda: _pixels(model, images, maps, classes, grid, name, independent, keep)  # noqa: B023
            )
        advance(len(images))
    if independent:
        judged.notes.append("misalignment asks for one class an image, so labels have none")
    for (measure, of), values in columns.everyones().items():
        judged.add(measure, values, of, seed)
    return judged


def _pixels(
    model: InfoDisentClassifier,
    images: Tensor,  # [b, 3, H, W]
    maps: Tensor,  # [b, P, C]
    classes: Tensor,  # [b] int64
    grid: tuple[int, int],
    name: str,
    independent: bool,
    keep: Keep,
) -> None:
    saliency = EXPLAINERS[name](model.head, maps, classes).unflatten(1, grid)
    curves = pixel_curves(
        model, images, saliency, classes, steps=PIXEL_STEPS, independent=independent
    )
    keep("pixel_deletion", curves.deletion, name)
    keep("pixel_insertion", curves.insertion, name)
