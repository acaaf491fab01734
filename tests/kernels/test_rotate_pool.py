"""The Triton kernels of rotate_pool, forward: values in Triton's interpreter, and the machine code.

With a GPU the same tests run on it. Without one, `test_in_the_interpreter` runs this file again
under the interpreter, where products of bfloat16 and TF32 parts are computed in float32.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re

import pytest
import torch

from infodisent import reference
from tests.kernels import kernel_compile

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)
pool = kernel_compile.kernels_module("rotate_pool")
Tiles = pool.Tiles
GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

runs = pytest.mark.skipif(
    not GPU and not INTERPRETED, reason="no GPU; test_in_the_interpreter runs it"
)
compiles = pytest.mark.skipif(INTERPRETED, reason="nothing is compiled in the interpreter")

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
SHAPES = [  # B, P, C
    (1, 1, 24),
    (5, 1, 1),
    (2, 49, 33),
    (7, 49, 40),
    (5, 50, 64),
    (2, 144, 24),
    (1, 196, 40),
    (3, 197, 33),
    (2, 577, 24),
]
DTYPES = [(F32, F32), (BF16, BF16), (F16, F16)]
MIXED = [(F16, F32), (BF16, F32), (F32, BF16), (BF16, F16)]


def rotation_like(c: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(c, c))[0].contiguous()


def run(x: torch.Tensor, u: torch.Tensor, products: str | None = None, **options):
    """What the kernels return, on the CPU; a view of x stays one of the same strides."""
    if DEVICE != "cpu":
        whole = x.as_strided((x.untyped_storage().nbytes() // x.element_size(),), (1,), 0)
        x = whole.to(DEVICE).as_strided(x.shape, x.stride(), x.storage_offset())
    found = pool.rotate_pool(x, u.to(DEVICE), products, **options)
    return tuple(t.cpu() for t in found)


def rounding(x: torch.Tensor, products: str, exact: bool) -> float:
    """What a result may lose beside eager's own error, in parts of the largest |Y|."""
    bits = (x.shape[1] - 1).bit_length()
    lost = 0.0 if exact else 2.0 ** (bits - 23)
    low = {F16: 2.0**-20, BF16: 2.0**-15}
    return (
        lost
        + {
            "half": 2.0**-20,
            "split": low.get(x.dtype, 0.0),
            "tf32x3": 2.0**-20,
            "bf16x3": 2.0**-14,
            "ieee": 2.0**-22,
            "tf32": 2.0**-10,
        }[products]
    )


def check(x: torch.Tensor, u: torch.Tensor, found, products: str | None = None, exact=False):
    """Against float64, allowing eager's error; places are judged by the values found there."""
    products = products or pool.default_products(x.dtype, u.dtype)
    pos, neg, pos_index, neg_index = found
    truth = reference.rotate_pool(x.double(), u.double(), input_fmt="NLC")
    eager = reference.rotate_pool(x, u, input_fmt="NLC")
    y = x.double() @ u.double().mT
    top = y.abs().max().item()
    allowed = rounding(x, products, exact or pool.is_exact(x, products)) * top
    for side, value, index, sign in ((1, pos, pos_index, y), (2, neg, neg_index, -y)):
        assert value.dtype == F32
        assert index.dtype == torch.int32
        assert value.shape == index.shape == (x.shape[0], x.shape[2])
        bound = allowed + (eager[side] - truth[side]).abs().max().item()
        assert (value - truth[side]).abs().max() <= bound
        assert torch.all((index >= 0) == (value > 0))
        assert index.max() < x.shape[1]
        assert not torch.signbit(value).any()
        there = sign.gather(1, index.clamp_min(0).long().unsqueeze(1)).squeeze(1)
        assert torch.all(torch.where(index >= 0, sign.amax(1) - there, 0) <= 2 * bound)


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("x_dtype", "u_dtype"), DTYPES)
def test_sizes(shape, x_dtype, u_dtype):
    x, u = torch.randn(shape).to(x_dtype), rotation_like(shape[2]).to(u_dtype)
    check(x, u, run(x, u))


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("x_dtype", "u_dtype"), MIXED)
def test_mixed_dtypes(x_dtype, u_dtype):
    x, u = torch.randn(3, 49, 40).to(x_dtype), rotation_like(40).to(u_dtype)
    check(x, u, run(x, u))


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("products", ["tf32x3", "bf16x3", "ieee", "tf32"])
def test_products_of_float32(products):
    x, u = torch.randn(3, 49, 40), rotation_like(40)
    check(x, u, run(x, u, products), products)


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [F16, BF16])
def test_split_is_accurate_in_each_row(dtype):
    """Rows of U of any magnitude, with entries far below float16's range beside large ones."""
    x, u = torch.randn(2, 49, 40).to(dtype), rotation_like(40)
    magnitude = 10.0 ** torch.linspace(-12, 12, 40)
    pos, neg, _, _ = run(x, u * magnitude[:, None], exact=True)
    truth = reference.rotate_pool(x.double(), u.double(), input_fmt="NLC")
    for found, true in ((pos, truth.pos), (neg, truth.neg)):
        error = (found.double() / magnitude.double() - true).abs().max()
        assert error <= (2.0**-18 if dtype == F16 else 2.0**-13)


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", [(2, 49, 40), (3, 577, 24)])
@pytest.mark.parametrize("dtype", [F32, F16, BF16])
def test_identity_changes_nothing(shape, dtype):
    """At u = I values come out to the last bit, though they carry the pixel inside the kernel."""
    x = torch.randn(shape).to(dtype)
    pos, neg, _, _ = run(x, torch.eye(shape[2], dtype=dtype))
    if dtype == F32:
        torch.testing.assert_close(pos, x.amax(1).clamp_min(0), rtol=2**-20, atol=0)
    else:
        assert torch.equal(pos, x.float().amax(1).clamp_min(0))
        assert torch.equal(neg, (-x.float()).amax(1).clamp_min(0))


