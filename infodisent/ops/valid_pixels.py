"""Checks of `valid`, the mask of pixels that count."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from infodisent.layout import check_dense, map_size
from infodisent.tracing import transforming


def check_valid(
    op: str, valid: Tensor | None, x: Tensor, input_fmt: str, num_prefix_tokens: int
) -> None:
    """Raise unless `valid` is None or ``[B, P]`` bool for the map `x`."""
    if valid is None:
        return
    if not isinstance(valid, Tensor) or valid.dtype != torch.bool:
        given = valid.dtype if isinstance(valid, Tensor) else type(valid).__name__
        raise TypeError(f"{op}: valid is {given}, must be a torch.bool tensor")
    check_dense(op, "valid", valid)
    pixels = map_size(x, input_fmt, num_prefix_tokens)[1]
    if tuple(valid.shape) != (x.shape[0], pixels):
        raise ValueError(
            f"{op}: x is {tuple(x.shape)} [{input_fmt}] but valid is {tuple(valid.shape)}, must be "
            f"({x.shape[0]}, {pixels})"
        )


def check_valid_pixels(op: str, valid: Tensor) -> None:
    """Raise ValueError if an image has no valid pixel, where the numbers can be looked at.

    Not while a program is traced or a CUDA graph is captured: there is nothing to look at.
    """
    if torch.compiler.is_compiling() or transforming() or is_fake(valid) or valid.is_meta:
        return
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        return
    if valid.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    counted = valid.any(dim=1)
    if not bool(counted.all()):
        image = int((~counted).nonzero()[0])
        raise ValueError(f"{op}: valid has no pixel of image {image}, every image needs one")
