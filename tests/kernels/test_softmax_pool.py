"""softmax_pool in Triton: against float64, and as compiled.

With a GPU the tests run on it. Without one, `test_in_the_interpreter` runs this file again in the
interpreter, where products of bfloat16 and TF32 parts are computed in float32.
"""

from __future__ import annotations

import math
import re

import pytest
import torch
from infodisent.kernels import softmax_pool as host
from infodisent.kernels.softmax_pool import Tiles

from infodisent.backends.triton import softmax_pool as backend
from tests.kernels import kernel_compile
from tests.kernels.marks import DEVICE, compiles, outside, runs

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
ACROSS = Tiles(64, (64,), 0, 32, 4, 3)
TWO_WIDTHS = Tiles(64, (64, 32), 0, 32, 4, 3)
INF, NAN = math.inf, math.nan


def on(t):
    return None if t is None else t.to(DEVICE)


def probabilities(x, v=None, temperature=1.0, bias=None):
    """[B][P][M], by the formula in loops; NaN for a pixel without a softmax."""
    rows = x.double().tolist()
    if v is not None:
        shift = [0.0] * len(v) if bias is None else bias.double().tolist()
        vectors = v.double().tolist()
        rows = [
            [
                [
                    sum(a * b for a, b in zip(p, q, strict=True)) / temperature + s
                    for q, s in zip(vectors, shift, strict=True)
                ]
                for p in image
            ]
            for image in rows
        ]
    else:
        rows = [[[w / temperature for w in p] for p in image] for image in rows]

    def softmax(w):
        top = max(w)
        if any(math.isnan(n) or n == INF for n in w) or top == -INF:
            return [NAN] * len(w)
        total = sum(math.exp(n - top) for n in w)
        return [math.exp(n - top) / total for n in w]

    return torch.tensor([[softmax(p) for p in image] for image in rows], dtype=torch.float64)


def run(x, v=None, temperature=1.0, bias=None, valid=None, **options):
    best, normalizer = host.softmax_pool(
        on(x), on(v), temperature, on(bias), on(valid), **options
    )  # fmt: skip
    return best.value.cpu(), best.index.cpu(), normalizer.cpu()


def check(x, v=None, temperature=1.0, bias=None, valid=None, *, tolerance=4e-6, **options):
    """Against float64: values, and places that have the value."""
    value, index, _ = run(x, v, temperature, bias, valid, **options)
    s = probabilities(
        x if valid is None else x.masked_fill(~valid[:, :, None], 0), v, temperature, bias
    )
    if valid is not None:
        s[~valid] = -1
    assert value.dtype == F32
    assert index.dtype == torch.int32
    best = s.amax(1)
    assert float((value / best - 1).abs().max()) <= tolerance
    there = s.gather(1, index.long()[:, None])[:, 0]
    assert float((there / best - 1).abs().max()) <= tolerance


def maps(batch, pixels, channels, prototypes, dtype=F32, v_dtype=None):
    g = torch.Generator().manual_seed(batch + pixels + channels + prototypes)
    x, v = (
        torch.randn(s, generator=g) for s in ((batch, pixels, channels), (prototypes, channels))
    )
    return x.to(dtype), v.to(v_dtype or dtype), torch.randn(prototypes, generator=g)


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("tiles", [None, ACROSS, TWO_WIDTHS])
@pytest.mark.parametrize(
    ("dtype", "v_dtype"), [(F32, F32), (F16, F16), (BF16, BF16), (BF16, F32), (F16, F32)]
)
def test_by_prototypes(dtype, v_dtype, tiles):
    x, v, bias = maps(2, 49, 40, 70, dtype, v_dtype)
    valid = torch.rand(2, 49, generator=torch.Generator().manual_seed(1)) < 0.6
    low = 20 * {F16: 2.0**-20, BF16: 2.0**-15}.get(dtype, 0.0) if dtype != v_dtype else 0.0
    check(x, v, 2.0, bias, valid, tolerance=1e-5 + low, chosen=tiles)


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("pixels", [1, 50, 81, 196])
@pytest.mark.parametrize("prototypes", [1, 63, 65, 129])
def test_sizes(pixels, prototypes):
    """Of prototypes around a tile's rows, and of images in one tile or several."""
    x, v, bias = maps(1 + prototypes % 2, pixels, 24, prototypes)
    check(x, v, 1.0, bias if pixels % 2 else None, tolerance=1e-5)


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("nchw", [False, True])
@pytest.mark.parametrize("dtype", [F32, F16, BF16])
@pytest.mark.parametrize("size", [(2, 70, 40), (1, 5, 300), (3, 1, 1)])
def test_of_a_map(size, dtype, nchw):
    x, _, _ = maps(*size, 1, dtype)
    x = x.mT.contiguous().mT if nchw else x
    check(x, None, 0.5)
    valid = torch.zeros(size[:2], dtype=torch.bool)
    valid[:, ::3] = True
    x[~valid] = NAN
    check(x, None, 0.5, valid=valid)


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("way", ["map", "prototypes", "across"])
def test_pixels_without_a_softmax(way):
    """NaN, +Inf and nothing but -Inf make the image NaN, at the first of them; -Inf is 0."""
    x = torch.randn(6, 49, 20, generator=torch.Generator().manual_seed(1))
    v = None if way == "map" else torch.eye(20)
    options = {"chosen": ACROSS} if way == "across" else {}
    x[0, 31, 3] = x[0, 40, 5] = NAN
    x[1, 7, 2] = INF
    if way == "map":
        x[2, 9] = -INF
        x[3, :, 4] = -INF
    valid = torch.ones(6, 49, dtype=torch.bool)
    x[4, 8], valid[4, 8] = NAN, False
    value, index, normalizer = run(x, v, valid=valid, **options)
    assert value[:2].isnan().all()
    assert (index[0] == 31).all()
    assert (index[1] == 7).all()
    assert normalizer[1, 0, 31].isnan()
    if way == "map":
        assert value[2].isnan().all()
        assert (index[2] == 9).all()
        assert (value[3, 4], index[3, 4]) == (0, 0)
        assert (value[3, :4] > 0).all()
    assert (value[4:] > 0).all()
    assert (index[4] != 8).all()


