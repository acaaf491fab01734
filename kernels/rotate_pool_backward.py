"""Gradients of `rotate_pool` on the GPU: dense products with a dY that is made in registers.

See `infodisent.kernels.rotate_pool_backward_kernels` for how. No launch waits for the device or
depends on a value there, so a call can be captured in a CUDA graph; no sum has an order that
depends on time, so the result is the same to the bit from run to run.

Memory beside the results: [splits, C, C] float32 for dU where the batch is summed in parts, and
for float16 one number a channel (dU) or an image (dX). A map whose pixels do not have their
channels side by side is laid out anew for dU.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from . import device as gpu
from . import rotate_pool_backward_kernels as kernels
from .precision import GRADIENT_OF_FLOAT, GRADIENT_OF_HALF, check_products
from .product import common_multiple
from .rows import rows
from .tiles import rotate_pool_backward as tiles
from .tiles.blocks import Block, pick

PRODUCTS = (*GRADIENT_OF_HALF, *GRADIENT_OF_FLOAT)
"""How dY is multiplied with an operand, see `infodisent.kernels.precision`."""


def default_products(operand: torch.dtype, result: torch.dtype) -> str:
    """How dY and an operand are multiplied where nothing is asked for."""
    return _products(None, operand, result)


def _products(asked: str | None, operand: torch.dtype, result: torch.dtype) -> str:
    """How dY and an operand are multiplied: as asked where that serves its dtype, or the default.

    A half result is rounded as coarsely as "half" rounds dY, which is what autograd does at that
    precision too, and "split" would double the arithmetic of a kernel that is bound by it (in the
    model; not measured). A float32 result beside a half operand means that the other input is
    float32 and so is the precision of the whole: then dY is kept whole, up to 2^-23.
    """
    if asked is not None:
        check_products("rotate_pool_backward", asked, PRODUCTS)
    if operand == torch.float32:
        return asked if asked in GRADIENT_OF_FLOAT else "tf32x3"
    if asked in GRADIENT_OF_HALF:
        return asked
    if result != torch.float32:
        return "half"
    return "split" if operand == torch.float16 else "split3"


def _scales(
    winners: tuple[Tensor, ...],  # 4 times [B, C]
    axis: int,
) -> Tensor:
    """Powers of two that keep float16 from overflow and underflow, [C] (axis 1) or [B] (axis 0).

    dU's row c has one for the gradients of its channel, and the pixels of an image have one: what
    is large elsewhere does not take digits from what is small here. With a loss scale of 65536, or
    with none, the result is the same.
    """
    shape, stride = winners[0].shape, winners[0].stride()
    out = torch.empty(shape[axis], dtype=torch.float32, device=winners[0].device)
    kernels.scales_kernel[(triton.cdiv(shape[axis], tiles.SCALE_BLOCK),)](
        *winners, out, shape[axis], shape[1 - axis], stride[axis], stride[1 - axis],
        BLOCK=tiles.SCALE_BLOCK, STEP=tiles.SCALE_STEP,
    )  # fmt: skip
    return out


def grad_u(
    winners: tuple[Tensor, ...],  # grad_pos, grad_neg float32, pos_index, neg_index: [B, C]
    x: Tensor,  # [B, P, C]
    dtype: torch.dtype,
    products: str | None = None,
    block: Block | None = None,
    splits: int | None = None,
    cut: tiles.Cut | None = None,
) -> Tensor:
    """dU [C, C] in `dtype`; `winners` are contiguous, `block`, `splits` and `cut` for a search."""
    batch, pixels, channels = x.shape
    out = torch.empty(channels, channels, dtype=dtype, device=x.device)
    if batch == 0:
        return out.zero_()
    if x.stride(2) != 1 or x.stride(1) >= 2**24:
        # gathering single numbers would be slower; offsets in a tile of up to 128 pixels have 32
        # bits
        x = rows(x, x.dtype, 1)[0]
    products = _products(products, x.dtype, dtype)
    block = block or pick(tiles.GRAD_U, channels, products, gpu.capability(x.device))
    cut = cut or tiles.cut_u(pixels, products, block, x.stride(0), x.stride(1))
    if splits is None:
        splits = tiles.splits(batch, channels, cut, products, block, gpu.processors(x.device))
    images = triton.cdiv(batch, splits)
    splits = triton.cdiv(batch, images)
    across = triton.cdiv(channels, block.block_m) * triton.cdiv(channels, block.block_n)
    parts = out
    if splits > 1:
        parts = torch.empty(splits, channels, channels, dtype=torch.float32, device=x.device)
    kernels.grad_u_kernel[(across * splits,)](
        *winners, _scales(winners, 1) if x.dtype == torch.float16 else None, x, parts,
        batch, pixels, channels, x.stride(0), x.stride(1), images,
        MULTIPLE=common_multiple(channels, x.stride(0), x.stride(1)), PRODUCTS=products,
        EMULATE=gpu.emulated(),
        PIXELS=cut.rows, BLOCKS=cut.blocks, PIECES=cut.pieces, IMAGES=cut.images,
        BLOCK_M=block.block_m, BLOCK_N=block.block_n, ROWS=tiles.ROWS,
        num_warps=block.num_warps, num_stages=block.num_stages,
    )  # fmt: skip
    if splits > 1:
        kernels.add_kernel[(triton.cdiv(channels**2, tiles.ADD_BLOCK),)](
            parts, out, splits, channels, BLOCK=tiles.ADD_BLOCK
        )
    return out


def grad_x(
    winners: tuple[Tensor, ...],  # grad_pos, grad_neg float32, pos_index, neg_index: [B, C]
    u: Tensor,  # [C, C]
    pixels: int,
    dtype: torch.dtype,
    products: str | None = None,
    block: Block | None = None,
    cut: tiles.Cut | None = None,
) -> Tensor:
    """dX [B, P, C] in `dtype`, contiguous; `winners` are contiguous, the rest for a search."""
    batch, channels = winners[0].shape
    out = torch.empty(batch, pixels, channels, dtype=dtype, device=u.device)
    if batch == 0:
        return out
    u = u.contiguous()
    products = _products(products, u.dtype, dtype)
    block = block or pick(tiles.GRAD_X, channels, products, gpu.capability(u.device))
    cut = cut or tiles.cut_x(pixels, products, block)
    down = triton.cdiv(batch * cut.blocks, cut.pieces)
    kernels.grad_x_kernel[(down * triton.cdiv(channels, block.block_n),)](
        *winners, _scales(winners, 0) if u.dtype == torch.float16 else None, u, out,
        batch, pixels, channels,
        MULTIPLE=common_multiple(channels), PRODUCTS=products,
        EMULATE=gpu.emulated(), PIXELS=cut.rows, BLOCKS=cut.blocks,
        BLOCK_M=block.block_m, BLOCK_N=block.block_n, BLOCK_K=block.block_k,
        ROWS=min(tiles.ROWS, cut.rows),
        num_warps=block.num_warps, num_stages=block.num_stages,
    )  # fmt: skip
    return out


def rotate_pool_backward(
    grad_pos: Tensor,  # [B, C] gradient at the positive winners
    grad_neg: Tensor,  # [B, C] gradient at the negative winners, d(pooled)/dY = +1 there
    x: Tensor,  # [B, P, C], any strides
    u: Tensor,  # [C, C]
    pos_index: Tensor,  # [B, C] int32, -1: no winner
    neg_index: Tensor,  # [B, C] int32
    need_x: bool,
    need_u: bool,
    products: str | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """dX [B, P, C] and dU [C, C] in the dtypes of x and u, each only if needed.

    Args:
        grad_pos: see above; what stands where there is no winner is not read into the result.
        grad_neg: likewise.
        x: float32, float16 or bfloat16. Pixels that are no winner of a channel do not reach it,
            whatever they hold.
        u: float32, float16 or bfloat16.
        pos_index: see above.
        neg_index: see above.
        need_x: whether dX is wanted.
        need_u: whether dU is wanted.
        products: one of `GRADIENT_OF_HALF` or `GRADIENT_OF_FLOAT` of
            `infodisent.kernels.precision`, for the operands of that dtype (x in dU, u in dX); by
            default what the precision of the call asks for. "bf16x3" and "ieee" are experimental.

    Returns:
        dX and dU, or None.
    """
    with torch.cuda.device_of(x):
        winners = (
            grad_pos.to(torch.float32).contiguous(),
            grad_neg.to(torch.float32).contiguous(),
            pos_index.contiguous(),
            neg_index.contiguous(),
        )
        dx = grad_x(winners, u, x.shape[1], x.dtype, products) if need_x else None
        du = grad_u(winners, x, u.dtype, products) if need_u else None
    return dx, du


__all__ = ["PRODUCTS", "default_products", "grad_u", "grad_x", "rotate_pool_backward"]
