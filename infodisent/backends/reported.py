"""What the reports of GPUs in ``benchmarks/results`` say; made by ``benchmarks/tables.py``."""

from __future__ import annotations

from typing import NamedTuple


class Reported(NamedTuple):
    """One report.

    Attributes:
        file: below ``benchmarks/results``.
        device: the GPU's name.
        capability: compute capability, "9.0".
        failed: how many of its checks failed; with one, nothing is taken from its times.
        times: dtype, C, P, B, and for each backend the microseconds of the forward, and of forward
            and backward for U.
    """

    file: str
    device: str
    capability: str
    failed: int
    times: tuple[tuple[str, int, int, int, dict[str, tuple[float, float]]], ...]


REPORTS: tuple[Reported, ...] = ()
