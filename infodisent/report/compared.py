"""Runs that are compared with another: opened before the work, and what their classes share."""

from __future__ import annotations

import os
from collections.abc import Sequence

from infodisent.explanations.request import class_named, listed
from infodisent.report.about import Subject
from infodisent.training.checkpoint import Architecture


def opened_runs(
    compare: Sequence[str | os.PathLike[str] | Subject],
    classes: Sequence[str],
    module: Architecture | None = None,
    class_name: str | None = None,
) -> list[Subject]:
    """The runs to compare with; a bad one is refused here, before minutes of work.

    Args:
        compare: runs or their folders.
        classes: of the run they are compared with.
        module: as for `infodisent.training.run.open_run`.
        class_name: the class that all of them explain.

    Raises:
        ValueError: a run does not know `class_name`, or none of `classes`.
    """
    runs = [r if isinstance(r, Subject) else Subject.opened(r, module) for r in compare]
    for run in runs:
        if class_name is not None:
            class_named(run.loaded.classes, class_name)
        if not set(classes) & set(run.loaded.classes):
            raise ValueError(
                f"report: compare is {run.name}, whose classes are {listed(run.loaded.classes)}; "
                f"must be a run that shares classes with this one: {listed(classes)}"
            )
    return runs


def classes_note(classes: Sequence[str], other: Subject) -> str:
    """How the classes of a run that stands beside differ, a sentence; "" where they do not."""
    own, theirs = set(classes), set(other.loaded.classes)
    lacks = [name for name in classes if name not in theirs]
    more = [name for name in other.loaded.classes if name not in own]
    parts = [
        *([f"it does not know {listed(lacks)}, so is wrong on their images"] if lacks else []),
        *([f"it also knows {listed(more)}"] if more else []),
    ]
    return f"{other.name}, beside it, has other classes: {'; '.join(parts)}" if parts else ""