@runs
@pytest.mark.usefixtures("poisoned")
def test_ties_go_to_the_lowest_pixel():
    x = torch.ones(2, 49, 12)
    x[:, 5:, 3], x[:, 9:, 4] = 2.0, 0.5
    x[:, :5, 4] = 0.5
    for v, options in ((None, {}), (torch.eye(12), {}), (torch.eye(12), {"chosen": ACROSS})):
        value, index, _ = run(x, v, **options)
        assert (index[:, 3] == 9).all()  # the other is less there
        assert (index[:, 0] == 0).all()
        assert float((value - probabilities(x).amax(1)).abs().max()) < 1e-6


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("tiles", [None, ACROSS])
def test_far_from_each_other(tiles):
    """Scores of +-1e4 and a temperature of 0.01: no overflow, and nothing that is above 1."""
    x, v, _ = maps(2, 49, 16, 70)
    for value, index, normalizer in (
        run(1e4 * x, None, 0.01), run(1e3 * x, v, 0.01, chosen=tiles)
    ):  # fmt: skip
        assert ((value >= 0) & (value <= 1)).all()
        assert ((index >= 0) & (index < 49)).all()
        assert (normalizer[1] >= 1).all()


@runs
@pytest.mark.parametrize("tiles", [None, ACROSS])
def test_places_are_in_memory_where_no_pixel_counts(tiles):
    """Which the operator refuses, but inside a CUDA graph it cannot."""
    x, v, _ = maps(2, 49, 16, 30)
    valid = torch.ones(2, 49, dtype=torch.bool)
    valid[0] = False
    for value, index, _ in (run(x, None, valid=valid), run(x, v, valid=valid, chosen=tiles)):
        assert (value[0] == -INF).all()
        assert (index[0] == 0).all()


def truth_of_gradients(x, v, temperature, bias, index, grad):
    """dX, dV, dbias by autograd of the softmax in float64 at given places."""
    leaves = [t.double().requires_grad_() for t in (x, v, bias) if t is not None]
    w = leaves[0]
    if v is not None:
        w = w @ leaves[1].mT / temperature
        w = w if bias is None else w + leaves[2]
    else:
        w = w / temperature
    there = w.softmax(2).gather(1, index.long()[:, None])[:, 0]
    return torch.autograd.grad(there, leaves, grad.double())


