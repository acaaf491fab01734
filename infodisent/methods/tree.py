"""`TreeHead`: a decision tree on InfoDisent's pooled channels."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from infodisent.checks import check_positive, check_strength
from infodisent.methods.base import Head
from infodisent.methods.decisions import Decision
from infodisent.methods.infodisent import InfoDisentHead
from infodisent.methods.stages import Batches, Stage

PRIOR_IMAGES = 1.0
"""How many training images the classes' shares count for in a leaf: an m-estimate, see
`TreeHead`."""


class TreeHead(InfoDisentHead):
    """Rotate, keep the extreme pixels, then ask about one channel after the other.

    Trained as `InfoDisentHead` is, whose class weights it needs for nothing else; after the last
    epoch scikit-learn grows a tree on the pooled channels of the training images (CART with Gini's
    impurity: Breiman et al., "Classification and Regression Trees", 1984). InfoDisent's authors
    show such trees in talks and have published no details, so the options are scikit-learn's and
    the defaults ours.

    What differs from scikit-learn: a node of n images, n_k of class k, has the probabilities
    ``(n_k + m · share_k) / (n + m)`` with m = 1 and the classes' shares at the root, so that none
    is 0 (Cestnik, "Estimating probabilities", 1990).

    The tree lies in buffers of fixed size in the order of a complete one (node j has the children
    2j + 1 and 2j + 2), so that a checkpoint opens without scikit-learn. Until it is grown the head
    classifies as InfoDisent does. Afterwards evidence is counted in probabilities, exactly: every
    decision on the way changes those of the classes, and its channel contributes that change.

    One tree asks at most `depth` questions, each of one channel, and is weak where classes are many
    and images few. Of training images of flowers17 that were held out (a quarter, one seed,
    EfficientNet-Lite0) it has 40 % right, a linear probe 95. ``trees=200`` grows a random forest
    (Breiman, "Random Forests", 2001), whose probabilities are the mean of its trees'; on the same
    channels scikit-learn's has 92 %. Evidence stays exact, the mean of what the decisions of all
    trees add; there is no one path to show, so that `decisions` is empty,
    and explanations are long.

    Args:
        in_features: channels C of the map.
        num_classes: classes K; 0 leaves the pooled features as output.
        depth: decisions on the way to a leaf, at most.
        min_leaf: training images in a leaf, at least.
        ccp_alpha: cost-complexity pruning: how much a leaf must lower the impurity.
        trees: 1, or more for a forest; takes ``trees · 2^(depth + 1) · K`` numbers.
        **options: those of `InfoDisentHead`.

    Raises:
        ValueError: a size, layout or option that is not allowed, named; several labels an image.
        ImportError: scikit-learn is not installed, said before a training starts.
    """

    method = "tree"
    title = "decision tree"
    summary = "InfoDisent's channels, asked one after the other by a decision tree"
    paper = "Breiman et al. 1984 (CART); shown in InfoDisent's talk"
    offset = "prior"
    channel: Tensor
    threshold: Tensor
    chances: Tensor
    share: Tensor
    grown: Tensor

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        depth: int = 8,
        min_leaf: int = 2,
        ccp_alpha: float = 0.0,
        trees: int = 1,
        device: torch.device | str | None = None,
        **options: Any,
    ) -> None:
        check_positive("TreeHead", "depth", depth)
        if depth > 16:
            raise ValueError(f"TreeHead: depth is {depth}, must be at most 16 (131,071 nodes)")
        check_positive("TreeHead", "min_leaf", min_leaf)
        check_strength("TreeHead", "ccp_alpha", ccp_alpha)
        check_positive("TreeHead", "trees", trees)
        super().__init__(in_features, num_classes, device=device, **options)
        self.depth, self.min_leaf, self.ccp_alpha = depth, min_leaf, float(ccp_alpha)
        self.trees = trees
        self._clear(device)

    def _clear(self, device: torch.device | str | None) -> None:
        """Buffers of trees that are not grown: node j asks for ``channel[j]``, -1 at a leaf.

        The nodes of all trees lie behind each other, see `_roots`.
        """
        nodes = self.trees * self._nodes
        for name, value in (
            ("channel", torch.full((nodes,), -1)),
            ("threshold", torch.zeros(nodes)),
            ("chances", torch.zeros(nodes, self.num_classes)),
            ("share", torch.zeros(nodes)),
            ("grown", torch.zeros((), dtype=torch.bool)),
        ):
            self.register_buffer(name, value.to(device))

    def reset(self, num_classes: int, pool_type: str | None = None) -> None:
        """Replace tree and classifier by fresh ones; the rotation stays, see `InfoDisentHead`."""
        super().reset(num_classes, pool_type)
        self._clear(self.channel.device)

    @property
    def _nodes(self) -> int:
        """Room of one tree."""
        return int(2 ** (self.depth + 1)) - 1

    def _roots(self) -> Tensor:
        """Where every tree begins, ``[trees]`` int64."""
        return torch.arange(self.trees, device=self.channel.device) * self._nodes

    # -- from a map to logits ---------------------------------------------------------------------

    def _way(
        self,
        pooled: Tensor,  # [n, C]
    ) -> Tensor:
        """Nodes an image comes through, ``[n, trees, depth + 1]`` int64; a leaf repeats itself."""
        channel, threshold = self.channel.to(pooled.device), self.threshold.to(pooled)
        root = self._roots().to(pooled.device)
        node = torch.zeros(len(pooled), self.trees, dtype=torch.int64, device=pooled.device)
        nodes = [node]
        for _ in range(self.depth):
            asked = channel[root + node]
            value = pooled.gather(1, asked.clamp_min(0))
            child = 2 * node + 1 + (value > threshold[root + node]).long()
            node = torch.where(asked >= 0, child, node)
            nodes.append(node)
        return torch.stack(nodes, dim=2) + root[:, None]

    def classify(
        self,
        pooled: Tensor,  # [n, C]
    ) -> Tensor:
        """Log probabilities of the leaves, ``[n, K]``; before the tree is grown InfoDisent's."""
        linear = super().classify(pooled)
        if self.training:
            return linear
        leaf = self._way(pooled)[..., -1]
        chances = self.chances[leaf].mean(1)
        return torch.where(self.grown, chances.log().to(linear.dtype), linear)

    def forward(
        self,
        x: Tensor,  # a map [B, ...] in layout input_fmt
        pre_logits: bool = False,
        *,
        input_fmt: str | None = None,
    ) -> Tensor:
        """See `Head.forward`; the fused operator serves the training alone."""
        owner = InfoDisentHead if self.training else Head
        return owner.forward(self, x, pre_logits, input_fmt=input_fmt)

    def scores(
        self,
        logits: Tensor,  # [n, K]
    ) -> Tensor:
        """The probabilities; the logits themselves until the tree is grown."""
        return torch.where(self.grown.to(logits.device), logits.exp(), logits)

    # -- evidence ---------------------------------------------------------------------------------

    @property
    def score(self) -> str:  # type: ignore[override]
        """What contributions add up to: "probability" once the tree is grown."""
        return "probability" if self.grown else "logit"

    def class_weights(self) -> Tensor:
        """How a channel's larger values change the classes' probabilities, ``[K, C]``, signed.

        Over the nodes that ask for it: the right child's probabilities less the left's, weighted by
        the share of training images that come there; of a forest the trees' mean. InfoDisent's
        weights until the tree is grown.
        """
        weights = super().class_weights()
        inner = self.channel >= 0
        # of all nodes, whose number is known: steps of a training ask, and wait for nothing
        node = torch.arange(len(inner), device=inner.device)
        children = 2 * node + 1 - node // self._nodes * self._nodes
        children = children.clamp_max(len(self.chances) - 2)
        step = (self.chances[children + 1] - self.chances[children]) * self.share[:, None]
        step = torch.where(inner[:, None], step, 0).to(weights)
        grown = torch.zeros_like(weights.mT).index_add(0, self.channel.clamp_min(0), step)
        return torch.where(self.grown, grown.mT / self.trees, weights)

    def used_units(self) -> Tensor:
        """The channels that some node asks for, ``[C]`` bool."""
        if not self.grown:
            return super().used_units()
        used = torch.zeros(self.num_features, dtype=torch.bool, device=self.channel.device)
        used[self.channel[self.channel >= 0]] = True
        return used

    def contributions(
        self,
        pooled: Tensor,  # [n, C]
        classes: Tensor,  # [n] int64
    ) -> Tensor:
        """What the decisions on each channel add to the probability of a class, see `Head`."""
        if not self.grown:
            return super().contributions(pooled, classes)
        way = self._way(pooled)
        chances = self.chances.to(pooled)[way, classes.to(pooled.device)[:, None, None]]
        asked = self.channel.to(pooled.device)[way[..., :-1]].clamp_min(0)
        change = chances.diff(dim=2) / self.trees
        # where a leaf repeats itself nothing changes, whichever channel that is added to
        return torch.zeros_like(pooled).scatter_add(1, asked.flatten(1), change.flatten(1))

    def offsets(
        self,
        classes: Tensor,  # [n] int64
    ) -> Tensor:
        """The classes' shares of the training images, ``[n]``; a bias before the tree is grown."""
        if not self.grown:
            return super().offsets(classes)
        return self.chances[self._roots()].mean(0)[classes.to(self.chances.device)]

    def decisions(
        self,
        pooled: Tensor,  # [C]
    ) -> tuple[Decision, ...]:
        """The questions on the way to the leaf, see `Head.decisions`; none of a forest."""
        if not self.grown or self.trees > 1:
            return ()
        way = list(dict.fromkeys(self._way(pooled[None])[0, 0].tolist()))
        chances = self.chances.cpu().double()
        steps = []
        for node, child in pairwise(way):
            channel, limit = int(self.channel[node]), float(self.threshold[node])
            value, yes = float(pooled[channel]), child % 2 == 0
            steps.append(Decision(channel, value, limit, yes, 1.0, chances[child]))
        return tuple(steps)

    # -- training ---------------------------------------------------------------------------------

    def start_stage(self, stage: Stage, batches: Batches) -> None:
        """Ask for scikit-learn before the work, not after it; a tree from before is forgotten."""
        _sklearn()
        self._clear(self.channel.device)

    def start_offsets(
        self,
        offsets: Tensor,  # [K]
    ) -> None:
        """Refuse a multi-label training before it begins."""
        raise ValueError(
            "TreeHead: labels are multi-label (a row an image), but a leaf is one distribution of "
            "the classes: this method is for one class an image"
        )

    def finish(self, batches: Batches) -> None:
        """Grow the trees on the pooled channels of all training images."""
        rows, labels = [], []
        for maps, label, _ in batches():
            rows.append(self.pool(maps, input_fmt="NLC").pooled.float().cpu())
            labels.append(label.cpu())
        options = {
            "max_depth": self.depth,
            "min_samples_leaf": self.min_leaf,
            "ccp_alpha": self.ccp_alpha,
            "random_state": 0,  # equal splits: scikit-learn draws
        }
        label = torch.cat(labels)
        ensemble, tree = _sklearn()
        if self.trees > 1:
            grown = ensemble.RandomForestClassifier(self.trees, **options)
        else:
            grown = tree.DecisionTreeClassifier(**options)
        grown.fit(torch.cat(rows).numpy(), label.numpy())
        self._clear(self.channel.device)
        present = torch.as_tensor(grown.classes_)
        for number, one in enumerate(grown.estimators_ if self.trees > 1 else [grown]):
            self._take(one.tree_, present, len(label), number)

    def _take(
        self,
        tree: Any,
        present: Tensor,  # [classes with images] int64
        images: int,
        number: int = 0,
    ) -> None:
        """Lay scikit-learn's tree out as a complete one, the `number`-th."""
        left, right = (torch.as_tensor(t) for t in (tree.children_left, tree.children_right))
        # of a forest's tree: images as often as they were drawn for it
        count = torch.as_tensor(tree.weighted_n_node_samples).double()
        part = torch.zeros(tree.node_count, self.num_classes, dtype=torch.float64)
        part[:, present] = torch.as_tensor(tree.value)[:, 0].double()  # shares, since 1.3
        images_of = part / part.sum(1, keepdim=True) * count[:, None]
        root = (images_of[0] + 1 / self.num_classes) / (count[0] + 1)  # a class without images
        chances = (images_of + PRIOR_IMAGES * root) / (count[:, None] + PRIOR_IMAGES)
        places, first = [(0, 0)], number * self._nodes
        while places:
            theirs, place = places.pop()
            ours = first + place
            self.chances[ours] = chances[theirs].to(self.chances)
            self.share[ours] = float(count[theirs] / images)
            if left[theirs] < 0:
                continue
            self.channel[ours] = int(tree.feature[theirs])
            self.threshold[ours] = _float32_below(float(tree.threshold[theirs]))
            places.append((int(left[theirs]), 2 * place + 1))
            places.append((int(right[theirs]), 2 * place + 2))
        self.grown.fill_(True)


def _float32_below(value: float) -> float:
    """The largest float32 that is not above a number: float32 values compare alike with both."""
    near = torch.tensor(value, dtype=torch.float32)
    if float(near) > value:
        near = torch.nextafter(near, torch.tensor(-torch.inf))
    return float(near)


def _sklearn() -> tuple[Any, Any]:
    """`sklearn.ensemble` and `sklearn.tree`.

    Raises:
        ImportError: it is not installed.
    """
    try:
        from sklearn import (  # type: ignore[import-untyped,import-not-found]
            ensemble,
            tree,
        )
    except ImportError as error:
        raise ImportError(
            "the method 'tree' grows its tree with scikit-learn, which is not installed: "
            "pip install 'infodisent[tree]', or pip install scikit-learn"
        ) from error
    return ensemble, tree
