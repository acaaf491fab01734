"""Whether the GPU kernels are right on this machine: found out once, remembered in a file.

``auto`` may choose a GPU kernel only where that was shown. The first call that would take one
compares it with float64 on a few awkward sizes (tens of seconds, nearly all of it compiling) and
writes the verdict to ``$XDG_CACHE_HOME/infodisent/selfcheck.json``, which holds for this GPU, these
versions and these kernels. ``INFODISENT_SELFCHECK=0`` leaves it out: then ``auto`` takes no GPU
kernel. While a CUDA graph is captured or torch.compile traces nothing can be compared: such calls
get a verdict only if there is one already.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infodisent.backends.triton import kernels as triton_kernels
from infodisent.contract import Extremes
from infodisent.files import cache_file as cached
from infodisent.files import read_json, write_json
from infodisent.tracing import nothing_watches
from infodisent.version import __version__

ENV = "INFODISENT_SELFCHECK"
SIZES = ((64, 49, 512), (9, 197, 768), (2, 577, 192), (1, 49, 2048), (5, 50, 72))
"""(B, P, C): whole images side by side, one image a tile, columns across images, channels shared by
several programs, and a width that is no multiple of anything."""
NORMS = (0.3, 5.0, 40.0)
"""``||A - A^T||_2``: of the smallest polynomial, the largest, and several squarings."""

_log = logging.getLogger("infodisent")
_verdicts: dict[tuple[str, str], str] = {}
OK = "ok"


class WrongResultError(AssertionError):
    """A kernel computed something else."""


def objection(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why ``auto`` does not trust the Triton kernels of `op` here, or None. May run the check."""
    if os.environ.get(ENV) == "0":
        return f"{ENV}=0: not checked on this machine"
    key, what = machine(device), f"{op} {str(dtype).removeprefix('torch.')}"
    verdict = _verdicts.get((key, what)) or _remembered().get(key, {}).get(what)
    if verdict is None:
        if pending(device):
            return "not checked on this machine yet; call it once without tracing or capturing"
        verdict, lasting = _run(op, device, dtype)
        if lasting:
            _remember(key, what, verdict)
    _verdicts[key, what] = verdict
    return None if verdict == OK else f"the self-check on this machine failed: {verdict}"


def pending(device: torch.device) -> bool:
    """Whether nothing can be checked at the moment, so that a refusal need not last.

    While something traces, transforms or captures, new tensors are not plain ones.
    """
    return (
        torch.compiler.is_compiling()
        or not nothing_watches()
        or (device.type == "cuda" and torch.cuda.is_current_stream_capturing())
    )


def machine(device: torch.device) -> str:
    """What a verdict holds for."""
    import triton

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    versions = f"torch {torch.__version__}, triton {triton.__version__}, infodisent {__version__}"
    return f"{name}, {versions}, kernels {_digest()}"


def _digest() -> str:
    from infodisent import kernels

    digest = hashlib.sha256()
    for path in sorted(Path(str(kernels.__file__)).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def cache_file() -> Path:
    """Where verdicts are remembered."""
    return cached("selfcheck.json")


def _remembered() -> dict[str, dict[str, str]]:
    try:
        found = read_json(cache_file())
    except (OSError, ValueError):
        return {}
    good = isinstance(found, dict) and all(isinstance(v, dict) for v in found.values())
    return found if good else {}


def _remember(key: str, what: str, verdict: str) -> None:
    found = _remembered()
    found.setdefault(key, {})[what] = verdict
    with contextlib.suppress(OSError):  # a read-only home: the verdict holds for this process
        write_json(cache_file(), found)


def _run(op: str, device: torch.device, dtype: torch.dtype) -> tuple[str, bool]:
    """The verdict, and whether it holds beyond this process."""
    name = str(dtype).removeprefix("torch.")
    _log.warning(
        "infodisent checks the Triton kernels of %s for %s on this GPU once (%s=0 leaves it out)",
        op,
        name,
        ENV,
    )
    try:
        # as if the caller had switched nothing on; and without gradients
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast(device.type, enabled=False),
        ):
            CHECKS[op](device, dtype)
    except Exception as error:
        # anything a kernel can raise, at compilation or launch, is a reason not to use it
        lines = str(error).splitlines() or [""]
        verdict = f"{type(error).__name__}: {lines[0]}"
        _log.warning("infodisent: auto will not use them: %s", verdict)
        return verdict, not isinstance(error, torch.OutOfMemoryError)
    return OK, True


def _require(condition: Any, what: str) -> None:
    if not bool(condition):
        raise WrongResultError(what)


def _close(found: Tensor, truth: Tensor, tolerance: float, what: str) -> None:
    error = ((found.double() - truth).norm() / truth.norm().clamp_min(1e-30)).item()
    _require(error <= tolerance, f"{what}: relative error {error:.1e}, allowed {tolerance:.0e}")


