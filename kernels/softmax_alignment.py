"""What the softmaxes of two maps agree on, pixel by pixel, on the GPU: one launch each way.

`infodisent.kernels.softmax_alignment_kernels` computes. No softmax is stored, nor a sum of the two
maps; each map is read where it lies, in its own layout and dtype.

Nothing here waits for the device, and the same call gives the same bits.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from . import softmax_alignment_kernels as kernels

# none of them measured on a GPU yet
BLOCKS = {
    "rows": {"BLOCK_P": 4, "BLOCK_C": 256, "num_warps": 4},
    "columns": {"BLOCK_P": 64, "BLOCK_C": 16, "num_warps": 4},
}
"""Of maps whose channels are neighbours in memory, and of those whose pixels are (NCHW)."""
MAPS = (torch.float32, torch.float16, torch.bfloat16)


def _block(first: Tensor) -> dict[str, int]:
    """Of `BLOCKS` that which fits a map [B, P, C]; the other map has mostly the same layout."""
    return BLOCKS["columns" if first.stride(1) == 1 and first.stride(2) != 1 else "rows"]


def _check(first: Tensor, second: Tensor) -> None:
    """Raise ValueError where the kernel cannot serve."""
    batch, pixels, channels = first.shape
    if first.shape != second.shape:
        raise ValueError(
            f"softmax_alignment: first is {tuple(first.shape)} [B, P, C] but second is "
            f"{tuple(second.shape)}"
        )
    for name, x in (("first", first), ("second", second)):
        if x.dtype not in MAPS:
            raise ValueError(f"softmax_alignment: {name} is {x.dtype}, must be one of {MAPS}")
    if pixels == 0 or channels == 0:
        raise ValueError(
            f"softmax_alignment: first is {tuple(first.shape)}: no pixels or no channels"
        )
    if batch * pixels >= 2**31 - 256:
        raise ValueError(f"softmax_alignment: first is {tuple(first.shape)}: 2^31 pixels or more")


def softmax_alignment(
    first: Tensor,  # [B, P, C]
    second: Tensor,  # [B, P, C]
) -> tuple[Tensor, Tensor]:
    """``-log sum_m softmax(first)_m softmax(second)_m`` of every pixel.

    Args:
        first: [B, P, C] scores, float32, float16 or bfloat16, any strides.
        second: likewise.

    Returns:
        The loss [B, P] float32, and its statistics [6, B, P] float32: of ``a = first``, of
        ``b = second`` and of ``(a - largest a) + (b - largest b)`` the largest (0 where the last is
        -Inf), each followed by the sum over m of the exponentials of what is below it.

    Raises:
        ValueError: the kernel cannot serve this.
    """
    _check(first, second)
    batch, pixels, channels = first.shape
    loss = torch.empty(batch, pixels, dtype=torch.float32, device=first.device)
    statistics = torch.empty(6, batch, pixels, dtype=torch.float32, device=first.device)
    if batch == 0:
        return loss, statistics
    block = _block(first)
    with torch.cuda.device_of(first):
        kernels.alignment_kernel[(batch * triton.cdiv(pixels, block["BLOCK_P"]),)](
            first, second, loss, statistics, batch * pixels, pixels, channels,
            *first.stride(), *second.stride(), **block,
        )  # fmt: skip
    return loss, statistics


def softmax_alignment_backward(
    grad: Tensor,  # [B, P]
    first: Tensor,  # [B, P, C]
    second: Tensor,  # [B, P, C]
    statistics: Tensor,  # [6, B, P]
    d_first: Tensor | None,  # [B, P, C], any strides, to be written; None: not needed
    d_second: Tensor | None,  # the same of second
) -> None:
    """``d_first = grad (softmax(first) - softmax(first + second))``, d_second likewise.

    Arguments are those of `softmax_alignment`, what it returned, and the gradient of the loss.
    """
    batch, pixels, channels = first.shape
    if batch == 0 or (d_first is None and d_second is None):
        return
    none = (0, 0, 0)
    block = _block(first)
    with torch.cuda.device_of(first):
        kernels.alignment_gradient_kernel[(batch * triton.cdiv(pixels, block["BLOCK_P"]),)](
            grad.to(torch.float32).contiguous(), first, second, statistics.contiguous(),
            d_first, d_second, batch * pixels, pixels, channels,
            *first.stride(), *second.stride(),
            *(none if d_first is None else d_first.stride()),
            *(none if d_second is None else d_second.stride()), **block,
        )  # fmt: skip


__all__ = ["softmax_alignment", "softmax_alignment_backward"]
