"""Any timm or torchvision classifier -> the same model with an interpretable head.

    model = attach("resnet50", num_classes=200, pretrained=True)
    logits = model(images)

The backbone is frozen by default and keeps its own head, so the original logits stay available.
How a model is read is described in `infodisent.backbones`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from infodisent.backbones.adapters import Features, Logits
from infodisent.backbones.backbone import Backbone, backbone_of
from infodisent.backbones.linear_head import linear_classifier
from infodisent.backbones.preprocess import set_transform
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
            model_kwargs, num_classes, freeze, method, head_options, original_num_classes, and
            module and adapter for people and `load`. Its name is None where what builds the
            architecture is not known; `attach` warns of that.
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

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give the head new weights for `num_classes` classes; the original head is not touched.

        `global_pool` is taken because timm's callers pass it; how this head pools is its method's.
        """
        del global_pool
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
    model_or_name: nn.Module | Backbone | InfoDisentClassifier | str,
    num_classes: int | None = None,
    *,
    method: str = DEFAULT,
    pretrained: bool = False,
    freeze: bool = True,
    source: Source | None = None,
    model_kwargs: dict[str, Any] | None = None,
    input_size: int | Sequence[int] | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    interpolation: str | None = None,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
    intensity_range: tuple[float, float] | None = None,
    page: int | None = None,
    features: Features | None = None,
    logits: Logits | None = None,
    input_fmt: str | None = None,
    num_prefix_tokens: int | None = None,
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
            "torchvision/resnet50" or "hf/google/vit-base-patch16-224" (transformers), or a
            classifier of one of these libraries, which is used, not copied. Wrappers that only pass
            images on (DataParallel, torch.compile, a `.model` of one's own) are taken off. With
            `features`, any module; or a model that `attach` has made, whose backbone is used.
        num_classes: classes of the new head; None for those that the original has, whose own
            classifier the head then starts from where its method can (`Head.start_weights`).
        method: of the head, one of `infodisent.methods.METHODS`.
        pretrained: load the library's weights (names only).
        freeze: keep the backbone in eval mode and out of the gradient. Otherwise all parameters
            that the map depends on train.
        source: "timm", "torchvision" or "hf", where the name or class does not say it.
        model_kwargs: further arguments for the library's model constructor (names only).
        input_size: side, or height and width, of the images the network is shown; default, here and
            below: the model's own preprocessing. All of it is kept in checkpoints.
        mean, std: of the normalisation, for pixels in 0 … 1; one number or one for each channel.
        interpolation: "nearest", "bilinear", "bicubic", "box", "hamming" or "lanczos".
        crop_pct: in (0, 1], part of the resized image's side that is kept.
        crop_mode: "center" (the rest is cut away), "squash" (all of it, its ratio changed) or
            "border" (all of it, its ratio kept); the last two show all with ``crop_pct=1``.
        intensity_range: ``(low, high)`` shown as black and white where pixels are not 8-bit;
            default: each picture's own range.
        page: of multi-page files, from 0; default: the first.
        features: for any other module, where its map is: the path of the submodule whose output
            it is ("layer4", "" for the module itself), or a callable ``(module, images) -> map``.
        logits: with `features`, how the original gets from the map to its logits: the path of a
            submodule or a callable ``(module, map) -> [B, K]``, proved against the module's own
            output; None: it has no original logits.
        input_fmt, num_prefix_tokens: with `features`, layout of the map (NCHW or NLC by default)
            and tokens before the pixels (0).
        **head_options: options of the method (for "infodisent" those of `InfoDisentHead`: `bias`,
            `nonneg`, `drop_rate`, ...); the head's device and dtype are the backbone's unless given
            here.

    Raises:
        TypeError: `model_or_name` is neither name nor module, or a head option isn't one.
        ValueError: unknown name or method, arguments that exclude each other, or a model that can't
            be served; the message says why.
    """
    layout = {"input_fmt": input_fmt, "num_prefix_tokens": num_prefix_tokens}
    if "in_features" in head_options:
        raise TypeError("attach: in_features comes from the backbone, it is not an option")
    for option, value in {**layout, "logits": logits}.items():
        if value is not None and features is None:
            raise TypeError(
                f"attach: {option} comes from the backbone, it is an option beside features= only"
            )
    options = {k: v for k, v in head_options.items() if k not in ("device", "dtype")}
    check_options(method, options)  # before weights are loaded
    if isinstance(model_or_name, (Backbone, InfoDisentClassifier)):
        if pretrained or source or model_kwargs or features is not None:
            raise ValueError(
                "attach: pretrained, source, model_kwargs and features say how to make a backbone; "
                "the given model has one"
            )
        backbone = backbone_of(model_or_name)
        if freeze and not backbone.frozen:
            backbone.freeze()
        elif not freeze and backbone.frozen:
            backbone.unfreeze()
    else:
        backbone = read_backbone(
            model_or_name,
            pretrained=pretrained,
            freeze=freeze,
            source=source,
            model_kwargs=model_kwargs,
            features=features,
            logits=logits,
            input_fmt=input_fmt,
            num_prefix_tokens=num_prefix_tokens or 0,
        )
    set_transform(
        backbone,
        input_size=input_size,
        mean=mean,
        std=std,
        interpolation=interpolation,
        crop_pct=crop_pct,
        crop_mode=crop_mode,
        intensity_range=intensity_range,
        page=page,
    )
    asked = num_classes
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
    if asked is None and backbone.trained:
        own = linear_classifier(backbone)  # the classes are the model's own
        if own is not None:
            head.start_weights(*own)
    kind = type(backbone.model)
    spec = {
        **backbone.origin,
        "module": f"{kind.__module__}.{kind.__qualname__}",
        "adapter": backbone.adapter,
        "original_num_classes": backbone.num_classes,
        "num_classes": num_classes,
        "freeze": freeze,
        "method": method,
        "head_options": head.options(),
    }
    json.dumps(spec)
    assumed = backbone.assumed
    if assumed and backbone.pretrained_cfg.get("mean") == assumed["mean"]:
        warnings.warn(
            f"attach: {spec['module']} does not say how its images are normalised: "
            f"{assumed['said']}; pass mean= and std= if it was trained with others",
            stacklevel=2,
        )
    if spec["name"] is None:
        warnings.warn(
            f"attach: what builds {spec['module']} is not known, so a saved model opens again only "
            "with load(path, module=...) or --module file.py:function",
            stacklevel=2,
        )
    return InfoDisentClassifier(backbone, head, spec=spec)
