"""Callbacks of `infodisent.training.fit.fit_head` for trackers of experiments."""

from __future__ import annotations

import os
from typing import Any

from infodisent.training.fit import Callback


def tensorboard(folder: str | os.PathLike[str]) -> Callback:
    """A callback that writes every epoch's figures for TensorBoard.

    Args:
        folder: of the event files, made if it is not there.

    Raises:
        ModuleNotFoundError: the package ``tensorboard`` is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ModuleNotFoundError(
            "--tensorboard needs the package tensorboard: pip install tensorboard"
        ) from error
    make: Any = SummaryWriter
    writer = make(os.fspath(folder))

    def write(epoch: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            writer.add_scalar(name, value, epoch)
        writer.flush()

    return write
