"""`InfoDisentHead`: rotate, keep the extreme pixels, classify with nonnegative weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from infodisent import ops
from infodisent.checks import check_choice, check_classes, check_flag, check_one_pool
from infodisent.contract import SparsePool
from infodisent.layout import to_bpc, value_dtype
from infodisent.methods.base import Head
from infodisent.methods.pooling import check_pooling, pool_softly
from infodisent.methods.stages import Stage, TrainingBatch, TrainingOptions
from infodisent.nn.linear import NONNEG, NonNegativeLinear
from infodisent.nn.rotation import PARAMETRIZATIONS, Rotation
from infodisent.polynomials.plans import PRECISIONS


class InfoDisentHead(Head):
    """Feature map to logits: rotate, keep the extreme pixels, classify with nonnegative weights.

    Its units are the C rotated channels. Besides the attributes of `Head` it has ``rotation`` (None
    without one) and ``fc``, its `NonNegativeLinear` (an identity without classes).

    Args:
        in_features: channels C of the map.
        num_classes: classes K; 0 leaves the pooled features as output.
        input_fmt: layout of the map: NCHW, NHWC, NCL or NLC.
        num_prefix_tokens: leading tokens of a token map that are not pixels.
        bias: add a bias to the logits.
        nonneg: how the weights stay nonnegative, see `NonNegativeLinear`.
        rotate: learn a rotation; without it U is the identity and channels are used as they are.
        drop_rate: dropout on the pooled features in training.
        parametrization: of the rotation, "exp" or "lie", see `Rotation`.
        rotation_precision: of the rotation's exponential, "full" or "half", see
            `infodisent.ops.rotation`.
        pooling: what is kept of either side of a channel. "max", its extreme pixel; the others are
            for comparison, without fused operators and several times as dear, see
            `infodisent.methods.pooling`: "topk", the mean of its greatest values; "lse", their
            ``t log mean exp(Y / t)``; "gumbel", in training the mean by weights
            ``softmax((Y + Gumbel noise) / t)``, in evaluation the extreme pixel. Reviews say that
            the paper's appendix has a Gumbel-Softmax pool in training; this form of it is our
            assumption. Places are those of the extreme pixels.
        topk: values that "topk" averages; default: 5.
        temperature: t of "lse" and "gumbel", in the map's own units; default: 0.1.
        device, dtype: of the parameters.

    Raises:
        ValueError: a size, layout or option that is not allowed, named.
    """

    method = "infodisent"
    title = "InfoDisent"
    summary = "rotate the channels, keep both extreme pixels of each, weights >= 0"
    paper = "Struski et al. 2024, arXiv 2409.10329"
    unit = "channel"

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        input_fmt: str = "NCHW",
        num_prefix_tokens: int = 0,
        bias: bool = False,
        nonneg: str = "projection",
        rotate: bool = True,
        drop_rate: float = 0.0,
        parametrization: str = "exp",
        rotation_precision: str = "full",
        pooling: str = "max",
        topk: int | None = None,
        temperature: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_features,
            in_features,
            input_fmt=input_fmt,
            num_prefix_tokens=num_prefix_tokens,
            drop_rate=drop_rate,
        )
        check_flag("InfoDisentHead", "bias", bias)
        check_flag("InfoDisentHead", "rotate", rotate)
        check_choice("InfoDisentHead", "nonneg", nonneg, NONNEG)
        check_choice("InfoDisentHead", "parametrization", parametrization, PARAMETRIZATIONS)
        check_choice("InfoDisentHead", "rotation_precision", rotation_precision, PRECISIONS)
        topk, temperature = check_pooling("InfoDisentHead", pooling, topk, temperature)
        self.pooling, self.topk, self.temperature = pooling, topk, temperature
        self.bias, self.nonneg, self.rotate = bias, nonneg, rotate
        self.parametrization, self.rotation_precision = parametrization, rotation_precision
        self.rotation = (
            Rotation(
                in_features,
                parametrization=parametrization,
                precision=rotation_precision,
                device=device,
                dtype=dtype,
            )
            if rotate
            else None
        )
        self.fc: nn.Module
        self._build_classifier(num_classes, device, dtype)

    def _build_classifier(
        self,
        num_classes: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        check_classes(type(self).__name__, num_classes)
        self.num_classes = num_classes
        self.fc = (
            NonNegativeLinear(
                self.in_features,
                num_classes,
                self.bias,
                nonneg=self.nonneg,
                device=device,
                dtype=dtype,
            )
            if num_classes
            else nn.Identity()
        )

    def reset(self, num_classes: int, pool_type: str | None = None) -> None:
        """Replace the classifier by a fresh one; the rotation stays.

        Raises:
            ValueError: `pool_type` is given: the sparse pool is what this head is.
        """
        check_one_pool(type(self).__name__, pool_type)
        like = self.rotation.A if self.rotation is not None else getattr(self.fc, "weight", None)
        self._build_classifier(
            num_classes,
            None if like is None else like.device,
            None if like is None else like.dtype,
        )
        self.fc.train(self.training)

    def pool(
        self,
        x: Tensor,  # a map [B, ...] in layout input_fmt
        *,
        input_fmt: str | None = None,
    ) -> SparsePool:
        """Rotate and pool a map, see `Head.pool`; unit c is channel c of the rotated map."""
        if not self._keeps_extremes():
            return self._pool_softly(x, input_fmt)
        if self.rotation is None:
            return ops.mx_pool(x, **self.layout(input_fmt))
        return ops.rotate_pool(x, self.rotation(), **self.layout(input_fmt))

    def _keeps_extremes(self) -> bool:
        return self.pooling == "max" or (self.pooling == "gumbel" and not self.training)

    def _pool_softly(self, x: Tensor, input_fmt: str | None) -> SparsePool:
        layout = self.layout(input_fmt)
        y = to_bpc(x, layout["input_fmt"], layout["num_prefix_tokens"])
        if self.rotation is not None:
            u = self.rotation()
            y = y.to(value_dtype(y.dtype, u.dtype)) @ u.to(value_dtype(y.dtype, u.dtype)).mT
        y = y.to(value_dtype(y.dtype))
        return pool_softly(y, self.pooling, self.topk, self.temperature)

    def classify(
        self,
        pooled: Tensor,  # [n, C]
    ) -> Tensor:
        """``drop(pooled) · W^T (+ b)``, ``[n, K]`` in the weights' dtype."""
        fc = self._classifier()
        logits: Tensor = fc(self.drop(pooled).to(fc.weight.dtype))
        return logits

    def forward(
        self,
        x: Tensor,  # a map [B, ...] in layout input_fmt
        pre_logits: bool = False,
        *,
        input_fmt: str | None = None,
    ) -> Tensor:
        """Logits ``[B, K]``, or the pooled features ``[B, C]`` if `pre_logits`, see `Head.forward`.

        One fused operator from the map to the logits wherever nothing is wanted in between.
        """
        dropping = self.training and self.drop_rate > 0
        between = pre_logits or dropping or not self._keeps_extremes()
        if between or self.rotation is None or self.num_classes == 0:
            return super().forward(x, pre_logits, input_fmt=input_fmt)
        fc = self._classifier()
        weight, nonneg = fc.operator_weight()
        result = ops.infodisent_head(
            x,
            self.rotation(),
            weight,
            fc.bias,
            nonneg=nonneg,
            **self.layout(input_fmt),
        )
        assert isinstance(result, Tensor)
        return result

    def class_weights(self) -> Tensor:
        """W ``[K, C]``, nonnegative."""
        return self._classifier().effective_weight()

    def offsets(
        self,
        classes: Tensor,  # [n] int64
    ) -> Tensor:
        """The bias of each class, ``[n]``; 0 without bias."""
        bias = self._classifier().bias
        if bias is None:
            return super().offsets(classes)
        return bias[classes.to(bias.device)]

    def maps(
        self,
        pixels: Tensor,  # [P, C]
        units: Tensor,  # [n] int64
    ) -> Tensor:
        """Y of a few channels, ``[P, n]`` float32: their rows of U times X."""
        units = units.to(pixels.device)
        if self.rotation is None:
            return pixels[:, units].float()
        rows: Tensor = self.rotation()[units].float()  # [n, C]
        return pixels.float() @ rows.t()

    def ignored(self, multilabel: bool) -> tuple[str, ...]:
        """None: the penalty takes `l1`."""
        return ()

    def stages(self, config: TrainingOptions) -> tuple[Stage, ...]:
        """One stage: the class weights at ``lr``, the rotation at ``rotation_lr``."""
        groups: list[dict[str, Any]] = [{"params": list(self.fc.parameters()), "lr": config.lr}]
        if self.rotation is not None:
            groups.append(
                {
                    "params": list(self.rotation.parameters()),
                    "lr": config.rotation_lr,
                    "weight_decay": 0.0,
                }
            )
        return (Stage("train", groups, pool_is_fixed=self.rotation is None),)

    def penalty(
        self,
        config: TrainingOptions,
        batch: TrainingBatch,
    ) -> Tensor | None:
        """``l1 · feature_scale · sum_k pull_k sum_c W_kc / K``: what makes explanations short.

        The loss pulls on a class's weights in proportion to its images (`class_pull`). A penalty
        that pushed all classes alike would leave a rare one no weights at all.
        """
        known = config.statistics
        scale = 1.0 if known is None else known.feature_scale
        strength = config.l1 * scale / self.num_classes
        if not strength:
            return None
        weights = self.class_weights()
        pull = None if known is None else known.class_pull
        if pull is not None:  # all 1 where classes are balanced: nobody waits to know
            weights = weights * pull.to(weights)[:, None]
        return strength * weights.sum()

    @torch.no_grad()
    def start_offsets(
        self,
        offsets: Tensor,  # [K]
    ) -> None:
        """The bias, where there is one, starts there."""
        bias = self._classifier().bias
        if bias is not None:
            bias.copy_(offsets)

    def after_step(self) -> None:
        """Negative weights become 0 where ``nonneg`` is "projection"; see `Rotation.after_step`."""
        if isinstance(self.rotation, Rotation):
            self.rotation.after_step()
        self._classifier().project_()

    def no_weight_decay(self) -> set[str]:
        """The rotation, and weights whose zero is not zero ("softplus")."""
        names = set() if self.rotation is None else {"rotation.A"}
        return names | ({"fc.weight"} if self.nonneg == "softplus" else set())

    def ablations(self) -> Mapping[str, Mapping[str, Any]]:
        """The same head without rotation, to see what the rotation does."""
        return {"no rotation": {"rotate": False}} if self.rotate else {}

    def options(self) -> dict[str, Any]:
        """The keyword arguments that rebuild this head; the rotation's only where it has one."""
        of_rotation: dict[str, Any] = {"rotate": self.rotation is not None}
        absent: tuple[str, ...] = ("parametrization", "rotation_precision")
        if self.rotation is not None:  # it may have been replaced since
            of_rotation["parametrization"] = self.rotation.parametrization
            of_rotation["rotation_precision"] = self.rotation.precision
            absent = ()
        # what a head with the sparse pool says of itself is what earlier versions said
        absent += ("pooling",) if self.pooling == "max" else ()
        absent += tuple(n for n in ("topk", "temperature") if getattr(self, n) is None)
        return {
            name: of_rotation[name] if name in of_rotation else getattr(self, name)
            for name in self.option_names()
            if name not in absent
        }

    def _classifier(self) -> NonNegativeLinear:
        if not isinstance(self.fc, NonNegativeLinear):
            raise ValueError("InfoDisentHead: this head has no classes (num_classes=0)")
        return self.fc
