"""All units of explained images, for a page whose reader may ask for any of them.

An `Explanation` holds the few units it shows. A page that contrasts classes, lists every unit and
switches units off needs them all: gathered here image by image, as small as they go.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from infodisent.explanations.evidence import Explanation
from infodisent.explanations.sparsity import exact
from infodisent.explanations.unit_maps import UnitMaps
from infodisent.layout import to_bpc
from infodisent.methods import Head

MAP_BYTES = 12_000_000
"""Of the heat maps of all images of a page, a byte a feature cell."""
FEWEST_MAPS = 16
"""Heat maps that an image has whatever their size."""
TABLE_CLASSES = 10
"""Classes whose contributions an image holds where the head is not linear."""
_CLOSE = 1e-4


@dataclass(frozen=True, eq=False)
class ImageUnits:
    """All units of one image; on the CPU.

    Attributes:
        scores: ``[K]`` float64, see `Head.scores`.
        counted: ``[M]`` float32, what the class weights are multiplied with; None where the head is
            not linear.
        table: class to contributions ``[M]`` float32, of the classes that matter; empty where the
            head is linear.
        pos, neg: ``[M]`` float32, see `SparsePool`.
        pos_index, neg_index: ``[M]`` int32.
        map_units: ``[n]`` int64, the units that have a map, the most important first.
        maps: ``[n, P]`` int8: of each unit its values at the feature cells over the largest
            magnitude, times 127.
    """

    scores: Tensor
    counted: Tensor | None
    table: dict[int, Tensor]
    pos: Tensor
    neg: Tensor
    pos_index: Tensor
    neg_index: Tensor
    map_units: Tensor
    maps: Tensor


@dataclass(eq=False)
class UnitTable:
    """All units of several images, and what a head makes of them.

    Attributes:
        weights: ``[K, M]`` float32.
        offsets: ``[K]`` float64.
        used: ``[n]`` int64, the units that count for any class.
        linear: whether scores are ``counted · weights^T + offsets``; None before the first image.
        removable: whether a unit may be left out of such a score: linear, and scores are logits.
        images: one for every explanation, in order.
    """

    weights: Tensor
    offsets: Tensor
    used: Tensor
    linear: bool | None = None
    removable: bool = False
    images: list[ImageUnits] = field(default_factory=list)

    def contributions(self, image: int, class_index: int) -> Tensor | None:
        """``[M]`` of an image to a class; None where the image does not hold that class."""
        units = self.images[image]
        if units.counted is None:
            return units.table.get(class_index)
        return self.weights[class_index] * units.counted


class Units(UnitTable):
    """Gathers `ImageUnits`; a callback of `infodisent.explanations.local.explain_many`.

    Args:
        head: of the model that is explained, in evaluation mode when called.
        count: images expected, which decides how many maps an image may keep.
    """

    def __init__(self, head: Head, count: int) -> None:
        classes = torch.arange(head.num_classes, device=head.device)
        with torch.no_grad():
            super().__init__(
                weights=head.class_weights().detach().float().cpu(),
                offsets=exact(head.offsets(classes).detach()),
                used=head.used_units().cpu().nonzero().flatten(),
            )
        self.head = head
        self._maps = UnitMaps(head)
        self._count = max(1, count)

    @torch.no_grad()
    def __call__(
        self,
        explanation: Explanation,
        features: Tensor,  # a map [1, ...] in the head's layout
    ) -> None:
        """Keep the units of one image."""
        head = self.head
        pool = head.pool(features)
        pooled = exact(pool.pooled)
        logits = explanation.logits[None].to(head.device)
        scores = exact(head.scores(logits))[0]
        counted = self._counted(pooled)
        if self.linear is None:
            self.linear = counted is not None
            self.removable = self.linear and bool(torch.equal(scores.float(), explanation.logits))
        table: dict[int, Tensor] = {}
        if counted is None or not self.linear:
            counted = None
            classes = self._classes(explanation)
            table = dict(zip(classes, self._contributions(pooled, classes).float(), strict=True))
        keys = dict.fromkeys([explanation.class_index, *self._classes(explanation)[:3]])
        parts = [table[k] if counted is None else self.weights[k] * counted.float() for k in keys]
        pixels = to_bpc(features, head.input_fmt, head.num_prefix_tokens)[0]
        units = self._mapped(torch.stack(parts), len(pixels), explanation)
        values = torch.zeros(0, len(pixels))  # [n, P]
        if len(units):
            values = self._maps.values(pixels, units.to(pixels.device)).mT.float().cpu()
        largest = values.abs().amax(1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny)
        self.images.append(
            ImageUnits(
                scores=scores,
                counted=None if counted is None else counted.float(),
                table=table,
                pos=pool.pos[0].float().cpu(),
                neg=pool.neg[0].float().cpu(),
                pos_index=pool.pos_index[0].int().cpu(),
                neg_index=pool.neg_index[0].int().cpu(),
                map_units=units,
                maps=(127 * values / largest).round().to(torch.int8),
            )
        )

    def _contributions(self, pooled: Tensor, classes: list[int]) -> Tensor:
        """``[n, M]`` float64 of one image to so many classes."""
        rows = pooled.expand(len(classes), -1)
        return exact(self.head.contributions(rows, torch.tensor(classes)))

    def _classes(self, e: Explanation) -> list[int]:
        """The classes that matter for an image, the explained one first, then by their logit."""
        best = e.logits.topk(min(TABLE_CLASSES, len(e.logits))).indices.tolist()
        true = [e.classes.index(e.true_name)] if e.true_name in e.classes else []
        return list(dict.fromkeys([e.class_index, *best, *true]))

    def _counted(
        self,
        pooled: Tensor,  # [1, M]
    ) -> Tensor | None:
        """The one vector that all classes' contributions are multiples of, or None.

        Taken from the class of every unit's largest weight, and tried on all classes.
        """
        if self.linear is False:
            return None
        heaviest = self.weights.abs().argmax(0)  # [M]
        step = max(1, len(self.weights) // 64)
        classes = sorted({*heaviest.unique().tolist(), *range(0, len(self.weights), step)})
        truth = self._contributions(pooled, classes)  # [n, M]
        weights = self.weights[classes].double()
        row = torch.tensor([classes.index(k) for k in heaviest.tolist()])[None]  # [1, M]
        heavy = weights.gather(0, row)[0]
        counted = torch.where(heavy != 0, truth.gather(0, row)[0] / heavy, 0.0)
        scale = truth.abs().amax().clamp_min(1e-12)
        close = (weights * counted - truth).abs().amax() <= _CLOSE * scale
        # of two classes any sum is such a multiple: what counts must be the units' own values
        own = (counted == 0) | torch.isclose(counted, pooled[0], rtol=_CLOSE, atol=1e-6)
        return counted if bool(close) and bool(own.all()) else None

    def _mapped(
        self,
        parts: Tensor,  # [n, M]
        cells: int,
        e: Explanation,
    ) -> Tensor:
        """The units that get a map: those of the path and those shown, then by what they add."""
        room = max(FEWEST_MAPS, MAP_BYTES // (self._count * cells))
        first = [c.channel for c in (*(s.evidence for s in e.decisions), *e.shown)]
        size = parts.abs().amax(0)
        order = size.argsort(descending=True, stable=True)
        others = order[size[order] > 0].tolist()
        chosen = list(dict.fromkeys([*first, *others]))[: max(room, len(set(first)))]
        return torch.tensor(chosen, dtype=torch.int64)
