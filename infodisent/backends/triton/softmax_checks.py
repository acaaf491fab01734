"""What the self-check compares with float64 of `softmax_pool` and `softmax_alignment`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from infodisent.backends.triton import coverage, kernels, softmax_pool
from infodisent.backends.triton.problems import REPEATS, SIZES, other_dtypes, random_numbers
from infodisent.contract import Best
from infodisent.testing import check_close, random_map, require


def _check_softmax(
    w: Tensor,  # [B, P, M] float64: scores, divided by the temperature
    valid: Tensor | None,  # [B, P] bool
    best: Best,
    grad: Tensor,  # [B, M]
    what: str,
) -> Tensor:
    """Values and places against float64's; the gradient of w at these places, [B, P, M]."""
    with torch.enable_grad():
        s = w.requires_grad_().softmax(2)
        require(bool(((best.index >= 0) & (best.index < w.shape[1])).all()), f"{what}: places")
        index = best.index.long()
        there = s.gather(1, index[:, None])[:, 0]
        (dw,) = torch.autograd.grad(there, w, grad.double())
    if valid is not None:
        require(valid.gather(1, index).all(), f"{what}: places are of pixels that do not count")
        s = s.masked_fill(~valid[:, :, None], 0)
    check_close(best.value, s.amax(1), 2**-14, f"{what}: values")
    check_close(there, s.amax(1), 2**-14, f"{what}: places")
    return dw


def check_softmax_pool(
    device: torch.device,
    dtype: torch.dtype,
    sizes: Sequence[tuple[int, int, int]] = SIZES,
    most: int | None = None,
) -> str:
    """Forward and backward, of maps that hold the scores and of all kinds of tiles by prototypes.

    most: kinds of tiles, for tests.
    """
    from infodisent.kernels import device as gpu
    from infodisent.kernels import softmax_pool as host

    for number, size in enumerate(sizes):
        x, _, _ = random_map(*size, dtype=dtype, device=device, seed=sum(size))
        if number % 2:  # NCHW
            x = x.mT.contiguous().mT
        best, normalizer = softmax_pool.softmax_pool(x, None, 0.5, None, None)
        grad, dx = random_numbers(device, *best.value.shape), torch.empty_like(x)
        dw = _check_softmax(2 * x.double(), None, best, grad, what := f"softmax_pool {size}")
        call = (grad, best, normalizer, x, None, 0.5, None, dx, False, False)
        softmax_pool.softmax_pool_backward(*call)
        check_close(dx, 2 * dw, max(1e-4, 2 * torch.finfo(dtype).eps), f"{what}: dX")
    said, machine = [], (gpu.capability(device), gpu.processors(device))
    for v_dtype in other_dtypes(dtype):
        products = host.default_products(dtype, v_dtype)
        cases = coverage.softmax_cases(products, *machine)
        for kind, case in list(cases.items())[:most]:
            x, _, _ = random_map(*case[:3], dtype=dtype, device=device, seed=9)
            v = random_numbers(device, case.prototypes, case.channels).to(v_dtype)
            bias = random_numbers(device, case.prototypes)
            valid = random_numbers(device, case.batch, case.pixels) > 0
            valid[:, case.pixels // 2] = True
            w = (x.double() @ v.double().mT) / 4 + bias.double()
            x[~valid] = float("nan")
            forward = x, v, 4.0, bias, valid, products
            best, normalizer = host.softmax_pool(*forward, chosen=case.tiles)
            what = f"softmax_pool {products} {tuple(case[:4])} in {kind}"
            grad = random_numbers(device, *best.value.shape)  # equal ones cancel in a pixel alone
            dw = _check_softmax(w, valid, best, grad, what)
            made = host.scores_gradient(
                grad, best, normalizer, x, v, 4.0, bias, products, chosen=case.tiles
            )
            for part, found in made:
                check_close(found, dw[part] / 4, 1e-3, f"{what}: gradient")
            for _ in range(REPEATS if kind.across else 0):
                again = host.softmax_pool(*forward, chosen=case.tiles)
                same = all(map(torch.equal, again[0], best))
                require(same, f"{what}: other bits the next time")
        said.append(f"{products}: {len(cases)} kinds of tiles")
    return f"{len(sizes)} sizes, {', '.join(said)}"


def check_softmax_alignment(
    device: torch.device, dtype: torch.dtype, sizes: Sequence[tuple[int, int, int]] = SIZES
) -> str:
    """The loss and the gradient of both sides, of maps of two dtypes and in two layouts."""
    for number, size in enumerate(sizes):
        for other in other_dtypes(dtype):
            first, second = random_numbers(device, 2, *size)
            first, second = first.to(dtype), second.to(other)
            if number % 2:  # NCHW
                first, second = (x.mT.contiguous().mT for x in (first, second))
            what = f"softmax_alignment {size}, second in {other}"
            loss, statistics = kernels.softmax_alignment(first, second)
            sides = torch.empty_like(first), torch.empty_like(second)
            grad = random_numbers(device, *loss.shape)
            kernels.softmax_alignment_backward(grad, first, second, statistics, *sides)
            with torch.enable_grad():
                leaves = first.double().requires_grad_(), second.double().requires_grad_()
                a, b = leaves
                truth = a.logsumexp(2) + b.logsumexp(2) - (a + b).logsumexp(2)
                slopes = torch.autograd.grad(truth, leaves, grad.double())
            check_close(loss, truth.detach(), 1e-5, f"{what}: loss")
            for actual, slope, name in zip(sides, slopes, ("first", "second"), strict=True):
                half = actual.dtype.itemsize == 2
                tolerance = 2 * torch.finfo(actual.dtype).eps if half else 1e-5
                check_close(actual, slope, tolerance, f"{what}: gradient of {name}")
    return f"{len(sizes)} sizes"
