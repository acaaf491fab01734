"""The Triton kernels of rotate_pool's gradients: values, layouts, and the machine code.

With a GPU the tests run on it. Without one, `test_in_the_interpreter` runs this file again in the
interpreter, where half numbers are multiplied as float32 ones (its bfloat16 product is wrong) and
rounding to bfloat16 cuts digits off.
"""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from infodisent.kernels import rotate_pool_backward as backward
from infodisent.kernels.precision import GRADIENT_OF_HALF
from infodisent.kernels.tiles import rotate_pool_backward as tiles
from infodisent.kernels.tiles.blocks import Block

from infodisent import reference
from infodisent.testing import relative
from tests.kernels import kernel_compile
from tests.kernels.marks import DEVICE, INTERPRETED, compiles, outside, runs
from tests.kernels.rotate_pool_backward_cases import (
    DTYPES,
    check,
    compare,
    exact,
    run,
    winners,
)

SHAPES = [(1, 1, 24), (5, 1, 33), (2, 7, 33), (5, 49, 40), (2, 50, 64), (1, 144, 33), (2, 197, 24)]
SMALL = Block(32, 32, 32, 4, 2)  # many tiles of small matrices


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients(shape, dtype):
    x, u = torch.randn(shape).to(dtype), torch.randn(shape[2], shape[2]).to(dtype)
    check(winners(*shape), x, u)


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("products", backward.PRODUCTS)
def test_every_product(products):
    dtypes = DTYPES[1:] if products in GRADIENT_OF_HALF else DTYPES[:1]
    for dtype in dtypes:
        x, u = torch.randn(3, 7, 33).to(dtype), torch.randn(33, 33).to(dtype)
        check(winners(3, 7, 33), x, u, products)


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("half", DTYPES[1:])
def test_float32_beside_half_is_float32(half):
    for x_dtype, u_dtype in ((half, torch.float32), (torch.float32, half)):
        x, u = torch.randn(3, 49, 33).to(x_dtype), torch.randn(33, 33).to(u_dtype)
        check(winners(3, 49, 33), x, u)


@runs
def test_more_parts_are_more_exact():
    given = winners(5, 7, 32, absent=0)
    x, u = torch.randn(5, 7, 32).bfloat16(), torch.randn(32, 32)
    truth = exact(given, x, u)[1]
    errors = [relative(run(given, x, u, name, need_x=False)[1], truth) for name in GRADIENT_OF_HALF]
    for error, limit in zip(errors, (2**-7, 2**-14, 2**-21)):
        assert error < limit
    assert errors == sorted(errors, reverse=True)


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES)
def test_against_autograd(dtype):
    """Through the formula itself: the indices are those of its forward, the signs autograd's."""
    x = torch.randn(3, 49, 40).to(dtype).requires_grad_()
    u = torch.linalg.qr(torch.randn(40, 40))[0].to(dtype).requires_grad_()
    pool = reference.rotate_pool(x, u, input_fmt="NLC")
    grad = torch.randn(3, 40)
    (pool.pooled * grad).sum().backward()
    given = (grad, grad, pool.pos_index, pool.neg_index)
    x, u, others = x.detach(), u.detach(), (x.grad, u.grad)
    for one, truth, other in zip(run(given, x, u), exact(given, x, u), others):
        assert relative(one, truth) <= relative(other, truth) + torch.finfo(dtype).eps


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("splits", [1, 2, 5])
def test_many_tiles_and_parts_of_the_batch(splits):
    tile = Block(32, 16, 16, 4, 2)
    shape = 5, 20, 33
    given, x, u = winners(*shape), torch.randn(shape), torch.randn(33, 33)
    on_device = tuple(t.to(DEVICE) for t in given)
    actual = [
        (
            backward.grad_x(on_device, u.to(DEVICE), 20, x.dtype, block=tile).cpu(),
            backward.grad_u(on_device, x.to(DEVICE), u.dtype, None, tile, splits).cpu(),
        )
        for _ in range(2)
    ]
    compare(actual[0], given, x, u)
    assert all(map(torch.equal, *actual))


