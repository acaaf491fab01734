"""`Head`: what the rest of the package knows of a method.

A head turns a feature map into logits through M *units* (channels, prototypes, nodes), each with a
value per image and the pixel it comes from. Training, evaluation, explanations, prototypes,
checkpoints and the page speak to the methods below and to nothing else, so that a new method is one
file here and one line in `infodisent.methods`.

The default implementations are those of a linear classifier on pooled units. A method overrides
what it does otherwise.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from infodisent.checks import check_positive, check_rate
from infodisent.contract import SparsePool
from infodisent.layout import check_input_fmt
from infodisent.methods.decisions import Decision
from infodisent.methods.declared import Option, declared, describe
from infodisent.methods.own_loop import OwnLoop
from infodisent.methods.stages import (
    Batches,
    Objective,
    Stage,
    TrainingBatch,
    TrainingOptions,
)


class Head(OwnLoop, nn.Module, abc.ABC):
    """A feature map to logits, and the evidence for them.

    Follows timm's ``ClassifierHead``: ``forward(x, pre_logits=False)``, ``reset(num_classes)``, and
    the attributes below. A method's constructor takes ``(in_features, num_classes, *, input_fmt,
    num_prefix_tokens, device, dtype)`` and, by keyword only, its options; each option is kept as an
    attribute of the same name, see `options`.

    Args:
        in_features: channels C of the map.
        num_features: units M.
        input_fmt: layout of the map: NCHW, NHWC, NCL or NLC.
        num_prefix_tokens: leading tokens of a token map that are not pixels.
        drop_rate: dropout on the pooled units in training.

    Attributes:
        method: name in `infodisent.methods.METHODS` and in files.
        title: its name for people.
        summary: what it does, one line for tables.
        paper: where it comes from.
        unit: what its evidence is counted in, singular: "channel", "prototype" …
        score: what contributions add up to, for people: "logit", "probability" …
        offset: what is in a score besides them, for people: "bias", "prior" …
        loss_needs_pool: `loss` or `penalty` wants the units of the batch, which costs the fused
            map-to-logits operator where a method has one.
        multilabel: whether it learns images with several labels.
        sigmoid: its outputs are trained each by itself, so that their probabilities are sigmoids
            and need not add up to 1, also where an image has one class.
        num_classes: classes K; 0 leaves the pooled units as output. Set by the method.
        drop: the dropout.

    Raises:
        ValueError: a size, layout or rate that is not allowed, named.
    """

    method: ClassVar[str]
    title: ClassVar[str]
    summary: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    unit: ClassVar[str] = "channel"
    score: ClassVar[str] = "logit"
    offset: ClassVar[str] = "bias"
    loss_needs_pool: ClassVar[bool] = False
    multilabel: ClassVar[bool] = True
    sigmoid: ClassVar[bool] = False

    num_classes: int

    def __init__(
        self,
        in_features: int,
        num_features: int,
        *,
        input_fmt: str = "NCHW",
        num_prefix_tokens: int = 0,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_positive(name, "in_features", in_features)
        check_positive(name, "num_features", num_features)
        check_input_fmt(name, input_fmt, num_prefix_tokens)
        check_rate(name, "drop_rate", drop_rate)
        self.in_features, self.num_features = in_features, num_features
        self.input_fmt, self.num_prefix_tokens = input_fmt, num_prefix_tokens
        self.drop_rate = drop_rate
        self.drop = nn.Dropout(drop_rate)

    # -- from a map to logits ---------------------------------------------------------------------

    @abc.abstractmethod
    def pool(
        self,
        x: Tensor,  # a map [B, ...] in layout input_fmt
        *,
        input_fmt: str | None = None,
    ) -> SparsePool:
        """The units of a map, ``[B, M]`` each, with their places.

        A method with one side only gives ``neg = 0`` and ``neg_index = -1``.

        Args:
            x: the map, in the head's own layout.
            input_fmt: another layout, without prefix tokens: that of a map from elsewhere than the
                backbone, such as a feature store.
        """

    @abc.abstractmethod
    def classify(
        self,
        pooled: Tensor,  # [n, M]
    ) -> Tensor:
        """Pooled units to logits ``[n, K]``; drops units in training."""

    def forward(
        self,
        x: Tensor,  # a map [B, ...] in layout input_fmt
        pre_logits: bool = False,
        *,
        input_fmt: str | None = None,
    ) -> Tensor:
        """Logits ``[B, K]``, or the pooled units ``[B, M]`` if `pre_logits` or without classes.

        `x` and `input_fmt` as in `pool`.
        """
        pooled = self.pool(x, input_fmt=input_fmt).pooled
        if pre_logits or self.num_classes == 0:
            units: Tensor = self.drop(pooled)
            return units
        return self.classify(pooled)

    # -- evidence ---------------------------------------------------------------------------------

    @abc.abstractmethod
    def class_weights(self) -> Tensor:
        """How much each unit counts for each class, ``[K, M]``, differentiable."""

    @abc.abstractmethod
    def maps(
        self,
        pixels: Tensor,  # [P, C]
        units: Tensor,  # [n] int64
    ) -> Tensor:
        """The values of a few units at every pixel, ``[P, n]`` float32: their heat maps."""

    def contributions(
        self,
        pooled: Tensor,  # [n, M]
        classes: Tensor,  # [n] int64
    ) -> Tensor:
        """What each unit adds to the logit of a class, ``[n, M]``, in `pooled`'s dtype and device.

        ``contributions(pooled, k).sum(1) + offsets(k)`` is the score of class k, see `scores`.
        """
        weights = self.class_weights()
        chosen = weights[classes.to(weights.device)].to(pooled.device)
        return chosen.to(pooled.dtype) * pooled  # in this order: not every device has float64

    def offsets(
        self,
        classes: Tensor,  # [n] int64
    ) -> Tensor:
        """What a score has besides its contributions (a bias), ``[n]``; 0 here."""
        return torch.zeros(len(classes), device=classes.device)

    def scores(
        self,
        logits: Tensor,  # [n, K]
    ) -> Tensor:
        """What contributions and offsets add up to, ``[n, K]``: the logits themselves here.

        A method whose logits are logarithms of a sum gives that sum; `score` is its name.
        """
        return logits

    def used_units(self) -> Tensor:
        """Which units count for any class, ``[M]`` bool: those with a class weight that is not 0.

        Without classes all do.
        """
        if not self.num_classes:
            return torch.ones(self.num_features, dtype=torch.bool, device=self.device)
        return (self.class_weights().detach() != 0).any(dim=0)

    def decisions(
        self,
        pooled: Tensor,  # [M]
    ) -> tuple[Decision, ...]:
        """The path that one image takes, from the root, of a head that is a tree; else none."""
        return ()

    def abstains(
        self,
        pooled: Tensor,  # [n, M]
    ) -> Tensor | None:
        """Images of which it says no class, ``[n]`` bool; None for a method that always answers."""
        return None

    def probabilities(
        self,
        logits: Tensor,  # [..., K]
        independent: bool = False,
    ) -> Tensor:
        """Of the classes, ``[..., K]``: a softmax; sigmoids where every class is for itself."""
        if independent or self.sigmoid:
            return logits.sigmoid()
        return logits.softmax(-1)

    def notices(self) -> tuple[str, ...]:
        """What its owner should know of a trained head, a sentence each; nothing here."""
        return ()

    # -- training ---------------------------------------------------------------------------------

    def ignored(self, multilabel: bool) -> tuple[str, ...]:
        """Fields of `FitConfig` that do nothing here; `multilabel` says which labels it learns."""
        return ("l1",)

    @abc.abstractmethod
    def stages(self, config: TrainingOptions) -> tuple[Stage, ...]:
        """What trains, in which order and at which rates; at least one stage."""

    def start_stage(self, stage: Stage, batches: Batches) -> None:
        """Called once before a stage's first epoch, without gradients; nothing to do here.

        For steps that need the training images, such as moving prototypes onto their nearest
        patches. Must give the same result whenever it is called in the same state.
        """

    def start_epoch(self, stage: Stage, epoch: int, epochs: int, batches: Batches) -> None:
        """Called before every epoch of a stage (from 0), also after a resume, without gradients.

        What it sets must follow from its arguments and the parameters and buffers alone, since an
        interrupted training goes on from those.
        """

    def finish(self, batches: Batches) -> None:
        """Called once after the last epoch, in evaluation mode, without gradients.

        For what a method does with a trained head: prune it, move its prototypes onto patches.
        Must give the same result whenever it is called in the same state: a finished training that
        is opened again calls it again, from the weights that its last epoch left.
        """

    def training_pool(
        self,
        x: Tensor,  # a map [B, ...] in layout input_fmt
        *,
        input_fmt: str | None = None,
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Units ``[B, M]`` for a training step, and what else `loss` and `penalty` read.

        The second is `TrainingBatch.extra`, such as a second similarity of the same product.
        """
        return self.pool(x, input_fmt=input_fmt).pooled, {}

    def loss(
        self,
        objective: Objective,
        logits: Tensor,  # [n, K]
        batch: TrainingBatch,
    ) -> Tensor:
        """What is minimised besides `penalty`, a scalar: the objective of the logits.

        For methods that classify twice, weight the objective, or have a stage without classes.
        """
        return objective(logits, batch.labels)

    def penalty(
        self,
        config: TrainingOptions,
        batch: TrainingBatch,
    ) -> Tensor | None:
        """Terms added to the loss of a batch: a scalar, or None for nothing."""
        return None

    @property
    def loss_adds_up(self) -> bool:
        """Whether loss and penalty of a batch are the means of its parts' (by their images).

        So it is here, unless a method has a loss of its own, reads the units, or learns in `learn`:
        parts of a step may then not be treated one by one, see `FitConfig.accumulate`.
        """
        own = type(self)
        return own.loss is Head.loss and own.learn is Head.learn and not self.loss_needs_pool

    def learn(
        self,
        logits: Tensor,  # [n, K]
        batch: TrainingBatch,
    ) -> None:
        """Called after every optimiser step, without gradients: updates that no gradient makes.

        `logits` and `batch` are those of the step, from before it. Nothing to do here.
        """

    def start_offsets(
        self,
        offsets: Tensor,  # [K]
    ) -> None:
        """Called once before a multi-label training: the log-odds of every label.

        A head with a bias starts it there; without one there is nothing to do.
        """

    def start_weights(
        self,
        weight: Tensor,  # [K, C]
        bias: Tensor,  # [K]
    ) -> None:
        """Called before a training where the backbone's own classifier knows the classes.

        Its rows, of a classifier that is linear in the mean of the map's pixels. Nothing to do for
        a head that classifies otherwise.
        """

    def after_step(self) -> None:
        """Called after every optimiser step: projections of weights. Nothing to do here."""

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay must not reach; none here."""
        return set()

    def ablations(self) -> Mapping[str, Mapping[str, Any]]:
        """Heads to train beside this one for comparison: their row's title, and what differs."""
        return {}

    # -- description ------------------------------------------------------------------------------

    @abc.abstractmethod
    def reset(self, num_classes: int, pool_type: str | None = None) -> None:
        """Replace the classifier by a fresh one for `num_classes` classes.

        Raises:
            ValueError: `pool_type` is given, as timm allows, and it is another pool.
        """

    def options(self) -> dict[str, Any]:
        """The keyword arguments that rebuild this head's structure, JSON-able."""
        return {name: getattr(self, name) for name in self.option_names()}

    @classmethod
    def option_names(cls) -> tuple[str, ...]:
        """The options of the method: what its constructor takes by keyword, but for placement.

        Those of the class that it is made from too, where it hands them on as ``**options``.
        """
        return tuple(declared(cls, Head))

    @classmethod
    def described_options(cls) -> tuple[Option, ...]:
        """The same with types, defaults, what is allowed and what each does."""
        return describe(cls, declared(cls, Head))

    def __prepare_scriptable__(self) -> Any:
        """What torch.jit.script asks first."""
        raise TypeError(
            "torch.jit.script does not read infodisent's modules: use torch.export.export or "
            "torch.jit.trace"
        )

    @property
    def device(self) -> torch.device:
        """Where its parameters are; the CPU for a head without any."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    def layout(self, input_fmt: str | None = None) -> dict[str, Any]:
        """``input_fmt`` and ``num_prefix_tokens`` of a map, as the operators take them.

        The head's own, or `input_fmt` without prefix tokens.
        """
        if input_fmt is not None:
            return {"input_fmt": input_fmt, "num_prefix_tokens": 0}
        return {"input_fmt": self.input_fmt, "num_prefix_tokens": self.num_prefix_tokens}
