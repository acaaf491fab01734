"""Any timm or torchvision classifier -> the same model with an InfoDisent head.

    model = attach("resnet50", num_classes=200, pretrained=True)
    logits = model(images)

The backbone is frozen by default and keeps its own head, so the original logits stay available.
How a model is read is described in `infodisent.backbone`; torchvision's families, which have no
``forward_features``, are listed here.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from infodisent._torchvision import ensure_torchvision
from infodisent.backbone import Backbone
from infodisent.nn import InfoDisentHead
from infodisent.plan import HeadPlan, class_names, timm_plan

Source = Literal["timm", "torchvision"]


class InfoDisentClassifier(nn.Module):
    """A backbone and an InfoDisent head, with timm's conventions. Made by `attach`.

    Attributes:
        backbone: the original model, run up to its feature map; keeps the original head.
        head: the InfoDisent head.
        pretrained_cfg: input size, mean, std, interpolation, ... as timm names them; `default_cfg`
            is timm's older name for it.
        num_classes: classes of the InfoDisent head.
        num_features, input_fmt, num_prefix_tokens: channels and layout of the map.
        spec: JSON-able arguments that rebuild the architecture with `attach`: source, name,
            model_kwargs, num_classes, freeze, head_options, and original_num_classes. Its name is
            None where the model was an instance, or built with arguments that JSON can't hold.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: InfoDisentHead,
        *,
        pretrained_cfg: dict[str, Any],
        spec: dict[str, Any],
    ) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.pretrained_cfg = self.default_cfg = pretrained_cfg
        self.spec = spec
        self.num_classes: int = head.num_classes
        self.num_features, self.input_fmt = backbone.num_features, backbone.input_fmt
        self.num_prefix_tokens = backbone.num_prefix_tokens

    def forward_features(self, x: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` to the map the head is fed with, in layout `input_fmt`."""
        features: Tensor = self.backbone(x)
        return features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The map to logits ``[B, num_classes]``, or to pooled channels ``[B, C]``."""
        logits: Tensor = self.head(x, pre_logits=pre_logits)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` to InfoDisent logits ``[B, num_classes]``."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The InfoDisent head."""
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
    pretrained: bool = False,
    freeze: bool = True,
    source: Source | None = None,
    model_kwargs: dict[str, Any] | None = None,
    **head_options: Any,
) -> InfoDisentClassifier:
    """Replace the head of a classifier by an InfoDisent head.

    The map is what the original pools. Where the original applies a norm, or a 1x1 convolution with
    its activation (MobileNetV3, GhostNet: `conv_head`), after its pool, the map has it applied at
    every pixel, before the rotation. Hidden layers of MLP heads (MaxViT, VGG, MetaFormer) belong to
    the original classifier and are not in the map. Batch norms of heads with two classifiers
    (distilled LeViT, EfficientFormer) are not either, as each classifier has its own.

    Args:
        model_or_name: a timm name ("resnet50", "resnet50.a1_in1k", "hf-hub:..."), a name like
            "torchvision/resnet50", or a classifier of either library, which is used, not copied.
        num_classes: classes of the new head; None for as many as the original has.
        pretrained: load the library's weights (names only).
        freeze: keep the backbone in eval mode and out of the gradient. Otherwise all parameters
            that the map depends on train.
        source: "timm" or "torchvision", where the name or class does not say it.
        model_kwargs: further arguments for the library's model constructor (names only).
        **head_options: arguments for `InfoDisentHead` (`bias`, `nonneg`, `drop_rate`, ...); its
            device and dtype are the backbone's unless given here.

    Raises:
        TypeError: `model_or_name` is neither name nor module, or a head option isn't one.
        ValueError: unknown name, arguments that exclude each other, or a model that can't be
            served; the message says why.
    """
    for option in ("in_features", "input_fmt", "num_prefix_tokens"):
        if option in head_options:
            raise TypeError(f"attach: {option} comes from the backbone, it is not an option")
    if source not in (None, "timm", "torchvision"):
        raise ValueError(f"attach: source is {source!r}, allowed are 'timm', 'torchvision', None")
    ensure_torchvision()  # timm and torchvision import after this
    kwargs = dict(model_kwargs or {})
    name: str | None = None
    if isinstance(model_or_name, str):
        source, name = _resolve_name(model_or_name, source)
        model = _create(source, name, pretrained, kwargs)
    elif isinstance(model_or_name, nn.Module):
        if pretrained:
            raise ValueError(
                "attach: pretrained=True needs a name; a module already has its weights, "
                "load others into it before attaching"
            )
        if kwargs:
            raise ValueError("attach: model_kwargs need a name; a module is already built")
        model = model_or_name
        source = _source_of(model, source)
    else:
        kind = type(model_or_name).__name__
        raise TypeError(f"attach: model_or_name must be a name or an nn.Module, got {kind}")

    cfg = _timm_cfg(model) if source == "timm" else _torchvision_cfg(model, name)
    size, in_chans = _input_size(model, cfg, kwargs)
    read: dict[str, Any] = {"plan": timm_plan(model)} if source == "timm" else _torchvision(model)
    backbone = Backbone(model, freeze=freeze, image_size=size, in_chans=in_chans, **read)
    if num_classes is None:
        num_classes = backbone.num_classes
    if num_classes < 1:
        raise ValueError(
            f"attach: {type(model).__name__} has no classes of its own and num_classes is "
            f"{num_classes}: give num_classes >= 1"
        )
    weight = next(model.parameters())
    options = {"device": weight.device, "dtype": weight.dtype, **head_options}
    head = InfoDisentHead(
        backbone.num_features,
        num_classes,
        input_fmt=backbone.input_fmt,
        num_prefix_tokens=backbone.num_prefix_tokens,
        **options,
    )
    spec = {
        "source": source,
        "name": name,
        "model_kwargs": kwargs,
        "original_num_classes": backbone.num_classes,
        "num_classes": num_classes,
        "freeze": freeze,
        "head_options": head.options(),
    }
    try:
        json.dumps(spec)
    except TypeError:  # built from objects, so it can't be rebuilt from text
        spec = {**spec, "name": None, "model_kwargs": {}}
        json.dumps(spec)
    return InfoDisentClassifier(backbone, head, pretrained_cfg=cfg, spec=spec)


