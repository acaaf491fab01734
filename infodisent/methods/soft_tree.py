"""`SoftTreeHead`: a complete binary tree through which an image goes both ways at every node."""

from __future__ import annotations

import abc

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from infodisent.methods import complete_tree as tree
from infodisent.methods.complete_tree import BOTH, LEFT, RIGHT
from infodisent.methods.decisions import Decision
from infodisent.methods.prototypes import PrototypeHead
from infodisent.methods.stages import Batches, Objective, Stage, TrainingBatch

ROUTINGS = ("distributed", "sample_max", "greedy")


class SoftTreeHead(PrototypeHead):
    """What a soft tree is, whatever its decisions: the mixture, its evidence, its leaves' update.

    A method on it makes the parameters and says how likely an image turns either way (`turns`).

    Attributes:
        routing: one of `ROUTINGS`.
        leaves: c, ``[L, K]``; a leaf's distribution is ``softmax(c)``.
        leaves_at_start: c at the start of the epoch; not in files.
        batch_count: batches of an epoch, int64.
        pruned: ``[M]`` int8: 0 decides, -1 always turns left, 1 always right, 2 is never reached.
    """

    score = "probability"
    offset = "prior"
    loss_needs_pool = True
    routing: str
    leaves: nn.Parameter
    leaves_at_start: Tensor
    batch_count: Tensor
    pruned: Tensor
    _path: Tensor | None = None  # of the step's images, before the step

    @abc.abstractmethod
    def turns(
        self,
        pooled: Tensor,  # [n, M]
    ) -> tuple[Tensor, Tensor]:
        """Log probabilities of turning left and right at every node, ``[n, M]`` each."""

    @abc.abstractmethod
    def limits(self) -> Tensor:
        """The value of every node from which right is likelier, ``[M]``."""

    def _routed(
        self,
        pooled: Tensor,  # [n, M]
    ) -> tuple[Tensor, Tensor]:
        """The same, but one way only where `routing` asks for that."""
        left, right = self.turns(pooled)
        if self.training or self.routing == "distributed":
            return left, right
        if self.routing == "greedy":
            return tree.one_way(right > left)
        leaf = tree.leaf_log_probabilities(left, right).argmax(dim=1)
        return tree.one_way(tree.turns_to(leaf, self.num_features))

    def classify(
        self,
        pooled: Tensor,  # [n, M]
    ) -> Tensor:
        """Log of the mean of the leaves, ``[n, K]``: log probabilities of the classes."""
        path = tree.leaf_log_probabilities(*self._routed(pooled))
        return tree.log_mixture(path, self._leaves().to(pooled).log_softmax(dim=1))

    def scores(
        self,
        logits: Tensor,  # [n, K]
    ) -> Tensor:
        """The probabilities."""
        return logits.exp()

    def _leaves(self) -> Tensor:
        if not self.num_classes:
            raise ValueError("this soft tree has no classes (num_classes=0)")
        return self.leaves

    def means(self) -> Tensor:
        """V, the mean of the leaves below every node and the leaves themselves, ``[M + L, K]``."""
        side = self.pruned
        half = torch.full_like(side, 0.5, dtype=self.leaves.dtype)
        half = half.masked_fill(side == LEFT, 0).masked_fill(side == RIGHT, 1)
        return tree.expected(self._leaves().softmax(dim=1), half)

    def class_weights(self) -> Tensor:
        """V of the right child less that of the left, ``[K, M]``; 0 for nodes that do not decide.

        A contribution is this times ``p(reach) (p(right) - 1/2)``.
        """
        means = self.means()
        step = means[2::2] - means[1::2]
        return (step * (self.pruned == BOTH)[:, None]).mT

    def contributions(
        self,
        pooled: Tensor,  # [n, M]
        classes: Tensor,  # [n] int64
    ) -> Tensor:
        """What each decision adds to the probability of a class, see above and `Head`."""
        turn = self._routed(pooled)[1].exp()
        weights = self.class_weights()
        chosen = weights[classes.to(weights.device)].to(pooled.device).to(pooled.dtype)
        return tree.reach(turn) * (turn - 0.5) * chosen

    def offsets(
        self,
        classes: Tensor,  # [n] int64
    ) -> Tensor:
        """V of the root: what a class has before anything is asked, ``[n]``."""
        root = self.means()[0]
        return root[classes.to(root.device)]

    @torch.no_grad()
    def decisions(
        self,
        pooled: Tensor,  # [M]
    ) -> tuple[Decision, ...]:
        """The path to the leaf of largest probability, or the greedy one; pruned nodes left out."""
        left, right = self.turns(pooled[None])
        leaf = int(tree.leaf_log_probabilities(*self._routed(pooled[None])).argmax())
        means, limits = self.means().cpu().double(), self.limits().tolist()
        steps: list[Decision] = []
        node = leaf + self.num_features
        while node:
            node, child = (node - 1) // 2, node
            if self.pruned[node] != BOTH:
                continue
            yes = child % 2 == 0
            chance = float((right if yes else left)[0, node].exp())
            steps.append(
                Decision(node, float(pooled[node]), limits[node], yes, chance, means[child])
            )
        return tuple(reversed(steps))

    def start_epoch(self, stage: Stage, epoch: int, epochs: int, batches: Batches) -> None:
        """Keep the leaves as they are now, for `learn`."""
        self.leaves_at_start.copy_(self.leaves)

    def start_offsets(
        self,
        offsets: Tensor,  # [K]
    ) -> None:
        """Refuse a multi-label training before it begins."""
        _refuse_labels()

    def loss(
        self,
        objective: Objective,
        logits: Tensor,  # [n, K]
        batch: TrainingBatch,
    ) -> Tensor:
        """The objective of the log probabilities; keeps the paths of the images for `learn`."""
        if batch.labels.ndim == 2:
            _refuse_labels()
        assert batch.pooled is not None  # loss_needs_pool
        with torch.no_grad():
            self._path = tree.leaf_log_probabilities(*self.turns(batch.pooled.detach()))
        return objective(logits, batch.labels)

    def learn(
        self,
        logits: Tensor,  # [n, K]
        batch: TrainingBatch,
    ) -> None:
        """The leaves' update, see above; `loss` has kept the paths from before the step."""
        assert self._path is not None
        labels = batch.labels.to(self.leaves.device)
        own = self.leaves.log_softmax(dim=1)[:, labels].mT  # [n, L]
        share = (self._path + own - logits.gather(1, labels[:, None])).exp()
        mark = one_hot(labels, self.num_classes).to(share.dtype)
        kept = (self.leaves - self.leaves_at_start / self.batch_count).relu()
        self.leaves.copy_(kept + share.mT @ mark)
        self._path = None


def _refuse_labels() -> None:
    raise ValueError(
        "a soft tree: labels are multi-label (a row an image), but a leaf is one distribution of "
        "the classes: this method is for one class an image"
    )
