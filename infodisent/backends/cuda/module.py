"""The compiled module `infodisent._cuda`: `rotate_pool` and the gradient of its u on Hopper GPUs.

What is returned for half maps of up to 1024 pixels is rounded as by the Triton kernels (see
``csrc/sm90/packed_key.h``): the last ``(P - 1).bit_length()`` of 23 mantissa bits are cleared.
Larger maps and float32 ones give whole float32 values; float32 ones are multiplied as three
products of bfloat16 parts, about 2^-15 of each term.

The kernel exists for compute capability 9.0 alone. It reads rows of contiguous channels where they
are; maps of other layouts are for other backends, and `objection` says so. Of the gradients it has
that of u for half maps, `infodisent.backends.cuda.rotate_pool_backward`. A float8 product is an
option of `rotate_pool` that nothing chooses by itself.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infodisent.backends.build import why_missing
from infodisent.contract import Extremes, empty_extremes
from infodisent.layout import row_strides

CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""The numbers of ``csrc/sm90/rotate_pool.h``."""
WORKSPACE = 1 << 30
"""Bytes that the parts of a float32 map, or a map as float8, may take; larger ones are done in
several launches."""
FLOAT8_PIXELS = 1024
"""Most pixels of a map for the float8 kernels, ``kFloat8Pixels`` of ``csrc/sm90/float8.h``."""

_module: Any = None
_missing: str | None = None


def _load() -> str | None:
    """Import the compiled module at first use; why that fails, or None."""
    global _module, _missing
    if _module is None and _missing is None:
        try:
            from infodisent import _cuda

            _module = _cuda
        except ImportError as error:
            reason = why_missing(
                "_cuda",
                "_build_note_cuda.txt",
                "the package was installed without it (INFODISENT_BUILD=0 or cpu, no nvcc, or no "
                "GPU driver)",
                error,
            )
            _missing = f"no CUDA module: {reason}"
    return _missing


def describe() -> str:
    """What was built, or why there is nothing; one line for `infodisent doctor`."""
    missing = _load()
    if missing is not None:
        return f"{missing}. Everything works without it"
    toolkit = _version(_module.toolkit)
    return f"built (sm_90a; CUDA {toolkit}; tiles {', '.join(tile[0] for tile in _module.tiles)})"


@functools.cache
def identity() -> str:
    """What was built, to the byte: timings of another build say nothing."""
    if _load() is not None:
        return "no CUDA module"
    content = Path(str(_module.__file__)).read_bytes()
    return f"CUDA module {hashlib.sha256(content).hexdigest()[:12]}"


def _version(number: int) -> str:
    """13020 as 13.2."""
    return f"{number // 1000}.{number % 1000 // 10}"


def driver_objection(driver: int, toolkit: int) -> str | None:
    """Why what a toolkit has compiled does not run with a driver, or None; versions as 13020.

    Within a major version older drivers serve newer toolkits, for code that is compiled for the
    very GPU, as it is here.
    """
    if driver == 0:
        return "there is no GPU driver"
    if driver // 1000 < toolkit // 1000:
        return (
            f"the GPU driver serves CUDA {_version(driver)}, the CUDA module was compiled with "
            f"{_version(toolkit)}: update the driver to CUDA {toolkit // 1000}, or install again "
            f"with nvcc {driver // 1000} in CUDA_HOME"
        )
    return None


@functools.cache
def _this_driver_objection() -> str | None:
    return driver_objection(_module.driver(), _module.toolkit)


def device_objection(device: torch.device) -> str | None:
    """Why no kernel of this module runs on the device, or None."""
    if device.type != "cuda":
        return f"the CUDA module runs on cuda only, not on {device.type}"
    missing = _load()
    if missing is not None:
        return missing
    if not torch.cuda.is_available():
        return "torch sees no GPU, which the CUDA module needs"
    too_old = _this_driver_objection()
    if too_old is not None:
        return too_old
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
    image, pixel = row_strides(x)
    if image % vector or pixel % vector or x.data_ptr() % 16:
        return f"strides {x.stride()}: rows of channels must begin at multiples of 16 bytes"
    if image <= 0 or pixel <= 0:
        return f"strides {x.stride()}: must be positive"  # a tensor map has no stride 0
    return None


def float8_objection(x: Tensor) -> str | None:
    """Why a map x [B, P, C] cannot be cast to float8, or None; beside `map_objection`."""
    _, pixels, channels = x.shape
    if channels % 16:
        return f"{channels} channels: float8 needs a multiple of 16, the copy engine reads 16 bytes"
    if pixels > FLOAT8_PIXELS:
        return f"{pixels} pixels: float8 is for at most {FLOAT8_PIXELS}"
    return None


