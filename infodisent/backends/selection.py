"""Which backend serves a call, and the reason when one does not.

`infodisent.backends.table` lists the backends. ``auto`` (the default) takes the first of them that
has neither an objection to a call nor a reservation about it; one that is faster at some sizes only
has none at these (`infodisent.backends.choices`). Choose with the environment variable
``INFODISENT_BACKEND``, with `set_backend`, or for a block of code with `use_backend`; a precision
of a backend is asked for as ``"cuda:fp8"``. An explicit choice that cannot serve a call raises
`BackendError` with the reason; ``auto`` falls back. Where a chosen backend has no kernel for an
operator at all, its stand-in takes its place: ``cuda`` leaves the rotation to ``triton``, and that
the pool alone to ``sparse``.

The choice is made once a call, at forward, and kept for backward: it does not matter what is in
force when gradients are computed.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch

from infodisent.backends import selfcheck
from infodisent.backends.base import Backend, Call
from infodisent.backends.errors import BackendError
from infodisent.backends.table import BY_NAME
from infodisent.layout import to_bpc
from infodisent.tracing import transforming

ENV = "INFODISENT_BACKEND"
AUTO = "auto"
FORMULAS = "reference"
"""The backend without kernels: operators call the formula itself."""
NAMES = (AUTO, *BY_NAME)
OLD_NAMES = {"cuda_fp8": "cuda:fp8"}
"""Names of version 0.1, still taken."""

# A plain global and no context variable: torch.compile can guard on the one, not trace the other.
_chosen: str | None = None


def _checked(name: str, origin: str) -> str:
    if isinstance(name, str):
        name = OLD_NAMES.get(name, name)
    if name not in NAMES:
        raise ValueError(f"{origin} is {name!r}, allowed are {', '.join(NAMES)}")
    return name


def get_backend() -> str:
    """The name in force: of `use_backend` / `set_backend`, else of the environment, else auto.

    Raises:
        ValueError: the environment variable holds an unknown name.
    """
    return _chosen if _chosen is not None else _checked(os.environ.get(ENV) or AUTO, ENV)


def set_backend(name: str | None, *, precision: str | None = None) -> None:
    """Choose a backend for this process; None returns to ``INFODISENT_BACKEND``.

    Args:
        name: one of `NAMES`.
        precision: one of the backend's, such as "fp8" of "cuda".

    Raises:
        ValueError: unknown name, or a precision that the backend does not have.
    """
    global _chosen
    if precision is not None:
        name = f"{name}:{precision}"
    _chosen = None if name is None else _checked(name, "set_backend: name")


@contextlib.contextmanager
def use_backend(name: str, *, precision: str | None = None) -> Iterator[None]:
    """Choose a backend for a ``with`` block. The choice is the process's, not the thread's.

    What was computed in the block keeps its backend for backward, wherever that runs.

    Raises:
        ValueError: unknown name, or a precision that the backend does not have.
    """
    before = _chosen
    set_backend(name, precision=precision)
    try:
        yield
    finally:
        set_backend(before)


def checkpoint_contexts() -> tuple[
    contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]
]:
    """For ``torch.utils.checkpoint``: computes again by the backend that is in force now.

    ``checkpoint(f, x, use_reentrant=False, context_fn=checkpoint_contexts)``. Without it what is
    computed again asks for the backend anew, during backward. The gradient is that of the first
    choice either way, but where the two keep different tensors torch refuses the second.
    """
    name = get_backend()
    return use_backend(name), use_backend(name)


def select(
    op: str,
    tensor: torch.Tensor,
    *others: torch.Tensor | None,
    layout: tuple[str, int] | None = None,
) -> str:
    """The backend that serves operator `op` on `tensor` and, where there are, other inputs.

    layout: input_fmt and prefix tokens of a map `tensor` that is rotated by the first of `others`.
    Where there is evidence about sizes, ``auto`` looks at these too.

    Raises:
        BackendError: the explicitly chosen backend objects; the message holds its reason.
    """
    name, dtype = get_backend(), tensor.dtype
    for other in others:
        if other is not None and other.dtype == torch.float64:
            dtype = torch.float64  # what is computed in
    if torch.compiler.is_compiling():  # dynamo traces no caches
        traced = _resolve(name, op, tensor.device, dtype)
        # an exported program runs elsewhere too: there "auto" asks again
        return name if torch.compiler.is_exporting() and traced != FORMULAS else traced
    if transforming():  # torch.func differentiates and batches plain operators only
        if name not in (AUTO, FORMULAS):
            raise BackendError(
                f"{op}: backend {name!r} cannot serve torch.func's transforms (grad, vmap, jacrev "
                "…); 'auto' and 'reference' can, by the plain formulas"
            )
        return FORMULAS
    # everything an objection depends on, so that a call does not ask again; an export that gets
    # here traces, and asking about that first is cheaper
    exporting = torch.jit.is_tracing() and torch.onnx.is_in_onnx_export()  # type: ignore[attr-defined]
    key = (name, op, tensor.device, dtype, exporting)
    served_by = _resolved.get(key)
    if served_by is None:
        served_by = _resolve(*key[:4])
        if not (tensor.is_cuda and selfcheck.pending(tensor.device)):
            _resolved[key] = served_by
            _by_size[key] = name == AUTO and any(
                backend.decides_by_size(tensor.device) for backend in BY_NAME.values()
            )
    if layout is not None and others[0] is not None and _by_size.get(key):
        served_by = _for_size(served_by, Call(op, tensor.device, dtype), tensor, others[0], layout)
    if served_by != FORMULAS and torch.jit.is_tracing():  # type: ignore[attr-defined]
        say_what_a_file_needs()
        return name  # what is traced runs elsewhere too, as what is exported does
    return served_by


def say_what_a_file_needs() -> None:
    """Warn that an exported or traced program calls the operators of this package."""
    warnings.warn(
        "infodisent: the exported program calls operators of this package: `import infodisent.ops` "
        "before it is loaded elsewhere, or export it under `with infodisent.backends.use_backend("
        '"reference"):`, and it needs PyTorch alone',
        stacklevel=2,
    )


_resolved: dict[tuple[object, ...], str] = {}
_by_size: dict[tuple[object, ...], bool] = {}
"""Of what is in `_resolved`: whether the size of a map can lead to another backend."""


def _for_size(
    otherwise: str, call: Call, tensor: torch.Tensor, u: torch.Tensor, layout: tuple[str, int]
) -> str:
    """What ``auto`` takes for this very map; `otherwise`: for one of which nothing is known."""
    x = to_bpc(tensor, *layout)
    sized = replace(call, size=(x.shape[0], x.shape[1], x.shape[2]))
    for name, backend in BY_NAME.items():
        if name == otherwise:
            break
        if (
            backend.decides_by_size(call.device)
            and _auto_objection(name, sized) is None
            and backend.map_objection(x, u) is None
        ):
            return name
    return otherwise


def implementation(
    name: str, op: str, tensor: torch.Tensor, *others: torch.Tensor | None
) -> Backend:
    """The backend of a name that `select` returned, for the inputs that `select` was given.

    A registered operator has the name as an argument, so that forward and backward have the same
    one. "auto", of an exported or traced program, is what is in force where it runs.
    """
    backend = BY_NAME.get(name)
    if backend is None or op not in backend.stems:
        if name == AUTO:
            name = get_backend()
        dtypes = {tensor.dtype, *(other.dtype for other in others if other is not None)}
        dtype = torch.float64 if torch.float64 in dtypes else tensor.dtype
        backend = BY_NAME[_resolve(_checked(name, f"{op}: backend"), op, tensor.device, dtype)]
    # there is no formula to call once autograd has let go of the operator
    return BY_NAME["sparse"] if backend.name == FORMULAS else backend


def _resolve(name: str, op: str, device: torch.device, dtype: torch.dtype) -> str:
    if name != AUTO:
        while op not in BY_NAME[name].stems:
            name = BY_NAME[name].stand_in
    call = Call(op, device, dtype)
    if name != AUTO:
        objection = BY_NAME[name].objection(call)
        if objection is not None:
            raise BackendError(f"{op}: backend {name!r} cannot serve this call: {objection}")
        return name
    return next(name for name in BY_NAME if _auto_objection(name, call) is None)


def _auto_objection(name: str, call: Call) -> str | None:
    """Why ``auto`` does not take a backend: it cannot serve, or has a reservation."""
    return BY_NAME[name].objection(call) or BY_NAME[name].reservation(call)


def explain(
    op: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    check: bool = False,
    names: Iterable[str] | None = None,
) -> dict[str, str]:
    """For each backend ``"ok"`` or the reason why it would not serve such a call.

    check: ask as ``auto`` does, which may run the check of the GPU kernels.
    names: of the backends to ask; default: all.
    """
    call = Call(op, torch.device(device), dtype)
    objects: Callable[[str, Call], str | None] = (
        _auto_objection if check else lambda name, call: BY_NAME[name].objection(call)
    )
    return _Answers({name: objects(name, call) or "ok" for name in names or BY_NAME})


class _Answers(dict[str, str]):
    """Answers by name of a backend; names of version 0.1 find theirs too."""

    def __missing__(self, name: str) -> str:
        if name in OLD_NAMES:
            return self[OLD_NAMES[name]]
        raise KeyError(name)
