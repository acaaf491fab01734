"""A name or a module -> `Backbone`: the model, its library, its input, and how it is read."""

from __future__ import annotations

from typing import Any

from torch import nn

from infodisent.backbones import adapters, huggingface, known_forms
from infodisent.backbones import torchvision as torchvision_models
from infodisent.backbones.backbone import Backbone
from infodisent.backbones.input_size import built_image_size, image_channels, own_image_size
from infodisent.backbones.names import Source, create, resolve_name
from infodisent.backbones.rebuild import origin_of
from infodisent.backbones.timm import timm_plan
from infodisent.backbones.torchvision_import import ensure_torchvision
from infodisent.backbones.wrappers import unwrap

__all__ = ["Source", "read_backbone"]


def read_backbone(
    model_or_name: nn.Module | str,
    *,
    pretrained: bool = False,
    freeze: bool = True,
    source: Source | None = None,
    model_kwargs: dict[str, Any] | None = None,
    features: adapters.Features | None = None,
    logits: adapters.Logits | None = None,
    input_fmt: str | None = None,
    num_prefix_tokens: int = 0,
) -> Backbone:
    """Build, or take, a classifier and read it as feature map and head.

    Arguments and errors are those of `infodisent.attach`, which calls this.
    """
    if source not in (None, "timm", "torchvision", "hf"):
        raise ValueError(
            f"attach: source is {source!r}, allowed are 'timm', 'torchvision', 'hf', None"
        )
    ensure_torchvision()  # timm and torchvision import after this
    kwargs = dict(model_kwargs or {})
    name: str | None = None
    if isinstance(model_or_name, str):
        source, name = resolve_name(model_or_name, source)
        model = create(source, name, pretrained, kwargs)
    elif isinstance(model_or_name, nn.Module):
        if pretrained:
            raise ValueError(
                "attach: pretrained=True needs a name; a module already has its weights, "
                "load others into it before attaching"
            )
        if kwargs:
            raise ValueError("attach: model_kwargs need a name; a module is already built")
        model = model_or_name
    else:
        kind = type(model_or_name).__name__
        raise TypeError(f"attach: model_or_name must be a name or an nn.Module, got {kind}")
    if next(model.parameters(), None) is None:
        raise ValueError(
            f"attach: {type(model).__name__} has no parameters, so it is no classifier"
        )
    if features is not None:
        size, in_chans = _own_input(model)
        cfg: dict[str, Any] = {"input_size": (in_chans, *size)}
        reading = adapters.custom_reading(
            model, features, logits, input_fmt, num_prefix_tokens, size, in_chans
        )
        origin: dict[str, Any] = {"source": None, "name": None, "model_kwargs": {}}
    else:
        if source is None or name is None:
            model = unwrap(model, _is_classifier)
            source = _source_of(model, source)
        cfg, reading = _read(model, source, name, kwargs, pretrained)
        origin = {"source": None, "name": None, "model_kwargs": {}}
        if source is not None:
            origin = origin_of(model, source, name, kwargs)
    backbone = Backbone(model, freeze=freeze, **reading)
    said = cfg.pop("assumed", "")
    if source is None and "mean" not in cfg:
        said = "ImageNet's mean and std are used"
    if said:
        backbone.assumed = {"mean": cfg.get("mean"), "said": said}
    backbone.pretrained_cfg, backbone.origin = cfg, origin
    backbone.built_size = own_image_size(model)
    backbone.trained = name is None or pretrained or any(k.startswith("checkpoint") for k in kwargs)
    if isinstance(features, str) and (logits is None or isinstance(logits, str)):
        told = {"features": features, "logits": logits, "input_fmt": input_fmt}
        backbone.adapter = {**told, "num_prefix_tokens": num_prefix_tokens}
    backbone.class_names = _class_names(model, source, name, pretrained, backbone.num_classes)
    return backbone