def objection(x: Tensor, u: Tensor, fp8: bool = False) -> str | None:
    """Why `rotate_pool` cannot serve x [B, P, C] and u [C, C], or None."""
    if u.device != x.device:
        return f"x is on {x.device} but u on {u.device}"
    reason = device_objection(x.device) or map_objection(x, u)
    return reason or (float8_objection(x) if fp8 else None)


def tiles(x: Tensor) -> list[str]:
    """The kinds of tile that can serve x [B, P, C]."""
    whole_float16 = x.dtype == torch.float16 and x.shape[1] > _module.packed_pixels
    return [
        name
        for kind, (name, *_) in enumerate(_module.tiles)
        if _module.serves(kind, x.shape[1]) and (name == "flat" or not whole_float16)
    ]


def clusters(x: Tensor, tile: str) -> tuple[int, ...]:
    """How many blocks can share pixels of x [B, P, C] with a kind of tile."""
    kind = [name for name, *_ in _module.tiles].index(tile)
    pitch = x.shape[1] if x.dtype == torch.float32 else _pitch(x)  # its parts are contiguous
    return (1, 2) if _module.has_halves(kind, _module.Problem(*x.shape, pitch, 1)) else (1,)


@functools.cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def rotate_pool(
    x: Tensor,
    u: Tensor,
    *,
    tile: str | None = None,
    cluster: int | None = None,
    fp8: bool = False,
) -> Extremes:
    """Forward: ``pos = max(0, max_p Y)``, ``neg = max(0, max_p -Y)``, ``Y[b, :, p] = u x[b, p]``.

    Launched on the current stream, without waiting; can be captured in a CUDA graph after a first
    call, which loads the kernel. The same call gives the same bits.

    With `fp8`, every image of x and every row of u is divided by a power of two that takes its
    largest finite magnitude to 224 ... 448, and rounded to e4m3 (``float8_e4m3fn``, 4 significant
    bits); pos and neg are multiplied by both after the pool. Against float32:

    - Casts, scales and packed keys, emulated on the CPU (``benchmarks/fp8_accuracy.py``), with
      random rotations, for maps of eight sizes: pos and neg are off by 1.5 % to 2.3 % (median) and
      places agree for 91 % to 95 %. Pooled values are off by 3.4 % to 4.7 % (2-norm, relative) on
      normal maps after ReLU, by 10 % to 16 % on those before it, where pos and neg nearly cancel.
      On the demo's EfficientNet-Lite0 with its trained head, 656 held-out images: pooled off by
      3.6 %, places agree for 95 %, 655 predictions agree, accuracy 85.2 % instead of 85.4 %, no
      probability differs by more than 0.021. Operands in bfloat16, for scale: places 99.4 % to
      99.7 %, pooled 0.2 % to 0.3 % and 0.7 % to 1.0 %; 0.2 %, 99.7 %, 656, 85.4 %, 0.001.
      `infodisent.backends.cuda.float8` is the emulation, to measure other maps with.
    - Not in these figures: Hopper's tensor cores keep about 14 bits of sums of float8 products
      (DeepSeek-V3 Technical Report, arXiv 2412.19437, section 3.3.2). In a model of that, sums cut
      to 14 bits after every 32 channels, no share above changes by more than 0.1 points; it was not
      measured on a GPU.
    - An Inf in x or u becomes NaN, as e4m3 has no Inf: that image is NaN in every channel, or that
      channel in every image, where the other kernels give Inf or NaN by the formula. A NaN stays
      one. Scales take no notice of either.
    - Magnitudes below about 2^-18 of the largest in their image or row become 0.

    Args:
        x: [B, P, C] float32, bfloat16 or float16, channels contiguous; see `objection`.
        u: [C, C] of the same dtype.
        tile: one of `tiles`; by default the cheapest by the model of ``csrc/sm90/tile_cost.h``.
        cluster: 2: pairs of blocks share their pixels; 1: they do not. By default what that model
            says.
        fp8: multiply as float8, see above. Inference only; for C % 16 == 0 and P <= 1024.

    Returns:
        pos, neg [B, C] float32; pos_index, neg_index [B, C] int32.

    Raises:
        ValueError: the kernel cannot serve this; the message is that of `objection`.
        RuntimeError: a launch failed.
    """
    reason = objection(x, u, fp8)
    if reason is not None:
        raise ValueError(f"rotate_pool: {reason}")
    batch, pixels, channels = x.shape
    device = x.device
    outputs = empty_extremes(batch, channels, torch.float32, device)
    if batch == 0:
        return outputs
    matrix = u
    if not u.is_contiguous() or u.data_ptr() % 16:
        matrix = u.clone(memory_format=torch.contiguous_format)
    if fp8:
        _float8(x, matrix, outputs, tile, cluster)
        return outputs
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
            some.data_ptr(),
            *some.shape,
            *row_strides(some),
            high.data_ptr(),
            low.data_ptr(),
            *where,
        )
        slices = Extremes(*(t[start : start + step] for t in outputs))
        _launch(high, low, x.dtype, parts[0], parts[1], slices, tile, cluster)
    return outputs