def _map(
    size: tuple[int, int, int], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """x [B, P, C] of the dtype, u [C, C], and Y [B, P, C] in float64."""
    batch, pixels, channels = size
    g = torch.Generator("cpu").manual_seed(batch + pixels + channels)
    x = torch.randn(batch, pixels, channels, generator=g, device="cpu").to(device, dtype)
    u = torch.randn(channels, channels, generator=g, device="cpu") / channels**0.5
    u = u.to(device, dtype)
    return x, u, x.double() @ u.double().mT


def _pool(found: Extremes, y: Tensor, tolerance: float, what: str) -> None:
    for value, index, signed in ((found[0], found[2], y), (found[1], found[3], -y)):
        best = signed.amax(1).clamp_min(0)
        there = signed.gather(1, index.clamp_min(0).long()[:, None])[:, 0]
        slack = tolerance * best.amax()
        _require(((value.double() - best).abs() <= slack).all(), f"{what}: values")
        _require(((index >= 0) == (value > 0)).all(), f"{what}: places of nothing")
        _require(torch.where(index >= 0, best - there, 0).amax() <= 2 * slack, f"{what}: places")


def check_rotate_pool(
    device: torch.device,
    dtype: torch.dtype,
    sizes: tuple[tuple[int, int, int], ...] = SIZES,
) -> None:
    """Forward and backward of `rotate_pool`, for rows and for pixels in neighbouring memory."""
    half = dtype != torch.float32
    for number, size in enumerate(sizes):
        x, u, y = _map(size, device, dtype)
        if number % 2:  # NCHW
            x = x.mT.contiguous().mT
        what = f"rotate_pool {size}"
        found = triton_kernels.rotate_pool(x, u)
        # packed values of half maps keep 13 bits at least
        _pool(found, y, 2**-12 if half else 1e-5, what)
        grads = torch.randn(2, size[0], size[2], device=device)
        dx, du = triton_kernels.rotate_pool_backward(
            grads[0], grads[1], x, u, found.pos_index, found.neg_index, True, True
        )
        dy = torch.zeros_like(y)
        for grad, index in zip(grads, found[2:], strict=True):
            masked = grad.double().masked_fill(index < 0, 0)
            dy.scatter_add_(1, index.clamp_min(0).long()[:, None], masked[:, None])
        tolerance = 2 * torch.finfo(dtype).eps if half else 1e-5
        assert dx is not None
        assert du is not None
        _close(du, torch.einsum("bpc,bpk->ck", dy, x.double()), tolerance, f"{what}: dU")
        _close(dx, dy @ u.double(), tolerance, f"{what}: dX")
    x, u, y = _map(sizes[-1], device, dtype)
    x[0, 3, 1] = float("nan")
    pos, neg, *places = triton_kernels.rotate_pool(x, u)
    _require(pos[0].isnan().all() and neg[0].isnan().all(), "rotate_pool: NaN")
    _require(all((p[0] == 3).all() for p in places), "rotate_pool: place of NaN")
    _require(not pos[1:].isnan().any(), "rotate_pool: NaN in other images")


def check_infodisent_head(
    device: torch.device,
    dtype: torch.dtype,
    sizes: tuple[tuple[int, int, int], ...] = SIZES,
) -> None:
    """`check_rotate_pool`, and the class scores."""
    check_rotate_pool(device, dtype, sizes)
    for size in sizes:
        x, u, y = _map(size, device, dtype)
        weight, bias = torch.randn(130, size[2], device=device), torch.randn(130, device=device)
        logits, pool = triton_kernels.infodisent_head(x, u, weight, bias, True)
        pooled = y.amax(1).clamp_min(0) - (-y).amax(1).clamp_min(0)
        what = f"infodisent_head {size}"
        _pool(pool, y, 2**-12 if dtype.itemsize == 2 else 1e-5, what)
        truth = pooled @ weight.double().clamp_min(0).mT + bias.double()
        _close(logits, truth, 1e-3 if dtype.itemsize == 2 else 1e-4, f"{what}: logits")


def check_rotation(
    device: torch.device, dtype: torch.dtype, sizes: tuple[int, ...] = (70, 512)
) -> None:
    """U and dA against float64."""
    for n in sizes:
        for norm in NORMS:
            a = torch.randn(n, n, device=device, dtype=torch.float64)
            a *= norm / torch.linalg.matrix_norm(a - a.mT, 2)
            a = a.to(dtype)
            grad = torch.randn(n, n, device=device, dtype=dtype)
            u, kept, numbers = triton_kernels.rotation(a, "full")
            d_a = triton_kernels.rotation_backward(grad, a, kept, numbers, "full")
            with torch.enable_grad():
                leaf = a.double().requires_grad_()
                truth = torch.matrix_exp(leaf - leaf.mT)
                (d_truth,) = torch.autograd.grad(truth, leaf, grad.double())
            _close(u, truth.detach(), 1e-5, f"rotation {n}, norm {norm}: U")
            _close(d_a, d_truth, 1e-5, f"rotation {n}, norm {norm}: dA")


CHECKS: dict[str, Callable[[torch.device, torch.dtype], None]] = {
    "rotation": check_rotation,
    "rotate_pool": check_rotate_pool,
    "infodisent_head": check_infodisent_head,
}
