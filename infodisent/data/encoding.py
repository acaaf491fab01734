"""How maps are kept in a store: as float numbers, or as float8 with a scale an image."""

from __future__ import annotations

import torch
from torch import Tensor

FLOAT8 = "float8"
DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    FLOAT8: torch.float8_e4m3fn,
}
"""Names of the dtypes that a store may have, and what its files hold."""
LARGEST = 448.0
"""Largest number of float8 e4m3: 1.75 · 2^8."""
_TILE = 1 << 19
"""Numbers that are decoded at a time: with what is made of them they stay in a core's cache."""
_SHIFT = 256.0
"""A number of e4m3 (exponent bias 7) is this many times the float16 (bias 15) of the same bits."""


def is_encoded(dtype: torch.dtype) -> bool:
    """Whether numbers of this dtype stand for others by a scale, see `decode`."""
    return dtype == torch.float8_e4m3fn


def computed_dtype(stored: torch.dtype) -> torch.dtype:
    """The dtype in which maps of a stored one are computed with: it holds every one of them.

    The stored dtype itself; bfloat16 for float8, whose 4 significant bits and scale it keeps.
    """
    return torch.bfloat16 if is_encoded(stored) else stored


def encode(
    maps: Tensor,  # [n, P, C] floating point, finite
) -> tuple[Tensor, Tensor]:
    """Maps as float8 e4m3 ``[n, P, C]``, and every image's scale ``[n]`` float32.

    An image's scale is the smallest power of two with which its largest magnitude is at most
    `LARGEST`. Numbers are rounded to 4 significant bits: a relative error of at most 1/16, down to
    1/14,336 of the image's largest; below, an absolute one of at most 1/16 of that.
    """
    maps = maps.float()
    largest = maps.abs().amax((1, 2)) if maps.numel() else maps.new_zeros(len(maps))
    # largest / 448 = m · 2^e with m in [1/2, 1)
    mantissa, exponent = torch.frexp(largest / LARGEST)
    exponent = (exponent - (mantissa == 0.5).int()).clamp(-100, 100)
    scale = torch.ldexp(torch.ones_like(largest), exponent)
    return (maps / scale[:, None, None]).to(torch.float8_e4m3fn), scale


def decode(
    stored: Tensor,  # [n, P, C] float8_e4m3fn
    scale: Tensor,  # [n] float32
    dtype: torch.dtype,
) -> Tensor:
    """The maps that `encode` rounded to, ``[n, P, C]``; exact in bfloat16, float32 and float64.

    torch converts float8 on a CPU one number after the other; here the bits are moved to where
    float16 has them, 30 times as fast (measured on one core of a Zen 4).
    """
    out = torch.empty(stored.shape, dtype=dtype, device=stored.device)
    factor = scale.to(stored.device)[:, None, None] * _SHIFT
    bits, step = stored.view(torch.int8), max(1, len(stored))
    if stored.device.type == "cpu" and stored.numel():
        step = max(1, _TILE // stored[0].numel())
    for start in range(0, len(stored), step):
        part = slice(start, start + step)
        moved = bits[part].to(torch.int16)  # the sign goes along into all upper bits
        moved.bitwise_left_shift_(7).bitwise_and_(~(1 << 14))
        # by way of float32: a CPU makes no bfloat16 of float16 several numbers at a time
        out[part] = moved.view(torch.float16).float().mul_(factor[part])
    return out
