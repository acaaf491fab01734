"""The path of a head that is a tree, with what the image shows at every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from infodisent.explanations.evidence import ChannelEvidence, DecisionEvidence
from infodisent.methods.decisions import Decision


def path_evidence(
    decisions: Sequence[Decision],
    class_index: int,
    prior: float,
    names: Sequence[str],
    evidence_of: Callable[[Tensor, Tensor], list[ChannelEvidence]],
) -> tuple[DecisionEvidence, ...]:
    """The steps of a path, in order.

    Args:
        decisions: of `Head.decisions`.
        class_index: the explained class.
        prior: its probability before the first decision.
        names: K class names.
        evidence_of: units ``[n]`` int64 and what they add ``[n]`` to their evidence in the image.
    """
    if not decisions:
        return ()
    units = torch.tensor([decision.unit for decision in decisions])
    after = torch.stack([decision.distribution for decision in decisions])  # [n, K]
    chances = [prior, *after[:, class_index].tolist()]
    added = torch.tensor(chances, dtype=torch.float64).diff()
    best = after.max(dim=1)
    return tuple(
        DecisionEvidence(
            evidence=evidence,
            value=decision.value,
            threshold=decision.threshold,
            yes=decision.yes,
            probability=decision.probability,
            before=chances[i],
            after=chances[i + 1],
            likeliest=names[int(best.indices[i])],
            likeliest_probability=float(best.values[i]),
        )
        for i, (decision, evidence) in enumerate(
            zip(decisions, evidence_of(units, added), strict=True)
        )
    )
