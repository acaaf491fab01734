"""`InfoDisentHead`: the whole head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from infodisent import ops
from infodisent.checks import check_choice, check_positive
from infodisent.layout import check_input_fmt
from infodisent.nn.linear import NONNEG, NonNegativeLinear
from infodisent.nn.rotation import PARAMETRIZATIONS, Rotation
from infodisent.ops import SparsePool
from infodisent.polynomials.plans import PRECISIONS


class InfoDisentHead(nn.Module):
    """Feature map to logits: rotate, keep the extreme pixels, classify with nonnegative weights.

    Follows timm's ``ClassifierHead``: ``forward(x, pre_logits=False)``, ``reset(num_classes)``,
    attributes ``in_features``, ``num_features``, ``input_fmt``, ``fc``, ``drop_rate``.

    Args:
        in_features: channels C of the map.
        num_classes: classes K; 0 leaves the pooled features as output.
        input_fmt: layout of the map: NCHW, NHWC, NCL or NLC.
        num_prefix_tokens: leading tokens of a token map that are not pixels.
        bias: add a bias to the logits.
        nonneg: how the weights stay nonnegative, see `NonNegativeLinear`.
        rotate: learn a rotation; without it U is the identity and channels are used as they are.
        parametrization: of the rotation, "exp" or "lie", see `Rotation`.
        rotation_precision: of the rotation's exponential, "full" or "half", see
            `infodisent.ops.rotation`.
        drop_rate: dropout on the pooled features in training.
        device, dtype: of the parameters.

    Raises:
        ValueError: a size, layout or option that is not allowed, named.
    """

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
        parametrization: str = "exp",
        rotation_precision: str = "full",
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive("InfoDisentHead", "in_features", in_features)
        check_input_fmt("InfoDisentHead", input_fmt, num_prefix_tokens)
        check_choice("InfoDisentHead", "nonneg", nonneg, NONNEG)
        if not 0 <= drop_rate < 1:
            raise ValueError(f"InfoDisentHead: drop_rate is {drop_rate}, must be in [0, 1)")
        self.in_features = self.num_features = in_features
        self.input_fmt, self.num_prefix_tokens = input_fmt, num_prefix_tokens
        self.bias, self.nonneg, self.drop_rate = bias, nonneg, drop_rate
        check_choice("InfoDisentHead", "parametrization", parametrization, PARAMETRIZATIONS)
        check_choice("InfoDisentHead", "rotation_precision", rotation_precision, PRECISIONS)
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
        self.drop = nn.Dropout(drop_rate)
        self.fc: nn.Module
        self._build_classifier(num_classes, device, dtype)

    def _build_classifier(
        self,
        num_classes: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 0:
            raise ValueError(f"InfoDisentHead: num_classes is {num_classes!r}, must be an int >= 0")
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
        if pool_type is not None:
            raise ValueError(
                f"InfoDisentHead.reset: pool_type is {pool_type!r}, but this head has one pool only"
            )
        like = self.rotation.A if self.rotation is not None else getattr(self.fc, "weight", None)
        self._build_classifier(
            num_classes,
            None if like is None else like.device,
            None if like is None else like.dtype,
        )
        self.fc.train(self.training)

    def _layout(self, input_fmt: str | None) -> dict[str, Any]:
        if input_fmt is not None:
            return {"input_fmt": input_fmt}
        return {"input_fmt": self.input_fmt, "num_prefix_tokens": self.num_prefix_tokens}

    def pool(self, x: Tensor, *, input_fmt: str | None = None) -> SparsePool:
        """Rotate and pool a map to a `SparsePool` of ``[B, C]`` tensors.

        Args:
            x: the map, in the head's own layout.
            input_fmt: another layout, without prefix tokens: that of a map from elsewhere than the
                backbone, such as a feature store.
        """
        if self.rotation is None:
            return ops.mx_pool(x, **self._layout(input_fmt))
        return ops.rotate_pool(x, self.rotation(), **self._layout(input_fmt))

    def forward(
        self, x: Tensor, pre_logits: bool = False, *, input_fmt: str | None = None
    ) -> Tensor:
        """Logits ``[B, K]``, or the pooled features ``[B, C]`` if `pre_logits`.

        `x` and `input_fmt` as in `pool`.
        """
        dropping = self.training and self.drop_rate > 0
        if pre_logits or dropping or self.rotation is None or self.num_classes == 0:
            pooled: Tensor = self.drop(self.pool(x, input_fmt=input_fmt).pooled)
            if pre_logits or self.num_classes == 0:
                return pooled
            fc = self.fc
            assert isinstance(fc, NonNegativeLinear)
            logits: Tensor = fc(pooled.to(fc.weight.dtype))
            return logits
        assert isinstance(self.fc, NonNegativeLinear)
        weight, nonneg = self.fc.operator_weight()
        result = ops.infodisent_head(
            x,
            self.rotation(),
            weight,
            self.fc.bias,
            nonneg=nonneg,
            **self._layout(input_fmt),
        )
        assert isinstance(result, Tensor)
        return result

    def options(self) -> dict[str, Any]:
        """The keyword arguments that rebuild this head's structure."""
        found: dict[str, Any] = {
            "bias": self.bias,
            "nonneg": self.nonneg,
            "rotate": self.rotation is not None,
            "drop_rate": self.drop_rate,
        }
        if self.rotation is not None:
            found["parametrization"] = self.rotation.parametrization
            found["rotation_precision"] = self.rotation.precision
        return found
