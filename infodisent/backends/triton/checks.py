"""What the self-check compares with float64: the Triton kernels on a few awkward sizes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from infodisent.backends.triton import kernels
from infodisent.testing import check_close, check_extremes, gradient_truth, random_map

SIZES = ((64, 49, 512), (9, 197, 768), (2, 577, 192), (1, 49, 2048), (5, 50, 72))
"""(B, P, C): whole images side by side, one image a tile, columns across images, channels shared by
several programs, and a width that is no multiple of anything."""
NORMS = (0.3, 5.0, 40.0)
"""``||A - A^T||_2``: of the smallest polynomial, the largest, and several squarings."""


def _tolerance(dtype: torch.dtype) -> float:
    # packed values of half maps keep 13 bits at least
    return 2**-12 if dtype.itemsize == 2 else 1e-5


def _random(device: torch.device, *shape: int) -> Tensor:
    """Normal numbers that leave the caller's generators alone."""
    generator = torch.Generator("cpu").manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, device="cpu").to(device)


def check_rotate_pool(
    device: torch.device,
    dtype: torch.dtype,
    sizes: tuple[tuple[int, int, int], ...] = SIZES,
) -> None:
    """Forward and backward of `rotate_pool`, for rows and for pixels in neighbouring memory."""
    for number, size in enumerate(sizes):
        x, u, y = random_map(*size, dtype=dtype, device=device, seed=sum(size))
        if number % 2:  # NCHW
            x = x.mT.contiguous().mT
        what = f"rotate_pool {size}"
        pool = kernels.rotate_pool(x, u)
        check_extremes(pool, y, relative_tolerance=_tolerance(dtype), what=what)
        grads = _random(device, 2, size[0], size[2])
        winners = grads[0], grads[1], x, u, pool.pos_index, pool.neg_index
        dx, du = kernels.rotate_pool_backward(*winners, True, True)
        truth = gradient_truth(*winners)
        tolerance = 2 * torch.finfo(dtype).eps if dtype.itemsize == 2 else 1e-5
        assert dx is not None
        assert du is not None
        check_close(du, truth.du, tolerance, f"{what}: dU")
        check_close(dx, truth.dx, tolerance, f"{what}: dX")
    x, u, y = random_map(*sizes[-1], dtype=dtype, device=device, kind="nan")
    pool = kernels.rotate_pool(x, u)
    check_extremes(pool, y, relative_tolerance=_tolerance(dtype), what="rotate_pool with NaN")


def check_infodisent_head(
    device: torch.device,
    dtype: torch.dtype,
    sizes: tuple[tuple[int, int, int], ...] = SIZES,
) -> None:
    """`check_rotate_pool`, and the class scores."""
    check_rotate_pool(device, dtype, sizes)
    for size in sizes:
        x, u, y = random_map(*size, dtype=dtype, device=device, seed=sum(size))
        weight, bias = _random(device, 130, size[2]), _random(device, 130)
        logits, pool = kernels.infodisent_head(x, u, weight, bias, True)
        what = f"infodisent_head {size}"
        check_extremes(pool, y, relative_tolerance=_tolerance(dtype), what=what)
        pooled = y.amax(1).clamp_min(0) - (-y).amax(1).clamp_min(0)
        truth = pooled @ weight.double().clamp_min(0).mT + bias.double()
        check_close(logits, truth, 1e-3 if dtype.itemsize == 2 else 1e-4, f"{what}: logits")


def check_rotation(
    device: torch.device, dtype: torch.dtype, sizes: tuple[int, ...] = (70, 512)
) -> None:
    """U and dA against float64."""
    for n in sizes:
        for norm in NORMS:
            a = _random(device, n, n).double()
            a *= norm / torch.linalg.matrix_norm(a - a.mT, 2)
            a = a.to(dtype)
            grad = _random(device, n, n, 1)[..., 0].to(dtype)
            u, kept, numbers = kernels.rotation(a, "full")
            d_a = kernels.rotation_backward(grad, a, kept, numbers, "full")
            with torch.enable_grad():
                leaf = a.double().requires_grad_()
                truth = torch.matrix_exp(leaf - leaf.mT)
                (d_truth,) = torch.autograd.grad(truth, leaf, grad.double())
            check_close(u, truth, 1e-5, f"rotation {n}, norm {norm}: U")
            check_close(d_a, d_truth, 1e-5, f"rotation {n}, norm {norm}: dA")


CHECKS: dict[str, Callable[[torch.device, torch.dtype], None]] = {
    "rotation": check_rotation,
    "rotate_pool": check_rotate_pool,
    "infodisent_head": check_infodisent_head,
}


def run(op: str, device: torch.device, dtype: torch.dtype) -> None:
    """Check the kernels of an operator.

    Raises:
        WrongResultError: a kernel computed something else.
    """
    CHECKS[op](device, dtype)
