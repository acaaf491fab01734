"""A few steps of a training under torch's profiler: a trace file and a table."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from infodisent.files import replacing, write_text

TRACE, TABLE = "trace.json", "table.txt"
WAIT, WARM, ACTIVE = 2, 2, 6
"""Steps that are left out, that run with the profiler on but don't count, and that count."""
_ROWS = 30


@contextlib.contextmanager
def profiled(
    folder: str | os.PathLike[str] | None, device: torch.device
) -> Iterator[Callable[[], object]]:
    """Profile some of the block's steps, see `WAIT`; later ones run without the profiler.

    Writes ``trace.json``, for chrome://tracing or Perfetto, and ``table.txt``, the operations that
    take longest. A training of fewer steps than are left out writes neither.

    Args:
        folder: of the files; None profiles nothing.
        device: the training's.

    Yields:
        What is to be called after every step.
    """
    if folder is None:
        yield _nothing
        return
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    activities = [ProfilerActivity.CPU]
    by = "self_cpu_time_total"
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
        by = "self_cuda_time_total"

    def write(recorded: Any) -> None:
        with replacing(target / TRACE) as file:
            recorded.export_chrome_trace(str(file))
        table = recorded.key_averages().table(sort_by=by, row_limit=_ROWS)
        write_text(target / TABLE, table)

    plan = schedule(wait=WAIT, warmup=WARM, active=ACTIVE, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=write) as recorder:
        yield recorder.step


def _nothing() -> None:
    """The step of no profiler."""
