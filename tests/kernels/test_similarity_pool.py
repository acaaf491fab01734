"""similarity_pool in Triton: against float64, and as compiled.

With a GPU the tests run on it. Without one, `test_in_the_interpreter` runs this file again in the
interpreter, where products of bfloat16 and TF32 parts are computed in float32.
"""

from __future__ import annotations

import math
import re

import pytest
import torch
from infodisent.kernels import similarity_pool as host
from infodisent.kernels.similarity_pool import Tiles

from infodisent import reference
from tests.kernels import kernel_compile
from tests.kernels.marks import DEVICE, compiles, outside, runs

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
ACROSS = Tiles(64, (64,), 0, 32, 4, 3)
TWO_WIDTHS = Tiles(64, (64, 32), 0, 32, 4, 3)
SHARED = Tiles(64, (64,), 1, 32, 4, 3, split=3)
SHARED_ACROSS = Tiles(64, (64,), 0, 32, 4, 3, split=2)
VIEWS = (("dot",), ("l2",), ("cosine",), ("cosine", "dot"), ("dot", "l2"))


def run(x, v, valid, similarities, products=None, **options):
    valid = None if valid is None else valid.to(DEVICE)
    best = host.similarity_pool(
        x.to(DEVICE), v.to(DEVICE), valid, similarities, products, **options
    )
    return [(one.value.cpu(), one.index.cpu()) for one in best]


def check(x, v, valid, similarities, *, places=False, tolerance=4e-6, **options):
    """Against float64: values, and places that have the value (`places`: the same ones)."""
    found = run(x, v, valid, similarities, **options)
    x, v = x.double(), v.double()
    for similarity, (value, index) in zip(similarities, found, strict=True):
        truth = reference.similarity_pool(x, v, similarity=similarity, valid=valid, input_fmt="NLC")
        assert value.dtype == F32
        assert index.dtype == torch.int32
        assert index.min() >= 0
        assert index.max() < x.shape[1]
        scale = 1 if similarity == "cosine" else truth.value.abs().max().clamp_min(1)
        assert float((value - truth.value).abs().max() / scale) <= tolerance
        if places:
            assert torch.equal(index, truth.index)
        if valid is not None:
            assert valid.gather(1, index.long()).all()


def maps(batch, pixels, channels, prototypes, dtype=F32, v_dtype=None, integers=False):
    g = torch.Generator().manual_seed(batch + pixels + channels + prototypes)
    shapes = (batch, pixels, channels), (prototypes, channels)
    if integers:
        x, v = (torch.randint(-1, 2, shape, generator=g).float() for shape in shapes)
    else:
        x, v = (torch.randn(shape, generator=g) for shape in shapes)
    return x.to(dtype), v.to(v_dtype or dtype)


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("similarities", VIEWS)
@pytest.mark.parametrize(
    ("dtype", "v_dtype"), [(F32, F32), (F16, F16), (BF16, BF16), (BF16, F32), (F16, F32)]
)
def test_against_float64(dtype, v_dtype, similarities):
    x, v = maps(3, 49, 40, 70, dtype, v_dtype)
    low = {F16: 2.0**-20, BF16: 2.0**-15}.get(dtype, 0.0) if dtype != v_dtype else 0.0
    check(x, v, None, similarities, tolerance=4e-6 + low)


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("pixels", [1, 50, 81, 196])
@pytest.mark.parametrize("prototypes", [1, 63, 64, 65, 129])
def test_sizes(pixels, prototypes):
    """Of prototypes around a tile's rows, and of images in one tile or several."""
    x, v = maps(1 + prototypes % 2, pixels, 24, prototypes)
    check(x, v, None, ("l2", "dot"))


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("tiles", [SHARED, SHARED_ACROSS])
@pytest.mark.parametrize(("dtype", "channels"), [(F32, 200), (BF16, 90), (F32, 40)])
def test_several_programs_share_the_channels_of_a_tile(dtype, channels, tiles):
    """Also where there are fewer steps than programs; a NaN and a tie as ever."""
    x, v = maps(3, 49, channels, 70, dtype)
    check(x, v, None, ("cosine", "l2"), chosen=tiles, tolerance=8e-6)
    x[1, 20], x[1, 30] = math.nan, math.nan
    x[2, 40] = x[2, 9]
    ((value, index),) = run(x, v, None, ("dot",), chosen=tiles)
    assert value[1].isnan().all()
    assert (index[1] == 20).all()
    assert (index[2] != 40).all()
    check(*maps(3, 49, channels, 20, dtype, integers=True), None, ("dot",), places=True,
          tolerance=0, chosen=tiles)  # fmt: skip


