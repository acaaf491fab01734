"""What the self-check compares with float64: the Triton kernels in every tile they may take.

On a GPU it runs in a process of its own with a time limit: a kernel that hangs or writes where it
should not then costs the caller nothing (after an illegal access a process has lost its GPU).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence

import torch

from infodisent.backends.triton import coverage, kernels
from infodisent.backends.triton.problems import REPEATS, SIZES
from infodisent.backends.triton.problems import other_dtypes as _other
from infodisent.backends.triton.problems import random_numbers as _random
from infodisent.backends.triton.similarity_checks import check_similarity_pool
from infodisent.backends.triton.softmax_checks import check_softmax_alignment, check_softmax_pool
from infodisent.contract import Extremes
from infodisent.testing import (
    WrongResultError,
    check_close,
    check_extremes,
    gradient_truth,
    random_map,
    require,
)

NORMS = (0.3, 5.0, 40.0)
"""``||A - A^T||_2``: of the smallest polynomial, the largest, and several squarings."""
LIMIT = 900
"""Seconds for a check in a process of its own, nearly all of it compiling."""


def _tolerance(dtype: torch.dtype) -> float:
    # packed values of half maps keep 13 bits at least
    return 2**-12 if dtype.itemsize == 2 else 1e-5


def check_tiles(
    device: torch.device,
    dtype: torch.dtype,
    most: int | None = None,
) -> str:
    """Every kind of tile of the forward and of the gradients; what they were, in words.

    most: cases of each, for tests.
    """
    from infodisent.kernels import device as gpu
    from infodisent.kernels import rotate_pool as forward

    machine = gpu.capability(device), gpu.processors(device)
    said = []
    for u_dtype in _other(dtype):
        products = forward.default_products(dtype, u_dtype)
        cases = coverage.pool_cases(products, *machine)
        for kind, case in list(cases.items())[:most]:
            x, u, y = random_map(*case[:3], dtype=dtype, u_dtype=u_dtype, device=device, seed=7)
            what = f"rotate_pool {products} {tuple(case[:3])} in {kind}"
            pool = Extremes(*forward.rotate_pool(x, u, products, chosen=case.tiles))
            check_extremes(pool, y, relative_tolerance=_tolerance(dtype), what=what)
            for _ in range(REPEATS if kind.split or kind.across else 0):
                again = forward.rotate_pool(x, u, products, chosen=case.tiles)
                require(all(map(torch.equal, again, pool)), f"{what}: other bits the next time")
        said.append(f"{products}: {len(cases)} kinds of tiles")
    said += [_check_gradient_tiles(device, dtype, other, machine, most) for other in _other(dtype)]
    return ", ".join(said)


def _check_gradient_tiles(
    device: torch.device,
    dtype: torch.dtype,
    u_dtype: torch.dtype,
    machine: tuple[int, int],
    most: int | None,
) -> str:
    from infodisent.kernels import rotate_pool_backward as host

    products = host.default_products(dtype, u_dtype), host.default_products(u_dtype, dtype)
    cases = coverage.gradient_cases(*products, machine[0])
    for case in list(dict.fromkeys(cases.values()))[:most]:
        x, u, y = random_map(*case[:3], dtype=dtype, u_dtype=u_dtype, device=device, seed=8)
        pos, neg = _random(device, 2, case.batch, case.channels).unbind()
        winners = pos, neg, y.argmax(1).int(), y.argmin(1).int()
        truth = gradient_truth(pos, neg, x, u, *winners[2:])
        du = host.grad_u(winners, x, u_dtype, splits=case.splits, cut=case.cut)
        dx = host.grad_x(winners, u, case.pixels, dtype)
        what = f"rotate_pool_backward {products} {tuple(case)}"
        for actual, true, like in ((du, truth.du, u_dtype), (dx, truth.dx, dtype)):
            tolerance = 2 * torch.finfo(like).eps if like.itemsize == 2 else 1e-5
            check_close(actual, true, tolerance, what)
    return f"gradients {' and '.join(products)}: {len(cases)}"


def check_rotate_pool(
    device: torch.device,
    dtype: torch.dtype,
    sizes: Sequence[tuple[int, int, int]] = SIZES,
    most: int | None = None,
) -> str:
    """Forward and backward of `rotate_pool`, for rows and for pixels in neighbouring memory."""
    for number, size in enumerate(sizes):
        for u_dtype in _other(dtype):
            x, u, y = random_map(*size, dtype=dtype, u_dtype=u_dtype, device=device, seed=sum(size))
            if number % 2:  # NCHW
                x = x.mT.contiguous().mT
            what = f"rotate_pool {size}, U in {u_dtype}"
            pool = kernels.rotate_pool(x, u)
            check_extremes(pool, y, relative_tolerance=_tolerance(dtype), what=what)
            grads = _random(device, 2, size[0], size[2])
            winners = grads[0], grads[1], x, u, pool.pos_index, pool.neg_index
            dx, du = kernels.rotate_pool_backward(*winners, True, True)
            truth = gradient_truth(*winners)
            assert dx is not None
            assert du is not None
            for actual, true, name in ((du, truth.du, "dU"), (dx, truth.dx, "dX")):
                half = actual.dtype.itemsize == 2
                tolerance = 2 * torch.finfo(actual.dtype).eps if half else 1e-5
                check_close(actual, true, tolerance, f"{what}: {name}")
    x, u, y = random_map(*sizes[-1], dtype=dtype, device=device, kind="nan")
    pool = kernels.rotate_pool(x, u)
    check_extremes(pool, y, relative_tolerance=_tolerance(dtype), what="rotate_pool with NaN")
    return f"{len(sizes)} sizes, {check_tiles(device, dtype, most)}"


def check_infodisent_head(
    device: torch.device,
    dtype: torch.dtype,
    sizes: Sequence[tuple[int, int, int]] = SIZES,
    most: int | None = None,
) -> str:
    """`check_rotate_pool`, and the class scores, with weights in float32 and in the map's dtype."""
    said = check_rotate_pool(device, dtype, sizes, most)
    for size in sizes:
        x, u, y = random_map(*size, dtype=dtype, device=device, seed=sum(size))
        for kind in _other(dtype):
            weight, bias = (_random(device, *s).to(kind) for s in ((130, size[2]), (130,)))
            logits, pool = kernels.infodisent_head(x, u, weight, bias, True)
            what = f"infodisent_head {size}, weights in {kind}"
            check_extremes(pool, y, relative_tolerance=_tolerance(dtype), what=what)
            pooled = y.amax(1).clamp_min(0) - (-y).amax(1).clamp_min(0)
            truth = pooled @ weight.double().clamp_min(0).mT + bias.double()
            allowed = max(2 * torch.finfo(kind).eps, 1e-4 if dtype.itemsize == 4 else 1e-3)
            check_close(logits, truth, allowed, f"{what}: logits")
    return f"{said}, {_check_scores(device, dtype)} kinds of tiles of the scores"


