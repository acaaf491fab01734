"""Gradients of `similarity_pool` on the GPU: of the winners alone, in float32.

`infodisent.kernels.similarity_pool_backward_kernels` computes: dV in one launch, dX in two, of
which the first sorts each image's prototypes by their pixel (for each of two similarities); two
more for the norms that "cosine" needs. A map whose pixels do not have their channels side by side
is laid out anew.

The arithmetic is that of float32 whatever the dtypes: a gradient of winners has B M C products,
which are no work for a matrix unit, and is bound by the rows that it gathers.

Nothing here waits for the device, and the same call gives the same bits. Memory beside the results:
the lists, ``4 B (M + P + 1)`` bytes for each similarity, and 4 bytes a pixel and a prototype for
"cosine".
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from infodisent.contract import Best

from . import similarity_pool_backward_kernels as kernels
from .product import Pixels, common_multiple
from .rows import rows
from .similarity_pool import NORMS_BLOCK
from .similarity_pool_backward_kernels import Operands, Won
from .similarity_pool_kernels import norms_kernel

# none of them measured on a GPU yet
LISTS_BLOCK = {"BLOCK_P": 8, "BLOCK_M": 256, "num_warps": 4}
OF_PIXEL, OF_PROTOTYPES = 2048, 4096
"""Numbers of the rows that a program reads at a time, in dX and in dV: a pixel wins few prototypes,
a prototype has a winner in every image. With "cosine", which keeps more, half as many in dV."""
CHANNELS = 128
"""At most, of a program."""
BLOCK_M = 4
"""Prototypes of a program of dV; the other rows are those of more images."""


def _columns(channels: int) -> int:
    """Channels of a program, a power of two."""
    return min(CHANNELS, max(16, 1 << (channels - 1).bit_length()))


def _inverse_norms(data: Tensor, image: int, pixel: int, count: int, pixels: int) -> Tensor:
    """``1 / |row|`` of so many rows of contiguous channels, 0 for a row of zeros: [count]."""
    scale = torch.empty(count, dtype=torch.float32, device=data.device)
    norms_kernel[(triton.cdiv(count, NORMS_BLOCK["BLOCK_P"]),)](
        Pixels(data, 0, image, pixel), scale, None, count, pixels, data.shape[-1], **NORMS_BLOCK
    )  # fmt: skip
    return scale


def _operands(
    x: Tensor,  # [B, P, C]
    prototypes: Tensor,  # [M, C]
    similarities: tuple[str, ...],
) -> Operands:
    """Rows of contiguous channels, and their norms where they are needed."""
    batch, pixels, channels = x.shape
    if x.stride(2) != 1 and channels > 1:
        x = rows(x, x.dtype, 1)[0]
    v = prototypes
    if v.stride(1) != 1 and channels > 1:
        v = v.contiguous()
    x_scale = v_scale = None
    if "cosine" in similarities:
        x_scale = _inverse_norms(x, x.stride(0), x.stride(1), batch * pixels, pixels)
        v_scale = _inverse_norms(v, 0, v.stride(0), len(v), len(v))
    return Operands(x, x.stride(0), x.stride(1), v, v.stride(0), x_scale, v_scale)


def _lists(place: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
    """The prototypes of each image by their pixel [B, M], and where each pixel's begin."""
    batch, number = place.shape
    order = torch.empty_like(place)
    start = torch.empty(batch, pixels + 1, dtype=torch.int32, device=place.device)
    grid = (batch * triton.cdiv(pixels + 1, LISTS_BLOCK["BLOCK_P"]),)
    kernels.lists_kernel[grid](place, order, start, number, pixels, **LISTS_BLOCK)
    return order, start


def _won(grad: Tensor, best: Best, similarity: str) -> Won:
    """Without the lists."""
    value = best.value.contiguous() if similarity == "cosine" else None
    return Won(grad.to(torch.float32).contiguous(), value, best.index.contiguous(), None, None)


def _grad_x(
    x: Tensor,  # [B, P, C]
    operands: Operands,
    won: list[Won],
    similarities: tuple[str, ...],
) -> Tensor:
    """dX [B, P, C] in x's dtype, contiguous."""
    batch, pixels, channels = x.shape
    out = torch.empty(batch, pixels, channels, dtype=x.dtype, device=x.device)
    listed = []
    for one in won:
        order, start = _lists(one.place, pixels)
        listed.append(one._replace(order=order, start=start))
    columns = _columns(channels)
    kernels.grad_x_kernel[(batch * pixels * triton.cdiv(channels, columns),)](
        out, operands, listed[0], listed[1] if len(listed) == 2 else None,
        won[0].place.shape[1], pixels, channels,
        MULTIPLE=common_multiple(channels, operands.image, operands.pixel, operands.row),
        FIRST=similarities[0], SECOND=similarities[-1],
        ENTRIES=OF_PIXEL // columns, BLOCK_C=columns, num_warps=4,
    )  # fmt: skip
    return out


def _grad_v(
    prototypes: Tensor,  # [M, C]
    operands: Operands,
    won: list[Won],
    similarities: tuple[str, ...],
) -> Tensor:
    """dV [M, C] in the prototypes' dtype, contiguous."""
    number, channels = prototypes.shape
    out = torch.empty(number, channels, dtype=prototypes.dtype, device=prototypes.device)
    columns = _columns(channels)
    numbers = OF_PROTOTYPES // 2 if "cosine" in similarities else OF_PROTOTYPES
    grid = (triton.cdiv(number, BLOCK_M) * triton.cdiv(channels, columns),)
    kernels.grad_v_kernel[grid](
        out, operands, won[0], won[1] if len(won) == 2 else None,
        *operands.x.shape[:1], number, operands.x.shape[1], channels,
        MULTIPLE=common_multiple(channels, operands.image, operands.pixel, operands.row),
        FIRST=similarities[0], SECOND=similarities[-1],
        IMAGES=numbers // columns // BLOCK_M, BLOCK_M=BLOCK_M, BLOCK_C=columns, num_warps=4,
    )  # fmt: skip
    return out


def similarity_pool_backward(
    grads: tuple[Tensor, ...],  # [B, M] each
    best: tuple[Best, ...],  # of the forward
    x: Tensor,  # [B, P, C]
    prototypes: Tensor,  # [M, C]
    similarities: tuple[str, ...],
    need_x: bool,
    need_prototypes: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """dX [B, P, C] and dV [M, C] in the dtypes of x and prototypes, each only if needed.

    Args:
        grads: gradient of the values of each similarity, any floating-point dtype and strides.
        best: what `infodisent.kernels.similarity_pool.similarity_pool` returned.
        x: float32, float16 or bfloat16, any strides. Pixels that win nothing get 0, whatever they
            hold.
        prototypes: any of these dtypes, any strides.
        similarities: one or two, as of the forward.
        need_x: whether dX is wanted.
        need_prototypes: whether dV is wanted.

    Returns:
        dX and dV, or None.
    """
    if not (need_x or need_prototypes):
        return None, None
    if len(x) == 0 or len(prototypes) == 0:
        return (
            torch.zeros_like(x, memory_format=torch.contiguous_format) if need_x else None,
            torch.zeros_like(prototypes) if need_prototypes else None,
        )
    with torch.cuda.device_of(x):
        operands = _operands(x, prototypes, similarities)
        won = [_won(*one) for one in zip(grads, best, similarities, strict=True)]
        dx = _grad_x(x, operands, won, similarities) if need_x else None
        dv = _grad_v(prototypes, operands, won, similarities) if need_prototypes else None
    return dx, dv


__all__ = ["similarity_pool_backward"]
