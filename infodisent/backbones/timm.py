"""timm classifiers: how the head gets from its map to its logits, read off its attributes."""

from __future__ import annotations

from typing import Any

from torch import nn

from infodisent.backbones.plan import HeadPlan, class_names

# timm classes that return tokens [B, N, C] and have no attribute that says so: prefix tokens.
_TIMM_TOKENS = {"Twins": 0, "MlpMixer": 0, "EfficientFormer": 0, "Levit": 0, "VOLO": 1, "CoaT": 1}
# timm classes with per-pixel modules between the pool and the classifier, outside a head module.
_TIMM_AFTER = {
    ("conv_head", "norm_head", "act2"): ("MobileNetV3",),
    ("conv_head", "norm_head"): ("MobileNetV5",),
    ("conv_head", "act2"): ("GhostNet", "RepGhostNet", "LCNetV2"),
    ("conv_head", "act"): ("FasterNet",),
    ("norm",): ("DeepseekVitClassifier", "Qwen3VitClassifier"),
}


def timm_plan(model: nn.Module) -> HeadPlan:
    """Read the `HeadPlan` off a timm classifier's attributes."""
    names = class_names(model)
    fmt, prefix = _timm_layout(model, names)
    head = getattr(model, "head", None)
    before: tuple[str, ...] = ()
    tails: tuple[tuple[str, ...], ...]
    if isinstance(head, nn.Module) and (hasattr(head, "global_pool") or hasattr(head, "pool_type")):
        is_attention = type(head).__name__.endswith("AttentionPool2d")
        pool = "map" if is_attention else _pool_type(head)
        before, after, tail = _split_head(head)
        tails = () if is_attention else (tail,)
    else:
        pool = _pool_type(model)
        own = next((p for p, k in _TIMM_AFTER.items() if names & set(k)), ("fc_norm",))
        after = tuple(p for p in own if isinstance(getattr(model, p, None), nn.Module))
        classifiers = _classifier_names(model)
        if "LowFormer" in names:
            before, tails = ("in_conv",), (("pre_classifier", *classifiers),)
        elif len(classifiers) == 1:
            norm, tail = _split_norm(model, classifiers[0])
            after, tails = after + norm, (tail,)
        else:
            tails = tuple((name,) for name in classifiers)
    opaque = "" if pool in ("avg", "token") else f"its pool is {pool!r}"
    if "VGG" in names:
        opaque = "its fully-connected layers see all pixels before the pool"
    elif getattr(model, "pool_include_prefix", False):
        opaque = "its pool includes the prefix tokens"
    elif "VOLO" in names and getattr(model, "aux_head", None) is not None:
        opaque = "it adds the largest logits over the tokens (aux_head)"
    return HeadPlan(fmt, prefix, pool, before, after, tails, opaque)


def _timm_layout(model: nn.Module, names: set[str]) -> tuple[str, int]:
    prefix = int(getattr(model, "num_prefix_tokens", 0))
    fmt = getattr(model, "output_fmt", None)
    if fmt is not None:
        return str(getattr(fmt, "value", fmt)), prefix
    if hasattr(model, "num_prefix_tokens"):
        return "NLC", prefix
    if "Hiera" in names:
        return "NHWC", 0  # once its tokens are back in rows and columns, see Backbone._arrange
    if "Levit" in names and getattr(model, "use_conv", False):
        return "NCHW", 0
    for name in names & _TIMM_TOKENS.keys():
        has_token = name != "VOLO" or getattr(model, "post_network", None) is not None
        return "NLC", _TIMM_TOKENS[name] if has_token else 0
    return str(getattr(getattr(model, "head", None), "input_fmt", "NCHW")), 0


def _pool_type(owner: nn.Module) -> str:
    """The original's pool as timm names it: avg, token, map, max, ... and "" for none."""
    if getattr(owner, "attn_pool", None) is not None:
        return "map"
    pool: Any = getattr(owner, "pool_type", None)
    pool = getattr(owner, "global_pool", "") if pool is None else pool
    if isinstance(pool, nn.Module):
        named = {nn.AdaptiveAvgPool2d: "avg", nn.Identity: ""}
        pool = getattr(pool, "pool_type", named.get(type(pool), type(pool).__name__))
    return "avg" if pool in (True, "fast", "fastavg") else str(pool or "")


def _split_head(head: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Modules of a timm head before its pool, per-pixel after it, and the classifier's chain."""
    parts: tuple[list[str], list[str], list[str]] = ([], [], [])
    pooled = not isinstance(getattr(head, "global_pool", None), nn.Module)  # then it pools first
    for name, module in head.named_children():
        if name == "global_pool":
            pooled = True
        elif isinstance(module, (nn.Dropout, nn.Flatten)) or name == "flatten":
            continue
        elif name in ("norm", "in_conv", "last_conv") and not parts[2]:
            parts[int(pooled)].append(f"head.{name}")
        else:
            parts[2].append(f"head.{name}")
    return tuple(parts[0]), tuple(parts[1]), tuple(parts[2])


def _classifier_names(model: Any) -> list[str]:
    own = model.get_classifier()
    layers = own if isinstance(own, tuple) else (own, getattr(model, "head_dist", None))
    # the direct child: a classifier inside a Sequential or NormLinear is used as a whole
    names = {id(m): path.split(".")[0] for path, m in model.named_modules()}
    return [names[id(m)] for m in layers if id(m) in names]


def _split_norm(model: nn.Module, path: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Take the BatchNorm off a "norm + linear" classifier: a fixed scale of each channel."""
    module = model.get_submodule(path)
    if hasattr(module, "distillation") and not module.distillation:  # a wrapper round NormLinear
        path, module = f"{path}.head", model.get_submodule(f"{path}.head")
    if not isinstance(getattr(module, "bn", None), nn.BatchNorm1d):
        return (), (path,)
    rest = tuple(f"{path}.{name}" for name, _ in module.named_children() if name != "bn")
    return (f"{path}.bn",), rest
