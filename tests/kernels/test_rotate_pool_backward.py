"""The Triton kernels of rotate_pool's gradients: in Triton's interpreter, and the machine code.

With a GPU the same tests run on it. Without one, `test_in_the_interpreter` runs this file again
under the interpreter, where half numbers are multiplied as float32 ones (its product of bfloat16 is
wrong) and rounding to bfloat16 cuts digits off.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re

import numpy as np
import pytest
import torch
from torch import Tensor

from infodisent import reference
from tests.conftest import relative
from tests.kernels import kernel_compile

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)
backward = kernel_compile.kernels_module("rotate_pool_backward")
kernels = backward.kernels
GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

runs = pytest.mark.skipif(
    not GPU and not INTERPRETED, reason="no GPU; test_in_the_interpreter runs it"
)
compiles = pytest.mark.skipif(INTERPRETED, reason="nothing is compiled in the interpreter")

SHAPES = [(1, 1, 24), (5, 1, 33), (2, 7, 33), (5, 49, 40), (2, 50, 64), (1, 144, 33), (2, 197, 24)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SMALL = kernels.Tiles(32, 32, 32, 4, 2)  # many tiles of small matrices


def winners(batch: int, pixels: int, channels: int, absent: float = 0.2) -> tuple[Tensor, ...]:
    """grad_pos, grad_neg, pos_index, neg_index: some absent, some of both sides on one pixel."""
    grads = torch.randn(2, batch, channels)
    index = torch.randint(pixels, (2, batch, channels), dtype=torch.int32)
    index[1] = torch.where(torch.rand(batch, channels) < 0.2, index[0], index[1])
    index[torch.rand(2, batch, channels) < absent] = -1
    grads[index < 0] = math.nan  # what no pixel has chosen must not be used
    return (*grads, *index)


def both(given: tuple[Tensor, ...]) -> list[tuple[Tensor, Tensor]]:
    """(gradient, 0 where there is no winner, float64; index, 0 where there is none) of a side."""
    grad_pos, grad_neg, pos_index, neg_index = given
    return [
        (torch.where(i >= 0, g, 0).double(), i.clamp_min(0).long())
        for g, i in ((grad_pos, pos_index), (grad_neg, neg_index))
    ]


def exact(given: tuple[Tensor, ...], x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """dX, dU in float64; only rows of winners are touched."""
    x, u = x.double(), u.double()
    dx, du = torch.zeros_like(x), torch.zeros_like(u)
    for grad, index in both(given):
        for b in range(x.shape[0]):
            g = grad[b, :, None]
            du += torch.where(g != 0, g * x[b, index[b]], 0)
            dx[b].index_add_(0, index[b], torch.where(g != 0, g * u, 0))
    return dx, du


def eager(given: tuple[Tensor, ...], x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """The dense products with dY in the dtype that autograd has there."""
    dtype = torch.promote_types(x.dtype, u.dtype)
    dy = torch.zeros(x.shape)
    for grad, index in both(given):
        dy.scatter_add_(1, index[:, None], grad.float()[:, None])
    dy = dy.to(dtype)
    dx = (dy @ u.to(dtype)).to(x.dtype)
    du = (dy.flatten(0, 1).mT @ x.to(dtype).flatten(0, 1)).to(u.dtype)
    return dx, du


def run(
    given: tuple[Tensor, ...],
    x: Tensor,
    u: Tensor,
    products: str | None = None,
    need_x: bool = True,
    need_u: bool = True,
) -> tuple[Tensor | None, Tensor | None]:
    """dX, dU on the CPU; x keeps its strides."""
    if DEVICE != "cpu":
        storage = torch.empty(0, dtype=x.dtype, device=DEVICE).set_(x.untyped_storage().to(DEVICE))
        x = storage.as_strided(x.shape, x.stride(), x.storage_offset())
    grad_pos, grad_neg, pos_index, neg_index = (t.to(DEVICE) for t in given)
    found = backward.rotate_pool_backward(
        grad_pos, grad_neg, x, u.to(DEVICE), pos_index, neg_index, need_x, need_u, products
    )
    return tuple(None if t is None else t.cpu() for t in found)


def check(given: tuple[Tensor, ...], x: Tensor, u: Tensor, products: str | None = None) -> None:
    found = run(given, x, u, products)
    compare(found, given, x, u, 2.0**-13 if products == "bf16x3" else 0.0)


def compare(
    found: tuple[Tensor, Tensor], given: tuple[Tensor, ...], x: Tensor, u: Tensor, slack: float = 0
) -> None:
    for one, truth, other, like in zip(found, exact(given, x, u), eager(given, x, u), (x, u)):
        assert one.shape == like.shape
        assert one.dtype == like.dtype
        bound = relative(other, truth) + torch.finfo(like.dtype).eps + slack
        assert relative(one, truth) <= bound


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
    dtypes = DTYPES[1:] if products in backward.HALF_PRODUCTS else DTYPES[:1]
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
    errors = [
        relative(run(given, x, u, name, need_x=False)[1], truth) for name in backward.HALF_PRODUCTS
    ]
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
    tile = kernels.Tiles(32, 16, 16, 4, 2)
    shape = 5, 20, 33
    given, x, u = winners(*shape), torch.randn(shape), torch.randn(33, 33)
    on_device = tuple(t.to(DEVICE) for t in given)
    found = [
        (
            backward.grad_x(on_device, u.to(DEVICE), 20, x.dtype, tiles=tile).cpu(),
            backward.grad_u(on_device, x.to(DEVICE), u.dtype, None, tile, splits).cpu(),
        )
        for _ in range(2)
    ]
    compare(found[0], given, x, u)
    assert all(map(torch.equal, *found))


@runs
@pytest.mark.usefixtures("poisoned")
def test_pieces():
    """Tiles of several images, and images of several tiles."""
    for shape in ((9, 7, 24), (3, 100, 24)):
        for tile in (SMALL, kernels.Tiles(64, 32, 64, 4, 2)):
            given, x, u = winners(*shape), torch.randn(shape), torch.randn(24, 24)
            on_device = tuple(t.to(DEVICE) for t in given)
            dx = backward.grad_x(on_device, u.to(DEVICE), shape[1], x.dtype, tiles=tile).cpu()
            du = backward.grad_u(on_device, x.to(DEVICE), u.dtype, tiles=tile).cpu()
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
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_only_winners_carry_what_is_not_finite(value, dtype):
    """Through 0 · Inf in the dense product everything would be NaN."""
    shape = 3, 50, 40
    given = grad_pos, _, pos_index, neg_index = winners(*shape)
    x, u = torch.randn(shape).to(dtype), torch.randn(40, 40).to(dtype)
    for index in (pos_index, neg_index):
        index[index == 7] = 8
    x[1, 7] = value  # no channel's winner
    dx, du = run(given, x, u)
    assert du.isfinite().all()
    compare((dx, du), given, x.nan_to_num(0, 0, 0), u)

    pos_index[2, 5], grad_pos[2, 5] = 11, 1.5
    x[2, 11, 30] = value  # reaches column 30 of the channels that chose it
    for products in (None, "split", "bf16x3"):
        found, truth = run(given, x, u, products)[1], exact(given, x, u)[1]
        finite = truth.isfinite()
        assert not finite[5, 30]
        assert finite.sum() >= finite.numel() - 40
        assert torch.equal(found[~finite], truth[~finite].to(dtype)) or truth.isnan().any()
        assert torch.equal(found.isnan(), truth.isnan())
        # parts of the batch without it are products
        slack = 2.0**-13 if products == "bf16x3" else 0.0
        assert relative(found[finite], truth[finite]) <= 2 * torch.finfo(dtype).eps + slack


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rotation_that_is_not_finite(value, dtype):
    given = winners(3, 50, 40)
    x, u = torch.randn(3, 50, 40).to(dtype), torch.randn(40, 40).to(dtype)
    u[4, 9] = value
    found, truth = run(given, x, u)[0], exact(given, x, u)[0]
    finite = truth.isfinite()
    assert finite.sum() >= finite.numel() - 6
    assert torch.equal(found.isnan(), truth.isnan())
    assert torch.equal(found.isinf(), truth.isinf())
    assert relative(found[finite], truth[finite]) <= 2 * torch.finfo(dtype).eps


@runs
@pytest.mark.usefixtures("poisoned")
def test_gradient_that_is_not_finite():
    given = winners(3, 49, 24, absent=0)
    given[0][1, 3] = math.inf
    given[1][2, 4] = math.nan
    for dtype in DTYPES:
        x, u = torch.rand(3, 49, 24).to(dtype) + 1, torch.rand(24, 24).to(dtype) + 1
        dx, du = run(given, x, u)
        assert torch.equal((~du.isfinite()).any(1).nonzero().flatten(), torch.tensor([3, 4]))
        assert (du[3] == math.inf).all()
        where = [[1, int(given[2][1, 3])], [2, int(given[3][2, 4])]]
        assert torch.equal((~dx.isfinite()).any(2).nonzero(), torch.tensor(where))


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("scale", [65536.0**2, 65536.0, 2.0**-30, 2.0**-90])
def test_float16_takes_gradients_of_any_size(scale):
    """Rows of very different size, each as exact as at scale 1; all in float32 beside float16."""
    shape = 3, 49, 24
    grad_pos, grad_neg, *index = winners(*shape)
    sizes = 10.0 ** torch.arange(-3, 3).repeat(4)
    given = (grad_pos * sizes * scale, grad_neg * sizes * scale, *index)
    half, single = torch.float16, torch.float32
    x, u = torch.randn(shape), torch.randn(24, 24)
    for products, limit in (("half", 2**-10), ("split", 2**-20)):
        du = run(given, x.to(half), u, products, need_x=False)[1]
        truth = exact(given, x.to(half), u)[1]
        assert ((du - truth).norm(dim=1) <= limit * truth.norm(dim=1)).all()
        dx = run(given, x.to(single), u.to(half), products, need_u=False)[0]
        truth = exact(given, x, u.to(half))[0]
        assert relative(dx, truth) <= limit
    # the scale is exact: results differ by it alone
    one = run((grad_pos * sizes, grad_neg * sizes, *index), x.to(half), u, "half", need_x=False)[1]
    du = run(given, x.to(half), u, "half", need_x=False)[1]
    assert torch.equal(du, one * scale)


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


def test_plan():
    assert [kernels.piece(p, 64) for p in (1, 7, 49, 50, 144)] == [16, 16, 64, 64, 32]
    tile = kernels.Tiles(128, 256, 64, 8, 3)
    assert kernels.splits(256, 2048, 64, "half", tile, 132) == 1  # 128 tiles
    for batch, channels in ((256, 512), (256, 768), (3, 512), (1, 64), (5, 64)):
        count = kernels.splits(batch, channels, 64, "half", tile, 132)
        assert 1 <= count <= batch
        assert (count - 1) * -(-batch // count) < batch
        assert batch < 200 or count > 1


SPILLS = {
    ("grad_u_kernel", "split", 90): 16,
    ("grad_u_kernel", "ieee", 100): 8,
    ("grad_x_kernel", "split3", 90): 8,
    ("grad_x_kernel", "half", 100): 16,
    ("grad_x_kernel", "split", 100): 16,
    ("grad_x_kernel", "split3", 100): 96,
    ("grad_x_kernel", "bf16x3", 100): 72,
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
        products = r["what"].split()[0]
        limit = ODD_SPILLS if r["C"] % 16 else SPILLS.get((r["kernel"], products, arch), 0)
        assert r["spills"] <= limit, r
        if r["kernel"] in ("grad_u_kernel", "grad_x_kernel") and products != "ieee":
            unit = {80: "mma.sync", 90: "wgmma", 100: "tcgen05.mma"}[arch]
            kind = ("tf32",) if "tf32x3" in r["what"] else ("bf16", "kind::f16")
            found = r["instructions"]
            assert found, r
            assert all(i.startswith(unit) and any(k in i for k in kind) for i in found), r


@compiles
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_compiles(arch):
    found = kernel_compile.run("rotate_pool_backward", [arch], [768, 2048], ["half", "tf32x3"])
    check_compiled(found, arch)


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_compiles_every_product(arch):
    found = kernel_compile.run(
        "rotate_pool_backward", [arch], [33, 200, 512, 2048], list(backward.PRODUCTS)
    )
    check_compiled(found, arch)


@pytest.mark.skipif(INTERPRETED or GPU, reason="this is the interpreter, or there is a GPU")
def test_in_the_interpreter():
    passed = re.search(r"(\d+) passed", kernel_compile.interpret(__file__))
    assert int(passed[1]) >= 2 * len(SHAPES)
