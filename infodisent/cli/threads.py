"""How the threads of a short command wait for each other."""

from __future__ import annotations

import os
import sys


def wait_asleep() -> None:
    """Let OpenMP's threads sleep while they wait, unless the user or a loaded torch says otherwise.

    By default they spin. On a busy machine that makes a command of a few seconds two to four times
    as long (measured: `explain` of one image, two cores, another job beside it: 5.5 s instead of
    10 to 13 s); sleeping costs nothing where, as here, little is computed. OpenMP reads the
    variable once, when torch loads it.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
