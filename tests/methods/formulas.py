"""What several methods' formulas need, as plain loops in float64, and how they are judged."""

from __future__ import annotations

import torch

from infodisent.methods.stages import LoopOptions, TrainingBatch
from infodisent.training.objective import Objective


def projections(rows, vectors):
    """Products of pixels [P, D] with the directions of vectors, and cosines, 0 of zeros: [P, M]."""
    dots, cosines = [], []
    for v in vectors:
        unit = v / v.norm()
        dots.append(torch.stack([(x * unit).sum() for x in rows]))
        cosines.append(torch.stack([(x * unit).sum() / x.norm().clamp_min(1e-300) for x in rows]))
    return torch.stack(dots, 1), torch.stack(cosines, 1)


def cluster_terms(cosines, labels, class_of):
    """Means over the images of the largest cosine with own prototypes and with the others."""
    own = other = 0.0
    for row, label in zip(cosines, labels, strict=True):
        mine = {label} if isinstance(label, int) else set(label)
        own = own + max(c for c, k in zip(row, class_of, strict=True) if k in mine)
        other = other + max(c for c, k in zip(row, class_of, strict=True) if k not in mine)
    return own / len(cosines), other / len(cosines)


def orthogonal_term(bases):
    """Sum over classes of the magnitudes of P P^T - I."""
    total = 0.0
    for basis in bases:
        for i, a in enumerate(basis):
            for j, b in enumerate(basis):
                total = total + ((a * b).sum() - float(i == j)).abs()
    return total


def same_loss_and_gradients(head, x, labels, wanted):
    """The head's loss and penalty of a step are a formula's, and so are all their gradients."""
    pooled, extra = head.training_pool(x)
    batch = TrainingBatch(labels, pooled, extra, "prototypes")
    objective = Objective(multilabel=labels.ndim == 2)
    found = head.loss(objective, head.classify(pooled), batch)
    found = found + head.penalty(LoopOptions(), batch)
    torch.testing.assert_close(found, wanted)
    parameters = dict(head.named_parameters())
    gradients = torch.autograd.grad(found, parameters.values())
    for name, got, want in zip(
        parameters, gradients, torch.autograd.grad(wanted, parameters.values()), strict=True
    ):
        torch.testing.assert_close(got, want, msg=lambda m, name=name: f"{name}: {m}")