@runs
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("chunk", [host.CHUNK_BYTES, 1])
@pytest.mark.parametrize("way", ["map", "NCHW", "prototypes", "bias"])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_gradients(dtype, way, chunk, monkeypatch):
    monkeypatch.setattr(host, "CHUNK_BYTES", chunk)
    x, v, bias = maps(3, 49, 24, 70, dtype)
    x[0, 3] = NAN  # of a pixel that wins nothing, as it does not count
    valid = torch.ones(3, 49, dtype=torch.bool)
    valid[0, 3] = False
    v = None if way in ("map", "NCHW") else v
    bias = bias if way == "bias" else None
    x = x.mT.contiguous().mT if way == "NCHW" else x
    x, v, bias, valid = on(x), on(v), on(bias), on(valid)
    best, normalizer = host.softmax_pool(x, v, 0.5, bias, valid)
    grad = torch.randn(best.value.shape, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    dx = torch.empty_like(x)
    given = (grad, best, normalizer, x, v, 0.5, bias)
    dv, db = backend.softmax_pool_backward(*given, dx, v is not None, bias is not None)
    seen = x.masked_fill(~valid[:, :, None], 0)
    truth = truth_of_gradients(seen, v, 0.5, bias, best.index, grad)
    found = [d for d in (dx, dv, db) if d is not None]
    for one, true in zip(found, truth, strict=True):
        tolerance = 3e-5 if one.dtype == F32 else 2e-2
        assert float((one - true).abs().max() / true.abs().max()) <= tolerance
    assert (dx[0, 3] == 0).all()
    none = backend.softmax_pool_backward(*given, None, False, False)
    assert none == (None, None)


@runs
def test_the_same_bits_again():
    x, v, bias = maps(2, 49, 24, 70)
    grad = torch.ones(2, 70)
    for vectors in (v, None):
        shift = None if vectors is None else bias
        first, again = (
            host.softmax_pool(on(x), on(vectors), 1.0, on(shift), None) for _ in range(2)
        )
        assert torch.equal(first[1], again[1])
        assert all(map(torch.equal, first[0], again[0]))
    call = on(grad), *host.softmax_pool(on(x), on(v), 1.0, None, None), on(x), on(v), 1.0, None
    one, two = (torch.cat([dw for _, dw in host.scores_gradient(*call)]) for _ in range(2))
    assert torch.equal(one, two)


@runs
def test_nothing_to_do():
    value, index, normalizer = run(torch.ones(0, 4, 8), torch.ones(3, 8))
    assert value.shape == index.shape == (0, 3)
    assert normalizer.shape == (2, 0, 4)
    x = on(torch.ones(0, 4, 8))
    best, normalizer = host.softmax_pool(x, None, 1.0, None, None)
    host.map_gradient(best.value, best, normalizer, x, 1.0, torch.empty_like(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"products": "bf16x3"}, "products is 'bf16x3'"),
        ({"products": "half"}, "for half maps"),
        ({"prototypes": torch.ones(3, 9)}, "prototypes is"),
        ({"prototypes": None, "bias": torch.ones(8)}, "for scores by prototypes"),
        ({"x": torch.ones(2, 0, 8)}, "no pixels"),
    ],
)
def test_what_is_refused(change, message):
    arguments = {
        "x": torch.ones(2, 4, 8), "prototypes": torch.ones(3, 8), "temperature": 1.0,
        "bias": None, "valid": None, **change,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        host.softmax_pool(**arguments)


@compiles
def test_launches():
    """Two of the product and the merging of rows of tiles; two for a map; no more for NCHW."""
    x = torch.empty(8, 49, 128, dtype=BF16, device="meta")
    v = torch.empty(300, 128, dtype=BF16, device="meta")

    def names(call):
        with kernel_compile.recorder() as launches:
            result = call()
        return result, [kernel.__name__ for kernel, _ in launches]

    (best, normalizer), launched = names(lambda: host.softmax_pool(x, v, 1.0, None, None))
    assert launched == ["normalizer_kernel", "merge_kernel", "softmax_pool_kernel"]
    call = best.value, best, normalizer, x, v, 1.0, None
    _, launched = names(lambda: list(host.scores_gradient(*call)))
    assert launched == ["shares_kernel", "scores_gradient_kernel", "winners_kernel"]
    for each in (x, x.mT.contiguous().mT):
        (best, normalizer), launched = names(
            lambda x=each: host.softmax_pool(x, None, 1.0, None, None)
        )
        assert launched == ["map_normalizer_kernel", "map_best_kernel"]
        call = best.value, best, normalizer, each, 1.0, each
        _, launched = names(lambda call=call: host.map_gradient(*call))
        assert launched == ["shares_kernel", "map_gradient_kernel", "winners_kernel"]


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90, 100, 120])
@pytest.mark.parametrize("products", ["half", "tf32x3"])
def test_compiles_without_spills(arch, products):
    maps = [(80, 49), (80, 196), (64, 577)]
    results = kernel_compile.run("softmax_pool", [arch], [128], [products], maps=maps)
    assert {r["kernel"] for r in results} >= {
        "normalizer_kernel", "merge_kernel", "softmax_pool_kernel", "scores_gradient_kernel",
        "shares_kernel", "winners_kernel", "map_normalizer_kernel", "map_best_kernel",
        "map_gradient_kernel",
    }  # fmt: skip
    for r in results:
        assert "error" not in r, r
        assert r["spills"] == 0, r
        assert r["shared"] <= kernel_compile.SHARED_LIMIT[arch], r
        assert not r["serialized"], r


@outside
@pytest.mark.slow
def test_in_the_interpreter():
    passed = re.search(r"(\d+) passed", kernel_compile.interpret(__file__))
    assert int(passed[1]) >= 70
