"""Screening: similarity_pool by way of 16-bit integers gives the bits of the float tiles."""

from __future__ import annotations

import pytest
import torch

from infodisent.backends.native import module as _native
from infodisent.contract import empty_best

pytestmark = pytest.mark.skipif(
    _native.objection() is not None or not _native.is_fused(),
    reason="no compiled similarity_pool for this processor",
)

NEVER, ALWAYS, PLAIN = 1, 2, 3
WAYS = [(0, ALWAYS), (1, ALWAYS), (2, ALWAYS), (0, PLAIN)]
"""(instructions, screen): the best kernels there are, AVX2, AVX-512, and plain arithmetic."""
SCREENED = ("cosine", "l2")


def pooled(x, v, similarity, valid=None, instructions=0, screen=NEVER):
    best = empty_best(len(x), len(v), torch.float32, "cpu")
    _native.similarity_pool(x, v, valid, (similarity,), (best,), instructions, screen)
    return best


def assert_same_bits(x, v, valid=None, ways=WAYS):
    for similarity in SCREENED:
        wanted = pooled(x, v, similarity, valid)
        ran = 0
        for way in ways:
            try:
                result = pooled(x, v, similarity, valid, *way)
            except ValueError as error:
                if "no such instructions" not in str(error):  # of this processor
                    raise
                continue
            ran += 1
            assert torch.equal(result.index, wanted.index), (similarity, way)
            nan = result.value.isnan() & wanted.value.isnan()  # which NaN it is may differ
            bits = result.value.view(torch.int32) == wanted.value.view(torch.int32)
            assert (bits | nan).all(), (similarity, way)
        assert ran >= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("batch", "pixels", "channels", "count"),
    [(3, 49, 128, 130), (2, 50, 33, 64), (1, 7, 513, 17), (5, 1, 1, 1), (2, 13, 1030, 65)],
)
@pytest.mark.parametrize("hidden", [False, True])
def test_bits_of_the_float_tiles(batch, pixels, channels, count, dtype, hidden):
    torch.manual_seed(channels)
    x = torch.randn(batch, pixels, channels).to(dtype)
    valid = None
    if hidden:
        valid = torch.rand(batch, pixels) < 0.5
        valid[:, -1] = True
        x = x.masked_fill(~valid[:, :, None], torch.nan)
    assert_same_bits(x, torch.randn(count, channels), valid)
    planes = x.mT.contiguous().mT
    assert_same_bits(planes, torch.randn(count, channels).abs(), valid, WAYS[:1])


@pytest.mark.parametrize("scale", [0.0, 1e-40, 1e-20, 1e-14, 1e-5, 1e12, 1e14, 1e20])
def test_any_scale(scale):
    torch.manual_seed(0)
    x, v = torch.randn(2, 20, 130), torch.randn(70, 130)
    assert_same_bits(x * scale, v)
    assert_same_bits(x, v * scale)
    assert_same_bits(x * scale, v * scale)
    every_other = torch.tensor([1.0, scale]).repeat(35)[:, None]
    assert_same_bits(x, v * every_other)
    assert_same_bits(x * every_other[:20], v)
    assert_same_bits(x * every_other[:20], v * every_other)


def test_pixels_that_are_equal_or_nearly_so():
    torch.manual_seed(0)
    v, one = torch.randn(200, 128), torch.randn(128)
    assert_same_bits(one.expand(3, 49, 128).contiguous(), v)  # every pixel ties: all by the tiles
    near = one.repeat(3, 49, 1)
    near += torch.randn_like(near) * 1e-7 * near.abs()  # differences of one rounding
    assert_same_bits(near, v)
    pairs = torch.randn(3, 49, 128)  # two that tie, nearly tie or differ a little, of each kind
    pairs[:, 3::4] = pairs[:, 2::4][:, : pairs[:, 3::4].shape[1]]
    pairs[:, 1::4] = pairs[:, 0::4][:, : pairs[:, 1::4].shape[1]] * (1 + 1e-6)
    assert_same_bits(pairs, v)
    assert_same_bits(pairs, pairs[1].contiguous())  # prototypes are pixels: distances of 0
    assert_same_bits(100 + pairs, 100 + pairs[1])  # norms far above the distances


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e30, 3e38])
def test_numbers_without_a_bound(bad):
    torch.manual_seed(0)
    x, v = torch.randn(2, 20, 130), torch.randn(70, 130)
    x[0, 4, 2] = x[0, 9, 1] = x[1, :, 7] = bad
    assert_same_bits(x, v)
    v[3, 5] = v[65, 0] = bad
    assert_same_bits(x, v)
    assert_same_bits(torch.randn(2, 20, 130), v)


def test_screening_that_is_given_up_in_the_middle():
    """Many images tie everywhere: the tiles take them, and then the others, too."""
    torch.manual_seed(0)
    x = torch.randn(90, 16, 64)
    x[20:70] = x[20:70, :1]
    assert_same_bits(x, torch.randn(129, 64), ways=WAYS[:1])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bits_depend_neither_on_threads_nor_on_the_batch(threads):
    torch.manual_seed(1)
    x, v = torch.rand(33, 49, 64), torch.rand(150, 64)
    x[11:25, 10:] = x[11:25, :1]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        best = pooled(x, v, "l2", screen=ALWAYS)
    finally:
        torch.set_num_threads(before)
    for image in (0, 12, 32):
        one = pooled(x[image : image + 1], v, "l2", screen=ALWAYS)
        assert torch.equal(one.index[0], best.index[image])
        assert torch.equal(one.value[0], best.value[image])


def test_two_views_and_products_are_not_screened():
    x, v = torch.randn(2, 9, 5), torch.randn(4, 5)
    for views in (("dot",), ("l2", "cosine")):
        both = []
        for screen in (NEVER, ALWAYS):
            best = tuple(empty_best(2, 4, torch.float32, "cpu") for _ in views)
            _native.similarity_pool(x, v, None, views, best, 0, screen)
            both.append(best)
        for one, other in zip(*both, strict=True):
            assert torch.equal(one.value, other.value)
            assert torch.equal(one.index, other.index)
