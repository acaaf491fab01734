"""The float8 option of the CUDA module as it is emulated, against float64 and against its bound."""

from __future__ import annotations

import pytest
import torch

from infodisent import reference
from infodisent.backends.cuda import float8 as _float8
from infodisent.backends.cuda import module as _native_cuda

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def problem(batch, pixels, channels, seed, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, pixels, channels, generator=g)
    x = x * torch.logspace(-3, 2, batch)[:, None, None]  # images of different magnitudes
    u = torch.linalg.qr(torch.randn(channels, channels, generator=g))[0]
    return x.to(dtype), u.to(dtype)


def bound(x, u, scale_x, scale_u, pixels):
    """Of |Y - emulated Y| [B, P, C]: rounding of both factors, of the sum, and of the packed key.

    A factor is off by at most 2^-4 of itself, or by half of the least step, 2^-10 of its scale.
    """
    off_x = torch.maximum(x.abs() * 2.0**-4, scale_x[:, None, None] * 2.0**-10)
    off_u = torch.maximum(u.abs() * 2.0**-4, scale_u[:, None] * 2.0**-10)
    products = x.abs() @ u.abs().mT
    factors = off_x @ u.abs().mT + (x.abs() + off_x) @ off_u.mT
    summation = (products + factors) * len(u) * 2.0**-24
    bits = (pixels - 1).bit_length()
    return factors + summation + (products + factors) * 2.0 ** (bits - 23)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "pixels", "channels"), [(3, 49, 64), (2, 197, 48), (5, 1, 16)])
def test_against_float64(batch, pixels, channels, dtype):
    x, u = problem(batch, pixels, channels, 1, dtype)
    pos, neg, pos_index, neg_index = _float8.rotate_pool(x, u)
    x, u = x.double(), u.double()
    scale_x, scale_u = _float8.scales(x), _float8.scales(u)
    y = x @ u.mT
    off = bound(x, u, scale_x.double(), scale_u.double(), pixels)
    for value, place, sided in ((pos, pos_index, y), (neg, neg_index, -y)):
        high = (sided + off).clamp_min(0).amax(1)
        low = (sided - off).clamp_min(0).amax(1)
        assert (value <= high).all()
        assert (value >= low).all()
        at = place.long().clamp_min(0)[:, None]  # where it was found, it may well be the largest
        there = (sided + off).gather(1, at)[:, 0]
        assert ((place < 0) | (value <= there)).all()
        assert ((place < 0) == (value == 0)).all()


def test_what_float8_holds_is_exact():
    """Small integers times powers of two: nothing is rounded, but for the packed key."""
    g = torch.Generator().manual_seed(2)
    x = torch.randint(-4, 5, (3, 49, 32), generator=g).float()
    u = torch.randint(-4, 5, (32, 32), generator=g).float()
    pool = _float8.rotate_pool(x * 2.0**-30, u * 2.0**20)
    wanted = reference.rotate_pool(x * 2.0**-30, u * 2.0**20, input_fmt="NLC")
    for ours, name in zip(pool, ("pos", "neg", "pos_index", "neg_index"), strict=True):
        assert torch.equal(ours, getattr(wanted, name))


def test_sums_of_fewer_bits():
    """24 bits are float32 sums but for rounding towards zero; 14 lose more, within their bound."""
    x, u = problem(3, 49, 96, 5)
    plain = _float8.rotate_pool(x, u)[0]
    off = [(_float8.rotate_pool(x, u, sum_bits=bits)[0] - plain).abs() for bits in (24, 14)]
    largest = (x.abs() @ u.abs().mT).amax(1) * 1.2  # of any part of a sum
    assert (off[0] <= largest * 2.0**-16).all()  # where the packed key ends
    assert (off[1] <= largest * (3 * 2.0**-13 + 2.0**-16)).all()
    assert off[1].sum() > off[0].sum()


def test_scales():
    largest = torch.tensor(
        [448.0, 449.0, 447.0, 1.0, 1.75, 1.7500001, 3e38, 2.0**-118, 2.0**-119, 1e-40, 0.0]
    )
    scale = _float8.scales(largest[:, None])
    assert torch.equal(scale, torch.exp2(scale.log2().round()))
    scaled = largest / scale
    assert (scaled <= 448).all()
    assert (scaled[:8] > 224).all()
    assert (scale[8:] == 2.0**-126).all()


def test_infinity_becomes_nan():
    """e4m3 has no Inf: the pixel is a NaN in every channel, and the image's scale ignores it."""
    x, u = problem(2, 49, 16, 3)
    plain = _float8.rotate_pool(x, u)
    x[1, 7, 3] = torch.inf
    pos, neg, pos_index, neg_index = _float8.rotate_pool(x, u)
    assert torch.stack([pos[1], neg[1]]).isnan().all()
    assert (torch.stack([pos_index[1], neg_index[1]]) == 7).all()
    assert torch.equal(pos[0], plain[0][0])
    assert torch.equal(neg_index[0], plain[3][0])
    assert torch.equal(_float8.scales(x)[0], _float8.scales(problem(2, 49, 16, 3)[0])[0])


def test_images_do_not_depend_on_each_other():
    x, u = problem(4, 49, 32, 4)
    together = _float8.rotate_pool(x, u)
    alone = _float8.rotate_pool(x[2:3], u)
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a[2:3], b)


@pytest.mark.parametrize(
    ("pixels", "channels", "reason"),
    [(49, 64, None), (1024, 16, None), (49, 24, "multiple of 16"), (1025, 64, "at most 1024")],
)
def test_objection(pixels, channels, reason):
    x, u = torch.zeros(2, pixels, channels), torch.zeros(channels, channels)
    assert _native_cuda.map_objection(x, u) is None
    objection = _native_cuda.float8_objection(x)
    assert objection is None if reason is None else reason in objection


def test_the_option_is_explicit():
    with pytest.raises(ValueError, match="cuda only"):
        _native_cuda.rotate_pool(torch.zeros(1, 49, 64), torch.zeros(64, 64), fp8=True)
