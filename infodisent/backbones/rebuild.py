"""The description that builds an architecture again, proved by building it.

A checkpoint holds all weights of a model, so what it needs besides is the architecture alone. For
a module that somebody else has built, or one whose name leads to a hub, folder or overlay, a name
and arguments of its library are looked for here; they count only if what they build is the same,
module by module, in kind, shapes and plain attributes.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from infodisent.backbones import huggingface
from infodisent.backbones.plan import class_names

# Arguments that say where weights come from, not what the architecture is.
FETCHING = ("pretrained", "checkpoint", "cache", "weights")
# Attributes that change no result in eval mode, or describe weights.
_IGNORED = {
    "training",
    "num_classes",  # the classifier's shape tells it; people replace the layer alone
    "num_labels",
    "name_or_path",
    "pretrained_cfg",
    "default_cfg",
    "hf_hub_id",
    "grad_checkpointing",
    "gradient_checkpointing",
    "fused_attn",
    "p",
    "drop_prob",
    "drop_rate",
    "drop_path_rate",
    "head_drop_rate",
    "inplace",
    "process_group",
    "device",
    "dtype",
}


def origin_of(
    model: nn.Module, source: str, name: str | None, kwargs: dict[str, Any]
) -> dict[str, Any]:
    """source, name and model_kwargs that build the architecture again; name None for none known."""
    unknown: dict[str, Any] = {"source": source, "name": None, "model_kwargs": {}}
    if source == "hf":
        described = huggingface.origin(model)
        same = described and _same(
            model, _build("hf", described["name"], described["model_kwargs"])
        )
        return described if described and same else unknown
    plain = {k: v for k, v in kwargs.items() if not k.startswith(FETCHING)}
    try:
        json.dumps(plain)
    except TypeError:  # built from objects, so it can't be rebuilt from text
        return unknown
    if name is not None and ":" not in name and plain == kwargs:
        return {"source": source, "name": name, "model_kwargs": kwargs}
    for candidate, options in _candidates(model, source, name, plain):
        if _same(model, _build(source, candidate, options)):
            return {"source": source, "name": candidate, "model_kwargs": options}
    return unknown


def _candidates(
    model: Any, source: str, name: str | None, kwargs: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    if source == "timm":
        cfg = getattr(model, "pretrained_cfg", None) or {}
        cfg = cfg if isinstance(cfg, dict) else cfg.to_dict()
        architecture = cfg.get("architecture") or (name if name and ":" not in name else None)
        if not architecture:
            return
        options = {"num_classes": _classes(model), **kwargs}
        yield architecture, options
        reference = _build(source, architecture, options)
        if reference is not None:
            more = options | _differing_arguments(model, reference)
            if more != options:
                yield architecture, more
    elif name is not None:
        yield name, kwargs
    else:
        import torchvision

        kinds = class_names(model)
        outputs = [m.out_features for m in model.modules() if isinstance(m, nn.Linear)]
        options = {"num_classes": outputs[-1] if outputs else getattr(model, "num_classes", 1000)}
        for known in torchvision.models.list_models(module=torchvision.models):
            builder = torchvision.models.get_model_builder(known)
            made = inspect.signature(builder).return_annotation
            if (made if isinstance(made, str) else made.__name__).rpartition(".")[2] in kinds:
                yield known, options


def _differing_arguments(model: Any, reference: Any) -> dict[str, Any]:
    """Constructor arguments kept as attributes, where they are not those of the reference."""
    differing: dict[str, Any] = {}
    for owner, other in ((model, reference), *_parts(model, reference, "patch_embed")):
        for key in inspect.signature(type(model).__init__).parameters:
            ours, theirs = getattr(owner, key, None), getattr(other, key, None)
            if _plain(ours) and ours is not None and ours != theirs:
                differing[key] = list(ours) if isinstance(ours, tuple) else ours
    differing.pop("num_classes", None)
    if getattr(model, "in_chans", None) != getattr(reference, "in_chans", None):
        differing["in_chans"] = model.in_chans
    paths = [
        getattr(m, "drop_prob", 0) or 0 for m in model.modules() if "DropPath" in repr(type(m))
    ]
    if paths:
        differing["drop_path_rate"] = round(max(paths), 6)
    if "global_pool" in differing and not isinstance(differing["global_pool"], str):
        del differing["global_pool"]
    pools = [getattr(getattr(m, "head", m), "global_pool", None) for m in (model, reference)]
    pools = [getattr(pool, "pool_type", None) or pool for pool in pools]
    pools = [
        getattr(m, "global_pool", None) if p is None else p
        for p, m in zip(pools, (model, reference))
    ]
    pools = [getattr(pool, "pool_type", pool) for pool in pools]
    if pools[0] != pools[1] and isinstance(pools[0], str):
        differing["global_pool"] = pools[0]
    embed = getattr(model, "patch_embed", None)
    other = getattr(reference, "patch_embed", None)
    strict = getattr(embed, "strict_img_size", None), getattr(other, "strict_img_size", None)
    if strict == (False, True):
        differing["dynamic_img_size"] = True
    return differing


def _parts(model: Any, reference: Any, name: str) -> list[tuple[Any, Any]]:
    pair = getattr(model, name, None), getattr(reference, name, None)
    return [pair] if pair[0] is not None and pair[1] is not None else []


def _build(source: str, name: str, kwargs: dict[str, Any]) -> nn.Module | None:
    """The architecture without memory for weights, or None where these arguments build nothing."""
    create: Any
    if source == "timm":
        import timm

        if not timm.is_model(name.partition(".")[0]):
            return None
        create = timm.create_model
        kwargs = {k: tuple(v) if isinstance(v, list) else v for k, v in kwargs.items()}
    elif source == "hf":
        create = lambda name, **options: huggingface.create(name, False, options)  # noqa: E731
    else:
        import torchvision

        create = torchvision.models.get_model
        kwargs = {"weights": None, **kwargs}
        if name in ("googlenet", "inception_v3"):
            kwargs = {"init_weights": False, **kwargs}
    for device in ("meta", "cpu"):  # not all constructors run on meta tensors
        try:
            with torch.random.fork_rng(devices=[]), torch.device(device), _NothingDrawn():
                return create(name, **kwargs)  # type: ignore[no-any-return]
        except Exception:  # any: it is a trial
            continue
    return None


class _NothingDrawn(TorchFunctionMode):
    """Weights are not initialised: the largest candidate's would take seconds, and gigabytes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        module, name = getattr(func, "__module__", None), getattr(func, "__name__", "")
        if module == nn.init.__name__ or name in ("normal_", "uniform_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _same(a: nn.Module, b: nn.Module | None) -> bool:
    """The same modules under the same names, with shapes and plain attributes alike."""
    if b is None:
        return False
    ours, theirs = dict(a.named_modules()), dict(b.named_modules())
    if list(ours) != list(theirs):
        return False
    return all(_same_module(m, theirs[name]) for name, m in ours.items())


def _same_module(a: nn.Module, b: nn.Module) -> bool:
    if _kind(a) != _kind(b) or a._forward_hooks or a._forward_pre_hooks:
        return False
    for ours, theirs in ((a._parameters, b._parameters), (a._buffers, b._buffers)):
        if {k: None if t is None else t.shape for k, t in ours.items()} != {
            k: None if t is None else t.shape for k, t in theirs.items()
        }:
            return False
    return _attributes(a) == _attributes(b)


def _kind(module: nn.Module) -> Any:
    """The class; synchronised batch norms count as plain ones, which they are in eval mode."""
    name = type(module).__name__
    if "BatchNorm" not in name:
        return type(module)
    return name.replace("Sync", "").replace("2d", "")


def _classes(model: Any) -> int:
    """Outputs of a timm classifier: of the layer itself, which may have been replaced."""
    layer = model.get_classifier()
    if isinstance(layer, nn.Identity):
        return 0
    outputs: Any = getattr(layer, "out_features", None) or getattr(model, "num_classes", 1000)
    return int(outputs)


def _attributes(module: nn.Module) -> dict[str, Any]:
    found = {}
    for key, value in vars(module).items():
        if key.startswith("_") or key in _IGNORED:
            continue
        if _plain(value):
            found[key] = value
        elif key == "forward":  # replaced on this instance
            found[key] = id(value)
        elif inspect.isfunction(value) or inspect.isclass(value):
            found[key] = value.__qualname__
    return found


def _plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_plain(v) for v in value)
    return value is None or isinstance(value, (bool, int, float, str))
