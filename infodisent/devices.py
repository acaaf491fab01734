"""Which device a job runs on, and its random numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def pick_device(name: str | None) -> torch.device:
    """The named device, or CUDA where it is present.

    Raises:
        ValueError: no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used: {first}") from error
    reason = _absent(device)
    if reason is None:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).splitlines()[0]
    if reason is not None:
        raise ValueError(
            f"device {name!r} cannot be used: {reason}; here there is {', '.join(present())}"
        )
    return device


def present() -> list[str]:
    """Names of the devices of this machine that torch can use."""
    names = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    return names + (["mps"] if torch.backends.mps.is_available() else [])


def _absent(device: torch.device) -> str | None:
    """Why a device is not one that a job can run on, as far as can be told without trying."""
    if device.type not in ("cpu", "cuda", "mps"):
        return "allowed are cpu, cuda and mps"
    if device.type == "cuda" and not torch.cuda.is_available():
        built = torch.version.cuda or getattr(torch.version, "hip", None)
        return "torch sees no GPU" if built else "this torch is built for the CPU only"
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        return f"torch sees {torch.cuda.device_count()} GPU(s), counted from 0"
    if device.type == "mps" and not torch.backends.mps.is_available():
        return "there is no Apple GPU, or this torch is built without mps"
    return None


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`, which the caller does not wait for: from pinned memory to a GPU."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def autocast(
    precision: torch.dtype | None, device: torch.device
) -> contextlib.AbstractContextManager[Any]:
    """Products in `precision` within the block; nothing changes for None."""
    if precision is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=precision)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the CPU's generator and that of `device`, and no other.

    ``torch.manual_seed`` reseeds every generator of every device, whoever is drawing from them.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


@contextlib.contextmanager
def own_generators(device: torch.device) -> Iterator[None]:
    """Random numbers of the block's own: the generators that `seed_generators` seeds go on after it
    as if nothing had been drawn."""
    cpu = torch.get_rng_state()
    if device.type == "cuda":
        state = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state = torch.mps.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if device.type == "cuda":
            torch.cuda.set_rng_state(state, device)
        elif device.type == "mps":
            torch.mps.set_rng_state(state)