LAYOUTS = {
    "NCHW": lambda x: x.mT.contiguous().mT,
    "strided": lambda x: torch.stack([x, x * 0], -1)[..., 0],
    "prefix": lambda x: torch.cat([torch.full_like(x[:, :2], 1e3), x], 1)[:, 2:],
    "prefix, NCL": lambda x: (
        torch.cat([torch.full_like(x[:, :1], 1e3), x], 1).mT.contiguous().mT[:, 1:]
    ),
    "some channels": lambda x: torch.cat([x, x * 0], 2)[..., : x.shape[2]],
    "shifted": lambda x: torch.cat([x[..., :3] * 0, x], 2)[..., 3:],
    "pixels last but one": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
}


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_layouts(layout, dtype):
    x, u = torch.randn(3, 50, 40).to(dtype), rotation_like(40).to(dtype)
    view = LAYOUTS[layout](x)
    assert torch.equal(view, x)
    found, plain = run(view, u), run(x, u)
    check(x, u, found)
    assert all(map(torch.equal, found, plain))
    turned = run(view, u.mT.contiguous().mT)
    assert all(map(torch.equal, turned, plain))


@runs
@pytest.mark.usefixtures("poisoned")
def test_expanded():
    x, u = torch.randn(1, 20, 24).to(BF16), rotation_like(24).to(BF16)
    found = run(x.expand(4, 20, 24), u)
    for one, four in zip(run(x, u), found):
        assert torch.equal(one.expand(4, 24), four)


def test_what_is_read_in_place():
    x = torch.empty(3, 52, 64, dtype=BF16, device="meta")
    assert pool._in_place(x, BF16)
    assert pool._in_place(x[:, 2:], BF16)
    assert pool._in_place(x[..., :56], BF16)
    assert not pool._in_place(x, F32)
    assert not pool._in_place(x.mT, BF16)
    assert not pool._in_place(torch.empty(3, 52, 65, dtype=BF16, device="meta")[..., :64], BF16)
    far = torch.empty(1, dtype=BF16, device="meta").as_strided((3, 49, 64), (2**30, 64, 1))
    assert not pool._in_place(far, BF16)


SMALL = {  # P = 20
    "one image": Tiles(16, (32,), 1, 16, 4, 1),
    "images": Tiles(16, (64,), 3, 16, 4, 1, group=2),
    "two accumulators": Tiles(32, (32, 16), 2, 16, 4, 1),
    "three accumulators": Tiles(16, (64, 32, 16), 5, 16, 4, 1, group=1),
    "borders, image in a tile": Tiles(16, (64,), 0, 16, 4, 1, group=2),
    "borders, tile in an image": Tiles(16, (16,), 0, 16, 4, 1),
    "borders, two accumulators": Tiles(32, (32, 16), 0, 32, 4, 1),
}


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("exact", [False, True])
def test_every_tile_gives_the_same(name, exact):
    """Whole images, columns across borders, and channels that are split."""
    x, u = torch.randint(-8, 9, (7, 20, 34)).to(F16), torch.randint(-3, 4, (34, 34)).to(F16)
    plain = run(x, u)
    check(x, u, plain)
    whole = run(x, u, chosen=SMALL[name], exact=exact)
    assert all(map(torch.equal, whole, plain))
    for parts in (2,) if exact else (2, 5):  # more parts than there are steps is allowed
        split = Tiles(**{**vars(SMALL[name]), "split": parts})
        assert all(map(torch.equal, run(x, u, chosen=split, exact=exact), plain))
    for counters in pool._counters.values():
        assert not counters.any()


