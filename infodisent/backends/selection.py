"""Which implementation serves a call, and the reason when one does not.

Six backends exist:

``cuda``
    The hand-written kernels for Hopper GPUs (``csrc/*_sm90*``) for the value and for dU of half
    maps, `triton` or `sparse` for the rest. Not measured yet, so ``auto`` never takes them.
``triton``
    The kernels of ``infodisent.kernels`` on a GPU of compute capability 8.0 or more, for float32,
    bfloat16 and float16. ``auto`` takes it only where a check on this machine has shown it right
    (`infodisent.backends.selfcheck`).
``cuda_fp8``
    As ``cuda``, with x and U rounded to float8 (e4m3), for inference: values are 3 to 4 % off on
    maps after a ReLU and 1 place in 20 is another (`infodisent.backends.cuda.module.rotate_pool`;
    ``benchmarks/results/fp8-accuracy.json``, emulated). Only ever where it is asked for; gradients,
    if taken, are those of the whole numbers at the places found.
``native``
    As ``sparse``, with everything between the products in compiled code (``csrc/``).
``sparse``
    Library matrix products on chunks that stay in cache, one-pass pooling, and the sparse gradient
    of the contract. Plain PyTorch underneath, so it runs wherever torch does.
``reference``
    The formulas of `infodisent.reference` under autograd: dense gradients, any dtype, exportable.

``auto`` (the default) takes the first backend of the table that has no objection. Choose with the
environment variable ``INFODISENT_BACKEND``, with `set_backend`, or for a block of code with
`use_backend`. An explicit choice that cannot serve a call raises `BackendError` with the reason;
``auto`` falls back. Where a chosen backend has no kernel for an operator at all, the next one takes
its place: ``cuda`` leaves the rotation to ``triton``, and that the pool alone to ``sparse``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from infodisent.backends import selfcheck as _selfcheck
from infodisent.backends import triton as _triton
from infodisent.backends.cuda import module as _native_cuda
from infodisent.backends.native import module as _native

ENV = "INFODISENT_BACKEND"


class BackendError(RuntimeError):
    """An explicitly chosen backend cannot serve this call."""


@dataclass(frozen=True)
class Call:
    """What a backend looks at to decide: the operator's stem, the device, and the dtype."""

    op: str
    device: torch.device
    dtype: torch.dtype


def _cuda_objection(call: Call) -> str | None:
    if call.op not in ("rotate_pool", "infodisent_head"):
        return f"there is no CUDA kernel for {call.op}"
    if call.dtype == torch.float64:
        return "the CUDA kernel takes float32, bfloat16, float16, not float64"
    return _native_cuda.device_objection(call.device) or _sparse_objection(call)


def _triton_objection(call: Call) -> str | None:
    return _triton.objection(call.op, call.device, call.dtype) or _sparse_objection(call)


def _native_objection(call: Call) -> str | None:
    if call.device.type not in ("cpu", "meta"):
        return f"the compiled code runs on the cpu only, not on {call.device.type}"
    return _sparse_objection(call) or _native.objection()


def _sparse_objection(call: Call) -> str | None:
    if call.device.type not in ("cpu", "cuda", "meta"):
        return f"the sparse gradient is tested on cpu and cuda only, not on {call.device.type}"
    if torch.onnx.is_in_onnx_export():
        return "torch.onnx.export needs the plain formulas: ONNX has no operator for this one"
    return None


def _reference_objection(call: Call) -> str | None:
    return None


_TABLE: dict[str, Callable[[Call], str | None]] = {
    "cuda": _cuda_objection,
    "cuda_fp8": _cuda_objection,
    "triton": _triton_objection,
    "native": _native_objection,
    "sparse": _sparse_objection,
    "reference": _reference_objection,
}
NAMES = ("auto", *_TABLE)


def _auto_objection(name: str, call: Call) -> str | None:
    """Why ``auto`` does not take a backend: it cannot serve, or was not shown to be right here."""
    found = _TABLE[name](call)
    if found is None and name == "cuda_fp8":
        return "float8 is for those who ask for it"
    if found is None and name == "cuda":
        return "never measured: no report in benchmarks/results shows that it is faster"
    if found is None and name == "triton":
        found = _selfcheck.objection(call.op, call.device, call.dtype)
    return found


