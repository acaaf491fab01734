"""Triton kernels of `softmax_alignment`: three log-sum-exps of every pixel, and their gradient.

Of a pixel with scores a and b the loss is ``-log sum_m softmax(a)_m softmax(b)_m``, which is
``lse(a) + lse(b) - lse(a + b)``. The sum ``a + b`` is taken of what is left above the largest a and
the largest b, so that large scores do not take digits from it: the largest are found by one pass
over the pixel, and the sums of exponentials by another, which finds its scores in a cache.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .epilogues.normalizer import NEGATIVE, level, merged, of_some


@triton.jit
def _scores(
    x,  # any dtype
    at,  # [N, 1] pixels
    channel,  # [1, K]
    stride,  # from one channel to the next
    mask,  # [N, K]
):
    """Some scores of some pixels in float32, -Inf where there are none."""
    return tl.load(x + (at + channel.to(tl.int64) * stride), mask=mask, other=NEGATIVE).to(
        tl.float32
    )


@triton.jit
def _pixels(
    P,
    BLOCK_P: tl.constexpr,
):
    """Image of a program, and its pixels, which are P or above where there are none."""
    across = tl.cdiv(P, BLOCK_P)
    image = (tl.program_id(0) // across).to(tl.int64)
    return image, tl.program_id(0) % across * BLOCK_P + tl.arange(0, BLOCK_P)


@triton.jit
def _at(
    image,
    pixel,  # [N]
    image_stride,
    pixel_stride,
):
    """Where pixels of an image begin, [N, 1]."""
    return image * image_stride + pixel[:, None].to(tl.int64) * pixel_stride


@triton.jit
def alignment_kernel(
    first,  # [B, P, C], any strides and dtype
    second,  # likewise
    loss,  # [B P] float32
    statistics,  # [6, B P] float32
    rows,  # B P
    P,
    C,
    first_image,  # elements from one to the next
    first_pixel,
    first_channel,
    second_image,
    second_pixel,
    second_channel,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The loss of every pixel, and what its gradient needs: one program some pixels."""
    image, pixel = _pixels(P, BLOCK_P)
    inside = pixel < P
    a_at = _at(image, pixel, first_image, first_pixel)
    b_at = _at(image, pixel, second_image, second_pixel)
    a_top = tl.full((BLOCK_P, BLOCK_C), NEGATIVE, tl.float32)
    b_top = tl.full((BLOCK_P, BLOCK_C), NEGATIVE, tl.float32)
    for k in range(0, C, BLOCK_C):
        channel = k + tl.arange(0, BLOCK_C)[None, :]
        mask = inside[:, None] & (channel < C)
        # NaN is no maximum here; it stays in the sums
        a_top = tl.maximum(a_top, _scores(first, a_at, channel, first_channel, mask))
        b_top = tl.maximum(b_top, _scores(second, b_at, channel, second_channel, mask))
    a_most, b_most = tl.max(a_top, 1), tl.max(b_top, 1)
    a_sum = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    b_sum = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    top = tl.full((BLOCK_P,), NEGATIVE, tl.float32)
    total = tl.zeros((BLOCK_P,), tl.float32)
    for k in range(0, C, BLOCK_C):
        channel = k + tl.arange(0, BLOCK_C)[None, :]
        mask = inside[:, None] & (channel < C)
        a = _scores(first, a_at, channel, first_channel, mask) - a_most[:, None]
        b = _scores(second, b_at, channel, second_channel, mask) - b_most[:, None]
        a_sum += tl.exp(a)
        b_sum += tl.exp(b)
        other, some = of_some(a + b, 1, 1.0)
        top, total = merged(top, total, other, some, 1.0)
    top = level(top)
    a_total, b_total = tl.sum(a_sum, 1), tl.sum(b_sum, 1)
    to = statistics + (image * P + pixel)
    tl.store(to, a_most, mask=inside)
    tl.store(to + rows, a_total, mask=inside)
    tl.store(to + tl.cast(rows, tl.int64) * 2, b_most, mask=inside)
    tl.store(to + tl.cast(rows, tl.int64) * 3, b_total, mask=inside)
    tl.store(to + tl.cast(rows, tl.int64) * 4, top, mask=inside)
    tl.store(to + tl.cast(rows, tl.int64) * 5, total, mask=inside)
    aligned = tl.log(a_total) + tl.log(b_total) - tl.log(total) - top
    tl.store(loss + (image * P + pixel), aligned, mask=inside)


@triton.jit
def alignment_gradient_kernel(
    grad,  # [B P] float32
    first,  # [B, P, C], any strides and dtype
    second,  # likewise
    statistics,  # [6, B P] float32
    d_first,  # [B, P, C], any strides and dtype: is written; or None
    d_second,  # likewise
    rows,  # B P
    P,
    C,
    first_image,  # elements from one to the next
    first_pixel,
    first_channel,
    second_image,
    second_pixel,
    second_channel,
    d_first_image,
    d_first_pixel,
    d_first_channel,
    d_second_image,
    d_second_pixel,
    d_second_channel,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """``grad (softmax(a) - softmax(a + b))``, and of b, each where it is asked for."""
    image, pixel = _pixels(P, BLOCK_P)
    inside = pixel < P
    a_at = _at(image, pixel, first_image, first_pixel)
    b_at = _at(image, pixel, second_image, second_pixel)
    row = image * P + pixel
    own = tl.load(grad + row, mask=inside, other=0.0)
    of = statistics + row
    a_most = tl.load(of, mask=inside, other=0.0)[:, None]
    a_share = own / tl.load(of + rows, mask=inside, other=1.0)
    b_most = tl.load(of + tl.cast(rows, tl.int64) * 2, mask=inside, other=0.0)[:, None]
    b_share = own / tl.load(of + tl.cast(rows, tl.int64) * 3, mask=inside, other=1.0)
    top = tl.load(of + tl.cast(rows, tl.int64) * 4, mask=inside, other=0.0)[:, None]
    share = own / tl.load(of + tl.cast(rows, tl.int64) * 5, mask=inside, other=1.0)
    for k in range(0, C, BLOCK_C):
        channel = k + tl.arange(0, BLOCK_C)[None, :]
        mask = inside[:, None] & (channel < C)
        a = _scores(first, a_at, channel, first_channel, mask) - a_most
        b = _scores(second, b_at, channel, second_channel, mask) - b_most
        both = tl.exp(a + b - top) * share[:, None]
        if d_first is not None:
            to = _at(image, pixel, d_first_image, d_first_pixel)
            to += channel.to(tl.int64) * d_first_channel
            d = tl.exp(a) * a_share[:, None] - both
            tl.store(d_first + to, d.to(d_first.dtype.element_ty), mask=mask)
        if d_second is not None:
            to = _at(image, pixel, d_second_image, d_second_pixel)
            to += channel.to(tl.int64) * d_second_channel
            d = tl.exp(b) * b_share[:, None] - both
            tl.store(d_second + to, d.to(d_second.dtype.element_ty), mask=mask)
