"""The units that explanations show, where nobody has gathered all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from infodisent.explanations.evidence import Box, ChannelEvidence, Explanation
from infodisent.explanations.prototypes import Prototypes
from infodisent.report.units import ImageUnits, UnitTable


def shown_units(explanations: Sequence[Explanation], prototypes: Prototypes) -> UnitTable:
    """What `Units` would hold, of the units shown and the explained classes only."""
    size = explanations[0].channels
    images, used = [], set()
    for e in explanations:
        every = [*e.shown, *(step.evidence for step in e.decisions)]
        used |= {c.channel for c in every}
        images.append(_image(e, every, prototypes.grid, size))
    return UnitTable(
        weights=torch.zeros(len(explanations[0].classes), size),
        offsets=_offsets(explanations),
        used=torch.tensor(sorted(used), dtype=torch.int64),
        linear=False,
        images=images,
    )


def _offsets(explanations: Sequence[Explanation]) -> Tensor:
    offsets = torch.zeros(len(explanations[0].classes), dtype=torch.float64)
    for e in explanations:
        offsets[e.class_index] = e.bias
    return offsets


def _image(
    e: Explanation, every: Sequence[ChannelEvidence], grid: tuple[int, int], size: int
) -> ImageUnits:
    values: dict[str, Any] = {name: torch.zeros(size) for name in ("pos", "neg", "added")}
    cells = {name: torch.full((size,), -1, dtype=torch.int32) for name in ("pos", "neg")}
    for c in every:
        values["pos"][c.channel], values["neg"][c.channel] = c.pos, c.neg
        for name, box in (("pos", c.pos_box), ("neg", c.neg_box)):
            cells[name][c.channel] = -1 if box is None else _cell(box, grid, e.picture.size)
    for c in e.shown:
        values["added"][c.channel] = c.contribution
    # each side is over its own maximum: the larger side decides what the smaller is worth
    maps = [(c.pos_heat * c.pos - c.neg_heat * c.neg) / max(c.pos, c.neg, 1e-12) for c in every]
    scores = e.probabilities if e.score == "probability" else e.logits
    scores = scores.double()
    scores[e.class_index] = e.score_value
    cell_count = grid[0] * grid[1]
    return ImageUnits(
        scores=scores,
        counted=None,
        table={e.class_index: values["added"]},
        pos=values["pos"],
        neg=values["neg"],
        pos_index=cells["pos"],
        neg_index=cells["neg"],
        map_units=torch.tensor([c.channel for c in every], dtype=torch.int64),
        maps=(127 * torch.stack(maps)).round().to(torch.int8).flatten(1)
        if maps
        else torch.zeros(0, cell_count, dtype=torch.int8),
    )


def _cell(box: Box, grid: tuple[int, int], size: tuple[int, int]) -> int:
    """The feature cell of a box, see `cell_box`."""
    (rows, columns), (width, height) = grid, size
    row = min(rows - 1, round(box[1] * rows / height))
    return row * columns + min(columns - 1, round(box[0] * columns / width))