# A plain global and no context variable: torch.compile can guard on the one, not trace the other.
_chosen: str | None = None


def _checked(name: str, origin: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{origin} is {name!r}, allowed are {', '.join(NAMES)}")
    return name


def get_backend() -> str:
    """The name in force: of `use_backend` / `set_backend`, else of the environment, else auto.

    Raises:
        ValueError: the environment variable holds an unknown name.
    """
    return _chosen if _chosen is not None else _checked(os.environ.get(ENV) or "auto", ENV)


def set_backend(name: str | None) -> None:
    """Choose a backend for this process; None returns to ``INFODISENT_BACKEND``.

    Raises:
        ValueError: unknown name.
    """
    global _chosen
    _chosen = None if name is None else _checked(name, "set_backend: name")


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Choose a backend for a ``with`` block. The choice is the process's, not the thread's.

    Raises:
        ValueError: unknown name.
    """
    before = _chosen
    set_backend(name)
    try:
        yield
    finally:
        set_backend(before)


def select(op: str, tensor: torch.Tensor, *others: torch.Tensor | None) -> str:
    """The backend that serves operator `op` on `tensor` and, where there are, other inputs.

    Raises:
        BackendError: the explicitly chosen backend objects; the message holds its reason.
    """
    name, dtype = get_backend(), tensor.dtype
    for other in others:
        if other is not None and other.dtype == torch.float64:
            dtype = torch.float64  # what is computed in
    if torch.compiler.is_compiling():  # dynamo traces no caches
        return _resolve(name, op, tensor.device, dtype)
    # everything an objection depends on, so that a call does not ask again; an export that gets
    # here traces, and asking about that first is cheaper
    exporting = torch.jit.is_tracing() and torch.onnx.is_in_onnx_export()  # type: ignore[attr-defined]
    key = (name, op, tensor.device, dtype, exporting)
    found = _resolved.get(key)
    if found is None:
        found = _resolve(*key[:4])
        if not (tensor.is_cuda and _selfcheck.pending(tensor.device)):
            _resolved[key] = found
    return found


_resolved: dict[tuple[object, ...], str] = {}


# Operators that a backend has no kernel for at all, and who takes its place when it is chosen: a
# model uses several, and one environment variable is for all of them.
_WITHOUT = {
    "cuda": (("rotation", "mx_pool"), "triton"),
    "cuda_fp8": (("rotation", "mx_pool"), "triton"),
    "triton": (("mx_pool",), "sparse"),
}


def _resolve(name: str, op: str, device: torch.device, dtype: torch.dtype) -> str:
    while op in _WITHOUT.get(name, ((), ""))[0]:
        name = _WITHOUT[name][1]
    call = Call(op, device, dtype)
    if name != "auto":
        objection = _TABLE[name](call)
        if objection is not None:
            raise BackendError(f"{op}: backend {name!r} cannot serve this call: {objection}")
        return name
    return next(name for name in _TABLE if _auto_objection(name, call) is None)


def for_gradient(backend: str, tensor: torch.Tensor) -> str:
    """Who computes the gradient where `backend` computed the value."""
    if backend not in ("cuda", "cuda_fp8"):
        return backend
    return (
        "triton"
        if explain("rotate_pool", tensor.device, tensor.dtype)["triton"] == "ok"
        else "sparse"
    )


def is_native(op: str, tensor: torch.Tensor) -> bool:
    """Whether compiled code serves operator `op` on `tensor`; asked while an operator runs."""
    return select(op, tensor) == "native"


def explain(
    op: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    check: bool = False,
) -> dict[str, str]:
    """For each backend ``"ok"`` or the reason why it would not serve such a call.

    check: ask as ``auto`` does, which may run the check of the GPU kernels.
    """
    call = Call(op, torch.device(device), dtype)
    objects = _auto_objection if check else (lambda name, call: _TABLE[name](call))
    return {name: objects(name, call) or "ok" for name in _TABLE}
