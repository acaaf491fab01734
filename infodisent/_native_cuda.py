"""The compiled module `infodisent._cuda`: `rotate_pool`, forward, on Hopper GPUs.

What is returned for half maps of up to 1024 pixels is rounded as by the Triton kernels (see
``csrc/packed_key.h``): the last ``(P - 1).bit_length()`` of 23 mantissa bits are cleared. Larger
maps and float32 ones give whole float32 values; float32 ones are multiplied as three products of
bfloat16 parts, about 2^-15 of each term.

The kernel exists for compute capability 9.0 alone. It reads rows of contiguous channels where they
are; maps of other layouts are for other backends, and `objection` says so. The module has no
gradient and no float8 product.
"""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""The numbers of ``csrc/rotate_pool_sm90.h``."""
WORKSPACE = 1 << 30
"""Bytes that the parts of a float32 map may take; larger ones are done in several launches."""

_module: Any = None
_missing: str | None = None


def _load() -> str | None:
    """Import the compiled module at first use; why that fails, or None."""
    global _module, _missing
    if _module is None and _missing is None:
        try:
            _module = importlib.import_module("infodisent._cuda")
        except ImportError as error:
            _missing = f"no CUDA module: {_reason(error)}"
    return _missing


def _reason(error: ImportError) -> str:
    here = Path(__file__)
    note = here.with_name("_build_note_cuda.txt")
    written = note.read_text(encoding="utf-8").strip() if note.is_file() else ""
    if written:
        return written
    if not list(here.parent.glob("_cuda.*")):
        return "the package was installed without it (INFODISENT_BUILD=0 or cpu, or no nvcc)"
    return f"it does not load: {error}"


def describe() -> str:
    """What was built, or why there is nothing; one line for `infodisent doctor`."""
    missing = _load()
    if missing is not None:
        return f"{missing}. Everything works without it"
    toolkit = f"{_module.toolkit // 1000}.{_module.toolkit % 1000 // 10}"
    return f"built (sm_90a; CUDA {toolkit}; tiles {', '.join(tile[0] for tile in _module.tiles)})"


def device_objection(device: torch.device) -> str | None:
    """Why no kernel of this module runs on the device, or None."""
    if device.type != "cuda":
        return f"the CUDA module runs on cuda only, not on {device.type}"
    missing = _load()
    if missing is not None:
        return missing
    if not torch.cuda.is_available():
        return "torch sees no GPU, which the CUDA module needs"
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) != (9, 0):
        return f"the CUDA module is for compute capability 9.0, {device} has {major}.{minor}"
    return None


def map_objection(x: Tensor, u: Tensor) -> str | None:
    """Why a map x [B, P, C] and u [C, C] cannot be read as they are, or None; for any device."""
    batch, pixels, channels = x.shape
    if x.dtype not in CODES:
        return f"x is {x.dtype}, must be float32, bfloat16 or float16"
    if u.dtype != x.dtype:
        return f"x is {x.dtype} but u is {u.dtype}"
    if u.shape != (channels, channels):
        return f"x is {tuple(x.shape)} [B, P, C] but u is {tuple(u.shape)}"
    if channels % 8 or channels >= 2**24:
        return f"{channels} channels: must be a multiple of 8, the copy engine reads 16 bytes"
    if batch * pixels >= 2**31 - 256:
        return f"x is {tuple(x.shape)}: 2^31 pixels or more"
    if x.stride(2) != 1:
        return f"channels have stride {x.stride(2)}, must have 1 (channels last, or tokens)"
    vector = 16 // x.element_size()
    image, pixel = _strides(x)
    if image % vector or pixel % vector or x.data_ptr() % 16:
        return f"strides {x.stride()}: rows of channels must begin at multiples of 16 bytes"
    if image <= 0 or pixel <= 0:
        return f"strides {x.stride()}: must be positive"  # a tensor map has no stride 0
    return None


def objection(x: Tensor, u: Tensor) -> str | None:
    """Why `rotate_pool` cannot serve x [B, P, C] and u [C, C], or None."""
    if u.device != x.device:
        return f"x is on {x.device} but u on {u.device}"
    return device_objection(x.device) or map_objection(x, u)


def _strides(x: Tensor) -> tuple[int, int]:
    """Strides of image and pixel, made up where there is only one."""
    batch, pixels, channels = x.shape
    pixel = x.stride(1) if pixels > 1 else channels
    return x.stride(0) if batch > 1 else pixels * pixel, pixel


def tiles(x: Tensor) -> list[str]:
    """The kinds of tile that can serve x [B, P, C]."""
    whole_float16 = x.dtype == torch.float16 and x.shape[1] > _module.packed_pixels
    return [
        name
        for name, _, images, pixels in _module.tiles
        if images == 0 or (pixels == x.shape[1] and not whole_float16)
    ]


@functools.cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def rotate_pool(
    x: Tensor,
    u: Tensor,
    *,
    tile: str | None = None,
    cluster: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Forward: ``pos = max(0, max_p Y)``, ``neg = max(0, max_p -Y)``, ``Y[b, :, p] = u x[b, p]``.

    Launched on the current stream, without waiting; can be captured in a CUDA graph after a first
    call, which loads the kernel. The same call gives the same bits.

    Args:
        x: [B, P, C] float32, bfloat16 or float16, channels contiguous; see `objection`.
        u: [C, C] of the same dtype.
        tile: one of `tiles`; by default the one with the shortest sequence of tiles.
        cluster: 2: pairs of blocks share their pixels; 1: they do not. By default 2 where the
            tiles of channels come in pairs and every multiprocessor has work.

    Returns:
        pos, neg [B, C] float32; pos_index, neg_index [B, C] int32.

    Raises:
        ValueError: the kernel cannot serve this; the message is that of `objection`.
        RuntimeError: a launch failed.
    """
    reason = objection(x, u)
    if reason is not None:
        raise ValueError(f"rotate_pool: {reason}")
    batch, pixels, channels = x.shape
    size, device = (batch, channels), x.device
    pos, neg = (torch.empty(size, dtype=torch.float32, device=device) for _ in range(2))
    pos_index, neg_index = (torch.empty(size, dtype=torch.int32, device=device) for _ in range(2))
    outputs = pos, neg, pos_index, neg_index
    if batch == 0:
        return outputs
    matrix = u
    if not u.is_contiguous() or u.data_ptr() % 16:
        matrix = u.clone(memory_format=torch.contiguous_format)
    if x.dtype != torch.float32:
        _launch(x, x, x.dtype, matrix, matrix, outputs, tile, cluster)
        return outputs
    where = _where(device)
    parts = torch.empty(2, channels, channels, dtype=torch.bfloat16, device=device)
    _module.split_rotation(
        matrix.data_ptr(), parts[0].data_ptr(), parts[1].data_ptr(), channels, *where
    )
    step = max(1, WORKSPACE // (4 * pixels * channels))
    for start in range(0, batch, step):
        some = x[start : start + step]
        high, low = torch.empty(2, *some.shape, dtype=torch.bfloat16, device=device)
        _module.split(
            some.data_ptr(), *some.shape, *_strides(some), high.data_ptr(), low.data_ptr(), *where
        )
        slices = tuple(t[start : start + step] for t in outputs)
        _launch(high, low, x.dtype, parts[0], parts[1], slices, tile, cluster)
    return outputs


def _where(device: torch.device) -> tuple[int, int]:
    """Index and current stream of the device."""
    index = device.index if device.index is not None else torch.cuda.current_device()
    return index, torch.cuda.current_stream(device).cuda_stream


def _launch(
    x: Tensor,  # [B, P, C], B > 0
    x_low: Tensor,
    dtype: torch.dtype,  # of the map; float32: x and u are its bfloat16 parts
    u: Tensor,  # [C, C]
    u_low: Tensor,
    outputs: tuple[Tensor, ...],  # pos, neg, pos_index, neg_index [B, C]
    tile: str | None,
    cluster: int | None,
) -> None:
    batch, pixels, channels = x.shape
    image, pixel = _strides(x)
    contiguous = batch == 1 or image == pixels * pixel
    exact = dtype == torch.float32 or pixels > _module.packed_pixels
    names = [name for name, *_ in _module.tiles]
    problem = batch, pixels, channels, contiguous, _processors(x.device)
    if tile is not None:
        kind = names.index(tile)
    elif exact and dtype == torch.float16:
        kind = names.index("flat")
    else:
        kind = _module.choose_tile(*problem)
    if cluster is None:
        cluster = _module.choose_cluster(kind, *problem)
    keys = None
    if names[kind] == "flat":
        key = torch.int64 if exact else torch.int32
        keys = torch.empty(2, batch, channels, dtype=key, device=x.device)
    index, stream = _where(x.device)
    _module.rotate_pool(
        x.data_ptr(),
        x_low.data_ptr(),
        CODES[dtype],
        batch,
        pixels,
        channels,
        image,
        pixel,
        u.data_ptr(),
        u_low.data_ptr(),
        *(t.data_ptr() for t in outputs),
        0 if keys is None else keys.data_ptr(),
        index,
        kind,
        cluster,
        exact,
        stream,
    )