def _resolve_name(name: str, source: Source | None) -> tuple[Source, str]:
    """Library and the library's own name; ValueError with close matches for unknown names."""
    import timm
    import torchvision

    if name.startswith("torchvision/"):
        if source == "timm":
            raise ValueError(f"attach: {name!r} names torchvision but source is 'timm'")
        source, name = "torchvision", name.removeprefix("torchvision/")
    if source == "torchvision":
        known = torchvision.models.list_models(module=torchvision.models)
        if name in known:
            return "torchvision", name
        raise ValueError(f"attach: torchvision has no classifier {name!r}{_close(name, known)}")
    if ":" in name:  # hf-hub:..., local-dir:...: timm knows
        return "timm", name
    name = name.removeprefix("timm/")
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        elsewhere = torchvision.models.list_models(module=torchvision.models)
        known = [*timm.list_models(), *(f"torchvision/{n}" for n in elsewhere)]
        raise ValueError(f"attach: timm has no model {base!r}{_close(base, known)}")
    if tag and not timm.models.is_model_pretrained(name):
        known = timm.list_pretrained(f"{base}.*")
        raise ValueError(f"attach: timm has no weights {name!r}{_close(name, known)}")
    return "timm", name


def _close(name: str, known: Sequence[str]) -> str:
    matches = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {', '.join(matches)}?" if matches else ""


def _create(source: Source, name: str, pretrained: bool, kwargs: dict[str, Any]) -> Any:
    try:
        return _create_from(source, name, pretrained, kwargs)
    except Exception as error:
        if not pretrained:
            raise
        # the hub's client has many kinds of failure; what helps is the same for all
        raise ValueError(
            f"attach: the published weights of {name!r} could not be loaded: {error}. Without a "
            "network, pass pretrained=False (--no-pretrained) or a local file (--weights)"
        ) from error


