"""Which device a job runs on, and its random numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


def pick_device(name: str | None) -> torch.device:
    """The named device, or CUDA where it is present.

    Raises:
        ValueError: no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("allowed are cpu, cuda and mps")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used: {error}") from error
    return device


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