@runs
@pytest.mark.usefixtures("poisoned")
def test_split_is_deterministic():
    x, u = torch.randn(2, 30, 50), rotation_like(50)
    tiles = Tiles(16, (32,), 1, 16, 4, 1, split=3)
    first = run(x, u, chosen=tiles)
    check(x, u, first)
    assert all(map(torch.equal, run(x, u, chosen=tiles), first))


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("pixels", [49, 300])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_ties_go_to_the_lowest_pixel(pixels, dtype):
    x = torch.randint(-1, 2, (3, pixels, 24)).to(dtype)
    u = torch.randint(-1, 2, (24, 24)).to(dtype)
    y = (x.double() @ u.double().mT).float()
    pos, neg, pos_index, neg_index = run(x, u)
    for value, index, sign in ((pos, pos_index, y), (neg, neg_index, -y)):
        best = sign.amax(1)
        assert torch.equal(value, best.clamp_min(0))
        first = (sign == best.unsqueeze(1)).int().argmax(1)
        assert torch.equal(index.long(), torch.where(best > 0, first, -1))


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("pixels", [20, 300])
@pytest.mark.parametrize("dtype", [F32, F16])
@pytest.mark.parametrize("value", [0.0, -0.0, 2.0, -2.0])
def test_constant_maps(pixels, dtype, value):
    x = torch.full((2, pixels, 24), value).to(dtype)
    pos, neg, pos_index, neg_index = run(x, torch.eye(24, dtype=dtype))
    for found, index, wanted in ((pos, pos_index, value), (neg, neg_index, -value)):
        assert torch.all(found == max(wanted, 0.0))
        assert not torch.signbit(found).any()
        assert torch.all(index == (0 if wanted > 0 else -1))


NEGATIVE_NAN = {F32: (torch.int32, -0x400000), F16: (torch.int16, -0x200), BF16: (torch.int16, -64)}


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("pixels", [20, 300])
@pytest.mark.parametrize(
    ("dtype", "u_dtype", "products"),
    [
        (F32, F32, "tf32x3"),
        (F32, F32, "bf16x3"),
        (F32, F32, "ieee"),
        (F16, F16, "half"),
        (BF16, BF16, "half"),
        (F16, F32, "split"),
        (BF16, F32, "split"),
    ],
)
def test_nan(pixels, dtype, u_dtype, products):
    """A NaN of either sign reaches both sides of all channels of its image, and of no other."""
    x, u = torch.randn(4, pixels, 24).to(dtype), rotation_like(24).to(u_dtype)
    kind, bits = NEGATIVE_NAN[dtype]
    x[0, 7, 3] = math.nan
    x.view(kind)[1, 5, 2] = bits
    x[2, 9, 0] = math.nan
    x.view(kind)[2, 11, 20] = bits
    assert x[1:3].isnan().sum() == 3
    pos, neg, pos_index, neg_index = run(x, u, products)
    for value, index in ((pos, pos_index), (neg, neg_index)):
        assert value[:3].isnan().all()
        assert index[:3].tolist() == [[7] * 24, [5] * 24, [9] * 24]
    check(x[3:], u, tuple(t[3:] for t in (pos, neg, pos_index, neg_index)), products)


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("pixels", [20, 300])
@pytest.mark.parametrize(
    ("dtype", "u_dtype", "products"),
    [
        (F32, F32, "tf32x3"),
        (F32, F32, "bf16x3"),
        (F16, F16, "half"),
        (BF16, BF16, "half"),
        (F16, F32, "split"),
        (BF16, F32, "split"),
    ],
)
def test_infinity(pixels, dtype, u_dtype, products):
    """Inf times U is as in the formula, also where U has no or a tiny low part, or is 0."""
    x, u = torch.randn(3, pixels, 24), rotation_like(24).to(u_dtype)
    u[:, 4] = torch.randint(0, 2, (24,)) * 2.0 - 1
    u[:, 5] = torch.where(u[:, 5] < 0, -1e-4, 1e-4)
    u[:9, 6] = 0
    x = x.to(dtype)
    x[0, 3, 4], x[0, 12, 5] = math.inf, -math.inf
    x[1, 6, 6] = math.inf  # NaN where U is 0
    x[2, 2, 4] = x[2, 2, 5] = math.inf  # Inf - Inf in some channels
    found = run(x, u, products)
    truth = reference.rotate_pool(x.double(), u.double(), input_fmt="NLC")
    for value, index, side in ((found[0], found[2], 0), (found[1], found[3], 1)):
        true, places = truth[1 + side], truth[3 + side]
        assert torch.equal(value.isnan(), true.isnan())
        assert torch.equal(value.isinf(), true.isinf())
        special = ~true.isfinite()
        assert torch.equal(index[special], places[special])
        torch.testing.assert_close(value.double()[~special], true[~special], rtol=0.01, atol=0.01)


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("products", ["tf32x3", "bf16x3"])
def test_the_largest_numbers_do_not_overflow_in_parts(products):
    x = torch.full((1, 3, 16), torch.finfo(F32).max)
    pos, _, pos_index, _ = run(x, torch.eye(16) * 0.5, products)
    assert torch.allclose(pos, torch.tensor(torch.finfo(F32).max / 2), rtol=1e-4)
    assert torch.all(pos_index == 0)


