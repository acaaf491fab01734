"""The course of a training: which stages are left, where each ends, what is kept of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.progress import Progress
from torch import Tensor

from infodisent.methods import Head, Stage
from infodisent.training.config import FitConfig
from infodisent.training.epochs import Training
from infodisent.training.maps import Maps, restore_state, state_of
from infodisent.training.state import SavedState, Schedule
from infodisent.training.steps import Tools
from infodisent.training.validation import best_epoch, stopped


def stops_early(stages: Sequence[Stage], number: int) -> bool:
    """Whether `FitConfig.patience` may end a stage, see `Stage.stops_early`."""
    said = stages[number].stops_early
    return number == len(stages) - 1 if said is None else said


class Course:
    """Runs the stages that are left, one after the other.

    Args:
        head, maps, config: as in `infodisent.training.fit.fit_head`.
        stages: of the head.
        schedule: their names and epochs.
        saved: where an interrupted training goes on.
        display: shows progress.
        steps: of an epoch.

    Attributes:
        history: figures of the epochs done.
        total: epochs that the training has, if no stage stops early.
        task: of the display.
    """

    def __init__(
        self,
        head: Head,
        maps: Maps,
        config: FitConfig,
        stages: Sequence[Stage],
        schedule: Schedule,
        saved: SavedState | None,
        display: Progress,
        steps: int,
    ) -> None:
        self._head, self._maps, self._config = head, maps, config
        self._stages, self._counts = stages, [count for _, count in schedule]
        self._saved, self._display, self._steps = saved, display, steps
        self.history = [] if saved is None else list(saved.history)
        # what earlier runs with fewer epochs had in the last stage: each has a schedule of its own
        self._parts: list[int] = [] if saved is None else saved.parts
        self._lengths: list[int] = [] if saved is None else saved.lengths
        self._best: dict[str, Tensor] = {} if saved is None else saved.best
        self._since, self._patience = 0, config.patience
        self.total = sum(self._counts)
        self.task: Any = None

    def show(self, label: str, loss: str) -> None:
        """Begin the display; `loss` is the objective's name."""
        more = self.total - sum(self._parts) - sum(self._counts[:-1])
        label += f" ({more} more epochs, a new schedule)" if self._parts else ""
        self._loss = loss
        self.task = self._display.add_task(
            label,
            total=self.total * self._steps,
            completed=len(self.history) * self._steps,
            note="",
        )

    def advance(self, stage: str, steps: int, loss: float, penalty: float) -> None:
        """See `infodisent.training.meter.Report`."""
        where = f"epoch {len(self.history) + 1}/{self.total}"
        where += f" ({stage})" if len(self._stages) > 1 else ""
        note = f"{where} loss {loss:.3f}"
        if penalty:
            note += f" = {self._loss} {loss - penalty:.3f} + penalty {penalty:.3f}"
        self._display.update(self.task, advance=steps, note=note)

    def epoch_ended(self, tools: Tools) -> None:
        """Keep the weights, if they are the best of a stage that may stop early."""
        done = self.history[self._since :]
        if self._patience is not None and done and best_epoch(done) == len(done) - 1:
            with tools.averaged():
                self._best = state_of(self._head, self._maps)

    def extra(self, tools: Tools) -> dict[str, Any]:
        """What `save_state` takes besides; a plain run's file is that of earlier versions."""
        extra: dict[str, Any] = {"best": self._best} if self._best else {}
        extra |= {"parts": self._parts} if self._parts else {}
        extra |= {} if self._maps.module is None else {"backbone": self._maps.module}
        extra |= {} if tools.average is None else {"average": tools.average.values}
        extra |= {"scaler": tools.scaler.state_dict()} if tools.scaler.is_enabled() else {}
        if self._lengths != self._counts[: len(self._lengths)]:
            extra["lengths"] = self._lengths
        return extra

    def run(self, training: Training) -> None:
        """Run what is left, up to the last epoch; the weights are those to keep then."""
        ended, first = list(self._lengths), 0
        for number, count in enumerate(self._counts[:-1]):
            self._watch(number, first)
            if number < len(ended):
                first += ended[number]
                continue
            self._run(training, number, first, count)
            length = min(len(self.history) - first, count)
            if first + length == len(self.history):
                self._restore_best()
            self._best = {} if first + length == len(self.history) else self._best
            self._lengths.append(length)
            first += length
        self._watch(len(self._counts) - 1, first)
        for number, count in enumerate([*self._parts, self._counts[-1] - sum(self._parts)]):
            if number and len(self.history) == first:
                self._restore_best()  # what the earlier epochs ended with
            self._run(training, len(self._counts) - 1, first, count, more=number > 0)
            first += count
        self._restore_best()

    def _watch(self, number: int, first: int) -> None:
        """A stage begins with epoch `first`: from there the best is sought, if patience counts."""
        self._since = first
        self._patience = self._config.patience if stops_early(self._stages, number) else None

    def _run(
        self, training: Training, number: int, first: int, count: int, *, more: bool = False
    ) -> None:
        """A stage, or the part of the last one that begins with epoch `first`, if any is left."""
        if len(self.history) >= first + count:
            return
        if stopped(self.history[first:], self._patience):
            return
        training.stage(
            self._stages[number],
            first,
            count,
            self._saved,
            more=more,
            patience=self._patience,
        )

    def _restore_best(self) -> None:
        if self._best:
            restore_state(self._head, self._maps, self._best)
