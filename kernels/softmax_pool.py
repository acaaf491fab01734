"""Softmax at every pixel and the largest over pixels on the GPU: the softmax is never stored.

`infodisent.kernels.softmax_pool_kernels` computes. Two passes over the map: of every pixel the
largest score and the sum of exponentials, of which rows of tiles have a part each that a small
launch merges; then the best pixel by ``(w - top_p) / T - log_p``. With prototypes both passes are
the product of `similarity_pool` with the same tiles, so that they see the same bits; without, the
map is read twice.

Of the gradient of the scores the kernels write the dense part, ``-s_pm G_p / T`` of the pixels that
win anything, and then the B M entries of the winners. Where the map holds the scores that is dX, in
the map's own layout. With prototypes it is a matrix for some images at a time, and dX and dV are
products of the library with it.

Nothing here waits for the device, and the same call gives the same bits. All scratch memory is
allocated with each call: so a call can be captured in a CUDA graph and replayed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
from torch import Tensor

from infodisent.contract import Best, empty_best

from . import device as gpu
from . import softmax_pool_kernels as kernels
from .epilogues.normalizer import Normalizers
from .epilogues.views import Found, Sides
from .precision import SIMILARITY_POOL, check_products
from .product import Vectors
from .rotate_pool import HALF, at_a_time, default_products, map_operand, matrix_operand
from .similarity_pool import arithmetic, scratch
from .tiles.rotate_pool import Tiles, count
from .tiles.softmax_pool import choose

PRODUCTS = SIMILARITY_POOL
"""How ``x v`` is computed, see `infodisent.kernels.precision`."""
CHUNK_BYTES = 32 << 20
"""Of the gradient of scores that exists at a time with prototypes, or one image's."""
# none of them measured on a GPU yet
MERGE_BLOCK = {"BLOCK": 128, "num_warps": 4}
SHARES_BLOCK = {"BLOCK_P": 32, "BLOCK_M": 128, "num_warps": 4}
WINNERS_BLOCK = {"BLOCK": 256, "num_warps": 4}
MAP_BLOCKS = {
    "rows": {"BLOCK_P": 16, "BLOCK_C": 256, "num_warps": 4},
    "columns": {"BLOCK_P": 64, "BLOCK_C": 64, "num_warps": 4},
}
"""Of maps whose channels are neighbours in memory, and of those whose pixels are (NCHW)."""
BEST_BLOCKS = {
    "rows": {"BLOCK_P": 32, "BLOCK_C": 64, "num_warps": 4},
    "columns": {"BLOCK_P": 64, "BLOCK_C": 32, "num_warps": 4},
}


def best_tiles(
    x: Tensor,  # [B, P, C]
    prototypes: int,
    products: str,
) -> Tiles:
    """The tiles for such a map and so many prototypes."""
    batch, pixels, channels = x.shape
    machine = gpu.capability(x.device), gpu.processors(x.device)
    return choose(batch, pixels, prototypes, channels, products, *machine)


def _layout(x: Tensor) -> str:
    """Which of `MAP_BLOCKS` fits a map [B, P, C]."""
    return "columns" if x.stride(1) == 1 and x.stride(2) != 1 else "rows"


def _check(x: Tensor, prototypes: Tensor | None, bias: Tensor | None, products: str | None) -> str:
    """The products to use; raises ValueError where the kernel cannot serve."""
    batch, pixels, channels = x.shape
    if pixels == 0 or channels == 0:
        raise ValueError(f"softmax_pool: x is {tuple(x.shape)}: no pixels or no channels")
    if batch * pixels >= 2**31 - 256:
        raise ValueError(f"softmax_pool: x is {tuple(x.shape)}: 2^31 pixels or more")
    if prototypes is None:
        if products is not None or bias is not None:
            raise ValueError("softmax_pool: products and bias are for scores by prototypes")
        return ""
    products = products or default_products(x.dtype, prototypes.dtype)
    check_products("softmax_pool", products, PRODUCTS)
    if products in ("half", "split") and x.dtype not in HALF:
        raise ValueError(f"softmax_pool: products {products!r} is for half maps, x is {x.dtype}")
    if prototypes.ndim != 2 or prototypes.shape[1] != channels:
        raise ValueError(
            f"softmax_pool: x is {tuple(x.shape)} [B, P, C] but prototypes is "
            f"{tuple(prototypes.shape)}"
        )
    return products


def _scaled_bias(bias: Tensor | None, temperature: float) -> Tensor | None:
    """In units of the scores before they are divided by the temperature."""
    return None if bias is None else (bias.float() * temperature).contiguous()


