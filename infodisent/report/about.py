"""A run as the page speaks of it: its explanations with all units, and what it is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from infodisent.data.store import FeatureStore
from infodisent.demo import credit
from infodisent.explanations.local import explain_many
from infodisent.explanations.prototypes import Prototypes
from infodisent.report.familiarity import training_familiarity
from infodisent.report.page import About
from infodisent.report.pagedata import Side
from infodisent.report.standing import Standing, held_out_standing
from infodisent.report.units import Units
from infodisent.training.checkpoint import Architecture, Checkpoint
from infodisent.training.run import Run, open_run


@dataclass(frozen=True)
class Subject:
    """A run whose model explains.

    Attributes:
        loaded: its checkpoint.
        prototypes: of its head, with the files where they are now.
        metrics: what ``metrics.json`` holds.
        run: the run itself, where there is one, whose stored features are read.
    """

    loaded: Checkpoint = field(repr=False)
    prototypes: Prototypes = field(repr=False)
    metrics: dict[str, Any] = field(repr=False)
    run: Run | None = None

    @classmethod
    def opened(cls, folder: str | os.PathLike[str], module: Architecture | None = None) -> Subject:
        """The run in a folder; errors as `open_run`."""
        loaded, prototypes, run = open_run(folder, module=module)
        return cls(loaded, prototypes, run.metrics, run)

    @property
    def name(self) -> str:
        """Of the run, for people."""
        return "" if self.run is None else Path(self.run.folder).resolve().name

    @property
    def store(self) -> FeatureStore | None:
        """The features that the model was trained on, where they are still there."""
        try:
            return None if self.run is None else self.run.trained_store()
        except (OSError, ValueError, KeyError):
            return None

    def explained(self, images: Sequence[Any], *, progress: bool = True, **options: Any) -> Side:
        """Explanations of images, with all their units; `options` as `explain_many` has them."""
        loaded, head, store = self.loaded, self.loaded.model.head, self.store
        units = Units(head, len(images))
        explanations = explain_many(
            loaded.model,
            images,
            classes=loaded.classes,
            transform=loaded.transform,
            task=loaded.task,
            progress=progress,
            on_features=units,
            **options,
        )
        return Side(
            name=self.name or head.title,
            explanations=explanations,
            prototypes=self.prototypes,
            units=units,
            familiarity=None if store is None else training_familiarity(head, store),
            title=head.title,
            sigmoid=head.sigmoid,
        )

    def standing(self) -> Standing | None:
        """Figures of the held-out images, where their features are still there."""
        store = self.store
        return None if store is None else held_out_standing(self.loaded.model.head, store)


def about_run(subject: Subject, chosen: str, attribution: str = "") -> About:
    """What a page says of a run.

    Args:
        subject: the run.
        chosen: how the images were chosen, a sentence.
        attribution: whose the photographs are, a sentence; default: what is known of them.
    """
    metrics, head = subject.metrics, subject.loaded.model.head
    standing = subject.standing()
    root = str(metrics.get("images", {}).get("root", ""))
    name = PurePath(root).name
    if name == "data":  # says nothing; the folder above does
        name = PurePath(root).parent.name
    facts: dict[str, Any] = {"method": head.title}
    if standing is not None:
        facts["held-out accuracy"] = f"{standing.accuracy:.1%} ± {standing.error:.1%}"
        if standing.abstained:
            facts["abstains"] = f"{standing.abstained / standing.images:.1%} of held-out images"
    facts |= {
        "backbone": metrics.get("backbone"),
        "data set": name,
        "training images": metrics.get("images", {}).get("train"),
        "held out": metrics.get("images", {}).get("val"),
        "seed": metrics.get("config", {}).get("seed"),
        "run": subject.name,
    }
    return About(
        title=f"Why {metrics['backbone'] or 'the model'} decides as it does",
        summary=metrics["rows"],
        facts={key: value for key, value in facts.items() if value not in (None, "")},
        notices=head.notices(),
        standing=standing,
        chosen=chosen,
        attribution=attribution or credit(root),
    )


def chosen_text(shown: int, held_out: int, seed: int, *, wrong_only: bool, lost: int = 0) -> str:
    """How held-out images were chosen, a sentence or two; `lost` could not be read."""
    kind = "held-out images that the model gets wrong" if wrong_only else "held-out images"
    if shown >= held_out:
        return f"These are all {held_out:,} {kind}."
    missing = f" {lost:,} more are lost or cannot be read." if lost else ""
    if lost and shown + lost >= held_out:
        return f"These are {shown:,} of all {held_out:,} {kind}.{missing}"
    return (
        f"Of {held_out:,} {kind} {shown:,} were drawn evenly from the classes with seed {seed}"
        + (", whether predicted rightly or not." if not wrong_only else ".")
        + missing
    )
