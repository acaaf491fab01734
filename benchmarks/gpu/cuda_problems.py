"""Problems for the CUDA module of rotate_pool, its variants, and the judgement of its results."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from infodisent.backends.cuda import module as cuda
from infodisent.contract import Extremes
from infodisent.testing import (
    WrongResultError,
    check_extremes,
    gradient_truth,
    random_map,
    require,
)

Row = dict[str, Any]
DEVICE = "cuda"  # tests run all this without one
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
        device=DEVICE,
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
    return [(tile, count) for tile in cuda.tiles(x) for count in cuda.clusters(x, tile)]


def call(x: Tensor, u: Tensor, variant: tuple[str, int] | None = None) -> Extremes:
    """The kernel's results, of one variant or of the one that it chooses; errors surface here."""
    options: dict[str, Any] = {}
    if variant is not None:
        options = {"tile": variant[0], "cluster": variant[1]}
    result = cuda.rotate_pool(x, u, **options)
    torch.cuda.synchronize()
    return result


class Gradients(NamedTuple):
    """What `grad_u` takes beside the map: gradients and places of its winners, each [B, C]."""

    pos: Tensor
    neg: Tensor
    pos_index: Tensor
    neg_index: Tensor


def make_gradients(
    x: Tensor,  # [B, P, C]
    kind: str = "normal",
    seed: int = 0,
) -> Gradients:
    """Random winners, some of them none, the last pixel, or both the same; NaN beside none."""
    batch, pixels, channels = x.shape
    g = torch.Generator("cpu").manual_seed(seed)
    size = (2, batch, channels)
    index = torch.randint(-1, pixels, size, generator=g)
    index[0][torch.rand(size[1:], generator=g) < 0.2] = pixels - 1
    both = torch.rand(size[1:], generator=g) < 0.2
    index[1] = torch.where(both, index[0], index[1])
    grads = torch.randn(size, generator=g)
    if kind == "integers":
        grads = (2 * grads).round().clamp(-4, 4)
    else:  # of very different magnitudes, as channels have them
        grads = grads * torch.logspace(-6, 2, channels)
    grads = torch.where(index < 0, torch.nan, grads)
    return Gradients(*grads.to(DEVICE), *index.int().to(DEVICE))


def wrong_gradient(
    du: Tensor,  # [C, C]
    x: Tensor,  # [B, P, C], bfloat16 or float16
    g: Gradients,
    kind: str = "normal",
) -> str:
    """What is wrong with a gradient of u, or nothing.

    Gradients are rounded to the dtype of x once and sums to that of du; what is not finite must be
    as the formula has it, and where the formula is finite nothing of it may be seen.
    """
    u = x.new_zeros(x.shape[2], x.shape[2])
    truth = gradient_truth(*g[:2], x, u, *g[2:]).du
    plain = x.nan_to_num(0, 0, 0).abs()
    size = gradient_truth(g.pos.abs(), g.neg.abs(), plain, u, *g[2:]).du
    finite = truth.isfinite()
    try:
        require(du.shape == truth.shape, f"dU is {tuple(du.shape)}, not {tuple(truth.shape)}")
        found = du.double()
        same = (found == truth) | (found.isnan() & truth.isnan())
        require(same[~finite].all(), "dU: another Inf or NaN than that of the winners")
        require(found[finite].isfinite().all(), "dU: Inf or NaN that no winner has")
        if kind == "integers":
            require(torch.equal(du, truth.to(du.dtype)), "dU of whole numbers is not exact")
        eps, out_eps = (torch.finfo(dtype).eps for dtype in (x.dtype, du.dtype))
        least = torch.finfo(du.dtype).smallest_normal
        # the scale of a channel lets what is 2^-37 of its largest gradient vanish in float16
        lost = g.pos.abs().nan_to_num().amax(0).maximum(g.neg.abs().nan_to_num().amax(0))
        lost = 2 * len(x) * plain.amax().double() * lost.double()[:, None] * 2.0**-37
        allowed = (eps / 2 + 2.0**-18) * size + out_eps * (truth.abs() + least) + lost
        over = ((found - truth).abs() - allowed)[finite]
        worst = over.amax().item() if over.numel() else 0.0
        require(worst <= 0, f"dU is off by {worst:.3g} more than allowed")
    except WrongResultError as error:
        return str(error)
    return ""
