"""What the tests of `rotate_pool` share: a call whose results are on the CPU, and the judge."""

from __future__ import annotations

import torch
from infodisent.kernels import rotate_pool as pool

from infodisent import reference
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


def check(x: torch.Tensor, u: torch.Tensor, actual, products: str | None = None, exact=False):
    """Against float64, allowing eager's error; places are judged by the values that are there."""
    products = products or pool.default_products(x.dtype, u.dtype)
    pos, neg, pos_index, neg_index = actual
    truth = reference.rotate_pool(x.double(), u.double(), input_fmt="NLC")
    eager = reference.rotate_pool(x, u, input_fmt="NLC")
    y = x.double() @ u.double().mT
    top = y.abs().max().item()
    allowed = rounding(x, products, exact or pool.is_exact(x, products)) * top
    for side, value, index, sign in ((1, pos, pos_index, y), (2, neg, neg_index, -y)):
        assert value.dtype == F32
        assert index.dtype == torch.int32
        assert value.shape == index.shape == (x.shape[0], x.shape[2])
        bound = allowed + (eager[side] - truth[side]).abs().max().item()
        assert (value - truth[side]).abs().max() <= bound
        assert torch.all((index >= 0) == (value > 0))
        assert index.max() < x.shape[1]
        assert not torch.signbit(value).any()
        there = sign.gather(1, index.clamp_min(0).long().unsqueeze(1)).squeeze(1)
        assert torch.all(torch.where(index >= 0, sign.amax(1) - there, 0) <= 2 * bound)