def _check_scores(device: torch.device, dtype: torch.dtype) -> int:
    """The class scores in each of the tiles, two of them in either direction; how many."""
    from infodisent.kernels import device as gpu
    from infodisent.kernels import infodisent_head as host

    cases = coverage.score_tiles("tf32x3", gpu.capability(device))
    for number, tiles in enumerate(cases):
        channels = 8 * tiles.block_k - (0, 8, 3)[number % 3]
        batch, classes = tiles.channels + 1, tiles.columns + 1
        x, u, y = random_map(batch, 4, channels, dtype=dtype, device=device, seed=number)
        weight, bias = (_random(device, *s) for s in ((classes, channels), (classes,)))
        logits = host.infodisent_head(x, u, weight, bias, False, scores_chosen=tiles)[0]
        pooled = y.amax(1).clamp_min(0) - (-y).amax(1).clamp_min(0)
        truth = pooled @ weight.double().mT + bias.double()
        allowed = 1e-4 if dtype.itemsize == 4 else 1e-3
        check_close(logits, truth, allowed, f"infodisent_head, scores in tiles {tiles}")
    return len(cases)


def check_rotation(
    device: torch.device, dtype: torch.dtype, sizes: Sequence[int] = (70, 512, 1032)
) -> str:
    """U and dA against float64, and single products in each of the tiles."""
    blocks = _check_products(device)
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
    return f"{len(sizes)} sizes, {len(NORMS)} norms, {blocks} kinds of tiles"


