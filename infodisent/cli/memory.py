"""What a command does with memory that it has finished with."""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt, from <malloc.h>
_SMALL = 32 << 20  # the largest that mallopt takes
_KEPT = 512 << 20


def keep_memory() -> bool:
    """Let the C library keep 512 MB of freed memory for the next tensors, where it is glibc.

    By default it gives all beyond 64 MB back to the system, which fills the next tensors with zeros
    page by page: a quarter of the time of `extract` (measured with EfficientNet-Lite0 on two cores:
    50 s, 38 s so). It is left alone where the user has set variables of glibc's allocator.

    Returns:
        Whether the C library took it.
    """
    if not sys.platform.startswith("linux"):
        return False
    if any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False  # another C library
    mallopt.argtypes, mallopt.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    settings = ((_MMAP_THRESHOLD, _SMALL), (_TRIM_THRESHOLD, _KEPT))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)
