"""`EPICHead`: a linear classifier of the mean pixel, in channels that are turned to be purer."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from infodisent import ops
from infodisent.checks import (
    check_choice,
    check_classes,
    check_one_pool,
    check_positive,
    check_strength,
)
from infodisent.contract import SparsePool
from infodisent.layout import to_bpc, value_dtype
from infodisent.methods.base import Head
from infodisent.methods.purity import SIDES, find_images, mean_purity, prototypes_mean, purities
from infodisent.methods.stages import Batches, Objective, Stage, TrainingBatch, TrainingOptions
from infodisent.nn.rotation import PARAMETRIZATIONS, Rotation
from infodisent.nn.standardised import StandardisedLinear
from infodisent.ops.register import no_autocast
from infodisent.polynomials.plans import PRECISIONS


class EPICHead(Head):
    """Average pool and linear layer, whose channels are turned until few pixels excite each.

    Units are the C channels of ``Y = U X``, U a rotation. A unit's value is the mean of its channel
    over the pixels, its place the pixel where the channel is greatest (least where the mean is
    negative), and the classifier is ``W' = W U^T``: the logits are those of W on the mean of X,
    whatever U is, and a unit adds exactly ``W'_kc mean(Y_c)``.

    W is the model's own classifier where the classes are the model's own and its head is average
    pool and linear layer, see `start_weights` and `from_linear`; predictions then are those of the
    model. Otherwise a first stage, "classifier", fits one on the standardised means with the
    objective of the linear probe. The stage "rotation" trains U alone, for *purity*: a channel's
    prototypes are the m images of greatest mean (least, of the negative side), their purity is
    ``|y_c| / |y|`` at the unit's pixel, and the loss is minus the mean over all prototypes. They
    are searched anew every `refresh` epochs, first `images` of a channel, then ever fewer, `keep`
    at last. Since U is orthogonal, ``|y| = |x|`` and Y is never held.

    "EPIC: Explanation of Pretrained Image Classification Networks via Prototype", AAAI 2026 (arXiv
    2505.12897). What differs: AdamW at `FitConfig.rotation_lr` with a cosine, where the paper has
    Adam at 0.001; images of a channel count as prototypes of a side only where its mean is of that
    side; contributions of either sign are shown. Where the norm of a model's head sits after its
    pool (ConvNeXt), the paper norms pixels by the pooled vector's statistics; here the map is
    normed at every pixel and a classifier is trained on it. `FitConfig.patience` is of the
    classifier's training alone: the objective does not change in the rotation's.

    Besides the attributes of `Head` it has ``rotation`` and ``fc``, a `StandardisedLinear` (an
    identity without classes).

    Args:
        in_features: channels C of the map.
        num_classes: classes K; 0 leaves the means as output.
        input_fmt: layout of the map: NCHW, NHWC, NCL or NLC.
        num_prefix_tokens: leading tokens of a token map that are not pixels.
        keep: m, prototypes of a channel and side.
        images: as many at the beginning, >= `keep`.
        refresh: epochs between two searches.
        sides: whose prototypes the rotation is trained for: "positive", or "both", which compete
            for the same channels.
        weight_decay: of the classifier that is trained, as `linear_probe` has it.
        parametrization, rotation_precision: of the rotation, see `Rotation`.
        device, dtype: of the parameters.

    Attributes:
        purity: buffer ``[2, 2]`` float32, the mean of the m prototypes of every channel before and
            after the rotation was trained, of the positive and the negative side; NaN where there
            is none.

    Raises:
        ValueError: a size, layout or option that is not allowed, named.
    """

    method = "epic"
    title = "EPIC"
    summary = "average pool and linear layer as they are, in channels rotated to be purer"
    paper = "AAAI 2026, arXiv 2505.12897"
    unit = "channel"
    loss_needs_pool = True

    purity: Tensor
    prototypes: Tensor

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        input_fmt: str = "NCHW",
        num_prefix_tokens: int = 0,
        keep: int = 5,
        images: int = 100,
        refresh: int = 2,
        sides: str = "positive",
        weight_decay: float = 0.1,
        parametrization: str = "exp",
        rotation_precision: str = "full",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        name = "EPICHead"
        super().__init__(
            in_features, in_features, input_fmt=input_fmt, num_prefix_tokens=num_prefix_tokens
        )
        for option, value in (("keep", keep), ("images", images), ("refresh", refresh)):
            check_positive(name, option, value)
        if images < keep:
            raise ValueError(f"{name}: images is {images}, must be >= keep ({keep})")
        check_strength(name, "weight_decay", weight_decay)
        check_choice(name, "sides", sides, SIDES)
        check_choice(name, "parametrization", parametrization, PARAMETRIZATIONS)
        check_choice(name, "rotation_precision", rotation_precision, PRECISIONS)
        self.keep, self.images, self.refresh = keep, images, refresh
        self.sides, self.weight_decay = sides, weight_decay
        self.parametrization, self.rotation_precision = parametrization, rotation_precision
        self.rotation = Rotation(
            in_features,
            parametrization=parametrization,
            precision=rotation_precision,
            device=device,
            dtype=dtype,
        )
        self.fc: nn.Module
        self._of_step: Tensor | None = None  # U of a training step, until it ends
        self._build_classifier(num_classes, device, dtype)
        # positions of the training images that are prototypes, positive and negative, -1 for none
        none = torch.full((2, images, in_features), -1, dtype=torch.int32, device=device)
        self.register_buffer("prototypes", none)
        self.register_buffer("purity", torch.full((2, 2), torch.nan, device=device))

    @classmethod
    def from_linear(
        cls,
        weight: Tensor,  # [K, C]
        bias: Tensor | None = None,  # [K]
        **arguments: Any,
    ) -> EPICHead:
        """A head with a given classifier; `arguments` are those of the constructor.

        Raises:
            ValueError: see `start_weights`.
        """
        if weight.ndim != 2:
            raise ValueError(f"EPICHead: weight is {tuple(weight.shape)}, must be [K, C]")
        classes, channels = weight.shape
        place = {"device": weight.device, "dtype": weight.dtype}
        head = cls(channels, classes, **{**place, **arguments})
        head.start_weights(weight, bias)
        return head

    def _build_classifier(
        self,
        num_classes: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        check_classes(type(self).__name__, num_classes)
        self.num_classes = num_classes
        self.fc = (
            StandardisedLinear(self.in_features, num_classes, device=device, dtype=dtype)
            if num_classes
            else nn.Identity()
        )

    def start_weights(
        self,
        weight: Tensor,  # [K, C]
        bias: Tensor | None = None,  # [K]
    ) -> None:
        """A classifier that is not to be trained; ValueError if it is of another size."""
        self._classifier().give(weight, bias)

    def start_offsets(
        self,
        offsets: Tensor,  # [K]
    ) -> None:
        """Where a bias starts that is to be trained."""
        fc = self._classifier()
        if not fc.given:
            with torch.no_grad():
                fc.bias.copy_(offsets)

    # -- from a map to logits ---------------------------------------------------------------------

    def train(self, mode: bool = True) -> EPICHead:
        """As for any module; the rotation stays in evaluation, which keeps U until A changes."""
        super().train(mode)
        self.rotation.eval()
        return self

    def _constant(self) -> Tensor:
        """U without a gradient, which logits do not have: they are the same for all U."""
        if self._of_step is not None and self.training:
            return self._of_step
        with torch.no_grad():
            u: Tensor = self.rotation()
        return u

    def _mean(
        self,
        x: Tensor,  # a map [B, ...] in layout input_fmt
        input_fmt: str | None,
    ) -> Tensor:
        """The mean pixel, ``[B, C]``."""
        layout = self.layout(input_fmt)
        rows = to_bpc(x, layout["input_fmt"], layout["num_prefix_tokens"])
        return rows.mean(1, dtype=value_dtype(x.dtype, self.rotation.A.dtype))

    def forward(
        self,
        x: Tensor,  # a map [B, ...] in layout input_fmt
        pre_logits: bool = False,
        *,
        input_fmt: str | None = None,
    ) -> Tensor:
        """Logits ``[B, K]``, which need no U, or the units ``[B, C]``, see `Head.forward`."""
        with no_autocast(x):
            mean = self._mean(x, input_fmt)
            if pre_logits or self.num_classes == 0:
                return _turned(mean, self.rotation())
            return self._classifier()(mean)  # type: ignore[no-any-return]

    def pool(
        self,
        x: Tensor,  # a map [B, ...] in layout input_fmt
        *,
        input_fmt: str | None = None,
    ) -> SparsePool:
        """The mean of every channel of Y, as `pos` or `neg`, and the pixel of its extreme."""
        u = self.rotation()
        best = ops.rotate_pool(x, u, **self.layout(input_fmt))
        with no_autocast(x):  # else contributions would not be those of the logits
            mean = _turned(self._mean(x, input_fmt), u)
        # a mean of one sign has an extreme of that sign; by rounding it may have none
        pos_index = torch.where(mean > 0, best.pos_index.clamp_min(0), -1)
        neg_index = torch.where(mean < 0, best.neg_index.clamp_min(0), -1)
        return SparsePool(mean, mean.clamp_min(0), (-mean).clamp_min(0), pos_index, neg_index)

    def classify(
        self,
        pooled: Tensor,  # [n, C]
    ) -> Tensor:
        """``W' pooled + b``, ``[n, K]``."""
        with no_autocast(pooled):
            fc = self._classifier()
            mean = _turned(pooled.to(fc.weight.dtype), self._constant().mT)
            return fc(mean)  # type: ignore[no-any-return]

    def class_weights(self) -> Tensor:
        """W', ``[K, C]``, of either sign."""
        return _turned(self._classifier().effective()[0], self.rotation())

    def offsets(
        self,
        classes: Tensor,  # [n] int64
    ) -> Tensor:
        """The bias of each class, ``[n]``."""
        bias = self._classifier().effective()[1]
        return bias[classes.to(bias.device)]

    def maps(
        self,
        pixels: Tensor,  # [P, C]
        units: Tensor,  # [n] int64
    ) -> Tensor:
        """Y of a few channels, ``[P, n]`` float32."""
        rows: Tensor = self.rotation()[units.to(pixels.device)].float()
        return pixels.float() @ rows.mT

    def notices(self) -> tuple[str, ...]:
        """What the rotation did to the purity."""
        if self.purity[1].isnan().all():
            return ()
        columns = zip(("positive", "negative"), self.purity.mT.tolist(), strict=True)
        said = ", ".join(
            f"{side} {before:.3f} before the rotation was trained, {after:.3f} after"
            for side, (before, after) in columns
        ).replace("nan", "none")
        return (f"mean purity of the {self.keep} prototypes of every {self.unit}: {said}",)

    # -- training ---------------------------------------------------------------------------------

    def stages(self, config: TrainingOptions) -> tuple[Stage, ...]:
        """A classifier at `lr` unless it is given; the rotation, for purity, at `rotation_lr`."""
        classifies = [{"params": list(self.fc.parameters()), "lr": config.lr}]
        turns = [{"params": list(self.rotation.parameters()), "lr": config.rotation_lr}]
        classifier = Stage("classifier", classifies, pool_is_fixed=True, stops_early=True)
        rotation = Stage("rotation", turns, stops_early=False)  # no logit changes in it
        given = isinstance(self.fc, StandardisedLinear) and bool(self.fc.given)
        return (rotation,) if given else (classifier, rotation)

    def start_stage(self, stage: Stage, batches: Batches) -> None:
        """Mean and deviation of every channel for the classifier; the purity there is before."""
        if stage.name == "rotation":
            self.purity[0] = self.mean_purity(batches)
            return
        means = (maps.mean(1, dtype=torch.float32) for maps, _, _ in batches())
        self._classifier().standardise(means)

    def start_epoch(self, stage: Stage, epoch: int, epochs: int, batches: Batches) -> None:
        """Every `refresh` epochs: which images are prototypes of which channels."""
        # U of a whole epoch where it does not change: no step compares it with the last one's
        self._of_step = None if stage.name == "rotation" else self.rotation().detach()
        if stage.name != "rotation" or epoch % self.refresh:
            return
        part = epoch / max(1, (epochs - 1) // self.refresh * self.refresh)
        count = round(self.images + (self.keep - self.images) * part)
        means = functools.partial(self.forward, pre_logits=True, input_fmt="NLC")
        images = find_images(batches, means, self.num_features, count)
        self.prototypes.fill_(-1)
        self.prototypes[:, :count] = images.to(self.prototypes)
        if self.sides == "positive":
            self.prototypes[1] = -1

    def finish(self, batches: Batches) -> None:
        """The purity there is after; the positions of images are of no use any more."""
        self.purity[1] = self.mean_purity(batches)
        self.prototypes.fill_(-1)

    def mean_purity(self, batches: Batches) -> Tensor:
        """Of the m prototypes of every channel among some images: either side, ``[2]``."""
        pool = functools.partial(self.pool, input_fmt="NLC")
        return mean_purity(batches, pool, self._constant(), self.keep)

    def training_pool(
        self,
        x: Tensor,  # a map [B, ...] in layout input_fmt
        *,
        input_fmt: str | None = None,
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The units, without a gradient, and "pure": `purities`, ``[B, 2, C]``, see `Head`."""
        layout, u = self.layout(input_fmt), self.rotation()
        best = ops.rotate_pool(x, u, **layout)
        pure = purities(best, to_bpc(x, layout["input_fmt"], layout["num_prefix_tokens"]))
        self._of_step = u.detach()  # the exponential is most of a step's work
        return _turned(self._mean(x, input_fmt), self._of_step), {"pure": pure}

    def loss(
        self,
        objective: Objective,
        logits: Tensor,  # [n, K]
        batch: TrainingBatch,
    ) -> Tensor:
        """The objective for the classifier; for the rotation minus the mean purity, without it."""
        if batch.stage != "rotation":
            return objective(logits, batch.labels)
        if batch.positions is None:
            raise ValueError("EPICHead.loss: the rotation needs the images' positions in the batch")
        return -prototypes_mean(batch.extra["pure"], batch.positions, self.prototypes)

    def penalty(
        self,
        config: TrainingOptions,
        batch: TrainingBatch,
    ) -> Tensor | None:
        """``weight_decay / 2 · |W|^2`` of the classifier that is trained (multi-label: / K)."""
        if batch.stage != "classifier" or not self.weight_decay:
            return None
        fc = self._classifier()
        labels = self.num_classes if batch.labels.ndim == 2 else 1
        return self.weight_decay / (2 * labels) * fc.weight.square().sum()

    def after_step(self) -> None:
        """See `Rotation.after_step`."""
        if self.rotation.A.requires_grad:
            self._of_step = None
        self.rotation.after_step()

    def no_weight_decay(self) -> set[str]:
        """The rotation."""
        return {"rotation.A"}

    def reset(self, num_classes: int, pool_type: str | None = None) -> None:
        """Replace the classifier by one of zeros; the rotation stays. See `Head.reset`."""
        check_one_pool(type(self).__name__, pool_type)
        like = self.rotation.A
        self._build_classifier(num_classes, like.device, like.dtype)
        self.fc.train(self.training)

    def _classifier(self) -> StandardisedLinear:
        if not isinstance(self.fc, StandardisedLinear):
            raise ValueError("EPICHead: this head has no classes (num_classes=0)")
        return self.fc


def _turned(
    rows: Tensor,  # [n, C]
    u: Tensor,  # [C, C]
) -> Tensor:
    """U times every row, ``[n, C]`` in the rows' dtype."""
    return rows @ u.to(rows.dtype).mT
