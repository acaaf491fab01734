"""Complete binary trees as tensors: node j has the children 2j + 1 (left) and 2j + 2 (right).

A tree of depth D has M = 2^D - 1 inner nodes and after them L = 2^D leaves, both from left to
right. All functions take one tree and many images.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from infodisent.ops import register

BOTH, LEFT, RIGHT, GONE = 0, -1, 1, 2
"""What a node does once a tree is pruned: it decides, it always turns one way, nobody comes."""


def levels(nodes: int) -> list[slice]:
    """The inner nodes of every level, the root's first."""
    ends = [(1 << level) - 1 for level in range(nodes.bit_length() + 1)]
    return [slice(a, b) for a, b in pairwise(ends) if b <= nodes]


def leaf_log_probabilities(
    left: Tensor,  # [n, M]
    right: Tensor,  # [n, M]
) -> Tensor:
    """Log probability of reaching every leaf, ``[n, L]``, from those of turning at every node."""
    path = left.new_zeros(len(left), 1)
    for level in levels(left.shape[1]):
        path = torch.stack((path + left[:, level], path + right[:, level]), dim=2).flatten(1)
    return path


def reach(
    right: Tensor,  # [n, M]
) -> Tensor:
    """Probability of reaching every inner node, ``[n, M]``, from those of turning right."""
    there = right.new_ones(len(right), 1)
    found = []
    for level in levels(right.shape[1]):
        found.append(there)
        turn = right[:, level]
        there = torch.stack((there * (1 - turn), there * turn), dim=2).flatten(1)
    return torch.cat(found, dim=1)


def expected(
    leaves: Tensor,  # [L, K]
    right: Tensor,  # [M]
) -> Tensor:
    """Mean over the leaves below every node, ``[M + L, K]``, by one probability of turning each."""
    rows = [leaves]
    for level in reversed(levels(len(right))):
        turn = right[level, None]
        rows.insert(0, (1 - turn) * rows[0][0::2] + turn * rows[0][1::2])
    return torch.cat(rows)


def any_below(
    leaves: Tensor,  # [L, K] bool
) -> Tensor:
    """Whether any leaf below a node has a mark, ``[M + L, K]`` bool."""
    rows = [leaves]
    while len(rows[0]) > 1:
        rows.insert(0, rows[0][0::2] | rows[0][1::2])
    return torch.cat(rows)


def turns_to(
    leaf: Tensor,  # [n] int64
    nodes: int,
) -> Tensor:
    """Where the way to a leaf turns right, ``[n, M]`` bool; nodes that are not on it do not."""
    turns = torch.zeros(len(leaf), nodes, dtype=torch.bool, device=leaf.device)
    node = leaf + nodes
    for _ in levels(nodes):
        parent = (node - 1) // 2
        turns.scatter_(1, parent[:, None], (node % 2 == 0)[:, None])
        node = parent
    return turns


def one_way(
    turns: Tensor,  # [n, M] bool
) -> tuple[Tensor, Tensor]:
    """Log probabilities of turning left and right, 0 and -inf, of decisions that are made."""
    zero = torch.zeros(turns.shape, device=turns.device)
    return zero.masked_fill(turns, -torch.inf), zero.masked_fill(~turns, -torch.inf)


def sides(
    speaks: Tensor,  # [L] bool
) -> Tensor:
    """What every node does once leaves that say nothing are cut off, ``[M]`` int8.

    A tree of which no leaf says anything stays whole.
    """
    nodes = len(speaks) - 1
    live = any_below(speaks[:, None])[:, 0]  # [M + L]
    side = torch.full((nodes,), BOTH, dtype=torch.int8, device=speaks.device)
    if not live[0]:
        return side
    side = side.masked_fill(~live[1::2], RIGHT).masked_fill(~live[2::2], LEFT)
    return side.masked_fill(~live[:nodes], GONE)


def log_mixture(
    path: Tensor,  # [n, L]
    leaves: Tensor,  # [L, K]
) -> Tensor:
    """``log sum_l exp(path + leaves)``, ``[n, K]``, by one product of matrices.

    Nothing of size ``n · L · K`` exists. The largest terms are taken out of both first; what is
    then still below the smallest number of the dtype counts as that.
    """
    with register.no_autocast(path):
        path = path.to(leaves.dtype)
        high, wide = path.amax(dim=1, keepdim=True), leaves.amax(dim=0, keepdim=True)
        total = (path - high).exp() @ (leaves - wide).exp()
        return total.clamp_min(torch.finfo(total.dtype).tiny).log() + high + wide