def _where(device: torch.device) -> tuple[int, int]:
    """Index and current stream of the device."""
    index = device.index if device.index is not None else torch.cuda.current_device()
    return index, torch.cuda.current_stream(device).cuda_stream


def _to_float8(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [n, P, C] as e4m3 [n, P, C], contiguous, and what each of the n was divided by [n]."""
    size, device = x.shape, x.device
    codes = torch.empty(size, dtype=torch.float8_e4m3fn, device=device)
    largest = torch.empty(size[0], dtype=torch.int32, device=device)
    scale = torch.empty(size[0], dtype=torch.float32, device=device)
    _module.to_float8(
        x.data_ptr(),
        CODES[x.dtype],
        *size,
        *row_strides(x),
        codes.data_ptr(),
        largest.data_ptr(),
        scale.data_ptr(),
        *_where(device),
    )
    return codes, scale


def _float8(
    x: Tensor,  # [B, P, C], B > 0
    u: Tensor,  # [C, C], contiguous
    outputs: Extremes,  # each [B, C]
    tile: str | None,
    cluster: int | None,
) -> None:
    batch, pixels, channels = x.shape
    u_codes, u_scale = _to_float8(u[:, None])  # each row is an image of one pixel
    step = max(1, WORKSPACE // (pixels * channels))
    for start in range(0, batch, step):
        codes, x_scale = _to_float8(x[start : start + step])
        count = len(codes)
        kind, pairs = _choose(codes, 1, False, tile, cluster)
        keys = _keys(kind, count, channels, False, x.device)
        index, stream = _where(x.device)
        _module.rotate_pool_float8(
            codes.data_ptr(),
            x_scale.data_ptr(),
            count,
            pixels,
            channels,
            u_codes.data_ptr(),
            u_scale.data_ptr(),
            *(t[start : start + step].data_ptr() for t in outputs),
            0 if keys is None else keys.data_ptr(),
            index,
            kind,
            pairs,
            stream,
        )


def _choose(
    x: Tensor,  # [B, P, C], what is multiplied
    products: int,
    flat: bool,
    tile: str | None,
    cluster: int | None,
) -> tuple[int, int]:
    """Index of the tile and blocks that share pixels; `flat`: by default that tile and no other."""
    names = [name for name, *_ in _module.tiles]
    steps = products * -(-x.shape[2] * x.element_size() // _module.row_bytes)
    problem, processors = _module.Problem(*x.shape, _pitch(x), steps), _processors(x.device)
    if tile is None:
        kind = names.index("flat") if flat else _module.choose_tile(problem, processors)
    else:
        kind = names.index(tile)
    return kind, _module.choose_cluster(problem, kind, processors) if cluster is None else cluster


def _pitch(x: Tensor) -> int:
    """Rows from one image of x [B, P, C] to the next, or 0; pitch_of of tile_schedule.h."""
    return int(_module.pitch(x.shape[0], x.shape[1], *row_strides(x)))


def _keys(kind: int, batch: int, channels: int, exact: bool, device: torch.device) -> Tensor | None:
    """Scratch of flat tiles, [2, B, C]."""
    if _module.tiles[kind][2] > 0:  # whole images
        return None
    dtype = torch.int64 if exact else torch.int32
    return torch.empty(2, batch, channels, dtype=dtype, device=device)


def _launch(
    x: Tensor,  # [B, P, C], B > 0
    x_low: Tensor,
    dtype: torch.dtype,  # of the map; float32: x and u are its bfloat16 parts
    u: Tensor,  # [C, C]
    u_low: Tensor,
    outputs: Extremes,  # each [B, C]
    tile: str | None,
    cluster: int | None,
) -> None:
    batch, pixels, channels = x.shape
    image, pixel = row_strides(x)
    exact = dtype == torch.float32 or pixels > _module.packed_pixels
    flat = exact and dtype == torch.float16
    kind, cluster = _choose(x, 3 if dtype == torch.float32 else 1, flat, tile, cluster)
    keys = _keys(kind, batch, channels, exact, x.device)
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