@runs
@pytest.mark.usefixtures("poisoned")
def test_pieces():
    """Tiles of several images, and images of several tiles."""
    for shape in ((9, 7, 24), (3, 100, 24)):
        for tile in (SMALL, Block(64, 32, 64, 4, 2)):
            given, x, u = winners(*shape), torch.randn(shape), torch.randn(24, 24)
            on_device = tuple(t.to(DEVICE) for t in given)
            dx = backward.grad_x(on_device, u.to(DEVICE), shape[1], x.dtype, block=tile).cpu()
            du = backward.grad_u(on_device, x.to(DEVICE), u.dtype, block=tile).cpu()
            compare((dx, du), given, x, u)


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_no_winner_anywhere(dtype):
    given = winners(2, 7, 24, absent=1)
    dx, du = run(given, torch.full((2, 7, 24), math.inf, dtype=dtype), torch.randn(24, 24))
    assert not dx.any()
    assert not du.any()


STRIDED = {
    "prefix tokens": lambda x: torch.cat([torch.full_like(x[:, :2], math.nan), x], 1)[:, 2:],
    "NCHW": lambda x: x.mT.contiguous().mT,
    "NCHW with prefix": lambda x: torch.cat([x[:, :1], x], 1).mT.contiguous().mT[:, 1:],
    "every other channel": lambda x: torch.stack([x, x * math.nan], -1)[..., 0],
    "pixels of a larger map": lambda x: torch.stack([x, x * math.nan], 2)[:, :, 0],
    "one image repeated": lambda x: x[:1].expand(x.shape),
}


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("layout", STRIDED)
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_strides(layout, dtype):
    x = STRIDED[layout](torch.randn(3, 49, 33).to(dtype))
    u = torch.randn(33, 33).to(dtype).mT
    given = tuple(t.mT.contiguous().mT for t in winners(3, 49, 33))
    check(given, x, u)


@runs
@pytest.mark.skipif(not INTERPRETED, reason="takes 8 GB; addresses are the same in the interpreter")
def test_beyond_32_bits():
    given, u = winners(2, 3, 16), torch.randn(16, 16)
    memory = torch.from_numpy(np.zeros(2**31 + 64, dtype=np.float32))  # not touched, not taken
    for stride in ((2**31, 16, 1), (16, 2**29, 1)):
        x = memory.as_strided((2, 3, 16), stride)
        x.copy_(torch.randn(2, 3, 16))
        check(given, x, u)


@runs
@pytest.mark.parametrize("need_x", [False, True])
@pytest.mark.parametrize("need_u", [False, True])
def test_only_what_is_needed(need_x, need_u, monkeypatch):
    called = []
    for name in ("grad_x", "grad_u"):
        plain = getattr(backward, name)

        def counted(*args, plain=plain, name=name):
            called.append(name)
            return plain(*args)

        monkeypatch.setattr(backward, name, counted)
    given, x, u = winners(2, 7, 24), torch.randn(2, 7, 24), torch.randn(24, 24)
    dx, du = run(given, x, u, need_x=need_x, need_u=need_u)
    assert (dx is not None, du is not None) == (need_x, need_u)
    assert called == ["grad_x"] * need_x + ["grad_u"] * need_u


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_images(dtype):
    given = winners(0, 7, 24)
    dx, du = run(given, torch.randn(0, 7, 24).to(dtype), torch.randn(24, 24).to(dtype))
    assert dx.shape == (0, 7, 24)
    assert torch.equal(du, torch.zeros(24, 24, dtype=dtype))


def test_unknown_products():
    given, x = winners(1, 2, 3), torch.randn(1, 2, 3)
    with pytest.raises(ValueError, match="products is 'quarter', allowed are half, "):
        backward.grad_u(given, x, x.dtype, "quarter")


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("splits", [1, 2, 3])
@pytest.mark.parametrize(
    ("shape", "step", "rows"),
    [((5, 49, 33), 64, 8), ((7, 9, 24), 32, 16), ((3, 20, 24), 64, 8), ((2, 100, 24), 32, 16)],
)
def test_steps_go_on_across_images(shape, step, rows, splits):
    """Two to four images in one step; where the batch is in parts, a step ends with its part.

    A pixel that no channel chose is NaN in the image after a part's last one, too.
    """
    tile, cut = Block(32, 16, step, 4, 2), tiles.cut_of(shape[1], rows, step)
    assert cut.images > 1
    given, x, u = winners(*shape), torch.randn(shape), torch.randn(shape[2], shape[2])
    for index in given[2:]:
        index[index == 3] = 2
    on_device = tuple(t.to(DEVICE) for t in given)
    for value in (1.0, math.nan):
        x[:, 3] = value
        du = backward.grad_u(on_device, x.to(DEVICE), u.dtype, None, tile, splits, cut).cpu()
        assert relative(du, exact(given, x.nan_to_num(0), u)[1]) < 1e-6
    given[0][given[2] >= 0] = math.inf  # reaches its own rows alone
    on_device = tuple(t.to(DEVICE) for t in given)
    dx = backward.grad_x(
        on_device, u.to(DEVICE), shape[1], x.dtype, None, Block(64, 16, 32, 4, 2),
        tiles.cut_of(shape[1], rows, 64),
    )  # fmt: skip
    there = torch.zeros(shape[:2], dtype=torch.bool)
    for b, winners_of in enumerate(given[2].long()):
        there[b, winners_of[winners_of >= 0]] = True
    assert torch.equal(~dx.cpu().isfinite().all(2), there)


