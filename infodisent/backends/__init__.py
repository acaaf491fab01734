"""Who computes: `infodisent.backends.selection` chooses, one folder a backend."""

from infodisent.backends.selection import (
    ENV,
    NAMES,
    BackendError,
    explain,
    for_gradient,
    get_backend,
    is_native,
    select,
    set_backend,
    use_backend,
)

__all__ = [
    "ENV",
    "NAMES",
    "BackendError",
    "explain",
    "for_gradient",
    "get_backend",
    "is_native",
    "select",
    "set_backend",
    "use_backend",
]
