"""The rotated sparse pool on the GPU: one pass over the map, which is never stored rotated.

`infodisent.kernels.rotate_pool_kernels` computes; here a map of any layout becomes its operands.
Maps whose pixels are rows of contiguous channels (channels last, tokens) are read where they are,
prefix tokens skipped by stride; others, and float32 maps that are multiplied in parts, are laid out
first.

What is returned for half maps of up to `PACKED` pixels is the value with the last
``bits = (P - 1).bit_length()`` of its 23 mantissa bits cleared, as value and pixel are found by one
integer maximum: at most 2^-(23 - bits) below the value, and exact where the value is that of a half
number, as at ``u = I``. Values that agree in what is kept are ties; those below 2^(bits - 149) are
0. Larger maps and float32 ones give whole float32 values.

Nothing here waits for the device, and the same call gives the same bits. All scratch memory is
allocated with each call: so a call can be captured in a CUDA graph and replayed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from infodisent.contract import Extremes, empty_extremes
from infodisent.layout import row_strides

from . import device as gpu
from . import rotate_pool_kernels as kernels
from . import tuned
from .epilogues.extremes import Borders, Keys
from .precision import ROTATE_POOL, ROTATE_POOL_PARTS, check_products, run, terms
from .product import Arithmetic, Parts, Pixels, Vectors, common_multiple
from .rows import rows, split
from .tiles.rotate_pool import Tiles, candidates, choose, count, programs

PRODUCTS = ROTATE_POOL
"""How ``u x`` is computed, see `infodisent.kernels.precision`."""
PACKED = 1024
"""Pixels up to which half maps have value and pixel in one 32-bit integer."""
WORKSPACE = 1 << 30
"""Bytes that a map may take when it is laid out anew; larger ones are done in several launches."""
HALF = (torch.float16, torch.bfloat16)


def zeros(device: torch.device, *sizes: int) -> list[Tensor]:
    """So many int32 zeros in one allocation, each part at 16 bytes; none if there are no sizes.

    Made anew by each call, so that a call in a CUDA graph is whole (a tensor that outlives a call
    is what ``torch.compile(mode="reduce-overhead")`` refuses), and two streams share nothing.
    """
    if len(sizes) < 2:
        return [torch.zeros(size, dtype=torch.int32, device=device) for size in sizes]
    padded = [-(-size // 4) * 4 for size in sizes]
    whole = torch.zeros(sum(padded), dtype=torch.int32, device=device)
    return [part[:size] for part, size in zip(whole.split(padded), sizes, strict=True)]


def default_products(x: torch.dtype, u: torch.dtype) -> str:
    """Of `PRODUCTS`, that which loses nothing of what the dtypes of x and u hold, or little."""
    if x not in HALF:
        return "tf32x3"
    return "half" if x == u else "split"


def _in_place(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether x is rows of contiguous channels that the kernel can read as they are."""
    _, pixels, channels = x.shape
    if x.dtype != dtype or (x.stride(2) != 1 and channels > 1):
        return False
    image, pixel = row_strides(x)
    # 32-bit offsets within a tile, which reaches into 256 / P more images
    if (256 // pixels + 2) * image + pixels * pixel + channels >= 2**31:
        return False
    vector = 16 // x.element_size()
    # in rows that could be read 16 bytes at a time, see that they are
    return channels % vector != 0 or not (image % vector or pixel % vector or x.data_ptr() % 16)


def _operand_dtype(x: torch.dtype, products: str) -> torch.dtype:
    """What x, or each part of it, and u are multiplied in."""
    if products in ("half", "split"):
        return x
    return torch.bfloat16 if products == "bf16x3" else torch.float32


def matrix_operand(
    u: Tensor,  # [M, C]
    x_dtype: torch.dtype,
    products: str,
) -> Vectors:
    """U in parts, laid out as the kernel reads it."""
    dtype = _operand_dtype(x_dtype, products)
    if ROTATE_POOL_PARTS[products][1] == 2:
        parts, scale = split(u, dtype)
        return Vectors(parts, parts.stride(0), parts.stride(1), scale)
    matrix = u[None]
    if not _in_place(matrix, dtype):
        matrix = rows(matrix, dtype, 1)[0]
    return Vectors(matrix, 0, matrix.stride(1) if u.shape[0] > 1 else 1, None)


def map_operand(
    x: Tensor,  # [B, P, C]
    products: str,
) -> Pixels:
    """The map in parts, laid out as the kernel reads it."""
    dtype, number = _operand_dtype(x.dtype, products), ROTATE_POOL_PARTS[products][0]
    if number == 1 and _in_place(x, dtype):
        return Pixels(x, 0, *row_strides(x))
    parts = rows(x, dtype, number)
    return Pixels(parts, parts.stride(0), *row_strides(parts[0]))


@dataclass
class Launch:
    """Arguments of the kernel for one map."""

    items: int  # tiles times parts
    programs: int  # one each, or one for all that a multiprocessor does
    arguments: dict[str, Any] = field(repr=False)
    options: dict[str, int]
    state: Tensor | None  # [state] int32 zeros, for the caller


def launch(
    x: Tensor,  # [B, P, C], B > 0
    u: Vectors,
    outputs: Extremes,
    products: str,
    tiles: Tiles,
    exact: bool,
    state: int = 0,
) -> Launch:
    """What `rotate_pool_kernel` is to be called with, and `state` zeros that the caller wants."""
    batch, pixels, channels = x.shape
    operand = map_operand(x, products)
    number = count(tiles, batch, pixels, channels)
    down = triton.cdiv(channels, tiles.channels)
    wide = 2 if exact else 1  # int64 keys for whole values
    wanted = {
        "state": state,
        "arrived": number if tiles.split > 1 else 0,
        "merged": 0 if tiles.images else down * batch,
        "keys": 0 if tiles.images else 2 * batch * channels * wide,
    }
    wanted = {name: size for name, size in wanted.items() if size}
    clear = dict(zip(wanted, zeros(x.device, *wanted.values()), strict=True))
    parts, borders = Parts(None, None), Borders(None, None)
    if tiles.split > 1:
        size = number * tiles.split * tiles.channels * tiles.columns
        sums = torch.empty(size, dtype=torch.float32, device=x.device)
        parts = Parts(sums, clear["arrived"])
    if not tiles.images:
        keys = clear["keys"].view(torch.int64) if exact else clear["keys"]
        borders = Borders(keys, clear["merged"])
    arguments = {
        "x": operand, "u": u, "outputs": outputs, "parts": parts, "borders": borders,
        "B": batch, "C": channels, "SIZE": pixels, "P": pixels if tiles.images else 0,
        "TILES": tiles,
        "ARITHMETIC": Arithmetic(
            terms(products),
            run(products, tiles.block_k),
            "tf32" if products in ("tf32x3", "tf32") else "ieee",  # of half numbers neither
            ragged=channels % tiles.block_k != 0,
            multiple=common_multiple(channels, *operand[1:], u.part, u.row),
            emulated=gpu.emulated(),
        ),
        "KEYS": Keys((1 << (pixels - 1).bit_length()) - 1, exact),
    }  # fmt: skip
    options = {"num_warps": tiles.num_warps, "num_stages": tiles.num_stages}
    items = number * tiles.split
    needed = items
    if tiles.persistent:
        machine = gpu.capability(x.device), gpu.processors(x.device)
        needed = programs(tiles, items, products, *machine)
    return Launch(items, needed, arguments, options, clear.get("state"))


def check(x: Tensor, u: Tensor, products: str | None) -> str:
    """The products to use; raises ValueError where the kernel cannot serve."""
    batch, pixels, channels = x.shape
    products = products or default_products(x.dtype, u.dtype)
    check_products("rotate_pool", products, PRODUCTS)
    if products in ("half", "split") and x.dtype not in HALF:
        raise ValueError(f"rotate_pool: products {products!r} is for half maps, x is {x.dtype}")
    if pixels == 0 or channels == 0:
        raise ValueError(f"rotate_pool: x is {tuple(x.shape)}: no pixels or no channels")
    if u.shape != (channels, channels):
        raise ValueError(f"rotate_pool: x is {tuple(x.shape)} [B, P, C] but u is {tuple(u.shape)}")
    if batch * pixels >= 2**31 - 256:
        raise ValueError(f"rotate_pool: x is {tuple(x.shape)}: 2^31 pixels or more")
    return products


def best_tiles(
    x: Tensor,  # [B, P, C]
    products: str,
) -> Tiles:
    """What a search has found for such a map, else those of the fixed table."""
    batch, pixels, channels = x.shape
    return tuned.lookup(x.device, products, batch, pixels, channels) or choose(
        batch, pixels, channels, products, gpu.capability(x.device), gpu.processors(x.device)
    )


def is_exact(x: Tensor, products: str) -> bool:
    """Whether values are whole float32 ones."""
    return products not in ("half", "split") or x.shape[1] > PACKED


def at_a_time(x: Tensor, products: str) -> int:
    """Images that may be laid out at a time."""
    batch, pixels, channels = x.shape
    dtype, number = _operand_dtype(x.dtype, products), ROTATE_POOL_PARTS[products][0]
    if number == 1 and _in_place(x, dtype):
        return batch
    return max(1, WORKSPACE // (number * dtype.itemsize * pixels * channels))


def _groups(x: Tensor, products: str, outputs: Extremes) -> Iterator[tuple[Tensor, Extremes]]:
    """Groups of images and their outputs; one group wherever memory allows."""
    step = at_a_time(x, products)
    if step >= len(x):
        yield x, outputs
        return
    for start in range(0, len(x), step):
        yield x[start : start + step], Extremes(*(t[start : start + step] for t in outputs))


def rotate_pool(
    x: Tensor,  # [B, P, C]
    u: Tensor,  # [C, C]
    products: str | None = None,
    *,
    chosen: Tiles | None = None,
    exact: bool | None = None,
) -> Extremes:
    """Forward: ``pos = max(0, max_p Y)``, ``neg = max(0, max_p -Y)``, ``Y[b, :, p] = u x[b, p]``.

    Args:
        x: [B, P, C] float32, float16 or bfloat16, any strides.
        u: [C, C], any of these dtypes, any strides.
        products: one of `PRODUCTS`; by default "half" for the same half dtype, "split" for a half
            map and any other u, "tf32x3" for float32 maps. The others are experimental, see
            `infodisent.kernels.precision`.
        chosen: tiles to use, e.g. one of `candidates`; by default those of `best_tiles`.
        exact: whole float32 values; by default where they cost little, see above.

    Returns:
        pos, neg [B, C] float32; pos_index, neg_index [B, C] int32: the lowest pixel that has the
        value, -1 where it is 0. A NaN pixel makes both values NaN and is both places.

    Raises:
        ValueError: the kernel cannot serve this.
    """
    products = check(x, u, products)
    outputs = empty_extremes(x.shape[0], x.shape[2], torch.float32, x.device)
    if x.shape[0] == 0:
        return outputs
    exact = is_exact(x, products) if exact is None else exact or is_exact(x, products)
    with torch.cuda.device_of(x):
        vectors = matrix_operand(u, x.dtype, products)
        for images, to in _groups(x, products, outputs):
            tiles = chosen or best_tiles(images, products)
            one = launch(images, vectors, to, products, tiles, exact)
            kernels.rotate_pool_kernel[(one.programs,)](**one.arguments, **one.options)
    return outputs


JUDGED = 8
"""Images that a search compares with float64, the first and the last among them."""


def _judge(
    x: Tensor,  # [B, P, C]
    u: Tensor,  # [C, C]
    products: str,
) -> Callable[[tuple[Tensor, ...]], str | None]:
    """What is wrong with a pool of x, in float64: a value, or the place of one."""
    some = torch.linspace(0, len(x) - 1, min(JUDGED, len(x)), device=x.device).long().unique()
    y = x[some].double() @ u.double().mT  # [images, P, C]
    # of the largest value: what is packed away, and the products of the coarsest operands
    coarse = products in ("half", "split", "bf16x3", "tf32")
    allowed = (2.0**-10 if coarse else 2.0**-17) * float(y.abs().amax())

    def wrong(results: tuple[Tensor, ...]) -> str | None:
        pos, neg, pos_index, neg_index = (t[some] for t in results)
        for name, value, index, side in (("pos", pos, pos_index, y), ("neg", neg, neg_index, -y)):
            best = side.amax(1).clamp_min(0)
            if not bool(((value - best).abs() <= allowed).all()):
                return f"values of {name} are wrong"
            inside = (index >= -1) & (index < side.shape[1]) & ((index >= 0) == (value > 0))
            there = side.gather(1, index.long().clamp(0, side.shape[1] - 1)[:, None])[:, 0]
            there = torch.where(index >= 0, there, 0)
            if not bool((inside & (best - there <= 2 * allowed)).all()):
                return f"places of {name} are wrong"
        return None

    return wrong


def search(
    x: Tensor,  # [B, P, C]
    u: Tensor,  # [C, C]
    products: str | None = None,
    *,
    measure: Callable[[Callable[[], Any]], float] | None = None,
    path: str | os.PathLike[str] | None = None,
) -> tuple[Tiles, dict[Tiles, float]]:
    """Time all `candidates` for such a map and keep the fastest in a file, see `tuned`.

    Those whose values or places are not float64's, within rounding, are left out.

    Args:
        x: [B, P, C], as in `rotate_pool`.
        u: [C, C].
        products: as in `rotate_pool`.
        measure: milliseconds of a call; by default ``triton.testing.do_bench``.
        path: the file; by default the one ``INFODISENT_TILES`` names, or one in the user's cache.

    Returns:
        The fastest tiles, and the milliseconds of all that work.

    Raises:
        RuntimeError: none works.
        ValueError: the kernel cannot serve this.
    """
    products = check(x, u, products)
    batch, pixels, channels = x.shape
    machine = gpu.capability(x.device), gpu.processors(x.device)
    fixed = choose(batch, pixels, channels, products, *machine)
    others = candidates(batch, pixels, channels, products, *machine)
    best, times = tuned.fastest(
        list(dict.fromkeys([fixed, *others])),
        lambda tiles: rotate_pool(x, u, products, chosen=tiles),
        _judge(x, u, products),
        measure or triton.testing.do_bench,
    )
    name = tuned.key(x.device, products, batch, pixels, channels)
    tuned.remember(name, best, None if path is None else Path(path))
    return best, times


__all__ = ["PRODUCTS", "Tiles", "candidates", "choose", "rotate_pool", "search"]
