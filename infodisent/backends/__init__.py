"""Who computes: one folder a backend, `table` lists them, `selection` chooses one for each call."""

from infodisent.backends.base import Backend, Call
from infodisent.backends.errors import BackendError
from infodisent.backends.selection import (
    ENV,
    NAMES,
    checkpoint_contexts,
    explain,
    get_backend,
    select,
    set_backend,
    use_backend,
)
from infodisent.backends.selfcheck import known as known_verdict
from infodisent.backends.table import BACKENDS

__all__ = [
    "BACKENDS",
    "ENV",
    "NAMES",
    "Backend",
    "BackendError",
    "Call",
    "checkpoint_contexts",
    "explain",
    "get_backend",
    "known_verdict",
    "select",
    "set_backend",
    "use_backend",
]
