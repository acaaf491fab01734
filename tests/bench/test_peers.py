"""The peers that are libraries' ways to the same: values, places and gradients against float64."""

from __future__ import annotations

import pytest
import torch

from infodisent import reference
from infodisent.bench import peers
from infodisent.testing import check_close, check_extremes, gradient_truth, random_map


def as_map(x, height):
    """[B, P, C] as a channels-last map [B, C, H, W]."""
    return x.unflatten(1, (height, -1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["normal", "integers"])
@pytest.mark.parametrize("size", [(3, 12, 16), (1, 1, 8), (2, 49, 24)])
def test_product_and_places(size, kind, dtype):
    x, u, y = random_map(*size, dtype=dtype, kind=kind, seed=1)
    height = 7 if size[1] == 49 else 1
    found = peers.row_product_extremes(as_map(x, height), u)
    tolerance = 1e-5 if dtype == torch.float32 else 2**-7
    check_extremes(found, y, relative_tolerance=tolerance, signed_zeros=True)
    pooled = peers.row_product_aminmax(as_map(x, height), u)
    check_close(pooled, reference.rotate_pool(x, u, input_fmt="NLC").pooled, tolerance, "aminmax")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_scatter_and_product(dtype, layout):
    x, u, _ = random_map(4, 12, 16, dtype=dtype, kind="integers", seed=2)
    nchw = as_map(x, 3)
    if layout == "NCHW":
        nchw = nchw.contiguous()
    pool = reference.rotate_pool(x, u, input_fmt="NLC")
    g = torch.Generator().manual_seed(0)
    grads = [torch.randint(-3, 4, pool.pooled.shape, generator=g).float() for _ in range(2)]
    places = [pool.pos_index.clone(), pool.neg_index]
    places[0][:, 3] = -1  # no winner, and a gradient there that nobody may see
    grads[0][:, 3] = float("nan")
    du = peers.scatter_product(*grads, nchw, *places)
    truth = gradient_truth(*grads, x, u, *places).du
    torch.testing.assert_close(du, truth.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_library_pool(dtype):
    x, u, _ = random_map(5, 12, 16, dtype=dtype, kind="integers", seed=3)
    leaf = u.clone().requires_grad_()
    pooled = peers.library_pool(as_map(x, 3), leaf)
    wanted = reference.rotate_pool(x, u, input_fmt="NLC")
    torch.testing.assert_close(pooled, wanted.pooled.float(), rtol=0, atol=0)
    (du,) = torch.autograd.grad(pooled, leaf, torch.ones_like(pooled))
    # the places that the library names among ties may be others: of its own ones
    found = peers.row_product_extremes(as_map(x, 3), u)
    ones = torch.ones_like(pooled)
    truth = gradient_truth(ones, ones, x, u, found.pos_index, found.neg_index).du
    torch.testing.assert_close(du, truth.to(dtype), rtol=0, atol=0)
