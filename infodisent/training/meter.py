"""Figures of a training's steps, summed where they are computed and read now and then."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

INTERVAL = 20
"""Steps between two readings: a GPU has work queued for the time that one takes."""

Report = Callable[[str, int, float, float], None]
"""Told at every reading: the stage, the steps since the last one, mean loss, mean penalty."""


class Meter:
    """Loss, right answers and penalty of one epoch's steps, without waiting for the device.

    Args:
        stage: its name.
        device: of the figures.
        report: see `Report`.
        where: what an error says of the place, and of what to do.
        interval: steps between two readings.

    Raises:
        ValueError: from `add` or `read`: the loss of a step since the last reading is NaN or Inf.
    """

    def __init__(
        self,
        stage: str,
        device: torch.device,
        report: Report,
        where: str = "a step",
        interval: int = INTERVAL,
    ) -> None:
        self._stage, self._report, self._interval = stage, report, interval
        self._where = where
        # not every device has float64
        wide = torch.float32 if device.type == "mps" else torch.float64
        self._sums = torch.zeros(3, dtype=wide, device=device)
        self._images, self._steps = 0, 0  # since the last reading
        self.loss = self.right = 0.0
        self._before = (0.0, 0.0)

    def add(
        self,
        figures: Tensor,  # [3]: mean loss of the images, how many were right, penalty
        images: int,
    ) -> None:
        """The figures of a step, on the meter's device; reads where it is time to."""
        figures = figures.to(self._sums.dtype)
        self._sums += torch.stack([figures[0] * images, figures[1], figures[2] * images])
        self._images += images
        self._steps += 1
        if self._steps == self._interval:
            self.read()

    def read(self) -> None:
        """Wait for the device: `loss` and `right` become sums over all steps so far."""
        if not self._steps:
            return
        loss, right, penalty = self._sums.tolist()
        if not math.isfinite(loss):
            raise ValueError(f"fit_head: the loss is {loss} in {self._where}")
        was = self._before
        self._report(
            self._stage,
            self._steps,
            (loss - was[0]) / self._images,
            (penalty - was[1]) / self._images,
        )
        self.loss, self.right, self._before = loss, right, (loss, penalty)
        self._images = self._steps = 0
