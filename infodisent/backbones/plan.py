"""How a classifier's head gets from its feature map to its logits, written down as data."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class HeadPlan:
    """How the original head gets from ``forward_features`` to logits. Modules are named by path.

    Attributes:
        input_fmt: layout of the map: NCHW, NHWC or NLC.
        num_prefix_tokens: tokens before the pixels (class, distillation, register), NLC only.
        pool: "avg" (mean over pixels) or "token" (i-th prefix token for the i-th classifier).
        before: per-pixel modules the original applies before its pool.
        after: per-pixel modules it applies to the pooled vector (LayerNorm of ConvNeXt, `conv_head`
            of MobileNetV3, BatchNorm of LeViT). In the map they are applied to every pixel.
        tails: classifiers, each a chain of modules; their outputs are averaged.
        opaque: why the logits are not a function of the averaged pixels ("" when they are).
    """

    input_fmt: str
    num_prefix_tokens: int = 0
    pool: str = "avg"
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    tails: tuple[tuple[str, ...], ...] = ()
    opaque: str = ""


def class_names(model: nn.Module) -> set[str]:
    """Names of the model's class and its bases."""
    return {c.__name__ for c in type(model).__mro__}
