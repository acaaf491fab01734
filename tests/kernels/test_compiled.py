"""What must hold of every launch as compiled, of whatever kernel (`tests.kernels.kernel_text`).

Spills, registers and matrix instructions of the usual sizes are in the tests of each kernel.
"""

from __future__ import annotations

import pytest
import torch
from infodisent.kernels import rotate_pool as forward
from infodisent.kernels.tiles import cost
from infodisent.kernels.tiles import rotate_pool as tiles_of

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
    products = {
        "rotation": ["tf32x3", "bf16x3"],
        "rotate_pool_backward": ["half", "tf32x3"],
        "similarity_pool": ["half", "split", "tf32x3"],
        "softmax_pool": ["half", "split", "tf32x3"],
    }
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
        "infodisent_head", [arch], [768], ["half"], maps=[(64, 49), (64, 144)]
    )  # whole images: each border between tiles has fences of its own
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


# (stem, channels, products, maps): one size of each tile table
EVERY_KERNEL = [
    ("rotate_pool", [512], ["half"], [(256, 49), (1, 577)]),
    ("rotate_pool", [512], ["tf32x3"], [(256, 49)]),
    ("infodisent_head", [512], ["half"], [(256, 49)]),
    ("rotate_pool_backward", [64, 512], ["half", "tf32x3"], []),
    ("rotation", [512], ["tf32x3"], []),
    pytest.param(
        "similarity_pool", [128], ["half", "tf32x3"], [(80, 49), (64, 577)], marks=pytest.mark.slow
    ),
    pytest.param(
        "softmax_pool", [128], ["half", "tf32x3"], [(80, 49), (64, 577)], marks=pytest.mark.slow
    ),
]


def check_fits(results: list[dict], arch: int, unit: str) -> None:
    assert results
    for r in results:
        assert "error" not in r, r
        assert r["spills"] == 0, r
        assert r["shared"] <= kernel_compile.SHARED_LIMIT[arch], r
        assert all(i.startswith(unit) for i in r["instructions"]), r
    assert any(r["instructions"] for r in results)


@pytest.mark.parametrize(("stem", "sizes", "products", "maps"), EVERY_KERNEL)
def test_fits_the_shared_memory_of_sm_120(stem, sizes, products, maps):
    """99 KB, as of sm_89, and no wgmma: the tiles of sm_100 have 196 KB."""
    results = kernel_compile.run(stem, [120], sizes, products, maps=maps)
    check_fits(results, 120, "mma.sync")


@pytest.mark.slow
@pytest.mark.parametrize("arch", [89, 120])
@pytest.mark.parametrize("stem", kernel_compile.CALLS)
def test_fits_small_shared_memory_at_every_size(stem, arch):
    results = kernel_compile.run(stem, [arch], [512, 768, 2048], ["tf32x3"])
    if stem != "rotation":
        results += kernel_compile.run(stem, [arch], [512, 768, 2048], ["half"])
    check_fits(results, arch, "mma.sync")


@pytest.mark.parametrize("arch", [942, 950])
def test_the_pool_of_half_maps_compiles_for_amd(arch):
    """By Triton's own compiler; whether it runs nobody knows, and the backend refuses."""
    results = kernel_compile.run("rotate_pool", [arch], [512], ["half"], maps=[(256, 49), (1, 577)])
    check_fits(results, arch, "v_mfma")


def test_a_persistent_program_is_one_loop_without_spills():
    """The flagship tile for sm_90: its next loads are issued in the loop that multiplies."""
    x = torch.empty(256, 49, 1280, dtype=torch.bfloat16, device="meta")
    u = torch.empty(1280, 1280, dtype=torch.bfloat16, device="meta")
    with kernel_compile.recorder() as launches:
        forward.rotate_pool(x, u)
    ((_, arguments),) = launches
    assert arguments["TILES"].persistent
    assert (arguments["TILES"].channels, arguments["TILES"].widths) == (128, (256,))
    one = kernel_compile.run("rotate_pool", [90], [1280], ["half"], maps=[(256, 49)])
    result = next(r for r in one if "persistent" in r["what"])
    assert result["registers"] <= 240, result
    assert result["spills"] == 0, result
    assert result["shared"] <= kernel_compile.SHARED_LIMIT[90], result
    assert not result["serialized"], result
    # the loop that multiplies has the pool and its stores too
    assert result["stores"] > 0, result
    assert result["drains"] == 0, result


def residents(result: dict, capability: int) -> int:
    """Programs on a multiprocessor at a time, from what ptxas says."""
    one, threads = cost.processor(capability), 32 * result["num_warps"]
    registers = -(-result["registers"] // 8) * 8
    return min(
        one.shared // (result["shared"] + 1024), cost.REGISTERS // (registers * threads),
        one.threads // threads,
    )  # fmt: skip


@pytest.mark.parametrize("arch", [80, 90, 120])
@pytest.mark.parametrize("products", ["half", "tf32x3"])
def test_as_many_programs_on_a_multiprocessor_as_the_model_says(arch, products):
    """Which counts waves by them. One more may fit than it says."""
    maps = [(256, 49), (8, 49), (64, 577)]
    results = kernel_compile.run("rotate_pool", [arch], [768], [products], maps=maps)
    work = tiles_of.work(49, 768, products)
    for batch, pixels in maps:
        tiles = tiles_of.choose(batch, pixels, 768, products, arch, 132)
        words = {f"widths={tiles.widths}".replace(" ", ""), f"images={tiles.images}"}
        mine = [r for r in results if words <= set(r["what"].split())]
        modelled = cost.residents(tiles, work.size, arch, work.runs)
        assert mine
        for r in mine:
            assert modelled <= residents(r, arch) <= modelled + 1, (tiles, r)
