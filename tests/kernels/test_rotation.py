"""The Triton kernels of rotation: value and gradient in Triton's interpreter, and the machine code.

With a GPU the same tests run on it. Without one, `test_in_the_interpreter` runs this file again
under the interpreter, where bfloat16 parts are multiplied as float32 ones: its product of bfloat16
is wrong.
"""

from __future__ import annotations

import math
import re

import pytest
import torch
from infodisent.kernels import rotation, rotation_parts
from infodisent.kernels.tiles.blocks import Block, Row

from infodisent.polynomials.plans import choose, norm_bound, plans
from tests.kernels import kernel_compile
from tests.kernels.marks import DEVICE, compiles, outside, runs

EPS = torch.finfo(torch.float32).eps
NORMS = (0.0, 1e-6, 0.3, 1.5, 2.5, 5.0, 12.0, 40.0)
CASES = [(n, norm) for n in (1, 2, 17) for norm in NORMS] + [(33, 2.5), (33, 40.0), (70, 5.0)]


def matrix(n: int, norm: float) -> torch.Tensor:
    """A float32 matrix A for which ``||A - A^T||_2`` is `norm`."""
    a = torch.randn(n, n, dtype=torch.float64)
    if n > 1:
        a *= norm / torch.linalg.matrix_norm(a - a.mT, 2)
    return a.float()


def run(
    a: torch.Tensor, grad: torch.Tensor, precision: str = "full", products: str = "ieee"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """U, dA, what was kept, and the numbers, on the CPU."""
    a, grad = a.to(DEVICE), grad.to(DEVICE)
    u, kept, numbers = rotation.rotation(a, precision, products)
    d_a = rotation.rotation_backward(grad, a, kept, numbers, precision, products)
    return u.cpu(), d_a.cpu(), kept.cpu(), numbers.cpu()


def exact(a: torch.Tensor, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = a.clone().requires_grad_()
    u = torch.matrix_exp(leaf - leaf.mT)
    u.backward(grad)
    return u.detach(), leaf.grad


def chosen(a: torch.Tensor, precision: str) -> tuple[int, int]:
    """Plan and squarings, as the host chooses them."""
    s = a - a.mT
    powers = [(2, s @ s), (4, s @ s @ s @ s)]
    bound = norm_bound(
        *((k, x.abs().sum(1).max().item(), x.square().sum().item()) for k, x in powers)
    )
    return choose(bound, torch.float32, precision)


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("n", "norm"), CASES)
def test_value_and_gradient(n, norm):
    check(n, norm, "ieee")


def check(n: int, norm: float, products: str) -> None:
    a, grad = matrix(n, norm), torch.randn(n, n)
    u, d_a, _, numbers = run(a, grad, products=products)
    truth = exact(a.double(), grad.double())
    eager = exact(a, grad)
    for actual, true, other in zip((u, d_a), truth, eager):
        bound = 2 * (other - true).abs().max() + 16 * EPS * n**0.5
        assert (actual - true).abs().max() <= bound
    assert tuple(numbers[[rotation.PLAN, rotation.SQUARINGS]].int().tolist()) == chosen(a, "full")


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("products", ["bf16x3", "tf32x3"])
@pytest.mark.parametrize("norm", [0.0, 1.5, 4.0, 30.0])
def test_half(norm, products):
    a, grad = matrix(20, norm), torch.randn(20, 20)
    u, d_a, _, numbers = run(a, grad, "half", products)
    true_u, true_d_a = exact(a.double(), grad.double())
    assert (u - true_u).abs().max() <= 1e-3  # a quarter of a bfloat16 rounding of entries up to 1
    assert (d_a - true_d_a).norm() <= 1e-3 * true_d_a.norm()
    assert tuple(numbers[[rotation.PLAN, rotation.SQUARINGS]].int().tolist()) == chosen(a, "half")


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("n", "products"), [(48, "ieee"), (50, "parts")])
def test_many_tiles(n, products, monkeypatch):
    """Both orders of tiles past one group of rows and several blocks of the norms."""
    tiles = rotation.tiles
    block = Block(16, 16, 16, 4, 1)
    monkeypatch.setattr(tiles, "BLOCKS", (Row(0, 0, rotation.PRODUCTS, block),))
    monkeypatch.setattr(tiles, "choose", tiles.choose.__wrapped__)  # it keeps what it chose
    monkeypatch.setattr(tiles, "GROUP", 3)
    monkeypatch.setattr(tiles, "COMBINE_BLOCK", 16)
    monkeypatch.setattr(tiles, "NORM_COLS", 32)
    check(n, 10.0, products)


