"""What the float8 option of the CUDA module computes, in plain PyTorch on any device.

To measure what the option costs on one's own maps before using it, and for tests. Casts, scales and
the cleared last bits are those of the kernels (``csrc/sm90/float8.h``,
``csrc/sm90/packed_key.h``). The sums are float32 ones by default, which the tensor cores' are not:
see `infodisent.backends.cuda.module.rotate_pool`.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 448.0
"""The largest e4m3 number."""


def scales(x: Tensor) -> Tensor:
    """Powers of two that x [n, ...] is divided by, one for each of its n parts: [n] float32.

    They take the largest finite magnitude of a part to between 224 (not included) and 448.
    """
    magnitude = x.float().abs().flatten(1)
    magnitude = torch.where(magnitude.isfinite(), magnitude, 0.0)
    # m * 2^e with 0.5 <= m < 1, to be at most 448 = 0.875 * 2^9
    mantissa, exponent = torch.frexp(magnitude.amax(1))
    exponent = exponent - 9 + (mantissa > 0.875).int()
    # 0 and what is subnormal go to the least scale, as in csrc/sm90/float8.h
    exponent = torch.where(magnitude.amax(1) < 2.0**-126, -126, exponent).clamp_min(-126)
    return (exponent + 127 << 23).view(torch.float32)  # exact on every device, as ldexp is not


def cast(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [n, ...] as e4m3, to nearest even, and its `scales` [n]; Inf becomes NaN."""
    scale = scales(x)
    wide = x.float()
    wide = torch.where(wide.isfinite(), wide, torch.nan)
    shape = (-1, *[1] * (x.ndim - 1))
    return (wide / scale.view(shape)).to(torch.float8_e4m3fn), scale


def cut(y: Tensor, bits: int) -> Tensor:
    """float32 with its last bits cleared; a NaN stays one."""
    return torch.where(y.isnan(), y, (y.view(torch.int32) & -(1 << bits)).view(torch.float32))


def rotate_pool(
    x: Tensor, u: Tensor, *, sum_bits: int | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `infodisent.backends.cuda.module.rotate_pool` with ``fp8=True``, but for the sums.

    Args:
        x: [B, P, C], at most 1024 pixels.
        u: [C, C].
        sum_bits: 1 ... 24: after every 32 channels sums are cut to so many bits, towards zero. A
            model of tensor cores that keep that many, not a copy of any. By default float32 sums.

    Returns:
        pos, neg [B, C] float32; pos_index, neg_index [B, C] int32.
    """
    (codes, x_scale), (u_codes, u_scale) = cast(x), cast(u)
    rows, rotation = codes.float(), u_codes.float()
    if sum_bits is None:
        y = rows @ rotation.mT  # [B, P, C]
    else:
        y = rows.new_zeros(x.shape)
        for k in range(0, len(u), 32):  # what one instruction adds
            y = cut(y + rows[..., k : k + 32] @ rotation[:, k : k + 32].mT, 24 - sum_bits)
    y = cut(y, (x.shape[1] - 1).bit_length())
    factors = x_scale[:, None] * u_scale.double()
    outputs = []
    for side in (y, -y):
        value, place = side.clamp_min(0.0).max(dim=1)  # max takes a NaN over all else
        value = (value * factors).float()
        outputs.append((value, torch.where(value != 0, place, -1).int()))
    return outputs[0][0], outputs[1][0], outputs[0][1], outputs[1][1]
