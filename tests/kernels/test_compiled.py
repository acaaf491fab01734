"""What must hold of every launch as compiled, of whatever kernel (`tests.kernels.kernel_text`).

Spills, registers and matrix instructions of the usual sizes are in the tests of each kernel.
"""

from __future__ import annotations

import pytest

from tests.kernels import kernel_compile
from tests.kernels.marks import compiles

pytestmark = compiles

ONES = [("rotate_pool", ["half"]), ("infodisent_head", ["half"]), ("rotation", ["tf32x3"])]


def check_ones(stem: str, sizes: list[int], products: list[str], maps: list[tuple[int, int]]):
    lines = kernel_compile.run(stem, [90], sizes, products, maps=maps, ones=True)
    assert len(lines) > 10
    assert not [line for line in lines if "error" in line]


@pytest.mark.parametrize(("stem", "products"), ONES)
def test_each_integer_may_be_one(stem, products):
    """The launcher makes a constant of an integer that is 1: B.to(tl.int64) has no such method."""
    check_ones(stem, [512], products, [(256, 49), (9, 577)])


@pytest.mark.slow
@pytest.mark.parametrize("stem", kernel_compile.CALLS)
def test_each_integer_of_every_launch_may_be_one(stem):
    products = {"rotation": ["tf32x3", "bf16x3"], "rotate_pool_backward": ["half", "tf32x3"]}
    wanted = products.get(stem, ["half", "split", "tf32x3", "bf16x3"])
    lines = kernel_compile.run(stem, [90], [33, 512], wanted, ones=True)
    assert lines
    assert not [line for line in lines if "error" in line]


@pytest.mark.parametrize(("stem", "products"), [("rotate_pool", ["half", "tf32x3"]),
                                                ("infodisent_head", ["half"])])  # fmt: skip
def test_one_image_of_more_pixels_than_a_tile(stem, products):
    for r in kernel_compile.run(stem, [90], [768], products, maps=[(1, 81), (1, 196), (1, 577)]):
        assert "error" not in r, r
        assert r["spills"] == 0, r


@pytest.mark.parametrize(
    ("stem", "products"),
    [
        ("rotate_pool", ["half", "tf32x3"]),
        ("rotate_pool_backward", ["half"]),
        ("infodisent_head", ["half"]),
        ("rotation", ["tf32x3"]),
    ],
)
@pytest.mark.parametrize(  # RegNetY; multiples of 8, not of 16
    "channels", [pytest.param(440, marks=pytest.mark.slow), 888]
)
def test_rows_of_a_multiple_of_8_are_copied_16_bytes_at_a_time(stem, products, channels):
    for r in kernel_compile.run(stem, [90], [channels], products, maps=[(256, 49), (9, 577)]):
        assert "error" not in r, r
        assert r["spills"] == 0, r
        if r["instructions"]:  # a product
            assert r["loads"] == 0, r
            assert 16 in r["copies"], r


@pytest.mark.parametrize("arch", [80, 90])
def test_fences_of_the_head_in_one_launch(arch):
    """One for what is ready and one for those who wait; each stops a multiprocessor's stores."""
    results = kernel_compile.run(
        "infodisent_head", [arch], [2048], ["half"], maps=[(256, 49), (256, 196)]
    )
    fences = [r["fences"] for r in results if r["kernel"] == "head_in_one_kernel"]
    assert len(fences) == 2
    assert all(1 <= count <= 3 for count in fences), fences  # the wait is compiled twice
    assert all(r["fences"] == 0 for r in results if r["kernel"] == "rotate_pool_kernel")


def test_small_maps_compile_in_no_time():
    """The pool of each image of a tile is compiled apart, so that a tile has but a few of them."""
    results = kernel_compile.run("rotate_pool", [90], [2048], ["half"], maps=[(256, 4), (256, 1)])
    usual = kernel_compile.run("rotate_pool", [90], [2048], ["half"], maps=[(256, 49)])
    pools = [r for r in results + usual if r["kernel"] == "rotate_pool_kernel"]
    assert len(pools) == 3
    most = max(r["seconds"] for r in usual)
    assert all(r["seconds"] <= 3 * most for r in pools), pools
