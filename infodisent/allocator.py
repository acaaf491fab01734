"""What the C library does with memory that a process has finished with."""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # parameters of glibc's mallopt, from <malloc.h>
_LEAST = 512 << 20
_MOST = (2 << 30) - 1  # an int of C
_PART = 16  # of the machine's memory


def keep_memory(*, all_of_it: bool = False) -> bool:
    """Let the C library keep freed memory for the next tensors, where it is glibc.

    By default glibc gives every tensor above 32 MiB, and all beyond 64 MiB, back to the system as
    soon as it is freed, and the system fills the next tensor with zeros page by page. Afterwards a
    sixteenth of the machine's memory is kept, at least 512 MiB and at most 2 GiB; no more than the
    process once needed. The commands of `infodisent` do this themselves; a program of your own that
    runs networks on a CPU may call it when it starts. It holds for the whole process. Nothing
    changes where the user has set variables of glibc's allocator (``MALLOC_…``,
    ``GLIBC_TUNABLES``).

    A pass of 32 images through EfficientNet-Lite0 takes 0.5 of the time so, through ResNet-50 0.7
    (two cores; ``python -m benchmarks.kept_memory``).

    Args:
        all_of_it: whatever amount is freed. For timings: else what one implementation leaves behind
            is given back, at its cost, in another one's turn.

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
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    kept = -1 if all_of_it else min(max(_LEAST, memory // _PART), _MOST)
    # no tensor has pages of its own: those would go back with it, whatever the threshold
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, kept))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)