def _create_from(source: Source, name: str, pretrained: bool, kwargs: dict[str, Any]) -> Any:
    if source == "timm":
        import timm

        return timm.create_model(name, pretrained=pretrained, **kwargs)
    import torchvision

    if name in ("googlenet", "inception_v3") and not pretrained:
        kwargs = {"init_weights": True, **kwargs}  # its default, said aloud to avoid its warning
    weights = "DEFAULT" if pretrained else None
    return torchvision.models.get_model(name, weights=weights, **kwargs)


def _source_of(model: nn.Module, source: Source | None) -> Source:
    modules = [c.__module__ for c in type(model).__mro__]
    if source is None:
        for library in ("timm", "torchvision"):
            if any(m.startswith(f"{library}.models") for m in modules):
                source = library  # type: ignore[assignment]
                break
    kind = f"{type(model).__module__}.{type(model).__name__}"
    if source is None:
        raise ValueError(
            f"attach: {kind} is of neither timm nor torchvision; pass source= if it is"
        )
    if source == "timm":
        for method in ("forward_features", "forward_head", "get_classifier"):
            if not callable(getattr(model, method, None)):
                raise ValueError(
                    f"attach: {kind} has no {method}(); a whole timm classifier is needed, not a "
                    "features_only or wrapped one"
                )
    return source


def _timm_cfg(model: nn.Module) -> dict[str, Any]:
    cfg: Any = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    return dict(cfg if isinstance(cfg, dict) else cfg.to_dict())


# torchvision: the modules that make the map, in order, and the rest of the plan. The classes have
# no forward_features, so the order is written here and checked against the model's own forward.
_TV_STAGES = {
    "AlexNet": "features",
    "ConvNeXt": "features",
    "DenseNet": "features",
    "EfficientNet": "features",
    "GoogLeNet": "conv1 maxpool1 conv2 conv3 maxpool2 inception3a inception3b maxpool3 inception4a "
    "inception4b inception4c inception4d inception4e maxpool4 inception5a inception5b",
    "Inception3": "Conv2d_1a_3x3 Conv2d_2a_3x3 Conv2d_2b_3x3 maxpool1 Conv2d_3b_1x1 Conv2d_4a_3x3 "
    "maxpool2 Mixed_5b Mixed_5c Mixed_5d Mixed_6a Mixed_6b Mixed_6c Mixed_6d Mixed_6e Mixed_7a "
    "Mixed_7b Mixed_7c",
    "MNASNet": "layers",
    "MaxVit": "stem blocks",
    "MobileNetV2": "features",
    "MobileNetV3": "features",
    "RegNet": "stem trunk_output",
    "ResNet": "conv1 bn1 relu maxpool layer1 layer2 layer3 layer4",
    "ShuffleNetV2": "conv1 maxpool stage2 stage3 stage4 conv5",
    "SqueezeNet": "features",
    "SwinTransformer": "features norm",
    "VGG": "features",
    "VisionTransformer": "conv_proj encoder",
}
# Modules of a Sequential classifier that belong into the map, and where its own layers begin.
_TV_AFTER = {"ConvNeXt": (0, 1), "MaxVit": (2, 3), "MobileNetV3": (0, 2)}


def _torchvision(model: nn.Module) -> dict[str, Any]:
    """`Backbone`'s arguments that say how to read a torchvision classifier."""
    return {
        "plan": torchvision_plan(model),
        "features": _torchvision_features,
        "classifier": _torchvision_head,
    }


