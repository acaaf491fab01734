"""`Decision`: a step of a head that decides by a tree, as explanations show it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Decision:
    """One step from the root to a leaf, for one image.

    Attributes:
        unit: what is asked for.
        value: its value in the image.
        threshold: above it the answer is yes.
        yes: the direction that is shown: the branch of a value above the threshold, or the other.
        probability: with which the image goes there; 1 where a decision is hard.
        distribution: probabilities of the classes after it, ``[K]`` float64 on the CPU, as the
            contributions of the head count them: with nothing known of later decisions.
    """

    unit: int
    value: float
    threshold: float
    yes: bool
    probability: float
    distribution: Tensor
