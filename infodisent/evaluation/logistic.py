"""Logistic regression on a table of rows that may not fit in memory.

Several processes (`infodisent.ranks`) have a part of the rows each, of which some may have none.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from infodisent import ranks
from infodisent.checks import check_strength
from infodisent.data.rows import row_blocks
from infodisent.evaluation.arguments import check_label_rows, check_labels, check_tensor


def standardise(
    rows: Tensor,  # [N, C] float32
    count: int,
) -> None:
    """Shift and scale every column, in place, to mean 0 and deviation 1 over a sample.

    The sample is the first `count` rows of every process; at least 2 in all.

    Raises:
        ValueError: fewer than 2, or more than there are.
    """
    width = rows.shape[1]
    whole = int(ranks.total(torch.tensor(count)))
    if whole < 2 or not 0 <= count <= len(rows):
        raise ValueError(
            f"standardise: count is {count} of {len(rows)} rows, {whole} over all processes; must "
            "be no more rows than there are, and at least 2 over all"
        )
    sums = torch.zeros(width, dtype=torch.float64)
    for part in row_blocks(count, width):
        sums += rows[part].sum(0, dtype=torch.float64)
    mean = (ranks.total(sums) / whole).float()
    squares = torch.zeros(width, dtype=torch.float64)
    for part in row_blocks(count, width):
        squares += (rows[part] - mean).square_().sum(0, dtype=torch.float64)
    std = (ranks.total(squares) / (whole - 1)).sqrt().float() + 1e-6
    for part in row_blocks(len(rows), width):
        rows[part].sub_(mean).div_(std)


def fit_logistic(
    rows: Tensor,  # [n, C] float32
    labels: Tensor,  # [n] int64, or [n, K] float32
    classes: int,
    weight_decay: float,
) -> nn.Linear:
    """The minimum of mean cross-entropy + ``weight_decay / 2 · |W|^2`` over all processes' rows.

    Of labels ``[n, K]`` the sum over k of binary cross-entropies: one-vs-rest.

    Full-batch L-BFGS from zero; every evaluation reads the rows block by block. The leading process
    alone decides where to evaluate and when to end: a last digit that differs on another processor
    must not make one process take another step.

    Raises:
        TypeError, ValueError: shapes differ, a label is no class, or `weight_decay` is below 0.
    """
    check_strength("fit_logistic", "weight_decay", weight_decay)
    check_tensor("fit_logistic", "rows", rows, "images", "channels")
    if rows.dtype != torch.float32:
        raise TypeError(f"fit_logistic: rows is {rows.dtype}, must be float32")
    check = check_labels if labels.ndim == 1 else check_label_rows
    check("fit_logistic", "labels", labels, len(rows), classes)
    layer = nn.Linear(rows.shape[1], classes)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    objective = _Objective(layer, rows, labels, weight_decay)
    if ranks.leads():
        optimizer = torch.optim.LBFGS(
            layer.parameters(), max_iter=300, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            ranks.told(True)
            return objective()

        with torch.enable_grad():
            optimizer.step(closure)
        ranks.told(False)
    else:
        with torch.enable_grad():
            while ranks.told(False):
                objective()
    objective.weights_of_the_leader()
    return layer


class _Objective:
    """The objective of `fit_logistic`, and its gradient in the layer's parameters.

    Args:
        layer: whose weights in the leading process are those of every process.
        rows, labels, weight_decay: as for `fit_logistic`.
    """

    def __init__(
        self,
        layer: nn.Linear,
        rows: Tensor,  # [n, C] float32
        labels: Tensor,  # [n] int64, or [n, K] float32
        weight_decay: float,
    ) -> None:
        self._layer, self._rows, self._labels = layer, rows, labels
        self._decay = weight_decay
        self._count = int(ranks.total(torch.tensor(len(rows))))
        # logits and their gradient are as wide as the classes
        width = max(layer.in_features, 2 * layer.out_features)
        self._blocks = list(row_blocks(len(rows), width))

    def weights_of_the_leader(self) -> None:
        """Take the weights that the leading process has."""
        with torch.no_grad():
            for parameter in self._layer.parameters():
                parameter.copy_(ranks.told(parameter.detach()))

    def __call__(self) -> Tensor:
        """The value, with the gradients set; all processes call it together."""
        self.weights_of_the_leader()
        self._layer.zero_grad()
        whole = torch.zeros(())
        if ranks.leads():  # once, not once a process
            whole = self._decay / 2 * self._layer.weight.square().sum()
            whole.backward()  # type: ignore[no-untyped-call]
        for block in self._blocks:
            part = self._of(block) * (len(self._labels[block]) / self._count)
            part.backward()  # type: ignore[no-untyped-call]
            whole = whole + part.detach()
        for parameter in self._layer.parameters():
            own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = ranks.total(own)
        return ranks.total(whole.detach())

    def _of(self, block: slice) -> Tensor:
        """Mean cross-entropy of a block."""
        logits, labels = self._layer(self._rows[block]), self._labels[block]
        if labels.ndim == 1:
            return nn.functional.cross_entropy(logits, labels)
        mean = nn.functional.binary_cross_entropy_with_logits(logits, labels)
        return self._layer.out_features * mean