def torchvision_plan(model: nn.Module) -> HeadPlan:
    """Read the `HeadPlan` off a torchvision classifier; ValueError for families not listed here."""
    family = next((c.__name__ for c in type(model).__mro__ if c.__name__ in _TV_STAGES), None)
    if family is None or "Quantizable" in type(model).__name__:
        raise ValueError(
            f"attach: torchvision's {type(model).__name__} is not a supported classifier; "
            f"supported are {', '.join(sorted(_TV_STAGES))}"
        )
    if family == "VisionTransformer":
        return HeadPlan("NLC", 1, "token", tails=(("heads",),))
    if family == "SwinTransformer":
        return HeadPlan("NHWC", tails=(("head",),))
    opaque = ""
    if family in ("VGG", "AlexNet"):
        opaque = "its fully-connected layers see all pixels in place of a pool"
    elif family == "SqueezeNet":
        opaque = "a ReLU comes between its classifier and its pool"
    head = "classifier" if hasattr(model, "classifier") else "fc"
    if family in _TV_AFTER:
        first, stop = _TV_AFTER[family]
        size = len(model.get_submodule(head))  # type: ignore[arg-type]
        after = tuple(f"{head}.{i}" for i in range(first, stop))
        tail = tuple(f"{head}.{i}" for i in range(stop, size))
        return HeadPlan("NCHW", after=after, tails=(tail,))
    return HeadPlan("NCHW", tails=((head,),), opaque=opaque)


def _torchvision_features(model: Any, x: Tensor) -> Any:
    names = class_names(model)
    family = next(n for n in _TV_STAGES if n in names)
    if family == "VisionTransformer":
        tokens = model._process_input(x)  # [B, N, C]
        token = model.class_token.expand(x.shape[0], -1, -1)
        return model.encoder(torch.cat([token, tokens], dim=1))
    if family in ("GoogLeNet", "Inception3"):
        x = model._transform_input(x)
    for stage in _TV_STAGES[family].split():
        module = model.get_submodule(stage)
        for part in module if isinstance(module, nn.ModuleList) else [module]:
            x = part(x)
    return torch.relu(x) if family == "DenseNet" else x


def _torchvision_head(model: Any, raw: Tensor) -> Any:
    names = class_names(model)
    if "VisionTransformer" in names:
        return model.heads(raw[:, 0])
    if "SwinTransformer" in names:
        return model.head(raw.mean(dim=(1, 2)))
    if names & {"MaxVit", "SqueezeNet"}:
        return model.classifier(raw).flatten(1)
    x = (
        model.avgpool(raw)
        if hasattr(model, "avgpool")
        else nn.functional.adaptive_avg_pool2d(raw, 1)
    )
    if "ConvNeXt" not in names:
        x = x.flatten(1)
    return model.classifier(x) if hasattr(model, "classifier") else model.fc(x)


def _torchvision_cfg(model: nn.Module, name: str | None) -> dict[str, Any]:
    """timm's keys, from the transforms of the default weights of torchvision's model `name`."""
    import torchvision

    side = int(getattr(model, "image_size", 299 if "Inception3" in class_names(model) else 224))
    cfg: dict[str, Any] = {
        "architecture": name or type(model).__name__,
        "input_size": (3, side, side),
        "crop_pct": 224 / 256,
        "interpolation": "bilinear",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    }
    if name is not None:
        t = torchvision.models.get_model_weights(name).DEFAULT.transforms()
        crop, resize = t.crop_size[0], t.resize_size[0]
        cfg.update(
            input_size=(3, crop, crop),
            crop_pct=crop / resize,
            interpolation=t.interpolation.value,
            mean=tuple(t.mean),
            std=tuple(t.std),
        )
    return cfg


def _input_size(
    model: nn.Module, cfg: dict[str, Any], kwargs: dict[str, Any]
) -> tuple[tuple[int, int], int]:
    """Height, width and channels of the images the model was built for."""
    nominal = tuple(cfg.get("input_size") or (3, 224, 224))
    embed = getattr(model, "patch_embed", None)
    size = kwargs.get("img_size") or getattr(embed, "img_size", None) or nominal[1:]
    height, width = (size, size) if isinstance(size, int) else size
    if not cfg.get("fixed_input_size"):  # a look at the layout needs no larger image; 448 = 7 * 64
        height, width = min(height, 448), min(width, 448)
    return (int(height), int(width)), int(getattr(model, "in_chans", nominal[0]))
