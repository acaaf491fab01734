"""Models of libraries that are not asked by name, told by the form of their output.

torch.hub's DINOv2 returns patch tokens by name, open_clip's image tower returns them on request,
and Ultralytics' classifiers end in a convolution, a pool and a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from infodisent.backbones.backbone import evaluating, noise
from infodisent.backbones.plan import HeadPlan, class_names


def is_known(model: nn.Module) -> bool:
    """Of a form that is known here, as far as its attributes tell."""
    return _is_dense(model) or _is_clip_tower(model) or _is_ultralytics(model)


def reading(
    model: Any, image_size: tuple[int, int], in_chans: int
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """What is known of its input, and `Backbone`'s arguments; None if it isn't of the form."""
    common = {"image_size": image_size, "in_chans": in_chans}
    if _is_ultralytics(model):
        path = f"model.{len(model.model) - 1}"
        plan = HeadPlan("NCHW", tails=((f"{path}.linear",),))
        # it takes pixels from 0 to 1 as they are
        cfg: dict[str, Any] = {"mean": (0.0,) * in_chans, "std": (1.0,) * in_chans, "crop_pct": 1.0}
        functions = {"features": hooked(f"{path}.conv"), "classifier": _ultralytics_logits}
        return cfg, {**common, **functions, "plan": plan}
    features = _requested_tokens if _is_clip_tower(model) else _named_tokens
    x = noise((1, in_chans, *image_size), next(model.parameters()))
    with evaluating(model), torch.no_grad():
        try:
            tokens = features(model, x)
        except Exception:  # any: it is a trial
            return None
    if not isinstance(tokens, Tensor) or tokens.ndim != 3:
        return None
    cfg = {}
    for key in ("mean", "std") if _is_clip_tower(model) else ():
        given = getattr(model, f"image_{key}", None)  # open_clip sets it on the towers it loads
        cfg |= {key: tuple(given)} if given else {}
    return cfg, {**common, "features": features, "plan": HeadPlan("NLC", pool="")}


def names(model: Any) -> tuple[str, ...] | None:
    """Names of the original's classes."""
    if not _is_ultralytics(model) or not isinstance(getattr(model, "names", None), dict):
        return None
    return tuple(str(model.names[i]) for i in sorted(model.names))


def hooked(path: str) -> Callable[[nn.Module, Tensor], Any]:
    """A function ``(module, images) -> output`` of the submodule at `path`."""

    def run(model: nn.Module, x: Tensor) -> Any:
        seen: list[Any] = []
        layer = model.get_submodule(path)
        handle = layer.register_forward_hook(lambda _m, _i, output: seen.append(output))
        try:
            model(x)
        finally:
            handle.remove()
        if len(seen) != 1:
            raise ValueError(f"{path} runs {len(seen)} times in a forward pass, not once")
        return seen[0]

    return run


def _is_dense(model: Any) -> bool:
    return hasattr(model, "forward_features") and not hasattr(model, "forward_head")


def _is_clip_tower(model: Any) -> bool:
    return hasattr(model, "output_tokens") and getattr(model, "pool_type", "") in ("tok", "avg")


def _is_ultralytics(model: Any) -> bool:
    if "ClassificationModel" not in class_names(model) or not hasattr(model, "model"):
        return False
    last = model.model[-1] if isinstance(model.model, nn.Sequential) else None
    return all(isinstance(getattr(last, n, None), nn.Module) for n in ("conv", "pool", "linear"))


def _named_tokens(model: Any, x: Tensor) -> Any:
    features = model.forward_features(x)
    return features.get("x_norm_patchtokens") if isinstance(features, dict) else None


def _requested_tokens(model: Any, x: Tensor) -> Any:
    asked, model.output_tokens = model.output_tokens, True
    try:
        return model(x)[1]
    finally:
        model.output_tokens = asked


def _ultralytics_logits(model: Any, raw: Tensor) -> Any:
    last = model.model[-1]
    return last.linear(last.drop(last.pool(raw).flatten(1)))
