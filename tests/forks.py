"""Small programs, each in a process of its own, that do not import torch anew each time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

_FORKS = """
import os, sys
exec(sys.argv[1], globals())
for program in sys.argv[2:]:
    sys.stdout.flush()
    child = os.fork()
    if not child:
        exec(program, globals())
        sys.stdout.flush()
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit("failed: " + program)
"""


def forked(prepare: str, programs: Sequence[str], *options: str) -> str:
    """What `programs` print, one after the other, each in a fork of a process that ran `prepare`.

    `prepare` should start no threads: a fork has none of them. `options` are Python's own.
    """
    command = [sys.executable, *options, "-c", _FORKS, prepare, *programs]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
