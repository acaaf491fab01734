"""Triton kernels of the gradients of `rotate_pool`.

dY, the gradient of the rotated map, has at most two entries an image and channel: at the pixel
where the channel is largest and at the one where it is smallest. Both gradients are dense products
with dY, ``dU = sum_b dY_b X_b^T`` and ``dX_b = U^T dY_b``. dY is never in global memory: each
program makes the tile it multiplies with, by comparing the winners' indices with the numbers of the
pixels.

Pieces. An image is cut into BLOCKS pieces of PIXELS rows (pixels), the last of which may be part
empty; piece q is block ``q % BLOCKS`` of image ``q // BLOCKS``. A step of dU has PIECES of them,
and a tile of dX several: 128 rows are 16 pieces of 8, of which 49 pixels make seven. So steps and
tiles go on across the borders of images, and few rows are empty. A step of dU has pixels of IMAGES
images at most: the winners of these are loaded, and each piece takes those of its own. Were pieces
of one row, none would be empty; but that choice is made for a whole piece at once, and made for
every row it would take longer than what is empty (`infodisent.kernels.tiles.rotate_pool_backward`).

What is not finite. ``0 · Inf`` is NaN, so one Inf in a map would reach through dY's zeros channels
that did not choose it. But it cannot hide: NaN stays in the sum. A tile whose sum is finite is
right, and one whose sum is not is computed again by the program, from the winners alone, in float32
and in a fixed order. That costs nothing in memory and no pass over x. It is slow where it is needed
(every winner's row is read, for each program), and a sum that overflows takes it for nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .product import divisible
from .winners_kernels import multiply


@triton.jit
def _inverse(power):
    """1 / power, exactly, of powers of two from 2^-126 to 2^126; a division is not, on GPUs."""
    return (0x7F000000 - power.to(tl.int32, bitcast=True)).to(tl.float32, bitcast=True)


@triton.jit
def _finite(tile):
    """Whether all of a tile [M, N] is finite."""
    wrong = (tl.abs(tile) < float("inf")).to(tl.int32) ^ 1
    return tl.max(wrong) == 0  # of both dimensions at once: what Triton 3.6 compiles for sm_100


@triton.jit(do_not_specialize=["B", "P", "images"])
def grad_u_kernel(
    grad_pos,  # [B, C] float32
    grad_neg,  # [B, C] float32
    pos_index,  # [B, C] int32, -1: no winner
    neg_index,  # [B, C] int32
    scales,  # [C] float32 powers of two, or None: 1
    x,  # [B, P, C], the channels of a pixel contiguous
    out,  # [splits, C, C]
    B,
    P,
    C,
    image_stride,
    pixel_stride,
    images,  # of one split
    MULTIPLE: tl.constexpr,
    PRODUCTS: tl.constexpr,
    EMULATE: tl.constexpr,
    PIXELS: tl.constexpr,
    BLOCKS: tl.constexpr,
    PIECES: tl.constexpr,
    IMAGES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr,
):
    """``out[s, c, k] = sum of grad[b, c] x[b, index[b, c], k]``, over b of split s and both sides.

    scales[c] goes into the gradients of channel c before they are rounded, and out of the sum.
    """
    C = divisible(C, MULTIPLE)
    image_stride = divisible(image_stride, MULTIPLE)
    pixel_stride = divisible(pixel_stride, MULTIPLE)
    down = tl.cdiv(C, BLOCK_M)
    across = tl.cdiv(C, BLOCK_N)
    # the tiles of one split first: they read the same images
    tile = tl.program_id(0) % (down * across)
    split = tl.program_id(0) // (down * across)
    i, j = tile % down, tile // down
    first = split * images
    last = tl.minimum(first + images, B)

    c = i * BLOCK_M + tl.arange(0, BLOCK_M)
    k = j * BLOCK_N + tl.arange(0, BLOCK_N)
    K: tl.constexpr = PIECES * PIXELS
    LENGTH: tl.constexpr = BLOCKS * PIXELS  # rows of an image, with the empty ones
    piece = tl.arange(0, PIECES)
    # the first rows of all pieces, then the second ones: so few of the pieces are a thread's
    inner = tl.arange(0, K) % PIECES * PIXELS + tl.arange(0, K) // PIECES
    x_at = inner[:, None] * pixel_stride + k[None, :]
    if scales is not None:
        scale = tl.load(scales + c, mask=c < C, other=1.0)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for q in range(first * BLOCKS, last * BLOCKS, PIECES):
        b = tl.cast(q // BLOCKS, tl.int64)
        p = q % BLOCKS * PIXELS
        # rows and pieces, counted from the first pixel of image b; then how many images after it
        row = p + inner
        top = p + piece * PIXELS
        at = x + (b * image_stride + tl.cast(p, tl.int64) * pixel_stride) + x_at
        inside = row < P
        image = piece * 0
        if IMAGES > 1:
            beyond = _images_before(row, LENGTH, IMAGES)
            at += (beyond * (image_stride - LENGTH * pixel_stride))[:, None]
            inside = (row - beyond * LENGTH < P) & (beyond < last - b)
            image = _images_before(top, LENGTH, IMAGES)
            top -= image * LENGTH
        # what is no channel has gradient 0, at whichever pixel
        pos = _of_images(pos_index, b, c, image, last, C, 0, IMAGES)
        neg = _of_images(neg_index, b, c, image, last, C, 0, IMAGES)
        g_pos = _of_images(grad_pos, b, c, image, last, C, 0.0, IMAGES)
        g_neg = _of_images(grad_neg, b, c, image, last, C, 0.0, IMAGES)
        if scales is not None:
            g_pos *= scale[None, :]
            g_neg *= scale[None, :]
        operand = tl.load(at, mask=inside[:, None] & (k < C)[None, :], other=0.0)
        # Made as pixels x channels: neighbouring threads have neighbouring channels, and each of
        # them the indices of few. As channels x pixels it would load those of 32 for a column.
        pixel = tl.arange(0, PIXELS)[:, None] + top[None, :]
        total = multiply(
            total, pos[None, :, :], neg[None, :, :], g_pos[None, :, :], g_neg[None, :, :],
            pixel[:, :, None], operand, BLOCK_M, K, True, PRODUCTS, EMULATE,
        )  # fmt: skip

    out += split.to(tl.int64) * C * C + (i * BLOCK_M).to(tl.int64) * C + j * BLOCK_N
    right = tl.arange(0, BLOCK_N)[None, :]
    if _finite(total):
        if scales is not None:
            total *= _inverse(scale)[:, None]
        below = tl.arange(0, BLOCK_M)[:, None]
        mask = (below < C - i * BLOCK_M) & (right < C - j * BLOCK_N)
        tl.store(out + (below * C + right), total.to(out.dtype.element_ty), mask=mask)
    else:
        for top in range(0, BLOCK_M, ROWS):
            below = top + tl.arange(0, ROWS)
            mask = (below < C - i * BLOCK_M)[:, None] & (right < C - j * BLOCK_N)
            again = tl.zeros((ROWS, BLOCK_N), tl.float32)
            for b in range(first, last):
                row_c = tl.cast(b, tl.int64) * C + i * BLOCK_M + below
                source = x + tl.cast(b, tl.int64) * image_stride
                again += _winners(pos_index, grad_pos, row_c, source, pixel_stride, k, mask)
                again += _winners(neg_index, grad_neg, row_c, source, pixel_stride, k, mask)
            tl.store(out + (below[:, None] * C + right), again.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _images_before(row, LENGTH: tl.constexpr, IMAGES: tl.constexpr):
    """``row // LENGTH`` of what is less than IMAGES, by comparisons: no multiplication."""
    count = (row >= LENGTH).to(tl.int32)
    for i in tl.static_range(2, IMAGES):
        count += (row >= i * LENGTH).to(tl.int32)
    return count


