"""What the tests of `rotate_pool` share: a call whose results are on the CPU, and the judge."""

from __future__ import annotations

import torch
from infodisent.kernels import rotate_pool as pool

from infodisent.testing import check_extremes, eager_tolerance
from tests.kernels.marks import DEVICE

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


def rotation_like(c: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(c, c))[0].contiguous()


def run(x: torch.Tensor, u: torch.Tensor, products: str | None = None, **options):
    """What the kernels return, on the CPU; a view of x stays one of the same strides."""
    if DEVICE.type != "cpu":
        whole = x.as_strided((x.untyped_storage().nbytes() // x.element_size(),), (1,), 0)
        x = whole.to(DEVICE).as_strided(x.shape, x.stride(), x.storage_offset())
    actual = pool.rotate_pool(x, u.to(DEVICE), products, **options)
    return tuple(t.cpu() for t in actual)


def rounding(x: torch.Tensor, products: str, exact: bool) -> float:
    """What a result may lose beside eager's own error, in parts of the largest |Y|."""
    bits = (x.shape[1] - 1).bit_length()
    lost = 0.0 if exact else 2.0 ** (bits - 23)
    low = {F16: 2.0**-20, BF16: 2.0**-15}
    return (
        lost
        + {
            "half": 2.0**-20,
            "split": low.get(x.dtype, 0.0),
            "tf32x3": 2.0**-20,
            "bf16x3": 2.0**-14,
            "ieee": 2.0**-22,
            "tf32": 2.0**-10,
        }[products]
    )


def check(
    x: torch.Tensor,  # [B, P, C]
    u: torch.Tensor,  # [C, C]
    actual: tuple[torch.Tensor, ...],  # pos, neg, pos_index, neg_index [B, C]
    products: str | None = None,
    exact: bool = False,
) -> None:
    """Against float64, allowing eager's error and what the products round."""
    products = products or pool.default_products(x.dtype, u.dtype)
    allowed = rounding(x, products, exact or pool.is_exact(x, products))
    y = x.double() @ u.double().mT
    check_extremes(actual, y, tolerance=eager_tolerance(x, u, rounding=allowed))