def _product(
    x: Tensor,  # [B, P, C]
    u: Vectors,
    number: int,
    products: str,
    tiles: Tiles,
) -> tuple[tuple[int], dict[str, Any]]:
    """Grid, and the arguments that all kernels with the main loop have."""
    batch, pixels, channels = x.shape
    operand = map_operand(x, products)
    return (count(tiles, batch, pixels, number),), {
        "x": operand, "u": u, "B": batch, "M": number, "C": channels, "SIZE": pixels,
        "P": pixels if tiles.images else 0, "TILES": tiles,
        "ARITHMETIC": arithmetic(operand, u, channels, products, tiles),
        "num_warps": tiles.num_warps, "num_stages": tiles.num_stages,
    }  # fmt: skip


def _by_prototypes(
    x: Tensor,  # [B, P, C], B > 0
    u: Vectors,
    bias: Tensor | None,  # [M] float32
    sides: Sides,
    best: Best,
    normalizer: Tensor,  # [2, B, P]
    products: str,
    tiles: Tiles,
) -> None:
    batch, number = best.value.shape
    columns, down = batch * x.shape[1], triton.cdiv(number, tiles.channels)
    grid, product = _product(x, u, number, products, tiles)
    parts = Normalizers(*torch.empty(2, down, columns, dtype=torch.float32, device=x.device))
    kernels.normalizer_kernel[grid](bias=bias, out=parts, inverse=sides.inverse, **product)
    kernels.merge_kernel[(triton.cdiv(columns, MERGE_BLOCK["BLOCK"]),)](
        parts, *normalizer, sides.log, sides.inverse, down, columns, **MERGE_BLOCK
    )  # fmt: skip
    (found,) = scratch((best,), tiles, x.device)
    kernels.softmax_pool_kernel[grid](sides=sides, found=found, **product)


def _by_map(
    x: Tensor,  # [B, P, C], B > 0
    sides: Sides,
    best: Best,
    normalizer: Tensor,  # [2, B, P]
) -> None:
    batch, pixels, channels = x.shape
    block = MAP_BLOCKS[_layout(x)]
    kernels.map_normalizer_kernel[(batch * triton.cdiv(pixels, block["BLOCK_P"]),)](
        x, *normalizer, sides.log, sides.inverse, pixels, channels, *x.stride(), **block
    )  # fmt: skip
    block = BEST_BLOCKS[_layout(x)]
    kernels.map_best_kernel[(batch * triton.cdiv(channels, block["BLOCK_C"]),)](
        x, sides, Found(*best, None, None), pixels, channels, *x.stride(), **block
    )  # fmt: skip


def softmax_pool(
    x: Tensor,  # [B, P, C]
    prototypes: Tensor | None,  # [M, C]
    temperature: float,
    bias: Tensor | None,  # [M]
    valid: Tensor | None,  # [B, P] bool
    products: str | None = None,
    *,
    chosen: Tiles | None = None,
) -> tuple[Best, Tensor]:
    """Forward: softmax over prototypes at each pixel, and for each prototype the largest.

    Args:
        x: [B, P, C] float32, float16 or bfloat16, any strides.
        prototypes: [M, C], any of these dtypes, any strides; None: x holds the scores, M = C.
        temperature: what ``x_p v_m`` is divided by.
        bias: [M], added after that; only with prototypes.
        valid: [B, P], at least one pixel of every image: the others do not count; None: all do.
        products: one of `PRODUCTS`, only with prototypes; by default as in `rotate_pool`.
        chosen: tiles to use; by default those of `best_tiles`.

    Returns:
        The probability [B, M] float32 and the lowest pixel [B, M] int32 that has it; and [2, B, P]
        float32: the largest score of every pixel, before it is divided by the temperature, and the
        sum of exponentials, NaN where there is no softmax.

    Raises:
        ValueError: the kernel cannot serve this.
    """
    products = _check(x, prototypes, bias, products)
    batch, pixels, channels = x.shape
    number = channels if prototypes is None else len(prototypes)
    best = empty_best(batch, number, torch.float32, x.device)
    normalizer = torch.empty(2, batch, pixels, dtype=torch.float32, device=x.device)
    if batch == 0 or number == 0:
        return best, normalizer
    log = torch.empty(batch, pixels, dtype=torch.float32, device=x.device)
    counts = None if valid is None else valid.contiguous().view(torch.uint8)
    bias = _scaled_bias(bias, temperature)
    with torch.cuda.device_of(x):
        u = None if prototypes is None else matrix_operand(prototypes, x.dtype, products)
        some = batch if u is None else at_a_time(x, products)
        for start in range(0, batch, some):
            part = slice(start, start + some)
            sides = Sides(
                None, None, None if counts is None else counts[part], normalizer[0, part],
                log[part], bias, 1 / temperature,
            )  # fmt: skip
            to = Best(best.value[part], best.index[part])
            if u is None:
                _by_map(x, sides, to, normalizer)
            else:
                tiles = chosen or best_tiles(x[part], number, products)
                _by_prototypes(x[part], u, bias, sides, to, normalizer[:, part], products, tiles)
    return best, normalizer