PRODUCT = {
    "whole": {},
    "transposed": {"trans_a": True, "trans_b": True},
    "symmetric": {"symmetric": True},
    "both": {"trans_b": True, "both": True},
    "both, transposed": {"trans_a": True, "both": True},
}


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("kind", "run"), [*((kind, 2) for kind in PRODUCT), ("both", 1)])
def test_a_product_by_parts(kind, run, monkeypatch):
    """All of a ragged matrix, of a triangle both halves; with 3 steps, summed one by one or not."""
    options, n, block = PRODUCT[kind], 40, Block(16, 16, 16, 4, 1)
    monkeypatch.setattr(rotation.tiles, "run", lambda *_: run)
    a, b, add = torch.randn(3, n, n)
    if kind == "symmetric":
        a = b = a + a.mT
        add = add + add.mT
    left, right = (m.double() for m in (a, b))
    left = left.mT if options.get("trans_a") else left
    right = right.mT if options.get("trans_b") else right
    truth = left @ right - 0.5 * add.double()
    if options.get("both"):
        truth += right @ left
    a = a.to(DEVICE)
    b = a if kind == "symmetric" else b.to(DEVICE)
    out, numbers = torch.empty_like(a), torch.ones(rotation.WIDTH, device=DEVICE)
    rotation.product(
        a, b, out, numbers, "parts", add=add.to(DEVICE), beta=-0.5, chosen=block, **options
    )  # fmt: skip
    assert (out.cpu() - truth).abs().max() <= 8 * EPS * truth.abs().max()
    if kind == "symmetric":
        assert torch.equal(out, out.mT)


@runs
@pytest.mark.usefixtures("poisoned")
def test_parts_are_all_of_a_matrix():
    """High and low part have 11 bits each; what is beyond the matrix is 0."""
    x = torch.randn(5, 5)
    x[1, 2] = math.inf
    block, numbers = Block(16, 16, 16, 4, 1), torch.ones(rotation.WIDTH, device=DEVICE)
    gate = rotation_parts.Gate(numbers, rotation.ALWAYS, 0)
    found = rotation_parts.parts(x.to(DEVICE), block, gate, straight=True, turned=True)
    both = found.straight.cpu()
    assert torch.equal(found.turned.cpu(), both.mT)
    assert not (both.view(torch.int32) & 0x1FFF).any()
    assert both[:, 1, 2].tolist() == [math.inf, 0]
    assert not both[:, 5:].any()
    assert not both[:, :, 5:].any()
    x[1, 2] = both[0, 1, 2] = 0
    assert ((both.sum(0)[:5, :5] - x).abs() <= 2.0**-22 * x.abs()).all()
    closed = gate._replace(level=1)  # what is not needed is not written
    nothing = rotation_parts.parts(x.to(DEVICE), block, closed, straight=True, turned=False)
    assert nothing.turned is None
    assert nothing.straight.isnan().all()


@runs
@pytest.mark.usefixtures("poisoned")
def test_what_is_not_needed_is_not_launched():
    _, _, kept, numbers = run(matrix(9, 0.3), torch.randn(9, 9))  # neither Q, nor P_1, nor squares
    assert numbers[rotation.PLAN] == 0
    written = [not block.isnan().all() for block in kept]
    assert written == [True, True, False, False, True] + [False] * rotation.MOST


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
def test_nonfinite_is_nan(value):
    a = matrix(18, 1.0)
    a[3, 5] = value
    u, d_a, _, numbers = run(a, torch.randn(18, 18))
    assert u.isnan().all()
    assert d_a.isnan().all()
    assert numbers[rotation.PLAN] == len(plans(torch.float32)) - 1
    assert numbers[rotation.SQUARINGS] == 0


@runs
@pytest.mark.usefixtures("poisoned")
def test_largest_norms():
    a, grad = matrix(6, 1), torch.randn(6, 6)
    a /= chosen_bound(a)
    u, _, _, numbers = run(a * 6.4 * 2**8 * (1 - 1e-3), grad)
    assert numbers[rotation.SQUARINGS] == 8
    assert (u @ u.mT - torch.eye(6)).abs().max() < 1e-2
    for factor in (6.4 * 2**8 * (1 + 1e-3), 1e5, 1e9, 1e12, 1e30):
        u, d_a, _, _ = run(a * factor, grad)
        assert u.isnan().all()
        assert d_a.isnan().all()


def chosen_bound(a: torch.Tensor) -> float:
    s = (a - a.mT).double()
    powers = [(2, s @ s), (4, s @ s @ s @ s)]
    return norm_bound(
        *((k, x.abs().sum(1).max().item(), x.square().sum().item()) for k, x in powers)
    )


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("precision", ["full", "half"])
def test_decision(precision):
    """Plan, squarings and every coefficient, over the range of norms, as the host has them."""
    table = plans(torch.float32, precision)
    seen = set()
    for bound in torch.logspace(-3, math.log10(table[-1].theta * 2**8.5), 120).tolist():
        powers = torch.tensor([bound**2, bound**4]).view(2, 1, 1)
        expected = norm_bound(*((k, x, x * x) for k, x in zip((2, 4), powers.flatten().tolist())))
        numbers = torch.empty(rotation.WIDTH, device=DEVICE)
        rotation._decide(powers.to(DEVICE), numbers, precision)
        numbers = numbers.cpu()
        number, squarings = choose(expected, torch.float32, precision)
        if squarings > rotation.MOST:
            # one more squaring of a smaller plan may cost as much as the plan that serves
            served = expected <= table[-1].theta * 2**rotation.MOST
            assert numbers[rotation.POISON].isnan() == (not served)
            continue
        seen.add((number, squarings))
        assert numbers[rotation.POISON] == 0
        assert numbers[[rotation.PLAN, rotation.SQUARINGS]].tolist() == [number, squarings]
        assert numbers[rotation.ODD] == squarings % 2
        plan = table[number].scaled(squarings)
        assert numbers[rotation.USES_Q] == (plan.q is not None)
        assert numbers[rotation.USES_P1] == (len(plan.products) > 1)
        at = rotation.AT["second"]
        basis = [0, 1, 2, *([3] if plan.q else []), *([4] if len(plan.products) > 1 else [])]
        for r, row in enumerate((*plan.products[-1], plan.last)):
            values = torch.zeros(5)
            values[basis] = torch.tensor(row)
            assert torch.allclose(numbers[at + 5 * r : at + 5 * r + 5], values, rtol=1e-6, atol=0)
    assert len(seen) > 8


