"""What the owner of images should know, printed."""

from __future__ import annotations

from collections.abc import Mapping

from infodisent.data.items import ImageSet
from infodisent.data.notes import note_lines
from infodisent.progress import notice


def print_notices(images: ImageSet) -> None:
    """Each notice of a set on a line of its own."""
    for text in images.notices:
        notice(text)


def print_notes(kinds: Mapping[str, int]) -> None:
    """What was done to pictures, a line for each kind with the number of pictures."""
    for text in note_lines(kinds):
        notice(text)
