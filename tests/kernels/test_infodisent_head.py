"""The Triton kernels of infodisent_head, in one launch and in two, as in the rotate_pool tests.

With a GPU the same tests run on it; without one, `test_in_the_interpreter` runs this file again in
Triton's interpreter.
"""

from __future__ import annotations

import math
import re

import pytest
import torch
from infodisent.kernels import infodisent_head as head
from infodisent.kernels import rotate_pool as pool
from infodisent.kernels.tiles import infodisent_head as score_tiles
from infodisent.kernels.tiles.blocks import Block
from infodisent.kernels.tiles.rotate_pool import Tiles

from infodisent import reference
from tests.kernels import kernel_compile
from tests.kernels.marks import DEVICE, INTERPRETED, compiles, outside, runs

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
CASES = [  # B, P, C, classes
    (1, 1, 24, 1),
    (5, 49, 33, 10),
    (20, 49, 40, 37),
    (2, 300, 24, 70),
    (70, 4, 16, 33),
]


def problem(batch, pixels, channels, classes, dtype, bias=True):
    x = torch.randn(batch, pixels, channels).to(dtype)
    u = torch.linalg.qr(torch.randn(channels, channels))[0].contiguous().to(dtype)
    weight = torch.randn(classes, channels).to(dtype)
    return x, u, weight, torch.randn(classes).to(dtype) if bias else None


def run(x, u, weight, bias, relu=True, launches="two", products=None, **options):
    given = (None if t is None else t.to(DEVICE) for t in (x, u, weight, bias))
    actual = head.infodisent_head(*given, relu, launches, products, **options)
    return tuple(t.cpu() for t in actual)


def same(one, two) -> None:
    """Bit by bit in the interpreter; on a GPU the two may use different matrix instructions."""
    if INTERPRETED:
        assert all(map(torch.equal, one, two))
    else:
        torch.testing.assert_close(one[0], two[0])
        assert all(map(torch.equal, one[1:], two[1:]))


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [F32, F16, BF16])
@pytest.mark.parametrize("relu", [False, True])
def test_logits(case, dtype, relu):
    x, u, weight, bias = problem(*case, dtype, bias=relu)
    two = run(x, u, weight, bias, relu)
    plain = pool.rotate_pool(x.to(DEVICE), u.to(DEVICE))
    assert all(map(torch.equal, two[1:], (t.cpu() for t in plain)))
    options = {"nonneg": "relu" if relu else "none", "input_fmt": "NLC"}
    wide = (None if t is None else t.double() for t in (x, u, weight, bias))
    truth = reference.infodisent_head(*wide, **options)
    eager = reference.infodisent_head(x, u, weight, bias, **options)
    top = truth.abs().max().item()
    rounding = torch.finfo(dtype).eps / 2 + 2.0**-15  # the last for what a packed value loses
    assert two[0].dtype == dtype
    assert (two[0] - truth).abs().max() <= (eager - truth).abs().max() + rounding * top
    same(run(x, u, weight, bias, relu, "one"), two)


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    "tiles",
    [
        Tiles(16, (64,), 3, 16, 4, 1, group=2),
        Tiles(16, (64,), 3, 16, 4, 1, split=2),
        Tiles(16, (32,), 0, 16, 4, 1),
        Tiles(32, (32, 16), 0, 16, 4, 1, split=2),
    ],
)
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_queue_of_many_tiles(tiles, dtype):
    """Groups of images that end inside a tile of the pool, and tiles of the pool that are split."""
    given = problem(35, 20, 34, 40, dtype)
    same(run(*given, launches="one", chosen=tiles), run(*given, chosen=tiles))


def check_shared(split: int, channels: int) -> None:
    """More images and classes than a tile has of either; the truth is written as plain loops."""
    x, u, weight, bias = problem(17, 2, channels, 35, F32)
    tiles = Tiles(16, (32,), 0, 16, 4, 1, split=split)
    logits, pos, neg, *_ = run(x, u, weight, bias, scores_chosen=tiles)
    again, *_ = run(x, u, weight, bias, scores_chosen=tiles)
    assert torch.equal(logits, again)  # added up in one order, whoever comes last
    pooled, positive = (pos.double() - neg).tolist(), weight.double().clamp_min(0).tolist()
    for b, row in enumerate(logits.tolist()):
        for k, logit in enumerate(row):
            terms = sum(p * w for p, w in zip(pooled[b], positive[k], strict=True))
            assert abs(terms + bias[k].item() - logit) < 1e-5


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("split", "channels"), [(2, 33), (3, 48), (4, 16)])
def test_programs_that_share_the_channels_of_scores(split, channels):
    """Also where there are fewer steps along them than programs."""
    check_shared(split, channels)


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("launches", head.LAUNCHES)
def test_float32_weight_on_half_maps(launches):
    x, u, weight, bias = problem(3, 49, 24, 10, F32)
    x = x.to(BF16)
    logits = run(x, u, weight, bias, launches=launches)[0]
    wide = (t.double() for t in (x, u, weight, bias))
    truth = reference.infodisent_head(*wide, input_fmt="NLC")
    assert logits.dtype == F32
    assert (logits - truth).abs().max() <= 2.0**-13 * truth.abs().max()


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("launches", head.LAUNCHES)
def test_nan(launches):
    """A NaN in the map reaches its image's logits, one in the weights its class."""
    x, u, weight, bias = problem(4, 20, 24, 10, F32)
    x[1, 3, 5] = math.nan
    weight[7, 2] = math.nan
    weight[3] = -1.0  # no support: ReLU leaves nothing, but 0 times NaN is NaN
    logits = run(x, u, weight, bias, launches=launches)[0]
    wanted = torch.zeros(4, 10, dtype=torch.bool)
    wanted[1], wanted[:, 7] = True, True
    assert torch.equal(logits.isnan(), wanted)
    assert torch.allclose(logits[0, 3], bias[3])


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("launches", head.LAUNCHES)
def test_strides_and_nothing(launches):
    x, u, weight, bias = problem(3, 20, 24, 10, F32)
    plain = run(x, u, weight, bias, launches=launches)
    turned = run(
        x.mT.contiguous().mT,
        u.mT.contiguous().mT,
        weight.mT.contiguous().mT,
        torch.stack([bias, bias * 0], 1)[:, 0],
        launches=launches,
    )
    assert all(map(torch.equal, turned, plain))
    assert run(x[:0], u, weight, bias, launches=launches)[0].shape == (0, 10)
    assert run(x, u, weight[:0], None, launches=launches)[0].shape == (3, 0)


