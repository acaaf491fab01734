"""Freed memory is kept for the next tensor: no page of it is asked for twice."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from infodisent import allocator

CODE = """
import resource, runpy, sys
import numpy as np  # whose arrays come from the same place as tensors
print(runpy.run_path(sys.argv[1])["keep_memory"]())
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.ones(n << 20, np.float32) for n in (5, 5, 20, 5, 5)]  # one beyond 32 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(min(faults() for _ in range(4)))
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="the C library here is not glibc (Linux)"
)
@pytest.mark.parametrize("given", [{}, {"MALLOC_ARENA_MAX": "1"}])
def test_a_second_tensor_takes_the_pages_of_the_first(given):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | given
    environment.pop("GLIBC_TUNABLES", None)
    done = subprocess.run(
        [sys.executable, "-c", CODE, allocator.__file__],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    kept, faults = done.stdout.split()
    assert kept == str(not given)  # what the user has set stays
    if not given:
        assert int(faults) < 6000  # of 40,960
