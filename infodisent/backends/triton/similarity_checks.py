"""What the self-check compares with float64 of `similarity_pool`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from infodisent import reference
from infodisent.backends.triton import coverage, kernels
from infodisent.backends.triton.problems import REPEATS, SIZES, other_dtypes, random_numbers
from infodisent.contract import Best
from infodisent.testing import check_close, random_map, require, similarity_at

VIEWS = (("dot",), ("cosine",), ("l2",), ("cosine", "dot"), ("l2", "dot"))
WIDTHS = (9, 24, 40, 136)
"""Channels, of which the gradients have tiles of 16, 32, 64 and 128."""


def _check_views(
    x: Tensor,  # [B, P, C]
    prototypes: Tensor,  # [M, C]
    valid: Tensor | None,  # [B, P] bool
    found: tuple[Best, ...],
    similarities: tuple[str, ...],
    what: str,
) -> None:
    """Values against float64's, and that every place has its value."""
    x, v = x.double(), prototypes.double()
    for similarity, best in zip(similarities, found, strict=True):
        truth = reference.similarity_pool(x, v, similarity=similarity, valid=valid, input_fmt="NLC")
        check_close(best.value, truth.value, 2**-14, f"{what}: values by {similarity}")
        inside = (best.index >= 0) & (best.index < x.shape[1])
        index = best.index.long().clamp(0, x.shape[1] - 1)
        if valid is not None:
            inside &= valid.gather(1, index)
        there = similarity_at(x, v, index, similarity)
        check_close(there, truth.value, 2**-14, f"{what}: places by {similarity}")
        require(bool(inside.all()), f"{what}: places by {similarity} are outside")


def _check_gradients(
    x: Tensor,  # [B, P, C]
    prototypes: Tensor,  # [M, C]
    found: tuple[Best, ...],
    similarities: tuple[str, ...],
    what: str,
) -> None:
    """dX and dV against those of float64 at these places."""
    grads = tuple(random_numbers(x.device, *best.value.shape) for best in found)
    call = grads, found, x, prototypes, similarities
    both = kernels.similarity_pool_backward(*call, True, True)
    with torch.enable_grad():
        leaves = x.double().requires_grad_(), prototypes.double().requires_grad_()
        values = [
            similarity_at(*leaves, best.index.long(), similarity)
            for best, similarity in zip(found, similarities, strict=True)
        ]
        truth = torch.autograd.grad(values, leaves, [grad.double() for grad in grads])
    for actual, true, name in zip(both, truth, ("dX", "dV"), strict=True):
        assert actual is not None
        tolerance = 2 * torch.finfo(actual.dtype).eps if actual.dtype.itemsize == 2 else 1e-5
        check_close(actual, true, tolerance, f"{what}: {name}")
    again = kernels.similarity_pool_backward(*call, True, True)
    for one, two in zip(again, both, strict=True):
        assert one is not None
        assert two is not None
        require(torch.equal(one, two), f"{what}: other bits of a gradient the next time")


def _check_chosen(
    device: torch.device, dtype: torch.dtype, v_dtype: torch.dtype, sizes: Sequence[tuple[int, ...]]
) -> None:
    """Both ways, in the tiles that are chosen and in the layouts that maps have."""
    for number, size in enumerate((*sizes, *((2, 4, width) for width in WIDTHS))):
        x, _, _ = random_map(*size, dtype=dtype, device=device, seed=sum(size))
        if number % 2:  # NCHW
            x = x.mT.contiguous().mT
        v = random_numbers(device, 70, size[2]).to(v_dtype)
        v[0] = x[-1, -1].to(v_dtype)
        similarities = VIEWS[-1 - number % len(VIEWS)]
        found = kernels.similarity_pool(x, v, None, similarities)
        what = f"similarity_pool {size}, prototypes in {v_dtype}"
        _check_views(x, v, None, found, similarities, what)
        _check_gradients(x, v, found, similarities, what)


def check_similarity_pool(
    device: torch.device,
    dtype: torch.dtype,
    sizes: Sequence[tuple[int, int, int]] = SIZES,
    most: int | None = None,
) -> str:
    """The best pixels, of every kind of tile and by all similarities, and their gradients.

    most: kinds of tiles, for tests.
    """
    from infodisent.kernels import device as gpu
    from infodisent.kernels import similarity_pool as host

    machine = gpu.capability(device), gpu.processors(device)
    said = []
    for v_dtype in other_dtypes(dtype):
        products = host.default_products(dtype, v_dtype)
        _check_chosen(device, dtype, v_dtype, sizes)
        cases = coverage.view_cases(products, *machine)
        for number, (kind, case) in enumerate(list(cases.items())[:most]):
            x, _, _ = random_map(*case[:3], dtype=dtype, device=device, seed=9)
            v = random_numbers(device, case.prototypes, case.channels).to(v_dtype)
            valid = random_numbers(device, case.batch, case.pixels) > 0
            valid[:, case.pixels // 2] = True
            x[~valid] = float("nan")
            similarities = VIEWS[3 + number % 2] if case.views == 2 else VIEWS[number % 3]
            what = f"similarity_pool {products} {tuple(case[:4])} in {kind}"
            call = (x, v, valid, similarities, products)
            found = host.similarity_pool(*call, chosen=case.tiles)
            seen = torch.where(valid[:, :, None], x, 0)
            _check_views(seen, v, valid, found, similarities, what)
            for _ in range(REPEATS if kind[0].across or kind[0].split else 0):
                again = host.similarity_pool(*call, chosen=case.tiles)
                same = all(map(torch.equal, sum(again, ()), sum(found, ())))
                require(same, f"{what}: other bits the next time")
        said.append(f"{products}: {len(cases)} kinds of tiles")
    return f"{len(sizes)} sizes, {', '.join(said)}"