def _read(
    model: Any, source: Source | None, name: str | None, kwargs: dict[str, Any], pretrained: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The input of a model that is known, and the arguments of `Backbone` that read it."""
    if source is None:
        size, in_chans = _own_input(model)
        known = known_forms.reading(model, size, in_chans)
        if known is None:
            raise ValueError(adapters.help_for(model))
        return {"input_size": (in_chans, *size), **known[0]}, known[1]
    if source == "hf":
        cfg, said = huggingface.pretrained_cfg(model, pretrained=pretrained)
        return {**cfg, "assumed": said}, huggingface.reading(model)
    if source == "timm":
        cfg, reading = _timm_cfg(model), {"plan": timm_plan(model)}
    else:
        cfg = torchvision_models.pretrained_cfg(model, name)
        reading = torchvision_models.reading(model)
    size, in_chans = _input_size(model, cfg, kwargs)
    built = built_image_size(model, kwargs)
    if built is not None and built != tuple(cfg.get("input_size") or ())[1:]:
        cfg["input_size"] = (in_chans, *built)
    return cfg, {**reading, "image_size": size, "in_chans": in_chans}


def _is_classifier(model: nn.Module) -> bool:
    """A whole classifier that can be read without being told how."""
    if huggingface.is_classifier(model):
        return True
    library = _library_of(model)
    if library is None:
        return known_forms.is_known(model)
    if library == "torchvision":
        return torchvision_models.is_supported(model)
    return not _missing_methods(model)


def _library_of(model: nn.Module) -> Source | None:
    """The library that the model's class, or one that it is made from, belongs to."""
    modules = [c.__module__ for c in type(model).__mro__]
    libraries: tuple[Source, ...] = ("timm", "torchvision")
    return next((s for s in libraries if any(m.startswith(f"{s}.models") for m in modules)), None)


def _missing_methods(model: nn.Module) -> list[str]:
    wanted = ("forward_features", "forward_head", "get_classifier")
    return [method for method in wanted if not callable(getattr(model, method, None))]


def _source_of(model: nn.Module, source: Source | None) -> Source | None:
    """The library of a module; None for one that is of none, but may have a known shape."""
    if source is None:
        if huggingface.is_classifier(model):
            return "hf"
        source = _library_of(model)
    kind = f"{type(model).__module__}.{type(model).__name__}"
    if source is None:
        if known_forms.is_known(model):
            return None
        raise ValueError(adapters.help_for(model))
    if source == "hf" and not huggingface.is_classifier(model):
        raise ValueError(
            f"attach: {kind} is no image classifier of transformers: load it as "
            "AutoModelForImageClassification"
        )
    if source == "timm":
        for method in _missing_methods(model):
            raise ValueError(
                f"attach: {kind} has no {method}(); a whole timm classifier is needed, not a "
                "features_only or wrapped one, or features= that says where its map is"
            )
    return source


def _class_names(
    model: Any, source: Source | None, name: str | None, pretrained: bool, count: int
) -> tuple[str, ...] | None:
    """Names of the original's classes, where the model or its weights say them."""
    names: tuple[str, ...] | None = None
    if source == "hf":
        names = huggingface.class_names(model)
    elif source == "torchvision" and pretrained and name is not None:
        names = torchvision_models.class_names_of(name)
    elif source is None:
        names = known_forms.names(model)
    elif source == "timm":
        labels = _timm_cfg(model).get("label_names")
        names = tuple(map(str, labels)) if labels else None
    return names if names is not None and len(names) == count else None


def _own_input(model: Any) -> tuple[tuple[int, int], int]:
    """Height, width and channels of a module of the user's own, as far as it says them."""
    size: Any = None
    for owner in (model, getattr(model, "config", None), getattr(model, "patch_embed", None)):
        size = size or getattr(owner, "img_size", None) or getattr(owner, "image_size", None)
    size = size if isinstance(size, (int, tuple, list)) else 224
    height, width = (size, size) if isinstance(size, int) else size
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    return (int(height), int(width)), 3 if first is None else int(first.in_channels)


def _timm_cfg(model: nn.Module) -> dict[str, Any]:
    cfg: Any = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    return dict(cfg if isinstance(cfg, dict) else cfg.to_dict())


def _input_size(
    model: nn.Module, cfg: dict[str, Any], kwargs: dict[str, Any]
) -> tuple[tuple[int, int], int]:
    """Height, width and channels of the images the model was built for."""
    nominal = tuple(cfg.get("input_size") or (3, 224, 224))
    built = built_image_size(model, kwargs)
    height, width = built or nominal[1:]
    if built is None and not cfg.get(
        "fixed_input_size"
    ):  # a look at the layout needs no larger image; 448 = 7 * 64
        height, width = min(height, 448), min(width, 448)
    return (int(height), int(width)), image_channels(model, int(nominal[0]))
