"""Explanations to look at: `figure` makes PNG figures, `page` one self-contained HTML page.

`view` says what the two show of an explanation, `pictures` what they paint; `publish` makes both
from a finished run.
"""

from infodisent.report.pictures import Pictures, Thumbnail, heat_overlay, shrink
from infodisent.report.view import (
    OPPOSES,
    SUPPORTS,
    Mark,
    Segment,
    Term,
    check_fits,
    marks,
    prototype_box,
    segments,
    short_name,
    signed,
    terms,
    top_classes,
)

__all__ = [
    "OPPOSES",
    "SUPPORTS",
    "Mark",
    "Pictures",
    "Segment",
    "Term",
    "Thumbnail",
    "check_fits",
    "heat_overlay",
    "marks",
    "prototype_box",
    "segments",
    "short_name",
    "shrink",
    "signed",
    "terms",
    "top_classes",
]
