"""Problems for the CUDA module of rotate_pool, its variants, and the judgement of its results."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from infodisent.backends.cuda import module as cuda
from infodisent.contract import Extremes
from infodisent.testing import WrongResultError, check_extremes, random_map

Row = dict[str, Any]
HALF = (torch.bfloat16, torch.float16)
PRODUCT_ERROR = {torch.float32: 2.0**-14, torch.bfloat16: 2.0**-16, torch.float16: 2.0**-16}
"""Of a sum of products, relative to the sum of their magnitudes."""


def make(
    batch: int,
    pixels: int,
    channels: int,
    dtype: torch.dtype,
    gaps: bool = False,
    kind: str = "normal",
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """A map x [B, P, C], with rows of NaN between its images if asked to, u [C, C], and Y."""
    return random_map(
        batch,
        pixels,
        channels,
        dtype=dtype,
        device="cuda",
        seed=seed,
        kind=kind,  # type: ignore[arg-type]
        prefix=int(gaps),
    )


def wrong(
    result: Extremes,
    x: Tensor,  # [B, P, C]
    u: Tensor,  # [C, C]
    y: Tensor,  # [B, P, C] float64
    kind: str = "normal",
) -> str:
    """What is wrong with the results, or nothing."""
    pixels = x.shape[1]
    bits = (pixels - 1).bit_length() if x.dtype in HALF and pixels <= 1024 else 0
    size = (x.double().nan_to_num(0, 0, 0).abs() @ u.double().abs().mT).amax(1)

    def allowed(side: Tensor) -> Tensor:  # [B, P, C] to [B, C]
        top = side.amax(1).clamp_min(0).nan_to_num(0, 0)
        return PRODUCT_ERROR[x.dtype] * size + top * 2.0 ** (bits - 23) + 1e-30

    try:
        check_extremes(
            result,
            y,
            tolerance=(allowed(y), allowed(-y)),
            exact=kind in ("integers", "ties"),
            # low parts of a float32 U are never 0, see split_rotation
            least=1e-30 if x.dtype == torch.float32 else 0.0,
        )
    except WrongResultError as error:
        return str(error)
    return ""


def variants(x: Tensor) -> list[tuple[str, int]]:
    """Tile and cluster of every kernel that can serve x."""
    gaps = x.dtype != torch.float32 and len(x) > 1 and x.stride(0) != x.shape[1] * x.stride(1)
    return [
        (tile, cluster)
        for tile in cuda.tiles(x)
        for cluster in (1, 2)
        if not (gaps and cluster == 2 and tile[0] in "34")
    ]


def call(x: Tensor, u: Tensor, variant: tuple[str, int] | None = None) -> Extremes:
    """The kernel's results, of one variant or of the one that it chooses; errors surface here."""
    options: dict[str, Any] = {}
    if variant is not None:
        options = {"tile": variant[0], "cluster": variant[1]}
    result = cuda.rotate_pool(x, u, **options)
    torch.cuda.synchronize()
    return result
