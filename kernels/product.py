"""The main loop of the pools on the GPU: a tile of ``u x``, in accumulators in registers.

u is [M, C]: M rows (the output channels of `rotate_pool`, where M = C; the prototypes of
`similarity_pool`) of C numbers, the depth of the product. A tile is ``TILES.channels`` rows by
``TILES.columns`` columns, and a column is a pixel: so a pool runs along a row, inside a warp. The
columns are in one to three accumulators side by side, ``TILES.widths``: the *totals*, a tuple of
[rows, columns] float32 tensors. What is done with them is the business of an epilogue
(`infodisent.kernels.epilogues`). Two kinds of tile:

- whole images side by side (``TILES.images`` > 0): 5 x 49 = 245 of 256 columns, 196 of 128 + 64 +
  16. Where an image begins and ends is known when the kernel is compiled;
- columns across the borders of images (``TILES.images`` = 0), for maps of any size. What the tiles
  of an image have is merged by the epilogue.

Columns that belong to no image repeat the last pixel, and rows beyond M the last row: the loads
need no mask, and an epilogue drops what comes of them.

A kernel that multiplies is, in this order: `place`, `multiply`, and then its epilogue; where the
steps of a tile are split, `last_part` says which program goes on, with `sum_of_parts`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor


class Pixels(NamedTuple):
    """A map as operand: rows of contiguous channels.

    Attributes:
        data: ``[parts, B, P, C]``, high part first.
        part, image, pixel: elements from one to the next.
    """

    data: Tensor
    part: int
    image: int
    pixel: int


class Vectors(NamedTuple):
    """What pixels are multiplied with: rows of contiguous columns.

    Attributes:
        data: ``[parts, M, C]``, high part first.
        part, row: elements from one to the next.
        scale: ``[M]`` float32: row m of `data` has been divided by ``scale[m]``; or None.
    """

    data: Tensor
    part: int
    row: int
    scale: Tensor | None


class Parts(NamedTuple):
    """Scratch of tiles whose steps are split; None twice where they are not.

    Attributes:
        sums: ``[tiles, split, channels * columns]`` float32.
        arrived: ``[tiles]`` int32, 0 before.
    """

    sums: Tensor | None
    arrived: Tensor | None


@dataclass(frozen=True)
class Arithmetic:
    """How the kernel multiplies; a constant of its compilation.

    Attributes:
        terms: products of parts that are added up, 1 to 3, see `multiply`.
        run: steps after which the sum of the matrix unit goes to one in float32; 0: never. See
            `infodisent.kernels.precision.RUN`.
        precision: of the products, ``input_precision`` of ``tl.dot``.
        ragged: whether the channels are no multiple of a step along K.
        multiple: what divides the channels and all strides, see `divisible`.
        emulated: whether Triton's interpreter runs the kernel.
    """

    terms: int
    run: int
    precision: str
    ragged: bool
    multiple: int
    emulated: bool


def common_multiple(*numbers: int) -> int:
    """The largest of 16, 8, 4 and 1 that divides all."""
    return next(m for m in (16, 8, 4, 1) if all(n % m == 0 for n in numbers))


@triton.jit
def divisible(
    n,
    MULTIPLE: tl.constexpr,  # `common_multiple` of all that go into the same addresses
):
    """n, which MULTIPLE divides, so that the compiler knows: it looks for 16 alone by itself.

    Else rows of 888 channels, say, are read number by number, past the asynchronous copies.
    """
    if MULTIPLE == 1 or MULTIPLE == 16:
        return n
    return n // MULTIPLE * MULTIPLE


@triton.jit
def place(
    tile,
    B,
    M,
    P,
    TILES: tl.constexpr,  # `infodisent.kernels.tiles.rotate_pool.Tiles`
):
    """Number of a tile as (row, column): down all rows of a group of columns, then the next group.

    Programs that run together share rows of u and of x in L2, and images are done early.
    """
    down = tl.cdiv(M, TILES.channels)
    across = tl.cdiv(B, TILES.images) if TILES.images > 0 else tl.cdiv(B * P, TILES.columns)
    first = tile // (TILES.group * down) * TILES.group
    width = tl.minimum(across - first, TILES.group)
    rest = tile - first * down
    return rest // width, first + rest % width


@triton.jit
def _add_product(
    total,  # [M, N] float32
    a,  # [M, K]
    b_at,  # [N, K] pointers
    left,
    ARITHMETIC: tl.constexpr,
):
    """``total + a b^T``; of b only the first `left` of K where channels are ragged, else all."""
    b = _load(b_at, left, ARITHMETIC.ragged)
    if ARITHMETIC.emulated:  # Triton's interpreter multiplies the bits of bfloat16 as integers
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b.T, total, input_precision=ARITHMETIC.precision)


@triton.jit
def _load(
    at,  # [M, K] pointers
    left,
    RAGGED: tl.constexpr,
):
    """What the pointers point at; with RAGGED only the first `left` of K, else 0."""
    if RAGGED:
        inner = tl.arange(0, at.shape[1])[None, :]
        return tl.load(at, mask=inner < left, other=0.0)
    return tl.load(at)


@triton.jit
def _columns_at(
    column,  # [N], counted from the first image's first pixel
    x_image,
    x_pixel,
    P,
    last,
):
    """Offsets of the pixels of some columns [N], from the first image on."""
    column = tl.minimum(column, last)
    return column // P * x_image + column % P * x_pixel


@triton.jit
def _zeros(
    n: tl.constexpr,
    TILES: tl.constexpr,
):
    """Accumulator n [M, N] float32 at the start."""
    M: tl.constexpr = TILES.channels  # Triton 3.6 takes no plain number in a shape
    N: tl.constexpr = TILES.widths[n]
    return tl.zeros((M, N), tl.float32)


@triton.jit
def _all_zeros(
    TILES: tl.constexpr,
):
    """All accumulators at the start."""
    zeros = ()
    for n in tl.static_range(len(TILES.widths)):
        zeros = zeros + (_zeros(n, TILES),)  # noqa: RUF005  (no starred tuples)
    return zeros


@triton.jit
def _add(
    sums,  # one to three of [M, N] float32
    totals,  # as many
    TILES: tl.constexpr,
):
    """The sum of two tuples of accumulators, rounded to nearest."""
    added = ()
    for n in tl.static_range(len(TILES.widths)):
        added = added + (sums[n] + totals[n],)  # noqa: RUF005  (no starred tuples)
    return added


@triton.jit
def multiply(
    x,  # Pixels: [parts, B, P, C]
    u,  # Vectors: [parts, M, C]
    i,
    j,
    part,
    B,
    M,
    C,
    P,
    TILES: tl.constexpr,
    ARITHMETIC: tl.constexpr,
):
    """Totals of tile (i, j), over the steps of one part of ``TILES.split``."""
    C = divisible(C, ARITHMETIC.multiple)
    x_image = divisible(x.image, ARITHMETIC.multiple)
    x_pixel = divisible(x.pixel, ARITHMETIC.multiple)
    u_row = divisible(u.row, ARITHMETIC.multiple)
    if TILES.images > 0:
        first = j * TILES.images
        skip = 0
        last = tl.minimum(TILES.images, B - first) * P - 1
    else:
        first = j * TILES.columns // P
        skip = j * TILES.columns - first * P
        last = (B - first) * P - 1
    inner = tl.arange(0, TILES.block_k)[None, :]
    row = tl.minimum(tl.arange(0, TILES.channels), M - 1 - i * TILES.channels)
    # 64-bit addresses for the tile and 32-bit offsets in it: half the registers
    x_corner = x.data + first.to(tl.int64) * x_image
    u_corner = u.data + i.to(tl.int64) * TILES.channels * u_row
    u_at = u_corner + (row[:, None] * u_row + inner)
    x_at = ()
    for n in tl.static_range(len(TILES.widths)):
        column = tl.arange(0, TILES.widths[n]) + (skip + TILES.starts[n])
        at = _columns_at(column, x_image, x_pixel, P, last)
        x_at = x_at + (x_corner + (at[:, None] + inner),)  # noqa: RUF005  (no starred tuples)
    totals = _all_zeros(TILES)
    sums = _all_zeros(TILES)
    # A product of parts is one long product, the small terms first: high u by low x if terms are 3,
    # low u by high x if they are 2 or 3, high u by high x. So it waits for no product before.
    steps = tl.cdiv(C, TILES.block_k)
    start = 0
    end = steps * ARITHMETIC.terms
    if TILES.split > 1:
        length = tl.cdiv(end, TILES.split)
        start = part * length
        end = tl.minimum(start + length, end)
    for step in range(start, end):
        k = step * TILES.block_k
        u_k = k
        x_k = k
        if ARITHMETIC.terms > 1:
            term = (step >= steps).to(tl.int32)
            if ARITHMETIC.terms == 3:
                term += (step >= 2 * steps).to(tl.int32)
            k -= term * steps * TILES.block_k
            u_k = k + (term == ARITHMETIC.terms - 2).to(tl.int32) * divisible(
                u.part, ARITHMETIC.multiple
            )
            x_k = k
            if ARITHMETIC.terms == 3:
                x_k = k + (term == 0).to(tl.int32) * divisible(x.part, ARITHMETIC.multiple)
        a = _load(u_at + u_k, C - k, ARITHMETIC.ragged)
        products = ()
        for n in tl.static_range(len(TILES.widths)):
            total = _add_product(totals[n], a, x_at[n] + x_k, C - k, ARITHMETIC)
            products = products + (total,)  # noqa: RUF005
        totals = products
        if ARITHMETIC.run > 0:  # noqa: SIM102  (known to the compiler)
            # both in one branch: where zeros are chosen apart from it, the accumulators are touched
            # while the matrix unit still works on them, or waited for in every step
            if (step + 1) % ARITHMETIC.run == 0:
                sums = _add(sums, totals, TILES)
                totals = _all_zeros(TILES)
    if ARITHMETIC.run > 0:
        totals = _add(sums, totals, TILES)
    return totals


@triton.jit
def _part_at(
    n: tl.constexpr,
    TILES: tl.constexpr,
):
    """Offsets of accumulator n [M, N] in what a part stores."""
    down = tl.arange(0, TILES.channels)[:, None]
    right = tl.arange(0, TILES.widths[n])[None, :]
    return TILES.channels * TILES.starts[n] + down * TILES.widths[n] + right


@triton.jit
def last_part(
    totals,
    parts,  # Parts
    tile,
    part,
    TILES: tl.constexpr,
):
    """Store one part's totals; whether it is the last of the tile's parts to do so."""
    size = TILES.channels * TILES.columns
    mine = parts.sums + tile.to(tl.int64) * TILES.split * size + part * size
    for n in tl.static_range(len(TILES.widths)):
        tl.store(mine + _part_at(n, TILES), totals[n])
    tl.debug_barrier()  # every thread has written
    return tl.atomic_add(parts.arrived + tile, 1, sem="acq_rel") == TILES.split - 1


@triton.jit
def sum_of_parts(
    parts,  # Parts
    tile,
    TILES: tl.constexpr,
):
    """Totals of a tile that all parts have stored."""
    size = TILES.channels * TILES.columns
    # always in the same order, whoever comes last; past L1, others wrote this
    first = parts.sums + tile.to(tl.int64) * TILES.split * size
    totals = ()
    for n in tl.static_range(len(TILES.widths)):
        at = _part_at(n, TILES)
        total = _zeros(n, TILES)
        for s in range(TILES.split):
            total += tl.load(first + s * size + at, cache_modifier=".cg")
        totals = totals + (total,)  # noqa: RUF005
    return totals