def test_what_cannot_be_served():
    x, u = torch.empty(2, 9, 16, device="meta"), torch.empty(16, 16, device="meta")
    weight = torch.empty(10, 16, device="meta")
    with pytest.raises(ValueError, match="allowed are two, one"):
        head.infodisent_head(x, u, weight, None, True, "three")
    with pytest.raises(ValueError, match=r"weight is \(10, 15\)"):
        head.infodisent_head(x, u, weight[:, :15], None, True)
    with pytest.raises(ValueError, match=r"bias \(9,\)"):
        head.infodisent_head(x, u, weight, torch.empty(9, device="meta"), True)


SPILLS = {(80, "widths=(64,)"): 8, (100, "widths=(128,64,16)"): 152}
"""Bytes that may spill in one launch with whole float32 values, by architecture and widths."""


def check_compiled(results: list[dict], arch: int) -> None:
    names = {r["kernel"] for r in results}
    assert {"rotate_pool_kernel", "head_kernel", "head_in_one_kernel"} <= names
    for r in results:
        assert "error" not in r, r
        assert r["shared"] <= kernel_compile.SHARED_LIMIT[arch], r
        assert not r["serialized"], r
        allowed = 0
        if r["kernel"] == "head_in_one_kernel" and "exact" in r["what"].split():
            widths = next(word for word in r["what"].split() if word.startswith("widths"))
            allowed = SPILLS.get((arch, widths), 0)  # of the pool's tile, which comes first
        assert r["spills"] <= allowed, r


@pytest.mark.parametrize(("capability", "processors"), [(80, 108), (90, 132), (100, 148)])
@pytest.mark.parametrize(("batch", "classes"), [(64, 1000), (64, 200), (256, 1000), (8, 1000)])
def test_scores_of_a_batch_fill_the_device(batch, classes, capability, processors):
    """64 images and 1000 classes are 16 tiles of 64 x 64: a tenth of an H100."""
    sizes = batch, classes, 2048, "tf32x3", capability, processors
    tiles = score_tiles.choose(*sizes)
    across = math.ceil(batch / tiles.channels) * math.ceil(classes / tiles.columns)
    assert across * tiles.split >= 0.5 * processors
    assert 2048 / tiles.block_k >= 4 * tiles.split  # steps of each

    def time(block: Block, split: int) -> float:
        return score_tiles.time(block, split, *sizes[:3], *sizes[4:])

    best = time(Block(tiles.channels, tiles.columns, tiles.block_k, tiles.num_warps,
                      tiles.num_stages), tiles.split)  # fmt: skip
    before = Block(16, 32, 64, 4, 3) if batch <= 16 else Block(64, 64, 32, 4, 3)
    assert best <= 0.9 * time(before, 1)


@compiles
def test_scores_are_computed_once():
    """No two warps, or groups of four with wgmma, have the same rows and columns of a tile."""
    results = kernel_compile.run(
        "infodisent_head", [90], [768, 2048], ["half"], maps=[(8, 49), (64, 49), (256, 49)]
    )
    scores = [r for r in results if r["kernel"] == "head_kernel"]
    units = set()
    for r in scores:
        unit = r["instructions"][0].split(".")[0]
        size = [re.search(rf"{name}=\(?(\d+)", r["what"]) for name in ("channels", "widths")]
        rows, columns = (int(number[1]) for number in size)
        assert (unit == "wgmma") == (rows >= 64), r
        assert r["warps"], r
        for down, right, height, width in r["warps"]:
            assert down * height <= rows, r
            assert right * width <= columns, r
        units.add(unit)
    assert units == {"mma", "wgmma"}


@compiles
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_compiles(arch):
    for size, products in ((2048, ["half"]), (768, ["tf32x3"])):
        check_compiled(kernel_compile.run("infodisent_head", [arch], [size], products), arch)


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("products", pool.PRODUCTS)
def test_compiles_every_configuration(arch, products):
    sizes = [512, 768, 2048]
    check_compiled(kernel_compile.run("infodisent_head", [arch], sizes, [products]), arch)


@outside
def test_in_the_interpreter():
    passed = re.search(r"(\d+) passed", kernel_compile.interpret(__file__))
    assert int(passed[1]) >= len(CASES)
