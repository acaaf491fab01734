"""Screening: rotate_pool by way of 16-bit integers gives the bits of the float tiles."""

from __future__ import annotations

import pytest
import torch

from infodisent.backends.native import module as _native

pytestmark = pytest.mark.skipif(
    _native.objection() is not None or not _native.is_fused(),
    reason="no compiled rotate_pool for this processor",
)

NEVER, ALWAYS, PLAIN = 1, 2, 3
WAYS = [(0, ALWAYS), (1, ALWAYS), (2, ALWAYS), (0, PLAIN)]
"""(instructions, screen): the best kernels there are, AVX2, AVX-512, and plain arithmetic."""


def _rotation(channels: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(channels, channels))[0].contiguous()


def _bits(t: torch.Tensor) -> torch.Tensor:
    return t.view(torch.int32) if t.dtype == torch.float32 else t


def assert_same_bits(x: torch.Tensor, u: torch.Tensor, ways=WAYS) -> None:
    wanted = _native.rotate_pool(x, u, 0, NEVER)
    ran = 0
    for instructions, screen in ways:
        try:
            result = _native.rotate_pool(x, u, instructions, screen)
        except ValueError as error:
            if "no such instructions" not in str(error):  # of this processor
                raise
            continue
        ran += 1
        for name, ours, theirs in zip(wanted._fields, result, wanted, strict=True):
            nan = ours.isnan() & theirs.isnan()  # which NaN it is may differ
            assert ((_bits(ours) == _bits(theirs)) | nan).all(), (name, instructions, screen)
    assert ran >= 1


LAYOUTS = {
    "channels last": lambda x: x,
    "pixels last": lambda x: x.mT.contiguous().mT,
    "strided": lambda x: torch.stack([x, x * 0], -1)[..., 0],
    "prefix": lambda x: torch.cat([x[:, :1] * 1e3, x], 1)[:, 1:],
}
SHAPES = [(3, 49, 512), (2, 50, 513), (1, 196, 100), (5, 7, 640), (2, 33, 1030), (1, 17, 2050)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("layout", "batch", "pixels", "channels"),
    [
        *(("channels last", *shape) for shape in SHAPES),
        *((layout, *shape) for layout in list(LAYOUTS)[1:] for shape in SHAPES[1:4:2]),
    ],
)
def test_bits_of_the_float_tiles(layout, batch, pixels, channels, dtype):
    x = LAYOUTS[layout](torch.randn(batch, pixels, channels).to(dtype))
    ways = WAYS if layout == "channels last" else WAYS[:3]
    assert_same_bits(x, _rotation(channels), ways)


@pytest.mark.parametrize("channels", [512, 700])
@pytest.mark.parametrize("scale", [0.0, 1e-40, 1e-20, 1e-12, 1e12, 1e20])
def test_any_scale(channels, scale):
    assert_same_bits(torch.randn(2, 20, channels) * scale, _rotation(channels))
    assert_same_bits(torch.randn(2, 20, channels), _rotation(channels) * scale)
    mixed = torch.randn(2, 20, channels) * torch.tensor([1.0, scale]).repeat(10)[:, None]
    assert_same_bits(mixed, _rotation(channels))


def test_pixels_that_are_equal_or_nearly_so():
    u = _rotation(512)
    one = torch.randn(512)
    assert_same_bits(one.expand(3, 49, 512).contiguous(), u)  # every pixel ties
    near = one.repeat(3, 49, 1)
    near += torch.randn_like(near) * 1e-7 * near.abs()  # differences of one rounding
    assert_same_bits(near, u)
    near[:, ::2] = near[:, 1:2]
    assert_same_bits(near, u)
    assert_same_bits(torch.zeros(2, 49, 512), u)


def test_rounding_errors_that_all_point_the_same_way():
    """The bound is reached: rows that are constant but for a few numbers round all one way."""
    channels, pixels = 1024, 200
    x = torch.ones(2, pixels, channels, dtype=torch.float64)
    for p in range(pixels):  # where it falls between two integers follows from the norm
        x[:, p, : 2 + p] *= 1.5
    x *= channels / x.sum(-1, keepdim=True) * (1 + 1e-6 * torch.rand(2, pixels, 1))
    u = torch.full((channels, channels), channels**-0.5)
    u[1::2] *= -1
    assert_same_bits(x.float(), u, WAYS[:3])


def test_rows_that_use_the_whole_range():
    """Products of rows in one direction reach the limit of 32 bits, and must not go over it."""
    u = _rotation(512)
    pixels = torch.cat([u[:49], -u[:49]])[None].contiguous()
    assert_same_bits(pixels, u)
    assert_same_bits(torch.eye(512)[None, ::7].contiguous(), torch.eye(512))
    same = torch.full((1, 40, 2048), 0.5)
    assert_same_bits(same, torch.full((2048, 2048), -0.25), WAYS[:3])
    signs = torch.randn(1, 40, 1024).sign()
    assert_same_bits(signs, signs[0].repeat(26, 1)[:1024].contiguous(), WAYS[:3])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_what_is_not_a_number_is_not_hidden(value):
    x, u = torch.randn(3, 49, 512), _rotation(512)
    x[1, 20, 100] = value
    assert_same_bits(x, u)
    u[70, 3] = value
    assert_same_bits(x, u)
    x[2, 5] = 0
    assert_same_bits(x, u)


def test_heavy_tails_and_sparse_maps():
    u = _rotation(600)
    x = torch.randn(3, 49, 600)
    assert_same_bits(x**5, u)
    assert_same_bits(x.relu() * (torch.rand_like(x) < 0.05), u)
    assert_same_bits(x + 30, u)
    outlier = x.clone()
    outlier[:, :, 3] = 1e4
    assert_same_bits(outlier, u)


def test_threads_change_nothing():
    x, u = torch.randn(40, 49, 512), _rotation(512)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            assert_same_bits(x, u, WAYS[:1])
    finally:
        torch.set_num_threads(before)


def test_it_stops_where_too_much_is_left():
    """More images than are rounded at a time, and pixels all alike: the float tiles take over."""
    x = torch.randn(90, 1, 1024).expand(90, 49, 1024).contiguous()
    assert x.numel() * 6 > 2 * (16 << 20) * 0.8
    assert_same_bits(x, _rotation(1024), WAYS[:1])


def test_the_best_kernels_have_a_name_and_a_gain():
    assert _native.screen_name() in ("", "avx2", "avx512vnni")
    if _native.screen_name():
        assert _native.screen_gain() > 0
