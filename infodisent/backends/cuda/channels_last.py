"""Maps of contiguous pixels, laid out as rows of channels (``csrc/sm90/channels_last.cu``)."""

from __future__ import annotations

import torch
from torch import Tensor

from infodisent.backends.cuda import module


def objection(x: Tensor) -> str | None:
    """Why the kernel cannot lay out a map x [B, P, C], or None; for any device."""
    batch, pixels, channels = x.shape
    if x.element_size() not in (2, 4):
        return f"x is {x.dtype}, must be of 2 or 4 bytes"
    if x.stride(1) != 1:
        return f"pixels have stride {x.stride(1)}, must have 1"
    if channels % 8 or channels >= 2**24 or batch * pixels >= 2**31 - 256:
        return f"x is {tuple(x.shape)}: channels must be a multiple of 8, pixels below 2^31"
    return None


def channels_last(x: Tensor) -> Tensor:
    """A contiguous copy of x [B, P, C], launched on the current stream.

    By the kernel, 16 bytes a thread in both directions, for maps as convolutions leave them
    (views of [B, C, H, W], also of tokens behind others, which are not copied); by PyTorch's
    generic copy for the rest, and where the kernels do not run.
    """
    if objection(x) is not None or module.device_objection(x.device) is not None:
        return x.contiguous()
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    batch, pixels, channels = x.shape
    if batch > 0:
        module._module.channels_last(
            x.data_ptr(),
            x.element_size(),
            batch,
            pixels,
            channels,
            x.stride(0),
            x.stride(2),
            out.data_ptr(),
            *module._where(x.device),
        )
    return out
