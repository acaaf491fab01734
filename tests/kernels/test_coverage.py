"""That the self-check runs every kind of tile that the package's own choice can reach."""

from __future__ import annotations

import random

import pytest
from infodisent.kernels.precision import GRADIENT_OF_FLOAT, GRADIENT_OF_HALF
from infodisent.kernels.tiles import infodisent_head as scores
from infodisent.kernels.tiles import rotate_pool as pool
from infodisent.kernels.tiles import rotate_pool_backward as backward
from infodisent.kernels.tiles import rotation, softmax_pool
from infodisent.kernels.tiles import similarity_pool as views
from infodisent.kernels.tiles.blocks import pick

from infodisent.backends.triton import checks, coverage
from infodisent.bench.shapes import AT_224, OTHERS
from infodisent.testing import WrongResultError

MACHINES = [(80, 108), (90, 132), (100, 148), (89, 58)]
BATCHES = (1, 2, 3, 8, 16, 32, 64, 100, 128, 256, 512, 1024)


@pytest.mark.parametrize(("capability", "processors"), MACHINES)
@pytest.mark.parametrize("products", ["half", "split", "tf32x3"])
def test_every_kind_of_tile_is_checked(products, capability, processors):
    """Of the benchmark's maps at any batch, and of maps of any size."""
    cases = coverage.pool_cases(products, capability, processors)
    draw = random.Random(0)
    sizes = [(b, s.pixels, s.channels) for s in (*AT_224.values(), *OTHERS.values())
             for b in BATCHES]  # fmt: skip
    for _ in range(3000):
        channels = draw.choice((draw.randint(1, 4096), 8 * draw.randint(1, 512)))
        sizes.append((draw.choice(BATCHES), draw.randint(1, 4000), channels))
    missing = {}
    for size in sizes:
        kind = coverage.kind(pool.choose(*size, products, capability, processors))
        if kind not in cases:
            missing[kind] = size
    assert not missing
    for kind, case in cases.items():
        assert coverage.kind(case.tiles) == kind
        assert case.batch * case.pixels * case.channels**2 < 2e9  # of no time
        assert pool.count(case.tiles, *case[:3]) > 1
    assert any(kind.across for kind in cases)
    assert any(kind.split for kind in cases)
    assert any(case.batch == 1 and kind.across for kind, case in cases.items())


@pytest.mark.parametrize(("capability", "processors"), MACHINES)
@pytest.mark.parametrize("products", ["half", "split", "tf32x3"])
def test_every_kind_of_tile_of_the_views_is_checked(products, capability, processors):
    cases = coverage.view_cases(products, capability, processors)
    draw = random.Random(1)
    for _ in range(600):
        pixels, prototypes = draw.randint(1, 1500), draw.randint(1, 3000)
        size = draw.choice(BATCHES), pixels, prototypes, draw.randint(1, 1024)
        for number in (1, 2):
            tiles = views.choose(*size, products, capability, processors, number)
            assert (coverage.kind(tiles), number) in cases, size
    for (_, number), case in cases.items():
        assert pool.count(case.tiles, case.batch, case.pixels, case.prototypes) > 1
        assert case.views == number
    assert {number for kind, number in cases if kind.split} == {1, 2}


@pytest.mark.parametrize(("capability", "processors"), MACHINES)
@pytest.mark.parametrize("products", ["half", "split", "tf32x3"])
def test_every_kind_of_tile_of_the_softmax_is_checked(products, capability, processors):
    cases = coverage.softmax_cases(products, capability, processors)
    draw = random.Random(2)
    for _ in range(1500):
        pixels, prototypes = draw.randint(1, 1500), draw.randint(1, 3000)
        size = draw.choice(BATCHES), pixels, prototypes, draw.randint(1, 1024)
        tiles = softmax_pool.choose(*size, products, capability, processors)
        assert coverage.kind(tiles) in cases, size
        assert cases[coverage.kind(tiles)].tiles.num_warps == tiles.num_warps
    assert any(kind.across for kind in cases)
    for case in cases.values():
        assert pool.count(case.tiles, case.batch, case.pixels, case.prototypes) > 1


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("products", ["half", "split3", "tf32x3"])
def test_every_tile_of_the_gradients_is_checked(products, capability):
    assert products in GRADIENT_OF_HALF + GRADIENT_OF_FLOAT
    cases = coverage.gradient_cases(products, products, capability)
    draw = random.Random(2)
    for channels in range(1, 4097, 7):
        block_u = pick(backward.GRAD_U, channels, products, capability)
        block_x = pick(backward.GRAD_X, channels, products, capability)
        for pixels in (1, 7, 16, 17, 36, 49, 64, 100, 196, 577, draw.randint(1, 4000)):
            cut = backward.cut_x(pixels, products, block_x)
            assert coverage.kind_of_x(block_x, cut) in cases, (channels, pixels)
            for stride in (pixels * channels, 2**31):
                cut = backward.cut_u(pixels, products, block_u, stride, channels)
                assert coverage.kind_of_u(block_u, cut) in cases, (channels, pixels)
    assert {case.splits for case in cases.values()} == {1, 2}
    assert {kind.images for kind in cases} >= {0, 1, 2}


@pytest.mark.parametrize(("capability", "processors"), MACHINES)
def test_every_tile_of_the_class_scores_is_checked(capability, processors):
    kinds = {coverage.kind(t) for t in coverage.score_tiles("tf32x3", capability)}
    seen = set()
    for batch in BATCHES:
        for classes in (1, 10, 200, 1000, 20000):
            for channels in (1, 64, 513, 768, 2048):
                sizes = batch, classes, channels, "tf32x3", capability, processors
                seen.add(coverage.kind(scores.choose(*sizes)))
    assert seen <= kinds
    assert {kind.split for kind in seen} == {False, True}


@pytest.mark.parametrize(
    ("capability", "processors"), [(80, 108), (86, 28), (90, 132), (100, 148), (120, 170)]
)
@pytest.mark.parametrize("products", ["tf32x3", "bf16x3"])
def test_every_tile_of_the_rotation_is_checked(products, capability, processors):
    blocks = coverage.rotation_blocks(products, capability)
    for channels in range(1, 4097):
        for symmetric in (True, False):
            block = rotation.choose(channels, products, symmetric, capability, processors)
            assert block in blocks, channels


def test_a_check_elsewhere_ends_in_time_and_says_why():
    with pytest.raises(WrongResultError, match="did not end within"):
        checks._elsewhere(["rotation", "cpu", "float32"], limit=0.01)
    with pytest.raises(WrongResultError, match="KeyError: 'nothing'"):
        checks._elsewhere(["nothing", "cpu", "float32"])
