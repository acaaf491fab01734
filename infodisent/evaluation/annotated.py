"""The figures that need annotations: parts from keypoints, localisation from masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from infodisent import ranks
from infodisent.classifier import InfoDisentClassifier
from infodisent.evaluation.images import maps_of, noise_like, own_units
from infodisent.evaluation.intervals import bootstrap_of
from infodisent.evaluation.judgement import Columns, Judgement
from infodisent.evaluation.localisation import LOCALISATION
from infodisent.evaluation.parts import (
    consistency_of,
    part_responses,
    part_vectors,
    purity_of,
    stability_of,
)
from infodisent.explanations.posthoc import EXPLAINERS

OWN = 10
"""Units of a class: those of its largest weights."""


class AnnotatedBatch(NamedTuple):
    """Images as the backbone is fed, and what is known of them, in their pixels.

    Attributes:
        images: ``[b, 3, H, W]``, normalised.
        labels: ``[b]`` int64.
        keypoints: ``[b, J, 2]``, NaN where a part is not visible; J is 0 where none are known.
        masks: ``[b, H, W]`` bool, empty where the object is not known.
        number: of the batch among those of all processes: the images' order, and another noise.
    """

    images: Tensor
    labels: Tensor
    keypoints: Tensor
    masks: Tensor
    number: int = 0


def judge_annotated(
    model: InfoDisentClassifier,
    batches: Iterable[AnnotatedBatch],
    *,
    groups: Sequence[int] = (),
    seed: int = 0,
    advance: Callable[[int], None] = lambda images: None,
) -> Judgement:
    """Consistency, stability and purity of parts; pointing game, mass and rank accuracy.

    Units of a class are those of its `OWN` largest weights. Maps of cells are resized bilinearly to
    the images, as they are shown. Explanations are of the true classes.

    Args:
        model: set to evaluation mode.
        batches: of images of one size; of several processes (`infodisent.ranks`) each has its own,
            and all return the figures of all images.
        groups: a number for every part; parts of the same number count as one in the purity.
        seed: of noise and bootstraps.
        advance: called with the number of images done.
    """
    model.eval()
    judged, parts, columns = Judgement(), _Parts(model, seed), Columns()
    for batch in batches:
        columns.batch = batch.number
        if batch.keypoints.shape[1]:
            parts.add(batch)
        if bool(batch.masks.any()):
            judged.attempt(lambda: _locate(model, batch, judged, columns))  # noqa: B023
        advance(len(batch.images))
    parts.judge(judged, groups)
    for (measure, of), values in columns.everyones().items():
        judged.add(measure, values, of, seed)
    return judged


@torch.no_grad()
def _locate(
    model: InfoDisentClassifier,
    batch: AnnotatedBatch,
    judged: Judgement,
    columns: Columns,
) -> None:
    maps = maps_of(model, batch.images)
    size = batch.images.shape[2:]
    for name, explainer in EXPLAINERS.items():

        def of_explainer(name: str = name, explainer: Callable[..., Tensor] = explainer) -> None:
            cells = explainer(model.head, maps, batch.labels.to(maps.device)).cpu().float()
            grid = cells.unflatten(1, model.grid_size(size))
            large = nn.functional.interpolate(grid[:, None], size, mode="bilinear")[:, 0]
            for measure, figure in LOCALISATION.items():
                columns.keep(measure, figure(large, batch.masks), name)

        judged.attempt(of_explainer)


class _Parts:
    """What is gathered of the units' parts, an image each."""

    def __init__(self, model: InfoDisentClassifier, seed: int) -> None:
        self._model, self._seed = model, seed
        self._own = own_units(model.head, OWN)
        self._found: list[tuple[int, tuple[Tensor, ...]]] = []

    def add(self, batch: AnnotatedBatch) -> None:
        visible = ~batch.keypoints.isnan().any(2)
        places = batch.keypoints.nan_to_num(0.0)
        units = self._own[batch.labels]
        noise = torch.Generator().manual_seed(self._seed + batch.number)
        noisy = batch.images + noise_like(batch.images, noise)
        before, after = (
            part_vectors(self._model, pictures, units, places, visible)
            for pictures in (batch.images, noisy)
        )
        value, present = part_responses(self._model, batch.images, places, visible)
        found = (batch.labels, visible, before, after, value, present)
        self._found.append((batch.number, tuple(column.cpu() for column in found)))

    def judge(self, judged: Judgement, groups: Sequence[int]) -> None:
        found = [part for parts in ranks.everyones(self._found) for part in parts]
        if not found:
            return
        rows = [row for _, row in sorted(found, key=lambda part: part[0])]
        columns = (torch.cat(column) for column in zip(*rows, strict=True))
        labels, visible, before, after, value, present = columns

        def consistency(at: Tensor) -> float:
            scores = consistency_of(before[at], labels[at], visible[at], self._own)
            return float(scores.nanmean())

        def stability(at: Tensor) -> float:
            return float(stability_of(before[at], after[at], labels[at], self._own).nanmean())

        for measure, statistic in (("consistency", consistency), ("part_stability", stability)):
            interval = bootstrap_of(statistic, len(labels), seed=self._seed)
            judged.add_interval(measure, interval)
        kinds = torch.tensor(list(groups) or list(range(visible.shape[1])))
        purity = purity_of(self._model.head, value, present, kinds)
        judged.add_number("part_purity", _number(purity.nanmean()), images=len(labels))


def _number(value: Tensor) -> float | None:
    return None if bool(value.isnan()) else float(value)
