"""The prototype pictures of a page, each stored once however many units show it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from infodisent.explanations.prototypes import Prototypes
from infodisent.report.packing import data_uri
from infodisent.report.pictures import Pictures
from infodisent.report.view import short_name

PROTOTYPE_SIDE = 224
PROTOTYPE_PICTURES = 600
"""Of a page, and half as many again for units that would have none: at most 12 MB."""


class Shelf:
    """Pictures in the order they are first asked for.

    Args:
        most: different pictures of all units together; of units that come later only the first of
            each side, up to half as many again, and what is there anyway.

    Attributes:
        pictures: of each the data URI, the size, the name, and why it is a placeholder or "".
    """

    def __init__(self, most: int = PROTOTYPE_PICTURES) -> None:
        self._most = most
        self.pictures: list[dict[str, Any]] = []
        self._places: dict[tuple[int, str], int] = {}

    def units(
        self, side: int, prototypes: Prototypes, pictures: Pictures, wanted: Iterable[int]
    ) -> dict[int, list[list[list[Any]]]]:
        """Of the units, in the order wanted, the prototypes of both sides while there is room.

        Args:
            side: which run's they are; two runs may crop the same file differently.
            prototypes, pictures: of that run.
            wanted: units, the most important first.

        Returns:
            unit to ``[positive, negative]``, each a list of ``[picture, label, value, cell]``.
        """
        found: dict[int, list[list[list[Any]]]] = {}
        for unit in wanted:
            every = [prototypes.of(unit, sign) for sign in (1, -1)]
            kept = []
            for sides in every:
                fitting: list[list[Any]] = []
                for p in sides:
                    room = self._most if fitting else self._most * 3 // 2
                    if (side, p.file) in self._places or len(self.pictures) < room:
                        cell = p.pixel[0] * prototypes.grid[1] + p.pixel[1]
                        place = self._place(side, p.file, pictures)
                        fitting.append([place, p.label_name, round(p.value, 5), cell])
                kept.append(fitting)
            if any(kept) or not any(every):
                found[unit] = kept
        return found

    def _place(self, side: int, file: str, pictures: Pictures) -> int:
        key = (side, file)
        if key not in self._places:
            image, missing = pictures.get(file)
            self._places[key] = len(self.pictures)
            self.pictures.append(
                {
                    "uri": data_uri(image, 80),
                    "size": list(image.size),
                    "name": short_name(file),
                    "missing": missing,
                }
            )
        return self._places[key]
