"""The compiled module `infodisent._C`; why it is missing, where it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64)


def _reason(error: ImportError) -> str:
    here = Path(__file__)
    note = here.with_name("_build_note.txt")
    written = note.read_text(encoding="utf-8").strip() if note.is_file() else ""
    if written:
        return written
    if not list(here.parent.glob("_C.*")):
        return "the package was installed without it (INFODISENT_BUILD=0, or no pybind11)"
    return f"it does not load: {error}"


_module: Any = None
_missing: str | None = None
try:
    from infodisent import _C

    _module = _C
except ImportError as _error:
    _missing = f"no native module: {_reason(_error)}"


def objection() -> str | None:
    """Why the compiled module cannot be used, or None."""
    return _missing


def describe() -> str:
    """What was built, or why there is nothing; one line for `infodisent doctor`."""
    if _missing is not None:
        return f"{_missing}. Everything works without it, slower"
    threads = "OpenMP" if _module.openmp else "no OpenMP: one thread"
    return f"built ({_module.dispatch}; {threads})"


def _address(x: Tensor, n: int) -> int:
    # The compiled code trusts what it is given, so this is the last place to look.
    if x.shape != (n, n) or not x.is_contiguous() or x.device.type != "cpu":
        raise ValueError(
            f"native: a matrix is {tuple(x.shape)}, strides {x.stride()}, on {x.device}; "
            f"must be contiguous ({n}, {n}) on the cpu"
        )
    return x.data_ptr()


def combine(
    inputs: list[Tensor],
    outputs: list[Tensor],
    coefficient: list[list[float]],
    parity: list[int],
) -> None:
    """``out_r = P_r(sum_k coefficient[r][k] in_k)``, see ``csrc/rotation.h``."""
    n, dtype = len(outputs[0]), outputs[0].dtype
    assert all(t.dtype == dtype for t in (*inputs, *outputs))
    assert dtype in DTYPES
    _module.combine(
        [_address(t, n) for t in inputs],
        [_address(t, n) for t in outputs],
        [c for row in coefficient for c in row],
        parity,
        n,
        dtype == torch.float64,
        torch.get_num_threads(),
    )


def mirror(x: Tensor, sign: float) -> None:
    """Write ``sign`` times the lower triangle of x [n, n] over its upper one."""
    n = len(x)
    _module.mirror(_address(x, n), n, sign, x.dtype == torch.float64, torch.get_num_threads())


def norms(x: Tensor) -> tuple[float, float]:
    """Largest row sum of ``|x|``, and the sum of squares, of x [n, n]."""
    n = len(x)
    wide = x.dtype == torch.float64
    found: tuple[float, float] = _module.norms(_address(x, n), n, wide, torch.get_num_threads())
    return found