@pytest.mark.parametrize(
    ("capability", "processors"), [(80, 108), (89, 142), (90, 132), (100, 148), (120, 170)]
)
@pytest.mark.parametrize("products", ["tf32x3", "bf16x3"])
def test_a_triangle_of_tiles_is_half_the_work(products, capability, processors):
    """Counted as the rounds of the busiest multiprocessor, times the area of a tile."""
    tiles, area = rotation.tiles, []
    for symmetric in (True, False):
        block = tiles.choose(2048, products, symmetric, capability, processors)
        items = tiles.count(block, 2048, symmetric)
        area.append(-(-items // processors) * block.block_m**2)
    assert area[0] <= 0.6 * area[1]


def test_a_few_channels_have_small_tiles():
    """Else 64 tiles of 128 would leave half of an H100 idle."""
    for channels in (512, 768, 1024):
        for symmetric in (True, False):
            assert rotation.tiles.choose(channels, "tf32x3", symmetric, 90, 132).block_m == 64
    # without parts to make, a large tile is fast; making them, nothing else runs on it meanwhile
    assert rotation.tiles.choose(2048, "parts", False, 90, 132).block_m == 128
    assert rotation.tiles.choose(2048, "tf32x3", False, 90, 132).block_m == 64


def test_what_shared_memory_takes_of_a_step():
    """By hand, of 128 x 128 x 32 on an H100: 128 bytes a clock."""
    tiles, block = rotation.tiles, Block(128, 128, 32, 8, 3)
    tile = 128 * 32 * 4
    filled, read = 4 * tile, 3 * 2 * (tile // 2 + tile)  # three products by two groups of warps
    assert tiles._step(block, "parts", 90, 1) == (filled + read) / 128 == 1664
    # and what a program of tf32x3 does one after the other: products, parts and sums, three waits
    serial = 3 * 128 * 128 * 32 / 1024 + (4 * 2 * 128 * 32 + 3 * 128 * 128) / 128 + 3 * 100
    assert tiles._step(block, "tf32x3", 90, 1) == serial == 2476
    assert tiles.time(block, 2048, "parts", False, 90, 132) == pytest.approx(213e3, rel=0.05)


def check_compiled(results: list[dict], arch: int) -> None:
    assert any(r["kernel"] == "product_kernel" for r in results)
    for r in results:
        assert "error" not in r, r
        assert r["shared"] <= kernel_compile.SHARED_LIMIT[arch], r
        assert not r["serialized"], r
        # where it spills a few scalars, ptxas trades them for one more block on a multiprocessor
        strict = ("tf32x3" in r["what"] and r["C"] % 16 == 0) or "parts" in r["kernel"]
        assert r["C"] == 1 or r["spills"] <= (0 if strict else 32), r  # C = 1: a single element
        if "product_kernel" not in r["kernel"] or "ieee" in r["what"]:
            continue
        if "parts" in r["kernel"]:
            assert r["copies"] == [16], r  # of every size, as parts have whole tiles
            assert r["loads"] == 0, r
            assert r["adds"] > 0, r
            assert r["drains"] <= 2, r  # the third product goes on under the next step
        unit = {80: "mma.sync", 90: "wgmma", 100: "tcgen05.mma"}[arch]
        kind = ("bf16", "kind::f16") if "bf16x3" in r["what"] else ("tf32",)
        instructions = r["instructions"]
        assert instructions, r
        assert all(i.startswith(unit) and any(k in i for k in kind) for i in instructions), r


@compiles
@pytest.mark.parametrize(("arch", "sizes"), [(80, [2048]), (90, [512, 2048, 4096]), (100, [2048])])
def test_compiles(arch, sizes):
    check_compiled(kernel_compile.run("rotation", [arch], sizes, ["tf32x3"]), arch)


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_compiles_every_configuration(arch):
    sizes, products = [1, 512, 2047, 2048, 4096], list(rotation.PRODUCTS)
    check_compiled(kernel_compile.run("rotation", [arch], sizes, products), arch)


@outside
def test_in_the_interpreter():
    passed = re.search(r"(\d+) passed", kernel_compile.interpret(__file__))
    assert int(passed[1]) >= len(CASES)
