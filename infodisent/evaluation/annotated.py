"""The figures that need annotations: parts from keypoints, localisation from masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from infodisent.classifier import InfoDisentClassifier
from infodisent.evaluation.images import maps_of, noise_like, own_units
from infodisent.evaluation.intervals import bootstrap_of
from infodisent.evaluation.judgement import Judgement
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
    """

    images: Tensor
    labels: Tensor
    keypoints: Tensor
    masks: Tensor


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
        batches: of images of one size.
        groups: a number for every part; parts of the same number count as one in the purity.
        seed: of noise and bootstraps.
        advance: called with the number of images done.
    """
    model.eval()
    judged, parts = Judgement(), _Parts(model, seed)
    columns: dict[tuple[str, str], list[Tensor]] = {}
    for batch in batches:
        if batch.keypoints.shape[1]:
            parts.add(batch)
        if bool(batch.masks.any()):
            judged.attempt(lambda: _locate(model, batch, judged, columns))  # noqa: B023
        advance(len(batch.images))
    parts.judge(judged, groups)
    for (measure, of), values in columns.items():
        judged.add(measure, torch.cat(values), of, seed)
    return judged


@torch.no_grad()
def _locate(
    model: InfoDisentClassifier,
    batch: AnnotatedBatch,
    judged: Judgement,
    columns: dict[tuple[str, str], list[Tensor]],
) -> None:
    maps = maps_of(model, batch.images)
    size = batch.images.shape[2:]
    for name, explainer in EXPLAINERS.items():

        def of_explainer(name: str = name, explainer: Callable[..., Tensor] = explainer) -> None:
            cells = explainer(model.head, maps, batch.labels.to(maps.device)).cpu().float()
            grid = cells.unflatten(1, model.grid_size(size))
            large = nn.functional.interpolate(grid[:, None], size, mode="bilinear")[:, 0]
            for measure, figure in LOCALISATION.items():
                values = figure(large, batch.masks).double()
                columns.setdefault((measure, name), []).append(values)

        judged.attempt(of_explainer)


class _Parts:
    """What is gathered of the units' parts, an image each."""

    def __init__(self, model: InfoDisentClassifier, seed: int) -> None:
        self._model, self._seed = model, seed
        self._own = own_units(model.head, OWN)
        self._noise = torch.Generator().manual_seed(seed)
        self._found: list[tuple[Tensor, ...]] = []

    def add(self, batch: AnnotatedBatch) -> None:
        visible = ~batch.keypoints.isnan().any(2)
        places = batch.keypoints.nan_to_num(0.0)
        units = self._own[batch.labels]
        noisy = batch.images + noise_like(batch.images, self._noise)
        before, after = (
            part_vectors(self._model, pictures, units, places, visible)
            for pictures in (batch.images, noisy)
        )
        value, present = part_responses(self._model, batch.images, places, visible)
        self._found.append((batch.labels, visible, before, after, value, present))

    def judge(self, judged: Judgement, groups: Sequence[int]) -> None:
        if not self._found:
            return
        columns = (torch.cat(column) for column in zip(*self._found, strict=True))
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
