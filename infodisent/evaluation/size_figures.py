"""How long explanations are, gathered from batches of contributions."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from infodisent.explanations.sparsity import explanation_sizes, magnitude_sizes, typical_size


class Sizes:
    """Gathers the figures of an evaluation that say how many units explanations need.

    Args:
        units_used: of the head; None where there is none.
    """

    def __init__(self, units_used: int | None = None) -> None:
        self._used = units_used
        self._sizes: list[Tensor] = []
        self._magnitudes: list[Tensor] = []

    def update(
        self,
        contributions: Tensor | None,  # [n, M]
    ) -> None:
        """Add what units contribute to the predicted classes of a batch; None adds nothing."""
        if contributions is not None:
            self._sizes.append(explanation_sizes(contributions).cpu())
            self._magnitudes.append(magnitude_sizes(contributions).cpu())

    def figures(self) -> dict[str, Any]:
        """``explanation_size``, ``explained``, ``magnitude_size``, ``units_used``, where known."""
        size, explained = typical_size(self._sizes)
        return {
            "explanation_size": size,
            "explained": explained,
            "magnitude_size": typical_size(self._magnitudes)[0],
            "units_used": self._used,
        }