def test_plan():
    """Pieces of eight rows where many of a larger one would be empty, several of them a step."""
    tile = Block(128, 256, 64, 8, 3)
    assert tiles.cut_u(49, "half", tile) == tiles.Cut(8, 7, 8, 2)
    assert tiles.cut_u(196, "half", tile) == tiles.Cut(8, 25, 8, 2)
    assert tiles.cut_u(64, "half", tile) == tiles.Cut(64, 1, 1, 1)
    assert tiles.cut_u(49, "half", tile, image=2**30).pieces == 1  # offsets of 32 bits
    assert tiles.cut_x(49, "half", tile).rows == 8
    usual = tiles.cut_u(49, "half", tile)
    padded = tiles.cut_u(49, "half", tile, alone=True)
    assert tiles.image_clocks(usual, "half", tile) < 0.9 * tiles.image_clocks(padded, "half", tile)
    # rows of any image in a row: none is empty, and more is lost in making dY
    flat = tiles.Cut(1, 49, 64, 3)
    assert tiles.image_clocks(flat, "half", tile) > tiles.image_clocks(padded, "half", tile)
    assert tiles.splits(256, 2048, usual, "half", tile, 132) == 1  # 128 tiles
    for batch, channels in ((256, 512), (256, 768), (3, 512), (1, 64), (5, 64)):
        count = tiles.splits(batch, channels, usual, "half", tile, 132)
        assert 1 <= count <= batch
        assert (count - 1) * -(-batch // count) < batch
        assert batch < 200 or count > 1


SPILLS = {
    ("grad_u_kernel", "ieee", 100): 8,
    ("grad_x_kernel", "half", 100): 16,
}
"""(kernel, products, architecture): bytes that may spill, by Triton 3.6 or 3.9; otherwise none."""
ODD_SPILLS = 400
"""For sizes that are no multiple of 16, where every element has its own address and mask."""


def check_compiled(results: list[dict], arch: int) -> None:
    kinds = {r["kernel"] for r in results}
    assert {"grad_u_kernel", "grad_x_kernel"} <= kinds
    for r in results:
        assert "error" not in r, r
        assert r["shared"] <= kernel_compile.SHARED_LIMIT[arch], r
        assert not r["serialized"], r
        products = r["what"].split()[0]
        limit = ODD_SPILLS if r["C"] % 16 else SPILLS.get((r["kernel"], products, arch), 0)
        assert r["spills"] <= limit, r
        if r["kernel"] in ("grad_u_kernel", "grad_x_kernel") and products != "ieee":
            unit = {80: "mma.sync", 90: "wgmma", 100: "tcgen05.mma"}[arch]
            kind = ("tf32",) if "tf32x3" in r["what"] else ("bf16", "kind::f16")
            instructions = r["instructions"]
            assert instructions, r
            assert all(i.startswith(unit) and any(k in i for k in kind) for i in instructions), r


@compiles
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_compiles(arch):
    results = kernel_compile.run("rotate_pool_backward", [arch], [768, 2048], ["half", "tf32x3"])
    check_compiled(results, arch)


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_compiles_every_product(arch):
    results = kernel_compile.run(
        "rotate_pool_backward", [arch], [33, 200, 512, 2048], list(backward.PRODUCTS)
    )
    check_compiled(results, arch)


@outside
def test_in_the_interpreter():
    passed = re.search(r"(\d+) passed", kernel_compile.interpret(__file__))
    assert int(passed[1]) >= 2 * len(SHAPES)
