"""How many threads a command computes with, and how they wait for each other."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def settle_threads() -> None:
    """Set OpenMP's variables, unless the user has or torch is loaded: it reads them once.

    Threads that wait sleep, where by default they spin. On a busy machine, spinning for a partner
    that is not running makes a command two to four times as long (measured: `explain` of one image,
    two cores, another job beside it: 5.5 s instead of 10 to 13 s).

    A container may have less processor time than the processors it sees. OpenMP counts processors,
    and threads beyond the quota make the others wait until all are stopped together.
    """
    if "torch" in sys.modules:
        return
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    quota = processor_quota()
    if quota is not None and quota < (os.cpu_count() or 1):
        os.environ.setdefault("OMP_NUM_THREADS", str(quota))


def processor_quota(root: Path = CGROUPS) -> int | None:
    """Processors whose time a container may use, rounded up; None where there is no limit.

    Args:
        root: where control groups are mounted; version 2 has ``cpu.max``, version 1
            ``cpu/cpu.cfs_quota_us``.
    """
    try:
        quota, period = (root / "cpu.max").read_text("ascii").split()[:2]
    except (OSError, ValueError):
        try:
            quota = (root / "cpu" / "cpu.cfs_quota_us").read_text("ascii").strip()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text("ascii").strip()
        except (OSError, ValueError):
            return None
    try:
        processors = int(quota) / int(period)  # no limit is "max", in version 1 it is -1
    except (ValueError, ZeroDivisionError):
        return None
    return math.ceil(processors) if processors > 0 else None
