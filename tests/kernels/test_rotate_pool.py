"""The Triton kernels of rotate_pool, forward: sizes, dtypes, layouts, and the machine code.

With a GPU the tests run on it. Without one, `test_in_the_interpreter` runs this file again in the
interpreter, where products of bfloat16 and TF32 parts are computed in float32.
"""

from __future__ import annotations

import re

import pytest
import torch
from infodisent.kernels import rotate_pool as pool

from infodisent import reference
from tests.kernels import kernel_compile
from tests.kernels.marks import compiles, outside, runs
from tests.kernels.rotate_pool_cases import BF16, F16, F32, check, rotation_like, run

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
    for actual, true in ((pos, truth.pos), (neg, truth.neg)):
        error = (actual.double() / magnitude.double() - true).abs().max()
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
    actual, plain = run(view, u), run(x, u)
    check(x, u, actual)
    assert all(map(torch.equal, actual, plain))
    turned = run(view, u.mT.contiguous().mT)
    assert all(map(torch.equal, turned, plain))


@runs
@pytest.mark.usefixtures("poisoned")
def test_expanded():
    x, u = torch.randn(1, 20, 24).to(BF16), rotation_like(24).to(BF16)
    actual = run(x.expand(4, 20, 24), u)
    for one, four in zip(run(x, u), actual):
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
    assert pool.at_a_time(x, pool.default_products(dtype, dtype)) in (2, 4)
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


def check_compiled(results: list[dict], arch: int, kernel: str = "rotate_pool_kernel") -> None:
    assert any(r["kernel"] == kernel for r in results)
    unit = {80: "mma.sync", 90: "wgmma", 100: "tcgen05.mma"}[arch]
    for r in results:
        assert "error" not in r, r
        assert r["shared"] <= kernel_compile.SHARED_LIMIT[arch], r
        assert not r["serialized"], r
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
        assert any("images=0" in what for what in tiles)
        assert any("split=1" not in what.split() for what in tiles)


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("products", pool.PRODUCTS)
def test_compiles_every_configuration(arch, products):
    check_compiled(kernel_compile.run("rotate_pool", [arch], [512, 768, 2048], [products]), arch)


@outside
def test_in_the_interpreter():
    passed = re.search(r"(\d+) passed", kernel_compile.interpret(__file__))
    assert int(passed[1]) >= len(SHAPES) * len(DTYPES)
