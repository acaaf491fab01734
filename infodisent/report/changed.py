"""Pictures that are not those that a run was trained on, though their files have the same names."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from infodisent.data.fingerprints import changed
from infodisent.report.about import Subject


def changed_notice(subject: Subject, shown: Sequence[str]) -> str:
    """Says that files of prototypes or of images shown have changed, a sentence; "" otherwise.

    Args:
        subject: the run.
        shown: paths of the images that are explained, of which some may be the run's own.
    """
    store, prototypes = subject.store, subject.prototypes
    if store is None or len(store.files) != len(prototypes.files):
        return ""
    used = torch.cat([prototypes.pos_image.flatten(), prototypes.neg_image.flatten()]).unique()
    wanted = {int(i) for i in used if i >= 0}
    place = {path: number for number, path in enumerate(prototypes.files)}
    wanted |= {place[path] for path in shown if path in place}
    order = sorted(wanted)
    found = changed(
        store.path,
        subject.metrics["images"].get("root", ""),
        [store.files[i] for i in order],
        [prototypes.files[i] for i in order],
    )
    if not found:
        return ""
    return (
        f"{len(found)} of {len(order)} pictures are not those that the network was trained on: the "
        f"contents of their files have changed, such as {found[0]}"
    )
