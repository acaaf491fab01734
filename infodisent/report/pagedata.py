"""What the page's scripts know: one JSON block, numbers packed small, see `packing`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from infodisent.explanations.evidence import Explanation
from infodisent.explanations.prototypes import Prototypes
from infodisent.report.familiarity import RARE, Familiarity
from infodisent.report.packing import (
    data_uri,
    packed,
    packed_cells,
    packed_rows,
    packed_steps,
)
from infodisent.report.pictures import Pictures, shrink
from infodisent.report.shelf import PROTOTYPE_SIDE, Shelf
from infodisent.report.shown_units import shown_units
from infodisent.report.units import ImageUnits, UnitTable
from infodisent.report.view import answer_text, change_text, path_title, short_name

MOST_WEIGHTS = 3_000_000
"""Class weights that a page holds; of more only the classes that its images may be."""
_IMPORTANT = 12
"""Units of an image and class whose prototypes come first."""
_SHOWN = 5
"""What a unit of the explained class counts beside one of the next likeliest class."""


@dataclass(frozen=True, eq=False)
class Side:
    """One run's view of the images.

    Attributes:
        name: of the run, for people.
        explanations: of the images, in the page's order.
        prototypes: of the same head.
        units: gathered with the explanations; None shows only the units that they hold.
        familiarity: of the training images, where they are known.
        pictures: decoded prototype pictures, to share between pages.
        title: of the method.
        sigmoid: every class has a probability of its own.
    """

    name: str
    explanations: Sequence[Explanation]
    prototypes: Prototypes
    units: UnitTable | None = None
    familiarity: Familiarity | None = None
    pictures: Pictures | None = None
    title: str = ""
    sigmoid: bool = False

    def of(self, chosen: Sequence[int]) -> Side:
        """The same with some of the images."""
        units = self.units
        if units is not None:
            table = UnitTable(
                units.weights, units.offsets, units.used, units.linear, units.removable
            )
            table.images = [units.images[i] for i in chosen]
            units = table
        return replace(self, explanations=[self.explanations[i] for i in chosen], units=units)


def picture_side(count: int) -> int:
    """Longest side in pixels of so many pictures of a page."""
    return 448 if count <= 32 else 256 if count <= 300 else 192


def page_data(sides: Sequence[Side]) -> dict[str, Any]:
    """Everything, JSON-able. The pictures of the first side's images stand in the page itself."""
    shelf = Shelf()
    runs = [_run(number, side, sides[0], shelf) for number, side in enumerate(sides)]
    return {"runs": runs, "pictures": shelf.pictures}


def _run(number: int, side: Side, first: Side, shelf: Shelf) -> dict[str, Any]:
    units = side.units or shown_units(side.explanations, side.prototypes)
    kept = _kept_classes(side.explanations, units)
    used = units.used
    e, prototypes = side.explanations[0], side.prototypes
    pictures = side.pictures or Pictures(prototypes.transform, PROTOTYPE_SIDE)
    wanted = _wanted(side.explanations, units)
    place = {unit: i for i, unit in enumerate(used.tolist())}
    shown = shelf.units(number, prototypes, pictures, wanted)
    return {
        "name": side.name,
        "title": side.title,
        "unit": e.unit,
        "score": e.score,
        "offset": e.offset,
        "classes": list(e.classes),
        "kept": kept,
        "independent": e.independent or side.sigmoid,
        "multilabel": e.independent,
        "linear": bool(units.linear),
        "removable": units.removable,
        "grid": list(prototypes.grid),
        "count": e.channels,
        "used": used.tolist(),
        "weights": packed_rows(units.weights[kept][:, used]) if units.linear else None,
        "offsets": units.offsets[kept].tolist(),
        "top": [packed(v[0][used]) for v in (prototypes.pos_value, prototypes.neg_value)],
        "prototypes": {place[unit]: sides for unit, sides in shown.items()},
        "images": [
            _image(side, first, units, i, kept, place) for i in range(len(side.explanations))
        ],
    }


def _kept_classes(explanations: Sequence[Explanation], units: UnitTable) -> list[int]:
    """All classes; where their weights are too many those of any image's five likeliest."""
    count = len(units.weights)
    if count * len(units.used) <= MOST_WEIGHTS or not units.linear:
        return list(range(count))
    kept: set[int] = set()
    for e in explanations:
        kept |= {e.class_index, *e.logits.topk(min(5, count)).indices.tolist()}
        kept |= {e.classes.index(e.true_name)} if e.true_name in e.classes else set()
    return sorted(kept)