def _check_products(device: torch.device) -> int:
    """What the rotation multiplies, in each tile that it may take here; how many these are."""
    from infodisent.kernels import device as gpu
    from infodisent.kernels import rotation as host

    count = 0
    numbers = torch.ones(host.WIDTH, device=device)
    for precision, products in kernels.PRODUCTS.items():
        allowed = 1e-5 if precision == "full" else 3e-4
        for block in coverage.rotation_blocks(products, gpu.capability(device)):
            n = block.block_m + 16  # two tiles a row; compiled as any multiple of 16
            a, b, add = _random(device, 3, n, n)
            wide, other, added = a.double(), b.double(), 2 * add.double()
            out = torch.empty_like(a)
            what = f"rotation: product {products} of {n} in tiles of {block.block_m}"
            host.product(a, b, out, numbers, products, chosen=block)
            check_close(out, wide @ other, allowed, what)
            host.product(a, b, out, numbers, products, trans_a=True, chosen=block)
            check_close(out, wide.mT @ other, allowed, what)
            host.product(a, b, out, numbers, products, trans_b=True, chosen=block)
            check_close(out, wide @ other.mT, allowed, what)
            host.product(
                a, b, out, numbers, products,
                trans_b=True, both=True, add=add, beta=2.0, chosen=block,
            )  # fmt: skip
            check_close(out, wide @ other.mT + other.mT @ wide + added, allowed, what)
            host.product(a, b, out, numbers, products, add=add, beta=2.0, chosen=block)
            check_close(out, wide @ other + added, allowed, what)
            a = a + a.mT
            host.product(a, a, out, numbers, products, symmetric=True, chosen=block)
            check_close(out, a.double() @ a.double(), allowed, what)
            count += 1
    return count


CHECKS: dict[str, Callable[[torch.device, torch.dtype], str]] = {
    "rotation": check_rotation,
    "rotate_pool": check_rotate_pool,
    "infodisent_head": check_infodisent_head,
    "similarity_pool": check_similarity_pool,
    "softmax_pool": check_softmax_pool,
    "softmax_alignment": check_softmax_alignment,
}


def run(op: str, device: torch.device, dtype: torch.dtype) -> str:
    """Check the kernels of an operator, on a GPU in another process; what was covered.

    Raises:
        WrongResultError: a kernel computed something else, or did not end.
        torch.OutOfMemoryError: there is no room for the check.
    """
    if device.type != "cuda" or not sys.executable:
        return CHECKS[op](device, dtype)
    return _elsewhere([op, str(device), str(dtype).removeprefix("torch.")])


def _elsewhere(arguments: list[str], limit: float = LIMIT) -> str:
    """`main` with these arguments in another process; see `run`."""
    command = [sys.executable, "-m", __name__, *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=limit
        )
    except subprocess.TimeoutExpired:
        raise WrongResultError(f"the check did not end within {limit:.0f} s") from None
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    last = lines[-1] if lines else f"the check ended with code {done.returncode}"
    if done.returncode == 0:
        return last
    if "OutOfMemoryError" in last:
        raise torch.OutOfMemoryError(last)
    raise WrongResultError(last)


def main() -> None:
    """Operator, device and dtype are the arguments; the last line says what was covered."""
    op, device, dtype = sys.argv[1:4]
    with torch.no_grad():
        print(CHECKS[op](torch.device(device), getattr(torch, dtype)))


if __name__ == "__main__":
    main()