@triton.jit
def _of_images(
    data,  # [B, C]
    b,
    c,  # [M] channels
    image,  # [PIECES] 0 <= image < IMAGES, counted from b
    last,
    C,
    OTHER: tl.constexpr,  # where there is no such channel or image
    IMAGES: tl.constexpr,
):
    """What each piece has of its own image, [PIECES, M], or [1, M] where it is the same for all."""
    value = tl.load(data + b * C + c, mask=c < C, other=OTHER)[None, :]
    for i in tl.static_range(1, IMAGES):
        end = tl.where(b + i < last, C, 0)
        next_one = tl.load(data + (b + i) * C + c, mask=c < end, other=OTHER)
        value = tl.where((image == i)[:, None], next_one[None, :], value)
    return value


@triton.jit
def _winners(
    index,  # [B, C]
    grad,  # [B, C]
    at,  # [R] offsets into both
    x,  # [P, C], one image
    pixel_stride,
    k,  # [N] columns
    mask,  # [R, N]
):
    """``grad x[index]`` of R channels and N columns, 0 where there is no winner. [R, N]."""
    inside = tl.max(mask.to(tl.int32), 1) != 0
    p = tl.load(index + at, mask=inside, other=-1)
    g = tl.load(grad + at, mask=p >= 0, other=0.0)
    rows = p.to(tl.int64)[:, None] * pixel_stride
    return g[:, None] * tl.load(x + rows + k[None, :], mask=mask & (p >= 0)[:, None], other=0.0).to(
        tl.float32
    )


