"""What an image set's owner should know, printed."""

from __future__ import annotations

from infodisent.data.items import ImageSet
from infodisent.progress import console


def print_notices(images: ImageSet) -> None:
    """Each notice of a set on a line of its own."""
    for notice in images.notices:
        console.print(notice, style="yellow", markup=False, highlight=False)
