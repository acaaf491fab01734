"""Any timm or torchvision classifier -> the same model with an interpretable head.

    model = attach("resnet50", num_classes=200, pretrained=True)
    logits = model(images)

The backbone is frozen by default and keeps its own head, so the original logits stay available.
How a model is read is described in `infodisent.backbones`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from infodisent.backbones.backbone import Backbone
from infodisent.backbones.reading import Source, read_backbone
from infodisent.methods import DEFAULT, Head, build_head, check_options
from infodisent.timm_hooks import TimmHooks


class InfoDisentClassifier(TimmHooks):
    """A backbone and an interpretable head, with timm's conventions. Made by `attach`.

    Attributes:
        backbone: the original model, run up to its feature map; keeps the original head.
        head: the interpretable head, of any of the `infodisent.methods`.
        num_classes: classes of that head.
        num_features, input_fmt, num_prefix_tokens: channels and layout of the map.
        spec: JSON-able arguments that rebuild the architecture with `attach`: source, name,
            model_kwargs, num_classes, freeze, method, head_options, and original_num_classes. Its
            name is None where the model was an instance, or built with arguments that JSON can't
            hold.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: Head,
        *,
        spec: dict[str, Any],
    ) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.spec = spec
        self.num_classes: int = head.num_classes
        self.num_features, self.input_fmt = backbone.num_features, backbone.input_fmt
        self.num_prefix_tokens = backbone.num_prefix_tokens

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """The backbone's input size, mean, std, interpolation … as timm names them."""
        return self.backbone.pretrained_cfg

    @pretrained_cfg.setter
    def pretrained_cfg(self, cfg: dict[str, Any]) -> None:
        self.backbone.pretrained_cfg = cfg

    @property
    def default_cfg(self) -> dict[str, Any]:
        """timm's older name for `pretrained_cfg`."""
        return self.backbone.pretrained_cfg

    def forward_features(self, x: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` to the map the head is fed with, in layout `input_fmt`."""
        features: Tensor = self.backbone(x)
        return features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The map to logits ``[B, num_classes]``, or to the head's pooled units ``[B, M]``."""
        logits: Tensor = self.head(x, pre_logits=pre_logits)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` to the interpretable head's logits ``[B, num_classes]``."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The interpretable head."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Give the head new weights for `num_classes` classes; the original head is not touched."""
        self.head.reset(num_classes)
        self.num_classes = self.spec["num_classes"] = num_classes

    def original_logits(self, x: Tensor) -> Tensor:
        """Images to the original model's own logits; ValueError where it has no classifier."""
        return self.original_logits_from_raw(self.backbone.raw(x))

    def original_logits_from_raw(self, raw: Tensor) -> Tensor:
        """The original logits for ``backbone.raw(images)``, so that both heads share one pass."""
        return self.backbone.classify(raw)

    def grid_size(self, image_size: int | Sequence[int]) -> tuple[int, int]:
        """Rows and columns of the map for images of `image_size`, see `Backbone.grid_size`."""
        return self.backbone.grid_size(image_size)


def attach(
    model_or_name: nn.Module | str,
    num_classes: int | None = None,
    *,
    method: str = DEFAULT,
    pretrained: bool = False,
    freeze: bool = True,
    source: Source | None = None,
    model_kwargs: dict[str, Any] | None = None,
    **head_options: Any,
) -> InfoDisentClassifier:
    """Replace the head of a classifier by an interpretable head.

    The map is what the original pools. Where the original applies a norm, or a 1x1 convolution with
    its activation (MobileNetV3, GhostNet: `conv_head`), after its pool, the map has it applied at
    every pixel. Hidden layers of MLP heads (MaxViT, VGG, MetaFormer) belong to
    the original classifier and are not in the map. Batch norms of heads with two classifiers
    (distilled LeViT, EfficientFormer) are not either, as each classifier has its own.

    Args:
        model_or_name: a timm name ("resnet50", "resnet50.a1_in1k", "hf-hub:..."), a name like
            "torchvision/resnet50", or a classifier of either library, which is used, not copied.
        num_classes: classes of the new head; None for as many as the original has.
        method: of the head, one of `infodisent.methods.METHODS`.
        pretrained: load the library's weights (names only).
        freeze: keep the backbone in eval mode and out of the gradient. Otherwise all parameters
            that the map depends on train.
        source: "timm" or "torchvision", where the name or class does not say it.
        model_kwargs: further arguments for the library's model constructor (names only).
        **head_options: options of the method (for "infodisent" those of `InfoDisentHead`: `bias`,
            `nonneg`, `drop_rate`, ...); the head's device and dtype are the backbone's unless given
            here.

    Raises:
        TypeError: `model_or_name` is neither name nor module, or a head option isn't one.
        ValueError: unknown name or method, arguments that exclude each other, or a model that can't
            be served; the message says why.
    """
    for option in ("in_features", "input_fmt", "num_prefix_tokens"):
        if option in head_options:
            raise TypeError(f"attach: {option} comes from the backbone, it is not an option")
    options = {k: v for k, v in head_options.items() if k not in ("device", "dtype")}
    check_options(method, options)  # before weights are loaded
    backbone = read_backbone(
        model_or_name,
        pretrained=pretrained,
        freeze=freeze,
        source=source,
        model_kwargs=model_kwargs,
    )
    if num_classes is None:
        num_classes = backbone.num_classes
    if num_classes < 1:
        raise ValueError(
            f"attach: {type(backbone.model).__name__} has no classes of its own and num_classes is "
            f"{num_classes}: give num_classes >= 1"
        )
    weight = next(backbone.parameters())
    head = build_head(
        method,
        backbone.num_features,
        num_classes,
        input_fmt=backbone.input_fmt,
        num_prefix_tokens=backbone.num_prefix_tokens,
        device=head_options.get("device", weight.device),
        dtype=head_options.get("dtype", weight.dtype),
        **options,
    )
    spec = {
        **backbone.origin,
        "original_num_classes": backbone.num_classes,
        "num_classes": num_classes,
        "freeze": freeze,
        "method": method,
        "head_options": head.options(),
    }
    json.dumps(spec)
    return InfoDisentClassifier(backbone, head, spec=spec)
