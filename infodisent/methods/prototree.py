"""`ProtoTreeHead`: a soft binary tree that asks at every node for one prototype."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, logsigmoid, one_hot

from infodisent.checks import check_choice, check_one_pool, check_positive, check_rate
from infodisent.contract import SparsePool
from infodisent.layout import to_bpc
from infodisent.methods import complete_tree as tree
from infodisent.methods.complete_tree import BOTH, LEFT, RIGHT
from infodisent.methods.prototypes import pixels_of
from infodisent.methods.soft_tree import ROUTINGS, SoftTreeHead
from infodisent.methods.stages import Batches, Stage, TrainingOptions

SIMILARITIES = ("cosine", "l2")
EPSILON = 1e-14
"""Added to a squared distance before its root, as published."""
SPREAD = 1e-3
"""Least standard deviation of a cosine that a sigmoid starts from."""
PATCH_EPOCHS = 30
"""Passes over the images after the prototypes have become patches."""


class ProtoTreeHead(SoftTreeHead):
    """Feature map to logits by a complete binary tree, soft: an image goes both ways at each node.

    A 1 x 1 layer turns every pixel into `dimension` numbers. Each inner node has a prototype; the
    better its best pixel in the image, the likelier the image turns right. A leaf is a distribution
    of the classes, ``softmax(c)``, and the image gets the mean of all leaves by the probabilities
    of their paths; logits are its logarithm, so that cross-entropy is its negative log-likelihood.

    Nauta et al., "Neural Prototype Trees for Interpretable Fine-grained Image Recognition", CVPR
    2021 (arXiv 2012.02046). Its leaves learn without a gradient: after every step of the optimiser
    ``c <- relu(c - c_start / b) + sum_i path(x_i) · softmax(c) · [class = y_i] / p(y_i | x_i)``,
    with the values from before the step, `c_start` those at the start of the epoch, which has b
    batches. So leaves follow how frequent classes are, whatever the loss is adjusted for.

    With ``similarity="l2"`` everything else is as published too: a sigmoid ends the layer,
    ``p(right) = exp(-sqrt(d + 1e-14))`` of the smallest squared distance d, and at the end leaves
    that say nothing are pruned and prototypes moved onto their nearest patches. That was made for a
    backbone that learns along. Of a frozen one the layer cannot bring patches near enough, so the
    default is "cosine" (what the field moved to: "Cosine similarity is almost all you need", WACV
    2026), with ``p(right) = sigmoid(a (cosine - t))``, a and t learned per node, no sigmoid in the
    layer, and a second stage: prototypes become patches of training images, and the layer, a, t and
    the leaves learn with them, each prototype staying the image of its patch under the layer.

    Units are the nodes, in the order of `infodisent.methods.complete_tree`; a unit's value is its
    cosine, clamped at 0, or ``p(right)`` of "l2". Evidence is counted in probabilities, exactly:
    with V(node) the mean of the leaves below it, each turn a half,
    ``p(class) = V(root) + sum_j p(reach j) (p_j(right) - 1/2) (V(right child) - V(left child))``.

    Args:
        in_features: channels C of the map.
        num_classes: classes K >= 2; 0 leaves the nodes' values as output.
        input_fmt: layout of the map: NCHW, NHWC, NCL or NLC.
        num_prefix_tokens: leading tokens of a token map that are not pixels.
        similarity: "cosine", or "l2" as published.
        depth: decisions on the way to a leaf; 2^depth - 1 prototypes. Default: log2 K, rounded up,
            and 1, at least 4: for 200 classes the published 9.
        dimension: D, numbers that a pixel is turned into.
        prune: leaves whose largest probability is at most this say nothing. Default: as far from
            all classes alike, 1 / K, as the published 0.01 is at 200 classes,
            ``1 / K + (1 - 1 / K) / 199``; with few classes 0.01 would prune nothing.
        channel_drop: part of the map's channels that training leaves out, other ones for every
            image, against overfitting. Default: 0.5; of "l2" 0, as published.
        routing: in evaluation. "distributed", the mean of all leaves; "sample_max", the leaf of
            largest probability alone; "greedy", right wherever ``p(right) > 1/2``.
        device, dtype: of the parameters.

    Besides the attributes of `SoftTreeHead` it has of "cosine" ``threshold`` and ``steepness`` (its
    logarithm), ``[M]``, and ``patches`` ``[M, C]``, the pixels that prototypes are.

    Raises:
        ValueError: a size, layout or option that is not allowed, named; several labels an image.
    """

    method = "prototree"
    title = "ProtoTree"
    summary = "a soft decision tree: every node asks for one prototype, a training patch"
    paper = "Nauta et al. 2021, arXiv 2012.02046"
    patches: Tensor
    is_patch: Tensor

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        input_fmt: str = "NCHW",
        num_prefix_tokens: int = 0,
        similarity: str = "cosine",
        depth: int | None = None,
        dimension: int = 128,
        prune: float | None = None,
        routing: str = "distributed",
        channel_drop: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        name = "ProtoTreeHead"
        check_choice(name, "similarity", similarity, SIMILARITIES)
        check_choice(name, "routing", routing, ROUTINGS)
        _check_classes(num_classes)
        if depth is None:
            depth = max(4, math.ceil(math.log2(max(2, num_classes))) + 1)
        check_positive(name, "depth", depth)
        if depth > 16:
            raise ValueError(f"{name}: depth is {depth}, must be at most 16 (65,535 prototypes)")
        if prune is not None:
            check_rate(name, "prune", prune)
        if channel_drop is None:
            channel_drop = 0.5 if similarity == "cosine" else 0.0
        check_rate(name, "channel_drop", channel_drop)
        super().__init__(
            in_features,
            2**depth - 1,
            dimension,
            similarity=similarity,
            input_fmt=input_fmt,
            num_prefix_tokens=num_prefix_tokens,
            device=device,
        )
        self.num_classes, self.depth, self.prune, self.routing = num_classes, depth, prune, routing
        self.channel_drop = channel_drop
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        published = similarity == "l2"
        layer = nn.Linear(in_features, dimension, bias=False, **place)
        nn.init.xavier_normal_(layer.weight, gain=nn.init.calculate_gain("sigmoid"))
        self.add_on = nn.Sequential(layer, nn.Sigmoid() if published else nn.Identity())
        self._build_tree(place)

    def _build_tree(self, place: dict[str, Any]) -> None:
        units, classes, device = self.num_features, self.num_classes, place["device"]
        start = torch.randn(units, self.dimension, **place)
        self.prototypes = nn.Parameter(0.5 + 0.1 * start if self.similarity == "l2" else start)
        self.leaves = nn.Parameter(torch.zeros(units + 1, classes, **place))
        self.register_buffer("leaves_at_start", self.leaves.detach().clone(), persistent=False)
        self.register_buffer("pruned", torch.zeros(units, dtype=torch.int8, device=device))
        self.register_buffer("batch_count", torch.ones((), dtype=torch.int64, device=device))
        if self.similarity == "l2":
            return
        self.threshold = nn.Parameter(torch.full((units,), 0.5, **place))
        self.steepness = nn.Parameter(torch.full((units,), math.log(10.0), **place))  # its log
        self.register_buffer("patches", torch.zeros(units, self.in_features, **place))
        self.register_buffer("is_patch", torch.zeros(units, dtype=torch.bool, device=device))

    # -- from a map to logits ---------------------------------------------------------------------

    def embed(
        self,
        x: Tensor,  # a map [B, ...] in layout input_fmt
        input_fmt: str | None = None,
    ) -> Tensor:
        """See `PrototypeHead.embed`; training leaves out channels, see `channel_drop`."""
        if not self.training or not self.channel_drop:
            return super().embed(x, input_fmt)
        layout = self.layout(input_fmt)
        rows = to_bpc(x, layout["input_fmt"], layout["num_prefix_tokens"]).to(self.prototypes.dtype)
        whole = rows.new_ones(len(rows), 1, rows.shape[2])
        return super().embed(rows * dropout(whole, self.channel_drop), "NLC")

    def vectors(self) -> Tensor:
        """The prototypes; in the second stage the images of their patches under the layer."""
        if self.similarity == "l2":
            return self.prototypes
        return torch.where(self.is_patch[:, None], self.add_on(self.patches), self.prototypes)

    def values(
        self,
        best: Tensor,  # [n, M]
    ) -> Tensor:
        """A cosine, clamped at 0; of a squared distance ``p(right)``."""
        if self.similarity == "cosine":
            return best.clamp_min(0)
        return torch.exp(-torch.sqrt(best + EPSILON))

    def pool(
        self,
        x: Tensor,  # a map [B, ...] in layout input_fmt
        *,
        input_fmt: str | None = None,
    ) -> SparsePool:
        """The nodes' values, see `Head.pool`; one side only."""
        best = self.compare(self.embed(x, input_fmt))
        value = self.values(best.value)
        none = torch.full_like(best.index, -1)
        index = torch.where(value > 0, best.index, none)
        return SparsePool(value, value, torch.zeros_like(value), index, none)

    def turns(
        self,
        pooled: Tensor,  # [n, M]
    ) -> tuple[Tensor, Tensor]:
        """Log probabilities of turning left and right at every node, ``[n, M]`` each."""
        if self.similarity == "cosine":
            steep, threshold = (p.to(pooled) for p in (self.steepness, self.threshold))
            z = steep.exp() * (pooled - threshold)
            left, right = logsigmoid(-z), logsigmoid(z)
        else:
            limits = torch.finfo(pooled.dtype)
            right = pooled.clamp_min(limits.tiny).log()
            left = torch.log1p(-pooled.clamp_max(1 - limits.eps))
        side = self.pruned.to(pooled.device)
        never = -math.inf
        left = left.masked_fill(side == LEFT, 0).masked_fill(side == RIGHT, never)
        right = right.masked_fill(side == RIGHT, 0).masked_fill(side == LEFT, never)
        return left, right

    def limits(self) -> Tensor:
        """A cosine's threshold; 1/2 of "l2", whose values are probabilities."""
        if self.similarity == "cosine":
            return self.threshold
        return torch.full_like(self.prototypes[:, 0], 0.5)

    def notices(self) -> tuple[str, ...]:
        """What `PrototypeHead.notices` tells, and how much of the tree was pruned."""
        gone = int((self.pruned != BOTH).sum())
        of = f"{gone} of {self.num_features} decisions"
        told = (f"{of} were pruned: all leaves on one side say nothing",) if gone else ()
        return super().notices() + told

    # -- training ---------------------------------------------------------------------------------

    def ignored(self, multilabel: bool) -> tuple[str, ...]:
        """Everything trains at `rotation_lr`; leaves are counted."""
        return (*super().ignored(multilabel), "lr")

    def stages(self, config: TrainingOptions) -> tuple[Stage, ...]:
        """Layer, prototypes and decisions; of "cosine" then all but the prototypes, as patches."""
        layer = {"params": list(self.add_on.parameters()), "lr": config.rotation_lr}
        rest = {"params": [self.prototypes], "lr": config.rotation_lr}
        if self.similarity == "l2":
            return (Stage("tree", [layer, rest]),)
        layer["weight_decay"] = 0.1
        decisions = {"params": [self.threshold, self.steepness], "lr": config.rotation_lr}
        return (
            Stage("tree", [layer, rest, decisions]),
            Stage("patches", [layer, decisions], epochs=PATCH_EPOCHS),
        )

    def start_stage(self, stage: Stage, batches: Batches) -> None:
        """Count the batches; before the second stage prototypes become patches.

        A cosine's sigmoid starts at the mean of the training images, as steep as their standard
        deviation asks for: where all pixels are alike, so are all cosines.
        """
        if stage.name == "patches":
            return self._become_patches(batches)
        self.pruned.zero_()
        if self.similarity == "l2":
            self.batch_count.fill_(sum(1 for _ in batches()))
            return None
        self.is_patch.zero_()
        mean, spread, count = self._observe(batches)
        self.batch_count.fill_(count)
        self.threshold.copy_(mean)
        self.steepness.copy_(-spread.log())
        return None

    def _observe(self, batches: Batches) -> tuple[Tensor, Tensor, int]:
        """Mean and standard deviation of the values over the images, ``[M]``, and the batches."""
        rows = [self.pool(maps, input_fmt="NLC").pooled for maps, _, _ in batches()]
        spread, mean = torch.std_mean(torch.cat(rows), dim=0, correction=0)
        return mean, spread.clamp_min(SPREAD), len(rows)

    def _become_patches(self, batches: Batches) -> None:
        # a patch is nearer to other patches than what was learned freely: the sigmoids go along
        mean, spread, _ = self._observe(batches)
        self.project(batches)
        found = self.best_patches(batches)  # the patches themselves, now with their places
        self.patches.copy_(pixels_of(found, batches, self.patches))
        self.is_patch.copy_(~self.unprojected)
        new_mean, new_spread, _ = self._observe(batches)
        self.threshold.copy_(new_mean + (self.threshold - mean) * new_spread / spread)
        self.steepness.add_((spread / new_spread).log())

    def finish(self, batches: Batches) -> None:
        """Prune; of "l2" move the prototypes that are left onto their nearest patches."""
        uniform = 1 / self.num_classes
        limit = uniform + (1 - uniform) / 199 if self.prune is None else self.prune
        speaks = self.leaves.softmax(dim=1).amax(dim=1) > limit
        self.pruned.copy_(tree.sides(speaks))
        if self.similarity == "l2":
            self.project(batches)
        else:
            self.prototypes.copy_(self.vectors())
            self.is_patch.zero_()  # what they are the images of, the layer no longer changes
        gone = self.pruned != BOTH
        self.unprojected.logical_and_(~gone)
        own = torch.arange(len(gone), device=gone.device)
        self.duplicate_of.copy_(torch.where(gone, own, self.duplicate_of))

    def allowed(self) -> Tensor:
        """Images of the classes that some leaf below a node is for, ``[K, M]``; nodes that decide.

        A leaf is for its most probable class.
        """
        if not self.num_classes:
            return super().allowed()
        best = one_hot(self.leaves.argmax(dim=1), self.num_classes).bool()
        below = tree.any_below(best)[: self.num_features]
        return (below & (self.pruned == BOTH)[:, None]).mT

    # -- description ------------------------------------------------------------------------------

    def reset(self, num_classes: int, pool_type: str | None = None) -> None:
        """A fresh tree, as deep as this one; the layer before it stays.

        Raises:
            ValueError: `pool_type` is given: the best pixel is what this head keeps.
        """
        check_one_pool(type(self).__name__, pool_type)
        _check_classes(num_classes)
        self.num_classes = num_classes
        like = self.prototypes
        self.start_record(like.device)
        self._build_tree({"device": like.device, "dtype": like.dtype})


def _check_classes(num_classes: int) -> None:
    allowed = isinstance(num_classes, int) and not isinstance(num_classes, bool)
    if not allowed or num_classes < 0 or num_classes == 1:
        raise ValueError(
            f"ProtoTreeHead: num_classes is {num_classes!r}, must be an int >= 2, or 0 for none"
        )