def _shares(
    grad: Tensor,  # [B, M] float32, contiguous
    best: Best,
    total: Tensor,  # [B, P] float32
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Two of every pixel, [B, P]: ``G = sum of grad value`` over what it wins; ``G / (sum T)``."""
    (batch, number), pixels = best.value.shape, total.shape[1]
    common, share = torch.empty(2, batch, pixels, dtype=torch.float32, device=grad.device)
    kernels.shares_kernel[(batch * triton.cdiv(pixels, SHARES_BLOCK["BLOCK_P"]),)](
        grad, *best, total, common, share, 1 / temperature, number, pixels, **SHARES_BLOCK
    )  # fmt: skip
    return common, share


def _write_winners(
    grad: Tensor,  # [B, M] float32, contiguous
    best: Best,
    common: Tensor,  # [B, P]
    temperature: float,
    out: Tensor,  # [B, P, M], any strides
) -> None:
    batch, pixels, number = out.shape
    kernels.winners_kernel[(triton.cdiv(batch * number, WINNERS_BLOCK["BLOCK"]),)](
        grad, *best, common, out, 1 / temperature, batch * number, number, pixels,
        *out.stride(), **WINNERS_BLOCK,
    )  # fmt: skip


def map_gradient(
    grad: Tensor,  # [B, C]
    best: Best,
    normalizer: Tensor,  # [2, B, P]
    x: Tensor,  # [B, P, C]
    temperature: float,
    dx: Tensor,  # [B, P, C], any strides, to be written
) -> None:
    """Write dX, of a map that holds the scores."""
    batch, pixels, channels = x.shape
    if batch == 0:
        return
    grad, best = grad.float().contiguous(), Best(*(t.contiguous() for t in best))
    block = MAP_BLOCKS[_layout(x)]
    with torch.cuda.device_of(x):
        common, share = _shares(grad, best, normalizer[1], temperature)
        kernels.map_gradient_kernel[(batch * triton.cdiv(pixels, block["BLOCK_P"]),)](
            x, dx, normalizer[0], share, 1 / temperature, pixels, channels, *x.stride(),
            *dx.stride(), **block,
        )  # fmt: skip
        _write_winners(grad, best, common, temperature, dx)


def scores_gradient(
    grad: Tensor,  # [B, M]
    best: Best,
    normalizer: Tensor,  # [2, B, P]
    x: Tensor,  # [B, P, C]
    prototypes: Tensor,  # [M, C]
    temperature: float,
    bias: Tensor | None,  # [M]
    products: str | None = None,
    *,
    chosen: Tiles | None = None,
) -> Iterator[tuple[slice, Tensor]]:
    """Some images at a time, and the gradient of ``x_p v_m`` [n, P, M] float32 of these.

    Arguments are those of `softmax_pool`, and what it returned.
    """
    products = _check(x, prototypes, bias, products)
    (batch, pixels, _), number = x.shape, len(prototypes)
    if batch == 0 or number == 0:
        return
    grad, best = grad.float().contiguous(), Best(*(t.contiguous() for t in best))
    bias = _scaled_bias(bias, temperature)
    with torch.cuda.device_of(x):
        u = matrix_operand(prototypes, x.dtype, products)
        common, share = _shares(grad, best, normalizer[1], temperature)
    some = max(1, min(CHUNK_BYTES // (4 * pixels * number), at_a_time(x, products)))
    for start in range(0, batch, some):
        part = slice(start, min(start + some, batch))
        images = x[part]
        tiles = chosen or best_tiles(images, number, products)
        dw = torch.empty(len(images), pixels, number, dtype=torch.float32, device=x.device)
        with torch.cuda.device_of(x):
            grid, product = _product(images, u, number, products, tiles)
            kernels.scores_gradient_kernel[grid](
                bias=bias, top=normalizer[0, part], share=share[part], out=dw,
                inverse=1 / temperature, **product,
            )  # fmt: skip
            own = Best(best.value[part], best.index[part])
            _write_winners(grad[part], own, common[part], temperature, dw)
        yield part, dw


__all__ = [
    "PRODUCTS",
    "Tiles",
    "best_tiles",
    "default_products",
    "map_gradient",
    "scores_gradient",
    "softmax_pool",
]
