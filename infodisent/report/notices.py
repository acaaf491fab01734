"""What reports say on the way, a line each."""

from __future__ import annotations

from infodisent.progress import console, printable
from infodisent.report.fonts import announce_spelling
from infodisent.report.pictures import Pictures


def say(progress: bool, text: str) -> None:
    """Print a line, as it is, where progress is shown."""
    if progress:
        console.print(printable(text), markup=False, highlight=False)


def say_lost(pictures: Pictures, progress: bool) -> None:
    """One notice about all the prototypes whose pictures are placeholders, one about letters."""
    if progress:
        announce_spelling()
    lost = pictures.lost()
    if lost:
        say(
            progress,
            f"{len(lost)} of {pictures.count} prototype pictures are lost and drawn as grey tiles, "
            f"such as {lost[0]}; if the images were moved, pass --images-root DIR",
        )