def test_deep_tiles_are_shared_where_multiprocessors_are_idle():
    """Of one image and 2048 channels, not of a batch nor of the family's 64 to 256 channels."""
    from infodisent.kernels.tiles.similarity_pool import choose

    machine = "tf32x3", 90, 132, 1
    assert choose(1, 49, 2000, 2048, *machine).split > 1
    assert choose(1, 49, 10, 768, *machine).split > 1
    assert choose(80, 49, 2000, 128, *machine).split == 1
    assert choose(1, 49, 2000, 128, *machine).split == 1


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("tiles", [None, ACROSS, TWO_WIDTHS])
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("pixels", [49, 70])
def test_ties_go_to_the_lowest_pixel(pixels, dtype, tiles):
    x, v = maps(3, pixels, 6, 20, dtype, integers=True)
    check(x, v, None, ("dot", "l2"), places=True, tolerance=0, chosen=tiles)


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("tiles", [None, ACROSS])
@pytest.mark.parametrize("hidden", [math.nan, math.inf, -math.inf, 1e3])
def test_what_does_not_count_never_shows(hidden, tiles):
    for similarities in VIEWS:
        x, v = maps(4, 49, 16, 30)
        valid = torch.rand(4, 49, generator=torch.Generator().manual_seed(1)) < 0.5
        valid[0], valid[1] = False, False
        valid[0, 48] = valid[1, 0] = True
        x[~valid] = hidden
        seen = torch.where(valid[:, :, None], x, 0)
        hide = run(x, v, valid, similarities, chosen=tiles)
        plain = run(seen, v, valid, similarities, chosen=tiles)
        assert all(
            torch.equal(a, b) for one, two in zip(hide, plain, strict=True)
            for a, b in zip(one, two, strict=True)
        )  # fmt: skip
        check(seen, v, valid, similarities, chosen=tiles)


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("tiles", [None, ACROSS])
@pytest.mark.parametrize(("dtype", "v_dtype"), [(F32, F32), (BF16, BF16), (F16, F16), (BF16, F32)])
def test_a_prototype_that_is_a_pixel_has_no_distance(dtype, v_dtype, tiles):
    x, v = maps(2, 49, 40, 20, dtype)
    x, v = (10 + x.float() / 8).to(dtype), v.to(v_dtype)  # where products cancel
    for m in range(20):
        v[m] = x[m % 2, m + 7].to(v_dtype)
    ((value, index),) = run(x, v, None, ("l2",), chosen=tiles)
    own = torch.arange(20)
    assert torch.equal(value[own % 2, own], torch.zeros(20))
    assert torch.equal(index[own % 2, own].long(), own + 7)
    # of the other image another pixel may win, by less than the rounding of products of 4000
    check(x, v, None, ("l2",), tolerance=4e-3, chosen=tiles)


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("tiles", [None, ACROSS])
@pytest.mark.parametrize("similarity", ["dot", "cosine", "l2"])
def test_nan_comes_first_and_minus_infinity_is_a_place(similarity, tiles):
    x, v = maps(3, 50, 16, 30)
    x[0, 31], x[0, 40] = math.nan, math.nan
    x[1, :, 3] = math.inf
    v[:, 3] = -v[:, 3].abs() - 0.1
    ((value, index),) = run(x, v, None, (similarity,), chosen=tiles)
    assert value[0].isnan().all()
    assert (index[0] == 31).all()
    if similarity == "dot":
        assert (value[1] == -math.inf).all()
        assert (index[1] == 0).all()
    if similarity == "l2":
        assert (value[1] == math.inf).all()
    assert value[2].isfinite().all()
    check(x[2:], v, None, (similarity,))


