"""torchvision classifiers: the map, the original head and the input of each family.

Its classes have no ``forward_features``, so the order of their stages is written down here and
proved against the model's own forward pass when a `Backbone` is made.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from infodisent.backbones.plan import HeadPlan, class_names

# torchvision: the modules that make the map, in order, and the rest of the plan. The classes have
# no forward_features, so the order is written here and checked against the model's own forward.
STAGES = {
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
AFTER = {"ConvNeXt": (0, 1), "MaxVit": (2, 3), "MobileNetV3": (0, 2)}


def is_supported(model: nn.Module) -> bool:
    """Of a family listed here."""
    return bool(class_names(model) & STAGES.keys()) and "Quantizable" not in type(model).__name__


def class_names_of(name: str) -> tuple[str, ...] | None:
    """Categories of the default weights of torchvision's model `name`."""
    import torchvision

    weights = torchvision.models.get_model_weights(name).DEFAULT
    return tuple(weights.meta.get("categories") or ()) or None


def reading(model: nn.Module) -> dict[str, Any]:
    """`Backbone`'s arguments that say how to read a torchvision classifier."""
    return {
        "plan": torchvision_plan(model),
        "features": _features,
        "classifier": _classifier,
    }


def torchvision_plan(model: nn.Module) -> HeadPlan:
    """Read the `HeadPlan` off a torchvision classifier; ValueError for families not listed here."""
    family = next((c.__name__ for c in type(model).__mro__ if c.__name__ in STAGES), None)
    if family is None or "Quantizable" in type(model).__name__:
        raise ValueError(
            f"attach: torchvision's {type(model).__name__} is not a supported classifier; "
            f"supported are {', '.join(sorted(STAGES))}; of others say where the map is: "
            "attach(model, K, features=...)"
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
    if family in AFTER:
        first, stop = AFTER[family]
        size = len(model.get_submodule(head))  # type: ignore[arg-type]
        after = tuple(f"{head}.{i}" for i in range(first, stop))
        tail = tuple(f"{head}.{i}" for i in range(stop, size))
        return HeadPlan("NCHW", after=after, tails=(tail,))
    return HeadPlan("NCHW", tails=((head,),), opaque=opaque)


def _features(model: Any, x: Tensor) -> Any:
    names = class_names(model)
    family = next(n for n in STAGES if n in names)
    if family == "VisionTransformer":
        tokens = model._process_input(x)  # [B, N, C]
        token = model.class_token.expand(x.shape[0], -1, -1)
        return model.encoder(torch.cat([token, tokens], dim=1))
    if family in ("GoogLeNet", "Inception3"):
        x = model._transform_input(x)
    for stage in STAGES[family].split():
        module = model.get_submodule(stage)
        for part in module if isinstance(module, nn.ModuleList) else [module]:
            x = part(x)
    return torch.relu(x) if family == "DenseNet" else x


def _classifier(model: Any, raw: Tensor) -> Any:
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


def pretrained_cfg(model: nn.Module, name: str | None) -> dict[str, Any]:
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