@triton.jit(do_not_specialize=["B", "P"])
def grad_x_kernel(
    grad_pos,  # [B, C] float32
    grad_neg,  # [B, C] float32
    pos_index,  # [B, C] int32, -1: no winner
    neg_index,  # [B, C] int32
    scales,  # [B] float32 powers of two, or None: 1
    u,  # [C, C], row-major
    out,  # [B, P, C], contiguous
    B,
    P,
    C,
    MULTIPLE: tl.constexpr,
    PRODUCTS: tl.constexpr,
    EMULATE: tl.constexpr,
    PIXELS: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ROWS: tl.constexpr,
):
    """``out[b, p, k] = sum of grad[b, c] u[c, k]``, over both sides' c whose winner is p.

    scales[b] goes into the gradients of image b before they are rounded, and out of the sum.
    """
    PIECES: tl.constexpr = BLOCK_M // PIXELS
    C = divisible(C, MULTIPLE)
    across = tl.cdiv(C, BLOCK_N)
    # the columns of one tile of rows first: they read the same indices, and u stays in L2
    start = tl.program_id(0) // across * PIECES
    j = tl.program_id(0) % across

    k = j * BLOCK_N + tl.arange(0, BLOCK_N)
    channel = tl.arange(0, BLOCK_K)
    q = start + tl.arange(0, PIECES)
    b = (q // BLOCKS).to(tl.int64)
    # the first rows of all pieces, then the second ones: so few of the pieces are a thread's
    p = tl.arange(0, PIXELS)[:, None] + (q % BLOCKS * PIXELS)[None, :]
    if scales is not None:
        scale = tl.load(scales + b, mask=b < B, other=1.0)
    at = b[:, None] * C + channel[None, :]
    u_at = channel[:, None] * C + k[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for done in range(0, C, BLOCK_K):
        there = (b < B)[:, None] & (channel < C - done)[None, :]
        # what is no channel has gradient 0, at whichever pixel
        pos = tl.load(pos_index + done + at, mask=there, other=0)
        neg = tl.load(neg_index + done + at, mask=there, other=0)
        g_pos = tl.load(grad_pos + done + at, mask=there, other=0.0)
        g_neg = tl.load(grad_neg + done + at, mask=there, other=0.0)
        if scales is not None:
            g_pos *= scale[:, None]
            g_neg *= scale[:, None]
        operand = tl.load(
            u + u_at, mask=(channel < C - done)[:, None] & (k < C)[None, :], other=0.0
        )
        total = multiply(
            total, pos[None, :, :], neg[None, :, :], g_pos[None, :, :], g_neg[None, :, :],
            p[:, :, None], operand, BLOCK_M, BLOCK_K, False, PRODUCTS, EMULATE,
        )  # fmt: skip
        u += tl.cast(C, tl.int64) * BLOCK_K

    u -= tl.cast(C, tl.int64) * BLOCK_K * tl.cdiv(C, BLOCK_K)
    if _finite(total):
        row = tl.arange(0, BLOCK_M)
        q_row = start + row % PIECES
        b_row = (q_row // BLOCKS).to(tl.int64)
        p_row = q_row % BLOCKS * PIXELS + row // PIECES
        inside = (p_row < P) & (b_row < B)
        if scales is not None:
            row_scale = tl.load(scales + b_row, mask=inside, other=1.0)
            total *= _inverse(row_scale)[:, None]
        target = out + (b_row * P + p_row)[:, None] * C + k[None, :]
        mask = inside[:, None] & (k < C)[None, :]
        tl.store(target, total.to(out.dtype.element_ty), mask=mask)
    else:
        for top in range(0, BLOCK_M, ROWS):
            q_top = start + top // PIXELS
            b_top = (q_top // BLOCKS).to(tl.int64)
            p_top = q_top % BLOCKS * PIXELS + top % PIXELS + tl.arange(0, ROWS)
            inside = p_top < tl.where(b_top < B, P, 0)
            again = tl.zeros((ROWS, BLOCK_N), tl.float32)
            for c in range(0, C):
                row = u + tl.cast(c, tl.int64) * C + k
                again += _channel(pos_index, grad_pos, b_top * C + c, p_top, inside, row, k < C)
                again += _channel(neg_index, grad_neg, b_top * C + c, p_top, inside, row, k < C)
            target = out + (b_top * P + p_top)[:, None] * C + k[None, :]
            mask = inside[:, None] & (k < C)[None, :]
            tl.store(target, again.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _channel(
    index,  # [B, C]
    grad,  # [B, C]
    at,  # offset into both
    p,  # [R] pixels
    inside,  # [R]
    u,  # [N] addresses of the channel's row
    mask,  # [N]
):
    """``grad u`` in the row of the channel's winner, if that is one of R, and else 0. [R, N]."""
    chosen = inside & (p == tl.load(index + at + p * 0, mask=inside, other=-1))
    g = tl.load(grad + at + p * 0, mask=chosen, other=0.0)
    value = tl.load(u, mask=mask, other=0.0).to(tl.float32)
    return tl.where(chosen[:, None], g[:, None] * value[None, :], 0.0)


@triton.jit(do_not_specialize=["kept", "summed"])
def scales_kernel(
    grad_pos,  # [B, C] float32
    grad_neg,  # [B, C] float32
    pos_index,  # [B, C] int32
    neg_index,  # [B, C] int32
    out,  # [kept] float32
    kept,  # B and C in one order or the other
    summed,
    kept_stride,
    summed_stride,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
):
    """Powers of two that bring the largest finite gradients of rows or columns into [2^13, 2^14).

    Two of them may meet in one pixel, and float16 ends below 2^16. Those of no winner are left out.
    """
    outer = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inner = tl.arange(0, STEP)
    base = outer.to(tl.int64)[:, None] * kept_stride
    most = tl.zeros((BLOCK, STEP), tl.float32)
    for start in range(0, summed, STEP):
        at = base + (start + inner).to(tl.int64)[None, :] * summed_stride
        mask = (outer < kept)[:, None] & (inner < summed - start)[None, :]
        pos = tl.abs(tl.load(grad_pos + at, mask=mask, other=0.0))
        neg = tl.abs(tl.load(grad_neg + at, mask=mask, other=0.0))
        has_pos = tl.load(pos_index + at, mask=mask, other=-1) >= 0
        has_neg = tl.load(neg_index + at, mask=mask, other=-1) >= 0
        most = tl.maximum(most, tl.where(has_pos & (pos < float("inf")), pos, 0.0))
        most = tl.maximum(most, tl.where(has_neg & (neg < float("inf")), neg, 0.0))
    exponent = (tl.max(most, 1).to(tl.int32, bitcast=True) >> 23) - 127
    # both the scale and what undoes it are normal numbers: 13 - 127 is the least
    power = tl.minimum(13 - exponent, 126)
    tl.store(out + outer, ((power + 127) << 23).to(tl.float32, bitcast=True), mask=outer < kept)


@triton.jit(do_not_specialize=["splits"])
def add_kernel(
    parts,  # [splits, C, C] float32
    out,  # [C, C]
    splits,
    C,
    BLOCK: tl.constexpr,
):
    """``out = sum_s parts[s]``, in the order of s."""
    size = tl.cast(C, tl.int64) * C
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for _ in range(splits):
        total += tl.load(parts + at, mask=at < size, other=0.0)
        parts += size
    tl.store(out + at, total.to(out.dtype.element_ty), mask=at < size)