@runs
@pytest.mark.usefixtures("poisoned")
def test_a_vector_of_zeros_has_cosine_0():
    x, v = maps(2, 9, 16, 5)
    x[0], v[2] = 0, 0
    ((value, index),) = run(x, v, None, ("cosine",))
    assert (value[0] == 0).all()
    assert (value[:, 2] == 0).all()
    assert (index[0] == 0).all()
    assert (index[:, 2] == 0).all()


@runs
def test_any_strides_and_the_same_bits_again():
    x, v = maps(2, 49, 24, 30)
    plain = run(x, v, None, ("l2", "dot"))
    again = run(x.mT.contiguous().mT, v.mT.contiguous().mT, None, ("l2", "dot"))
    for one, two in zip(plain, again, strict=True):
        assert torch.equal(one[0], two[0])
        assert torch.equal(one[1], two[1])


@runs
@pytest.mark.parametrize("tiles", [None, ACROSS])
def test_places_are_in_memory_where_no_pixel_counts(tiles):
    """Which the operator refuses, but inside a CUDA graph it cannot."""
    x, v = maps(2, 49, 16, 30)
    valid = torch.ones(2, 49, dtype=torch.bool)
    valid[0] = False
    for similarities in VIEWS:
        for _, index in run(x, v, valid, similarities, chosen=tiles):
            assert (index[0] == 0).all()


@runs
def test_nothing_to_do():
    for batch, number in ((0, 3), (2, 0)):
        ((value, index),) = run(torch.ones(batch, 4, 8), torch.ones(number, 8), None, ("dot",))
        assert value.shape == index.shape == (batch, number)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"products": "bf16x3"}, "products is 'bf16x3'"),
        ({"products": "half"}, "for half maps"),
        ({"prototypes": torch.ones(3, 9)}, "prototypes is"),
        ({"similarities": ("l1",)}, "similarities is"),
        ({"x": torch.ones(2, 0, 8)}, "no pixels"),
    ],
)
def test_what_is_refused(change, message):
    arguments = {
        "x": torch.ones(2, 4, 8), "prototypes": torch.ones(3, 8), "valid": None,
        "similarities": ("dot",), **change,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        host.similarity_pool(**arguments)


@compiles
@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("products", ["half", "tf32x3"])
def test_compiles_without_spills(arch, products):
    maps = [(80, 49), (80, 196), (64, 577)]
    results = kernel_compile.run("similarity_pool", [arch], [128], [products], maps=maps)
    assert {r["kernel"] for r in results} >= {
        "similarity_pool_kernel", "norms_kernel", "refine_kernel"
    }  # fmt: skip
    for r in results:
        assert "error" not in r, r
        assert r["spills"] == 0, r
        assert r["shared"] <= kernel_compile.SHARED_LIMIT[arch], r
        assert not r["serialized"], r


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90, 100, 120])
def test_shared_tiles_compile_without_spills(arch):
    results = kernel_compile.run(
        "similarity_pool", [arch], [2048], ["tf32x3", "half"], maps=[(1, 49), (8, 49)]
    )
    shared = [r for r in results if r["kernel"] == "similarity_pool_kernel"
              and "split=1 " not in r["what"]]  # fmt: skip
    assert len(shared) >= 2
    for r in shared:
        assert "error" not in r, r
        assert r["spills"] == 0, r
        assert r["shared"] <= kernel_compile.SHARED_LIMIT[arch], r
        assert not r["serialized"], r


@outside
def test_in_the_interpreter():
    passed = re.search(r"(\d+) passed", kernel_compile.interpret(__file__))
    assert int(passed[1]) >= 80
