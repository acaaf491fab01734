"""Logistic regression on a table of rows that may not fit in memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from infodisent.data.rows import row_blocks


def standardise(
    rows: Tensor,  # [N, C] float32
    sample: Tensor,  # [n] int64, n >= 2
) -> None:
    """Shift and scale every column, in place, to mean 0 and deviation 1 over the sampled rows."""
    width = rows.shape[1]
    blocks = list(row_blocks(len(sample), width))
    total = sum(rows[sample[part]].sum(0, dtype=torch.float64) for part in blocks)
    mean = torch.as_tensor(total / len(sample)).float()
    squares = sum(
        (rows[sample[part]] - mean).square_().sum(0, dtype=torch.float64) for part in blocks
    )
    std = torch.as_tensor(squares / (len(sample) - 1)).sqrt().float() + 1e-6
    for part in row_blocks(len(rows), width):
        rows[part].sub_(mean).div_(std)


def fit_logistic(
    rows: Tensor,  # [N, C] float32
    labels: Tensor,  # [N] int64, or [N, K] float32
    sample: Tensor,  # [n] int64
    classes: int,
    weight_decay: float,
) -> nn.Linear:
    """The minimum of mean cross-entropy + ``weight_decay / 2 · |W|^2`` over the sampled rows.

    Of labels ``[N, K]`` the sum over k of binary cross-entropies: one-vs-rest.

    Full-batch L-BFGS from zero; every evaluation reads the rows block by block.
    """
    layer = nn.Linear(rows.shape[1], classes)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(
        layer.parameters(), max_iter=300, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )
    # logits and their gradient are as wide as the classes
    blocks = [sample[part] for part in row_blocks(len(sample), max(rows.shape[1], 2 * classes))]

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = weight_decay / 2 * layer.weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        whole = loss.detach()
        for block in blocks:
            logits = layer(rows[block])
            if labels.ndim == 2:
                part = classes * nn.functional.binary_cross_entropy_with_logits(
                    logits, labels[block]
                )
            else:
                part = nn.functional.cross_entropy(logits, labels[block])
            part = part * (len(block) / len(sample))
            part.backward()  # type: ignore[no-untyped-call]
            whole = whole + part.detach()
        return whole

    with torch.enable_grad():
        optimizer.step(closure)
    return layer