def _wanted(explanations: Sequence[Explanation], units: UnitTable) -> list[int]:
    """Units whose prototypes the page should have, the most important first."""
    used = set(units.used.tolist())
    votes: Counter[int] = Counter()
    for i, e in enumerate(explanations):
        for c in (*e.shown, *(s.evidence for s in e.decisions)):
            votes[c.channel] += _SHOWN
        for k in {e.class_index, *e.logits.topk(min(2, len(e.logits))).indices.tolist()}:
            parts = units.contributions(i, k)
            if parts is not None:
                best = parts.abs().topk(min(_IMPORTANT, len(parts)))
                pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
                for unit, value in pairs:
                    if value:
                        votes[unit] += _SHOWN if k == e.class_index else 1
    heavy = units.weights.topk(min(3, units.weights.shape[1]), dim=1).indices.flatten().tolist()
    rest = units.weights.amax(0).argsort(descending=True, stable=True).tolist()
    order = [u for u, _ in votes.most_common()]
    return [u for u in dict.fromkeys([*order, *heavy, *rest]) if u in used]


def _image(
    side: Side,
    first: Side,
    units: UnitTable,
    i: int,
    kept: list[int],
    place: dict[int, int],
) -> dict[str, Any]:
    e, own = side.explanations[i], units.images[i]
    shared = side is first or _same(e, first.explanations[i])
    longest = picture_side(len(side.explanations))
    cells = side.prototypes.grid[0] * side.prototypes.grid[1]
    others = sorted(set(range(len(e.logits))) - set(kept))
    mapped = [(n, place[u]) for n, u in enumerate(own.map_units.tolist()) if u in place]
    return {
        "name": short_name(e.path),
        "uri": None if shared else data_uri(shrink(e.picture, longest)),
        "size": list(e.picture.size),
        "true": e.true_name,
        "predicted": e.predicted_name,
        "labels": list(e.predicted_names),
        "explained": e.class_index,
        "right": e.correct,
        "abstained": e.abstained,
        "notes": list(e.notes),
        "logits": packed(e.logits[kept]),
        "chances": packed(e.probabilities[kept]),
        "scores": packed(own.scores[kept], "<f8"),
        "others": float(e.logits[others].logsumexp(0)) if others else None,
        "shown": [place[c.channel] for c in e.shown if c.channel in place],
        "maps": packed(own.maps[[n for n, _ in mapped]], "i1"),
        "mapped": packed(torch.tensor([u for _, u in mapped]), "<u4"),
        "far": _far(side.familiarity, own, e),
        "path": _path(e, place),
        **_units(own, units.used, cells),
    }


def _units(own: ImageUnits, used: Tensor, cells: int) -> dict[str, Any]:
    """The values and places of the units of one image."""
    pos, neg = own.pos[used], own.neg[used]
    plain = own.counted is not None and torch.allclose(
        own.counted[used], pos - neg, rtol=1e-5, atol=1e-7
    )
    return {
        "counted": None if own.counted is None else packed(own.counted[used]),
        "pos": None if plain else packed_steps(pos),
        "neg": packed_steps(neg),
        "pos_cell": packed_cells(own.pos_index[used], cells),
        "neg_cell": packed_cells(own.neg_index[used], cells) if bool(neg.any()) else None,
        "table": {
            k: [packed(parts[used].nonzero()[:, 0], "<u4"), packed(parts[used][parts[used] != 0])]
            for k, parts in own.table.items()
        },
    }


def _far(familiarity: Familiarity | None, own: ImageUnits, e: Explanation) -> dict[str, Any] | None:
    """How far out an image's units lie beside the training images'."""
    if familiarity is None or len(familiarity.mean) != len(own.pos):
        return None
    distance = float(familiarity.distance(own.pos - own.neg))
    rarity = familiarity.rarity(distance)
    return {
        "distance": round(distance, 3),
        "typical": round(float(familiarity.distances.median()), 3),
        "rarity": rarity,
        "energy": familiarity.energy_rarity(float(e.logits.logsumexp(0))),
        "unusual": rarity < RARE,
    }


def _path(e: Explanation, place: dict[int, int]) -> dict[str, Any] | None:
    if not e.decisions:
        return None
    return {
        "title": path_title(e),
        "steps": [
            {
                "unit": place.get(step.unit),
                "id": step.unit,
                "side": step.evidence.side,
                "kind": "supports" if step.evidence.sign == 1 else "opposes",
                "answer": answer_text(step),
                "change": change_text(e, step),
                "likeliest": step.likeliest,
                "chance": step.likeliest_probability,
                "way": step.probability,
            }
            for step in e.decisions
        ],
    }


def _same(e: Explanation, other: Explanation) -> bool:
    return e.picture.size == other.picture.size and e.picture.tobytes() == other.picture.tobytes()