@runs
@pytest.mark.usefixtures("poisoned")
def test_no_images():
    pos, neg, pos_index, neg_index = run(torch.empty(0, 49, 24), torch.eye(24))
    assert pos.shape == neg.shape == pos_index.shape == neg_index.shape == (0, 24)
    assert pos_index.dtype == neg_index.dtype == torch.int32


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_large_maps_are_laid_out_in_parts(dtype, monkeypatch):
    x, u = torch.randn(5, 20, 24).to(dtype).mT.contiguous().mT, rotation_like(24).to(dtype)
    plain = run(x, u)
    monkeypatch.setattr(pool, "WORKSPACE", 2 * 20 * 24 * x.element_size() * 2)
    assert pool._step(x, pool.default_products(dtype, dtype)) in (2, 4)
    assert all(map(torch.equal, run(x, u), plain))


def test_what_cannot_be_served():
    x = torch.empty(2, 9, 16, device="meta")
    u = torch.empty(16, 16, device="meta")
    with pytest.raises(ValueError, match="allowed are half"):
        pool.rotate_pool(x, u, "double")
    with pytest.raises(ValueError, match="half maps"):
        pool.rotate_pool(x, u, "split")
    with pytest.raises(ValueError, match=r"\(2, 9, 16\).*\(15, 15\)"):
        pool.rotate_pool(x, u[:15, :15])
    with pytest.raises(ValueError, match="no pixels"):
        pool.rotate_pool(x[:, :0], u)


@pytest.mark.parametrize("pixels", [1, 7, 16, 49, 50, 100, 144, 196, 197, 225, 256, 257, 577, 3136])
@pytest.mark.parametrize("products", pool.PRODUCTS)
def test_choice_of_tiles(pixels, products):
    """Whatever is chosen covers its images, is a power of two a part, and fills the device."""
    for capability in (80, 90, 100):
        for batch, channels in ((1, 24), (1, 2048), (8, 768), (256, 2048)):
            case = (batch, pixels, channels, products, capability, 132)
            chosen = pool.tiles(*case)
            options = pool.candidates(*case)
            assert chosen in options
            assert len(set(options)) == len(options)
            for tiles in options:
                assert all(w >= 16 and w & (w - 1) == 0 for w in tiles.widths)
                assert len(tiles.widths) <= 3
                assert tiles.images * pixels <= sum(tiles.widths)
                assert tiles.images > 0 or batch * pixels > sum(tiles.widths) / 2
                number = pool.count(tiles, batch, pixels, channels)
                assert 1 <= tiles.split <= max(1, 132 // number)
    if pixels == 49 and products == "half":
        assert pool.tiles(256, 49, 2048, "half", 90, 132).images == 5
        assert pool.tiles(1, 49, 2048, "half", 90, 132).split > 1


def check_compiled(results: list[dict], arch: int, kernel: str = "rotate_pool_kernel") -> None:
    assert any(r["kernel"] == kernel for r in results)
    unit = {80: "mma.sync", 90: "wgmma", 100: "tcgen05.mma"}[arch]
    for r in results:
        assert "error" not in r, r
        assert r["shared"] <= kernel_compile.SHARED_LIMIT[arch], r
        assert r["spills"] == 0, r
        if r["kernel"] == kernel and "ieee" not in r["what"]:
            assert any(i.startswith(unit) for i in r["instructions"]), r


@compiles
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_compiles(arch):
    for size, products in ((2048, ["half"]), (768, ["half", "tf32x3"])):
        results = kernel_compile.run("rotate_pool", [arch], [size], products)
        check_compiled(results, arch)
        tiles = {r["what"] for r in results if r["kernel"] == "rotate_pool_kernel"}
        assert any("IMAGES=0" in what for what in tiles)
        assert any("SPLIT=1" not in what for what in tiles)


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("products", pool.PRODUCTS)
def test_compiles_every_configuration(arch, products):
    check_compiled(kernel_compile.run("rotate_pool", [arch], [512, 768, 2048], [products]), arch)


@pytest.mark.skipif(INTERPRETED or GPU, reason="this is the interpreter, or there is a GPU")
def test_in_the_interpreter():
    passed = re.search(r"(\d+) passed", kernel_compile.interpret(__file__))
    assert int(passed[1]) >= len(SHAPES) * len(DTYPES)
