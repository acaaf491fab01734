"""The one list of backends. A new one is a folder and a line here.

``auto`` takes the first that neither objects to a call nor has a reservation about it. `doctor`,
README's table, the allowed names and the error messages are made from this list.
"""

from __future__ import annotations

from infodisent.backends.base import Backend
from infodisent.backends.cuda.backend import Cuda
from infodisent.backends.native.backend import Native
from infodisent.backends.reference import Reference
from infodisent.backends.sparse.backend import Sparse
from infodisent.backends.triton.backend import Triton

BACKENDS: tuple[Backend, ...] = (Cuda(), Triton(), Native(), Sparse(), Reference())

BY_NAME: dict[str, Backend] = {
    served.name: served
    for backend in BACKENDS
    for served in (backend, *(backend.at(precision) for precision in backend.precisions))
}
"""Every backend, and every one at each of its other precisions, in the order of `BACKENDS`."""
