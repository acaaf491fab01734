"""The problems that are run on the simulator: small ones, of every Triton kernel in every mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from infodisent.kernels import infodisent_head as head
from infodisent.kernels import rotate_pool as pool
from infodisent.kernels import rotate_pool_backward as backward
from infodisent.kernels import similarity_pool as views
from infodisent.kernels import softmax_pool as softmax
from infodisent.kernels.tiles.rotate_pool import Tiles
from torch import Tensor

from infodisent import reference, testing
from infodisent.backends.triton import coverage
from infodisent.testing import check_close, check_extremes, random_map, require
from tests.kernels.rotate_pool_cases import BF16, F16, F32, rounding
from tests.simulator import prototype_cases, rotation_cases
from tests.simulator.triton import Case

Change = Callable[[Tiles, int], Tiles]
"""Of the tiles that are chosen, and the architecture: other ones."""
HALF_PRODUCTS = ("half", "split", "split3")


def _dtypes(products: str, dtype: torch.dtype) -> tuple[torch.dtype, torch.dtype]:
    """Of the map and of u."""
    if products not in HALF_PRODUCTS:
        return F32, F32
    return dtype, dtype if products == "half" else F32


def _pool(
    products: str, batch: int, pixels: int, channels: int, change: Change | None = None, *,
    dtype: torch.dtype = BF16, kind: str = "normal", prefix: int = 0, nchw: bool = False,
    exact: bool | None = None,
) -> Case:  # fmt: skip
    def run(arch: int) -> Sequence[Tensor]:
        of_x, of_u = _dtypes(products, dtype)
        x, u, y = random_map(
            batch, pixels, channels, dtype=of_x, u_dtype=of_u, kind=kind, prefix=prefix, seed=3
        )
        if nchw:
            x = x.mT.contiguous().mT
        chosen = pool.best_tiles(x, products)
        chosen = change(chosen, arch) if change else chosen
        result = pool.rotate_pool(x, u, products, chosen=chosen, exact=exact)
        whole = bool(exact) or pool.is_exact(x, products)
        allowed = 4 * rounding(x, products, whole)
        # ties are judged to the last pixel, of values that no product rounds
        ties = kind in ("ties", "integers")
        least = 1e-3 if ties and products not in ("half", "ieee", "tf32") else 0.0
        check_extremes(
            result, y, relative_tolerance=allowed, exact=ties and products == "half", least=least
        )
        return result

    return run


def _head(
    products: str, launches: str, batch: int, pixels: int, channels: int, classes: int,
    change: Change | None = None, scores: Tiles | None = None,
) -> Case:  # fmt: skip
    def run(arch: int) -> Sequence[Tensor]:
        of_x, of_u = _dtypes(products, BF16)
        x, u, y = random_map(batch, pixels, channels, dtype=of_x, u_dtype=of_u, seed=4)
        g = torch.Generator().manual_seed(5)
        weight = torch.randn(classes, channels, generator=g).to(of_x)
        bias = torch.randn(classes, generator=g).to(of_x)
        chosen = change(pool.best_tiles(x, products), arch) if change else None
        logits, *result = head.infodisent_head(
            x, u, weight, bias, True, launches, products, chosen=chosen, scores_chosen=scores
        )
        check_extremes(result, y, relative_tolerance=4 * rounding(x, products, False))
        pooled = y.amax(1).clamp_min(0) - (-y).amax(1).clamp_min(0)
        truth = pooled @ weight.double().relu().mT + bias.double()
        check_close(logits, truth, 5e-3 if of_x == BF16 else 1e-5, "logits")
        return logits, *result

    return run


def _views(
    products: str, batch: int, pixels: int, channels: int, prototypes: int,
    similarities: tuple[str, ...], change: Change | None = None, *, hidden: bool = False,
) -> Case:  # fmt: skip
    def run(arch: int) -> Sequence[Tensor]:
        of_x, of_v = _dtypes(products, BF16)
        x, _, _ = random_map(batch, pixels, channels, dtype=of_x, seed=3)
        g = torch.Generator().manual_seed(4)
        v = torch.randn(prototypes, channels, generator=g).to(of_v)
        v[0] = x[-1, -1].to(of_v)  # no distance, found by the second comparison
        valid = None
        if hidden:
            valid = torch.rand(batch, pixels, generator=g) < 0.6
            valid[:, -1] = True
            x[~valid] = float("nan")
        chosen = views.best_tiles(x, prototypes, products, len(similarities))
        chosen = change(chosen, arch) if change else chosen
        found = views.similarity_pool(x, v, valid, similarities, products, chosen=chosen)
        seen = x if valid is None else torch.where(valid[:, :, None], x, 0)
        for similarity, best in zip(similarities, found, strict=True):
            truth = reference.similarity_pool(
                seen.double(), v.double(), similarity=similarity, valid=valid, input_fmt="NLC"
            )
            check_close(best.value, truth.value, 1e-5, similarity)
            require(bool((best.index == truth.index).all()), f"{similarity}: places")
        return tuple(t for best in found for t in best)

    return run


def _softmax(
    products: str, batch: int, pixels: int, channels: int, prototypes: int | None,
    change: Change | None = None, *, hidden: bool = False, nchw: bool = False,
) -> Case:  # fmt: skip
    """Forward, and the gradient of the scores; without prototypes of the map."""

    def run(arch: int) -> Sequence[Tensor]:
        of_x, of_v = _dtypes(products, BF16)
        x, _, _ = random_map(batch, pixels, channels, dtype=of_x, seed=3)
        g = torch.Generator().manual_seed(4)
        v = bias = valid = chosen = None
        w = x.double() / 3.0
        if prototypes is not None:
            v = torch.randn(prototypes, channels, generator=g).to(of_v)
            bias = torch.randn(prototypes, generator=g)
            w = x.double() @ v.double().mT / 3.0 + bias.double()
            chosen = softmax.best_tiles(x, prototypes, products)
            chosen = change(chosen, arch) if change else chosen
        if hidden:
            valid = torch.rand(batch, pixels, generator=g) < 0.6
            valid[:, -1] = True
            x[~valid] = float("nan")
        x = x.mT.contiguous().mT if nchw else x
        kind = products if v is not None else None
        best, normalizer = softmax.softmax_pool(x, v, 3.0, bias, valid, kind, chosen=chosen)
        s = w.requires_grad_().softmax(2)
        seen = s if valid is None else s.masked_fill(~valid[:, :, None], 0)
        truth = seen.max(1)
        check_close(best.value, truth.values, 1e-5, "values")
        require(bool((best.index == truth.indices).all()), "places")
        grad = torch.randn(best.value.shape, generator=g)
        (dw,) = torch.autograd.grad(truth.values, w, grad.double())
        found = torch.empty(dw.shape, dtype=x.dtype)
        if v is None:
            softmax.map_gradient(grad, best, normalizer, x, 3.0, found)
        else:
            call = grad, best, normalizer, x, v, 3.0, bias, products
            found = torch.cat([dw for _, dw in softmax.scores_gradient(*call, chosen=chosen)])
        allowed = 1e-2 if found.dtype == BF16 else 1e-4
        check_close(found, dw / 3.0, allowed, "gradient")
        return *best, normalizer, found

    return run


ERROR_OF_GRADIENTS = {"half": 1e-2, "split": 5e-3, "split3": 5e-3, "tf32x3": 3e-6, "bf16x3": 1e-4,
                      "ieee": 3e-6}  # fmt: skip


def _backward(
    products: str, batch: int, pixels: int, channels: int, *, dtype: torch.dtype = BF16,
    splits: int | None = None, infinite: bool = False,
) -> Case:  # fmt: skip
    def run(arch: int) -> Sequence[Tensor]:
        dtype_ = dtype if products in HALF_PRODUCTS else F32
        x, u, y = random_map(batch, pixels, channels, dtype=dtype_, seed=6)
        g = torch.Generator().manual_seed(9)
        grads = torch.randn(2, batch, channels, generator=g).unbind()
        places = [torch.where(side.amax(1) > 0, side.argmax(1), -1).int() for side in (y, -y)]
        places[0][0, :3] = -1
        places[1][0, channels // 2] = places[0][0, channels // 2]
        if infinite:  # at a pixel that nobody chooses
            places = [p.clamp_max(pixels - 2) for p in places]
            x[0, pixels - 1, 5], x[1, pixels - 1, channels - 1] = float("inf"), float("nan")
        winners = (*grads, *places)
        truth = testing.gradient_truth(*grads, x, u, *places)
        du = backward.grad_u(winners, x, u.dtype, products, splits=splits)
        dx = backward.grad_x(winners, u, pixels, x.dtype, products)
        check_close(du, truth.du, ERROR_OF_GRADIENTS[products], "dU")
        check_close(dx, truth.dx, ERROR_OF_GRADIENTS[products], "dX")
        return du, dx

    return run


def _split(parts: int) -> Change:
    return lambda tiles, arch: replace(tiles, split=parts)


def _across(*widths: int, split: int = 1) -> Change:
    return lambda tiles, arch: replace(tiles, images=0, widths=widths, split=split)


def _whole(images: int, *widths: int) -> Change:
    return lambda tiles, arch: replace(tiles, images=images, widths=widths)


def _loop(tiles: Tiles, arch: int) -> Tiles:
    """A tile of fewer steps than stages, one after the other in each of `PROCESSORS` programs."""
    return Tiles(64, (64,), 1, 32, 4, 4, persistent=True)


def _big(tiles: Tiles, arch: int) -> Tiles:
    """The tile of large maps."""
    if arch == 80:
        return Tiles(128, (128, 64, 16), 4, 32, 8, 4)
    return Tiles(128, (128, 128), 5, 64, 8, 4)


CASES: dict[str, Case] = {
    **rotation_cases.CASES,
    "pool half 49": _pool("half", 5, 49, 128),
    "pool half float16": _pool("half", 5, 49, 128, dtype=F16),
    "pool half 196": _pool("half", 2, 196, 128),
    "pool half ragged, C=72 P=30": _pool("half", 3, 30, 72),
    "pool half odd, C=65": _pool("half", 2, 20, 65),
    "pool half C=88, a multiple of 8": _pool("half", 3, 49, 88),
    "pool half big tile": _pool("half", 9, 49, 256, _big),
    "pool half images in two accumulators": _pool("half", 9, 20, 253, _whole(4, 64, 32)),
    "pool half tile after tile": _pool("half", 11, 49, 72, _loop),
    "pool half tile after tile, big": _pool(
        "half", 23, 49, 256, lambda tiles, arch: replace(_big(tiles, arch), persistent=True)
    ),
    "pool half tile after tile, ragged": _pool("half", 11, 49, 150, _loop),
    "pool half split": _pool("half", 3, 49, 256, _split(2)),
    "pool half across": _pool("half", 5, 49, 128, _across(64)),
    "pool half one image across": _pool("half", 1, 300, 64),
    "pool half one channel": _pool("half", 2, 20, 1),
    "pool half across, split": _pool("half", 3, 49, 256, _across(64, split=2)),
    "pool half across, two widths": _pool("half", 5, 70, 128, _across(64, 32)),
    "pool half prefix": _pool("half", 2, 49, 128, prefix=1),
    "pool half NCHW": _pool("half", 2, 49, 128, nchw=True),
    "pool half exact": _pool("half", 3, 49, 128, exact=True),
    "pool split": _pool("split", 3, 49, 128),
    "pool split float16": _pool("split", 3, 49, 128, dtype=F16),
    "pool tf32x3 49": _pool("tf32x3", 3, 49, 128),
    "pool tf32x3 two runs, C=288": _pool("tf32x3", 1, 20, 288),
    "pool tf32x3 across": _pool("tf32x3", 3, 49, 64, _across(64)),
    "pool tf32x3 split in 3": _pool("tf32x3", 2, 49, 128, _split(3)),
    "pool tf32x3 ragged, C=33": _pool("tf32x3", 2, 30, 33),
    "pool bf16x3": _pool("bf16x3", 3, 49, 128),
    "pool ieee": _pool("ieee", 2, 49, 64),
    "pool tf32": _pool("tf32", 2, 49, 64),
    "ties half": _pool("half", 5, 49, 64, kind="ties"),
    "ties half across": _pool("half", 5, 70, 64, _across(64), kind="ties"),
    "ties tf32x3": _pool("tf32x3", 3, 49, 64, kind="ties"),
    "ties tf32x3 across": _pool("tf32x3", 3, 70, 64, _across(64), kind="ties"),
    **{
        f"{kind} {products}{', ' * bool(word)}{word}": _pool(
            products, 3, 49, 64, change, kind=kind
        )
        for kind in ("nan", "inf")
        for products, word, change in (
            ("half", "", None), ("half", "across", _across(64)), ("half", "split", _split(2)),
            ("split", "", None), ("tf32x3", "", None), ("bf16x3", "", None), ("ieee", "", None),
        )
    },
    "head two half": _head("half", "two", 5, 49, 128, 37),
    "head two half, 20 images": _head("half", "two", 20, 20, 64, 70),
    "head two half, small scores shared": _head("half", "two", 20, 4, 300, 37,
        scores=Tiles(16, (32,), 0, 64, 4, 3, split=4)),
    "head two half, middling scores shared": _head("half", "two", 20, 4, 128, 70,
        scores=Tiles(32, (64,), 0, 32, 4, 3, split=2)),
    "head two half, large scores shared": _head("half", "two", 20, 4, 128, 140,
        scores=Tiles(64, (128,), 0, 32, 4, 3, split=2)),
    "head two tf32x3": _head("tf32x3", "two", 3, 49, 64, 20),
    "head two ieee": _head("ieee", "two", 2, 20, 64, 20),
    "head one half": _head("half", "one", 5, 49, 128, 37),
    "head one half, 20 images": _head("half", "one", 20, 20, 64, 50),
    "head one half split": _head("half", "one", 3, 49, 256, 37, _split(2)),
    "head one half across": _head("half", "one", 5, 49, 64, 37, _across(64)),
    "head one half one image across": _head("half", "one", 1, 300, 64, 10),
    "head one tf32x3": _head("tf32x3", "one", 3, 49, 64, 20),
    "views half": _views("half", 3, 49, 64, 70, ("l2",)),
    "views half hidden, two": _views("half", 3, 49, 72, 70, ("cosine", "l2"), hidden=True),
    "views half across": _views("half", 3, 49, 64, 30, ("l2",), _across(64), hidden=True),
    "views half across, two widths": _views(
        "half", 3, 70, 33, 30, ("dot", "cosine"), _across(64, 32)
    ),
    "views half shared": _views("half", 3, 49, 200, 30, ("l2",), _split(3)),
    "views half shared, across": _views("half", 3, 70, 128, 30, ("dot",), _across(64, split=2)),
    "views tf32x3 shared, two": _views("tf32x3", 2, 49, 128, 30, ("cosine", "l2"), _split(2)),
    "views tf32x3": _views("tf32x3", 2, 49, 64, 30, ("cosine", "l2")),
    "softmax half": _softmax("half", 3, 49, 64, 150),
    "softmax half hidden": _softmax("half", 3, 49, 72, 70, hidden=True),
    "softmax half across": _softmax("half", 3, 49, 33, 30, _across(64), hidden=True),
    "softmax half across, two widths": _softmax("half", 3, 70, 64, 130, _across(64, 32)),
    "softmax split": _softmax("split", 2, 49, 64, 70),
    "softmax tf32x3": _softmax("tf32x3", 2, 49, 64, 70),
    "softmax of a map": _softmax("half", 2, 70, 80, None, hidden=True),
    "softmax of a map, float32": _softmax("tf32x3", 2, 35, 300, None),
    "softmax of a map, NCHW": _softmax("tf32x3", 2, 70, 70, None, nchw=True),
    **prototype_cases.CASES,
    "backward half 49": _backward("half", 4, 49, 128),
    "backward half 196, C=256": _backward("half", 2, 196, 256),
    "backward half one channel": _backward("half", 2, 20, 1),
    "backward half float16": _backward("half", 4, 49, 128, dtype=F16),
    "backward half infinite": _backward("half", 3, 49, 64, infinite=True),
    "backward half 49, parts end in a step": _backward("half", 5, 49, 256, splits=2),
    "backward half 36, three images a step": _backward("half", 4, 36, 256, splits=1),
    "backward half one split": _backward("half", 3, 49, 64, splits=1),
    "backward split": _backward("split", 3, 49, 64),
    "backward split3": _backward("split3", 3, 49, 128),
    "backward tf32x3": _backward("tf32x3", 3, 49, 64),
    "backward tf32x3 128": _backward("tf32x3", 2, 49, 128),
    "backward bf16x3": _backward("bf16x3", 3, 49, 64),
    "backward ieee": _backward("ieee", 2, 30, 64),
}  # fmt: skip
SAMPLE = (
    "product tf32x3 symmetric", "pool half 49", "pool half split", "pool half across", "nan half",
    "pool tf32x3 49", "head two half", "backward half infinite",
    "views half across",
)  # fmt: skip
"""What is run with every change, on sm_90."""


def kinds(arch: int) -> dict[str, Case]:
    """A problem for every kind of tile that half maps and float32 ones may take on a usual GPU."""
    cases = {}
    processors = {80: 108, 90: 132}.get(arch, 148)
    for products in ("half", "tf32x3"):
        for kind, case in coverage.pool_cases(products, arch, processors).items():
            name = f"kind {products} {kind.channels}x{kind.widths} of {tuple(case[:3])}"
            name += " across" * kind.across + " split" * kind.split
            cases[name] = _pool(products, *case[:3], lambda _, arch, its=case.tiles: its)
    return cases
