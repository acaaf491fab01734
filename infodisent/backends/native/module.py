"""The compiled module `infodisent._C`; why it is missing, where it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from infodisent.backends.build import why_missing
from infodisent.contract import Best, Extremes, empty_extremes
from infodisent.layout import value_dtype

DTYPES = (torch.float32, torch.float64)
"""Dtypes of the matrices that the passes take."""
CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
"""Numbers of the dtypes of maps, those of the bindings in ``csrc/cpu``."""


_module: Any = None
_missing: str | None = None
try:
    from infodisent import _C

    _module = _C
except ImportError as _error:
    _missing = "no native module: " + why_missing(
        "_C",
        "_build_note.txt",
        "the package was installed without it (INFODISENT_BUILD=0, or no pybind11)",
        _error,
    )


def objection() -> str | None:
    """Why the compiled module cannot be used, or None."""
    return _missing


def is_fused() -> bool:
    """Whether `rotate_pool` is fused here: the processor has the instructions for it.

    Not on Arm without OpenMP, as on a Mac: one thread would stand against a library that takes all
    cores.
    """
    return _module is not None and bool(_module.tiles) and (_module.openmp or not _is_arm())


def _is_arm() -> bool:
    return str(_module.tiles) == "neon"


def describe() -> str:
    """What was built, or why there is nothing; one line for `infodisent doctor`."""
    if _missing is not None:
        return f"{_missing}. Everything works without it, slower"
    threads = "OpenMP" if _module.openmp else "no OpenMP: one thread"
    tiles = " and ".join([_module.tiles, *(["avx512bf16"] if _module.pairs else [])])
    fused = f"rotate_pool fused, {tiles}" if is_fused() else "rotate_pool by library products"
    return f"built ({_module.dispatch}; {threads}; {fused}{_screening()})"


def _screening() -> str:
    """How `rotate_pool` treats float32 here: timed, 0.1 s."""
    name = screen_name()
    if not name:
        return ""
    gain = screen_gain()
    used = "screened" if gain > _module.worthwhile else "not screened"
    return f"; float32 {used} by integers ({name}): {gain:.2f} times as fast here"


def screen_name() -> str:
    """Instructions that `rotate_pool` can screen by, see ``csrc/cpu/rotate_pool_screen.h``."""
    return str(_module.screen(0))


def screen_gain() -> float:
    """How many times faster screening is on this processor; timed once per process, 0.1 s."""
    return float(_module.screen_gain())


def multiplies(x: torch.dtype, u: torch.dtype, channels: int) -> torch.dtype | None:
    """What `rotate_pool` wants U in for a map of dtype `x`; None where it has no product."""
    if not is_fused() or torch.float64 in (x, u):
        return None
    pairs = x == u == torch.bfloat16 and _module.pairs and channels % 2 == 0
    return torch.bfloat16 if pairs else torch.float32


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
    share: tuple[int, int] = (0, 1),
) -> None:
    """``out_r = P_r(sum_k coefficient[r][k] in_k)``, see ``csrc/cpu/rotation.h``.

    Of `share` (number, count) alone, where one is given.
    """
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
        share,
        torch.get_num_threads(),
    )


def mirror(x: Tensor, sign: float) -> None:
    """Write ``sign`` times the lower triangle of x [n, n] over its upper one."""
    n = len(x)
    _module.mirror(_address(x, n), n, sign, x.dtype == torch.float64, torch.get_num_threads())


def has_product(dtype: torch.dtype) -> bool:
    """Whether `matrix_product` serves this dtype on this processor.

    It was measured against the library's product on x86 alone.
    """
    return dtype == torch.float32 and bool(_module.tiles) and not _is_arm()


def _factor(x: Tensor, n: int) -> tuple[int, bool]:
    """A matrix, or the transpose of one, as the compiled code takes it."""
    transposed = not x.is_contiguous()
    return _address(x.mT if transposed else x, n), transposed


def matrix_product(
    a: Tensor,
    b: Tensor,
    out: Tensor,
    addend: Tensor | None = None,
    scale: float = 1.0,
    parity: int = 0,
    rows: tuple[int, int] | None = None,
    columns: tuple[int, int] | None = None,
    mirrored: bool | None = None,
) -> None:
    """``out = a b + scale * addend``, float32 [n, n], see ``csrc/cpu/matrix_product.h``.

    `a` and `b` may be transposes of contiguous matrices. `out` overlaps neither. Of `rows` and
    `columns` (first, last + 1) alone, where they are given; default of `mirrored`: where they are
    not.
    """
    n = len(out)
    if mirrored is None:
        mirrored = rows is None and columns is None
    _module.matrix_product(
        *_factor(a, n),
        *_factor(b, n),
        _address(out, n),
        0 if addend is None else _address(addend, n),
        scale,
        parity,
        n,
        (0, n) if rows is None else rows,
        (0, n) if columns is None else columns,
        mirrored,
        torch.get_num_threads(),
    )


def norms(x: Tensor) -> tuple[float, float]:
    """Largest row sum of ``|x|``, and the sum of squares, of x [n, n]."""
    n = len(x)
    wide = x.dtype == torch.float64
    both: tuple[float, float] = _module.norms(_address(x, n), n, wide, torch.get_num_threads())
    return both


def _map(x: Tensor) -> tuple[int, ...]:
    """A map [B, P, C] of any strides, as the compiled code takes it."""
    if x.ndim != 3 or x.device.type != "cpu":
        raise ValueError(f"native: a map is {tuple(x.shape)} on {x.device}, must be (B, P, C), cpu")
    return (x.data_ptr(), CODES[x.dtype], *x.shape, *x.stride())


def _values(tensors: tuple[Tensor, ...], shape: tuple[int, ...], dtype: torch.dtype) -> list[int]:
    for t in tensors:
        if t.shape != shape or t.dtype != dtype or not t.is_contiguous() or not t.is_cpu:
            raise ValueError(
                f"native: got {tuple(t.shape)} {t.dtype}, strides {t.stride()} on {t.device}; "
                f"must be contiguous {shape} {dtype} on the cpu"
            )
    return [t.data_ptr() for t in tensors]


def mx_pool(y: Tensor, pos: Tensor, neg: Tensor, pos_index: Tensor, neg_index: Tensor) -> None:
    """Pool y [B, P, C], any dtype and strides, into float32 (float64) and int32 [B, C]."""
    shape = (y.shape[0], y.shape[2])
    _module.mx_pool(
        *_map(y),
        *_values((pos, neg), shape, value_dtype(y.dtype)),
        *_values((pos_index, neg_index), shape, torch.int32),
        torch.get_num_threads(),
    )


def rotate_pool(x: Tensor, u: Tensor, instructions: int = 0, screen: int = 0) -> Extremes:
    """Rotate x [B, P, C], any dtype but float64, any strides, by u [C, C] and pool.

    `u` in the dtype `multiplies` says. Values are float32; see ``csrc/cpu/rotate_pool.h``. For
    tests and measurements, none of which changes a bit of the result: `instructions`: 0 the best
    there are, 1 AVX2, 2 AVX-512; `screen`: 0 where it pays here, 1 never, 2 always, 3 always and in
    plain arithmetic.
    """
    shape = (x.shape[0], x.shape[2])
    if u.data_ptr() % 4:  # half numbers at an odd place are read two at a time
        u = u.clone()
    if u.shape != (shape[1], shape[1]) or not u.is_contiguous() or not u.is_cpu:
        raise ValueError(
            f"native: U is {tuple(u.shape)}, strides {u.stride()} on {u.device}; must be "
            f"contiguous ({shape[1]}, {shape[1]}) on the cpu"
        )
    outputs = empty_extremes(*shape, torch.float32, "cpu")
    _module.rotate_pool(
        *_map(x),
        u.data_ptr(),
        CODES[u.dtype],
        *(t.data_ptr() for t in outputs),
        torch.get_num_threads(),
        instructions,
        screen,
    )
    return outputs


SIMILARITIES = {"dot": 0, "cosine": 1, "l2": 2}
"""Numbers of ``infodisent::Similarity`` in ``csrc/cpu/similarity_pool.h``."""


def similarity_pool(
    x: Tensor,
    prototypes: Tensor,
    valid: Tensor | None,
    similarities: tuple[str, ...],
    outputs: tuple[Best, ...],
    instructions: int = 0,
    screen: int = 0,
) -> None:
    """Compare x [B, P, C], any dtype but float64, any strides, with prototypes [M, C] float32.

    `valid` [B, P] bool or None; `instructions` and `screen` as in `rotate_pool`. See
    ``csrc/cpu/similarity_pool.h``.
    """
    batch, pixels, channels = x.shape
    shape = (batch, len(prototypes))
    if valid is not None:
        valid = valid.contiguous()
    _module.similarity_pool(
        *_map(x),
        *_values((prototypes,), (len(prototypes), channels), torch.float32),
        len(prototypes),
        0 if valid is None else _values((valid,), (batch, pixels), torch.bool)[0],
        [SIMILARITIES[name] for name in similarities],
        _values(tuple(best.value for best in outputs), shape, torch.float32),
        _values(tuple(best.index for best in outputs), shape, torch.int32),
        torch.get_num_threads(),
        instructions,
        screen,
    )


def rows(x: Tensor, out: Tensor) -> None:
    """x [B, P, C], any dtype and strides, to out [B·P, C], float32 (float64 for float64)."""
    shape = (x.shape[0] * x.shape[1], x.shape[2])
    _module.rows(*_map(x), *_values((out,), shape, value_dtype(x.dtype)), torch.get_num_threads())


def grad_u(
    x: Tensor,
    grads: Sequence[Tensor],
    indices: Sequence[Tensor],
    du: Tensor,
    accumulate: bool,
    base: Tensor | None = None,
) -> None:
    """dU [M, C] from x [B, P, C] with contiguous channels; see ``csrc/cpu/rotate_pool.h``.

    grads, indices [B, M] of one side or two; base [M, C].
    """
    if x.stride(2) != 1 and x.shape[2] > 1:
        raise ValueError(f"native: channels of a map have stride {x.stride(2)}, must have 1")
    shape, wide = (x.shape[0], len(du)), value_dtype(x.dtype)
    rows_shape = (len(du), x.shape[2])
    _module.grad_u(
        *_map(x)[:-1],
        len(du),
        _values(tuple(grads), shape, wide),
        _values(tuple(indices), shape, torch.int32),
        0 if base is None else _values((base,), rows_shape, wide)[0],
        *_values((du,), rows_shape, wide),
        accumulate,
        torch.get_num_threads(),
    )


def grad_x(
    u: Tensor,
    grads: Sequence[Tensor],
    indices: Sequence[Tensor],
    dx: Tensor,
    accumulate: bool = False,
    x: Tensor | None = None,
) -> None:
    """dX [B, P, C] from u [M, C]; see ``csrc/cpu/rotate_pool.h``.

    grads, indices [B, M] of one side or two; x [B, P, C] contiguous.
    """
    batch, pixels, channels = dx.shape
    shape = (batch, len(u))
    _module.grad_x(
        *_values((u,), (len(u), channels), u.dtype),
        u.dtype == torch.float64,
        batch,
        pixels,
        channels,
        len(u),
        _values(tuple(grads), shape, u.dtype),
        _values(tuple(indices), shape, torch.int32),
        0 if x is None else _values((x,), tuple(dx.shape), u.dtype)[0],
        *_values((dx,), (batch, pixels, channels), u.dtype),
        accumulate,
        torch.get_num_threads(),
    )
