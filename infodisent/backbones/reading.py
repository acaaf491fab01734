"""A name or a module -> `Backbone`: the model, its library, its input, and how it is read."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from infodisent.backbones import torchvision as torchvision_models
from infodisent.backbones.backbone import Backbone
from infodisent.backbones.hub import one_retry
from infodisent.backbones.timm import timm_plan
from infodisent.backbones.torchvision_import import ensure_torchvision

Source = Literal["timm", "torchvision"]


def read_backbone(
    model_or_name: nn.Module | str,
    *,
    pretrained: bool = False,
    freeze: bool = True,
    source: Source | None = None,
    model_kwargs: dict[str, Any] | None = None,
) -> Backbone:
    """Build, or take, a classifier and read it as feature map and head.

    Arguments and errors are those of `infodisent.attach`, which calls this.
    """
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
    reading: dict[str, Any]
    if source == "timm":
        cfg, reading = _timm_cfg(model), {"plan": timm_plan(model)}
    else:
        cfg = torchvision_models.pretrained_cfg(model, name)
        reading = torchvision_models.reading(model)
    size, in_chans = _input_size(model, cfg, kwargs)
    backbone = Backbone(model, freeze=freeze, image_size=size, in_chans=in_chans, **reading)
    backbone.pretrained_cfg = cfg
    try:
        json.dumps(kwargs)
        backbone.origin = {"source": source, "name": name, "model_kwargs": kwargs}
    except TypeError:  # built from objects, so it can't be rebuilt from text
        backbone.origin = {"source": source, "name": None, "model_kwargs": {}}
    return backbone


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
        with one_retry():
            return _create_from(source, name, pretrained, kwargs)
    except Exception as error:
        if not pretrained:
            raise
        # the hub's client has many kinds of failure; what helps is the same for all
        reason = str(error).rstrip(".")
        raise ValueError(
            f"attach: the published weights of {name!r} could not be loaded: {reason}. "
            "Without a network, pass pretrained=False (--no-pretrained) or a local file (--weights)"
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
