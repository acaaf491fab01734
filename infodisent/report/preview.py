"""A first picture while a head is still training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from infodisent.classifier import InfoDisentClassifier
from infodisent.data.archives import is_there
from infodisent.data.images import ImageSet
from infodisent.explanations.local import explain
from infodisent.report.figure import save_figure

EPOCH = 3
"""The picture comes after so many epochs."""
NAME = "first-look.png"


class Preview:
    """A callback of `infodisent.training.fit.fit_head` that explains one held-out image, once.

    Args:
        model: the one in training.
        images: its images; the first held-out one of the last class is explained.
        folder: the run's; the picture is ``figures/first-look.png`` in it.
        say: told the path of the picture and after how many epochs it was made.

    A run that goes on after that epoch gets none, nor does a set of several labels an image, or
    without held-out images on disk.
    """

    def __init__(
        self,
        model: InfoDisentClassifier,
        images: ImageSet,
        folder: Path,
        say: Callable[[Path, int], None],
    ) -> None:
        self.model, self.images, self.say = model, images, say
        self.path = folder / "figures" / NAME

    def __call__(self, epoch: int, figures: Mapping[str, float]) -> None:
        """After every epoch."""
        del figures
        if epoch != EPOCH:
            return
        held_out: dict[int, str] = {}  # the first of every class
        for item in self.images.items:
            if item.split == "val" and isinstance(item.label, int):
                held_out.setdefault(item.label, item.path)
        if not held_out:
            return
        label, classes = max(held_out), self.images.classes
        if not is_there(held_out[label]):
            return
        explanation = explain(
            self.model, held_out[label], classes=classes, true_name=classes[label]
        )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        save_figure(explanation.plot(), self.path)
        self.say(self.path, epoch)
