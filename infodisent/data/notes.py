"""What was done to a picture that its owner may not expect, said once and counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from infodisent.backbones.geometry import CropGeometry

_MUCH = 0.25
"""Part of a photograph's area; more than that cut away is said."""


class Note(NamedTuple):
    """One thing that was done.

    Attributes:
        kind: the sentence that is the same for every picture it happens to.
        text: the sentence for this picture.
    """

    kind: str
    text: str


def crop_note(geometry: CropGeometry) -> tuple[Note, ...]:
    """A note where more than a quarter of a photograph was cut away, else nothing."""
    if geometry.lost <= _MUCH:
        return ()
    (width, height), (x0, y0, x1, y1) = geometry.image_size, geometry.window
    advice = '(crop_mode "squash" or "border" with crop_pct 1 shows all of it)'
    return (
        Note(
            f"the crop cut away more than {_MUCH:.0%} of the image {advice}",
            f"the crop cut away {geometry.lost:.0%} of the image: the network saw x {x0} … {x1} of "
            f"{width}, y {y0} … {y1} of {height} {advice}",
        ),
    )


def note_lines(kinds: Mapping[str, int]) -> list[str]:
    """Notes of many pictures, a line for each kind with the number of pictures."""
    return [f"{count} image(s): {kind}" for kind, count in kinds.items()]
