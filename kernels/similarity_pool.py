"""The best pixel for every prototype on the GPU: one product, never stored.

`infodisent.kernels.similarity_pool_kernels` computes, in up to three launches: scale and shift of
every pixel ("cosine", "l2"); the search, the main loop of `rotate_pool` with M rows and
the epilogue `infodisent.kernels.epilogues.views`; and, for "cosine" and "l2", the value of each
winner from its own numbers in float32, so that a prototype that equals a pixel has the distance 0.
Where a distance is so small that the search may have missed a nearer pixel, those of all pixels
are compared.

Nothing here waits for the device, and the same call gives the same bits. All scratch memory is
allocated with each call: so a call can be captured in a CUDA graph and replayed.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from infodisent.contract import Best, empty_best

from . import device as gpu
from . import similarity_pool_kernels as kernels
from .epilogues.views import Found, Sides
from .precision import ROTATE_POOL_PARTS, SIMILARITY_POOL, check_products, run, terms
from .product import Arithmetic, Parts, Pixels, Vectors, common_multiple
from .rotate_pool import HALF, at_a_time, default_products, map_operand, matrix_operand, zeros
from .tiles.rotate_pool import Tiles, count
from .tiles.similarity_pool import choose

PRODUCTS = SIMILARITY_POOL
"""How ``x v`` is computed, see `infodisent.kernels.precision`."""
NORMS_BLOCK = {"BLOCK_P": 16, "BLOCK_C": 128, "num_warps": 4}  # not measured on a GPU yet
REFINE_BLOCK = {"BLOCK_M": 16, "BLOCK_C": 64, "num_warps": 4}  # likewise


def left_out(x: torch.dtype, products: str) -> float:
    """What the parts of a product leave out of it, relative."""
    if products == "split":
        return 2.0**-20 if x == torch.float16 else 2.0**-15
    return 2.0**-20 if products == "tf32x3" else 0.0


def best_tiles(
    x: Tensor,  # [B, P, C]
    prototypes: int,
    products: str,
    views: int,
) -> Tiles:
    """The tiles for such a map and so many prototypes."""
    batch, pixels, channels = x.shape
    machine = gpu.capability(x.device), gpu.processors(x.device)
    return choose(batch, pixels, prototypes, channels, products, *machine, views)


def _check(
    x: Tensor, prototypes: Tensor, similarities: tuple[str, ...], products: str | None
) -> str:
    """The products to use; raises ValueError where the kernel cannot serve."""
    batch, pixels, channels = x.shape
    products = products or default_products(x.dtype, prototypes.dtype)
    check_products("similarity_pool", products, PRODUCTS)
    if products in ("half", "split") and x.dtype not in HALF:
        raise ValueError(f"similarity_pool: products {products!r} is for half maps, x is {x.dtype}")
    if pixels == 0 or channels == 0:
        raise ValueError(f"similarity_pool: x is {tuple(x.shape)}: no pixels or no channels")
    if prototypes.ndim != 2 or prototypes.shape[1] != channels:
        raise ValueError(
            f"similarity_pool: x is {tuple(x.shape)} [B, P, C] but prototypes is "
            f"{tuple(prototypes.shape)}"
        )
    if batch * pixels >= 2**31 - 256:
        raise ValueError(f"similarity_pool: x is {tuple(x.shape)}: 2^31 pixels or more")
    if len(similarities) not in (1, 2) or not {*similarities} <= {"dot", "cosine", "l2"}:
        raise ValueError(f"similarity_pool: similarities is {similarities}")
    return products


def _sides(x: Pixels, counts: Tensor | None, size: torch.Size, views: tuple[str, ...]) -> Sides:
    """What the views need of the pixels, of a map of this size."""
    batch, pixels, channels = size

    def empty(view: str) -> Tensor | None:
        if view not in views:
            return None
        return torch.empty(batch * pixels, dtype=torch.float32, device=x.data.device)

    sides = Sides(empty("cosine"), empty("l2"), counts)
    if sides.scale is not None or sides.shift is not None:
        grid = (triton.cdiv(batch * pixels, NORMS_BLOCK["BLOCK_P"]),)
        kernels.norms_kernel[grid](
            x, sides.scale, sides.shift, batch * pixels, pixels, channels, **NORMS_BLOCK
        )  # fmt: skip
    return sides


def scratch(outputs: tuple[Best, ...], tiles: Tiles, device: torch.device) -> list[Found]:
    """The results and their scratch."""
    batch, number = outputs[0].value.shape
    if tiles.images:
        return [Found(*best, None, None) for best in outputs]
    keys, merged = 2 * batch * number, triton.cdiv(number, tiles.channels) * batch
    clear = zeros(device, *(keys, merged) * len(outputs))
    return [
        Found(*best, clear[2 * n].view(torch.int64), clear[2 * n + 1])
        for n, best in enumerate(outputs)
    ]


def _parts(tiles: Tiles, number: int, device: torch.device) -> Parts:
    """Scratch of so many tiles whose channels several programs share."""
    if tiles.split == 1:
        return Parts(None, None)
    size = number * tiles.split * tiles.channels * tiles.columns
    (arrived,) = zeros(device, number)
    return Parts(torch.empty(size, dtype=torch.float32, device=device), arrived)


def arithmetic(x: Pixels, u: Vectors, channels: int, products: str, tiles: Tiles) -> Arithmetic:
    """How the main loop multiplies these operands of so many channels."""
    return Arithmetic(
        terms(products),
        run(products, tiles.block_k),
        "tf32" if products == "tf32x3" else "ieee",  # of half numbers neither
        ragged=channels % tiles.block_k != 0,
        multiple=common_multiple(channels, *x[1:], u.part, u.row),
        emulated=gpu.emulated(),
    )


def _launch(
    x: Tensor,  # [B, P, C], B > 0
    u: Vectors,
    prototypes: Tensor,  # [M, C], M > 0
    counts: Tensor | None,  # [B P] uint8
    views: tuple[str, ...],
    outputs: tuple[Best, ...],
    products: str,
    tiles: Tiles,
) -> None:
    batch, pixels, channels = x.shape
    number = len(prototypes)
    operand = map_operand(x, products)
    # the parts of a float32 number are one bit short of it, which a distance of 0 needs
    whole = operand
    if ROTATE_POOL_PARTS[products][0] > 1 and set(views) != {"dot"}:
        whole = map_operand(x, "ieee")
    sides = _sides(whole, counts, x.shape, views)
    found = scratch(outputs, tiles, x.device)
    items = count(tiles, batch, pixels, number)
    kernels.similarity_pool_kernel[(items * tiles.split,)](
        x=operand, u=u, sides=sides, first=found[0], second=found[1] if len(views) == 2 else None,
        parts=_parts(tiles, items, x.device),
        B=batch, M=number, C=channels, SIZE=pixels, P=pixels if tiles.images else 0, TILES=tiles,
        ARITHMETIC=arithmetic(operand, u, channels, products, tiles),
        FIRST=views[0], SECOND=views[-1],
        num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip
    grid = (batch * triton.cdiv(number, REFINE_BLOCK["BLOCK_M"]),)
    for view, best in zip(views, outputs, strict=True):
        if view != "dot":
            kernels.refine_kernel[grid](
                whole, prototypes, best.value, best.index, counts, number, pixels, channels,
                *prototypes.stride(), VIEW=view, OPERAND=left_out(x.dtype, products),
                **REFINE_BLOCK,
            )  # fmt: skip


def similarity_pool(
    x: Tensor,  # [B, P, C]
    prototypes: Tensor,  # [M, C]
    valid: Tensor | None,  # [B, P] bool
    similarities: tuple[str, ...],
    products: str | None = None,
    *,
    chosen: Tiles | None = None,
) -> tuple[Best, ...]:
    """Forward: the best pixel of every image for every prototype, by one similarity or two.

    Args:
        x: [B, P, C] float32, float16 or bfloat16, any strides.
        prototypes: [M, C], any of these dtypes, any strides.
        valid: [B, P], at least one pixel of every image: the others do not count; None: all do.
        similarities: of "dot" (largest ``x_p v_m``), "cosine" (the same of unit vectors, 0 where
            one is 0) and "l2" (smallest ``|x_p - v_m|^2``).
        products: one of `PRODUCTS`; by default as in `rotate_pool`. Of "cosine" and "l2" it decides
            the search alone.
        chosen: tiles to use; by default those of `best_tiles`.

    Returns:
        For each similarity the value [B, M] float32 and the lowest pixel [B, M] int32 that has it.
        A NaN is the best there is.

    Raises:
        ValueError: the kernel cannot serve this.
    """
    products = _check(x, prototypes, similarities, products)
    batch, number = len(x), len(prototypes)
    outputs = tuple(empty_best(batch, number, torch.float32, x.device) for _ in similarities)
    if batch == 0 or number == 0:
        return outputs
    with torch.cuda.device_of(x):
        u = matrix_operand(prototypes, x.dtype, products)
        some = at_a_time(x, products)
        for start in range(0, batch, some):
            images = x[start : start + some]
            counts = None
            if valid is not None:
                counts = valid[start : start + some].contiguous().view(torch.uint8).flatten()
            to = tuple(Best(*(t[start : start + some] for t in best)) for best in outputs)
            tiles = chosen or best_tiles(images, number, products, len(similarities))
            _launch(images, u, prototypes, counts, similarities, to, products, tiles)
    return outputs


__all__ = ["PRODUCTS", "Tiles", "best_tiles", "similarity_pool"]
