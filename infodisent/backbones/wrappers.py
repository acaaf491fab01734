"""Classifiers inside other modules: taken out where the wrapper only passes images on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from infodisent.backbones.backbone import evaluating, logits_in, noise

_PASS_ON = {"DataParallel": "module", "DistributedDataParallel": "module"}
_PASS_ON |= {"OptimizedModule": "_orig_mod", "FullyShardedDataParallel": "module"}
_PASS_ON |= {"AveragedModel": "module", "ModelEma": "module", "ModelEmaV2": "module"}
_PASS_ON |= {"ModelEmaV3": "module"}


def unwrap(model: nn.Module, is_classifier: Callable[[nn.Module], bool]) -> nn.Module:
    """The classifier itself.

    Args:
        model: a classifier, or a module that holds one.
        is_classifier: whether a module can be read as one.

    Raises:
        ValueError: a classifier is inside, but the wrapper does more than pass images on, or there
            are several; the message names it.
    """
    while type(model).__name__ in _PASS_ON:
        inner = getattr(model, _PASS_ON[type(model).__name__], None)
        if not isinstance(inner, nn.Module):
            break
        model = inner
    if is_classifier(model):
        return model
    found = _inside(model, is_classifier)
    if not found:
        return model
    kind = type(model).__name__
    places = [f"model.{path}" for path, _ in found]
    if len(found) > 1:
        raise ValueError(
            f"attach: {kind} holds {len(found)} classifiers: pass one of them: {', '.join(places)}"
        )
    (_, inner), place = found[0], places[0]
    reason = _difference(model, inner)
    if reason:
        raise ValueError(
            f"attach: {kind} holds {type(inner).__name__} but {reason}: pass {place} to have that "
            "one alone, or say how to read the whole: features= and logits="
        )
    return unwrap(inner, is_classifier)


def _inside(
    model: nn.Module, is_classifier: Callable[[nn.Module], bool], depth: int = 3
) -> list[tuple[str, nn.Module]]:
    """The outermost classifiers, by path."""
    found: list[tuple[str, nn.Module]] = []
    if isinstance(model, (nn.Sequential, nn.ModuleList)) or not depth:
        return found
    for name, child in model.named_children():
        if is_classifier(child) or type(child).__name__ in _PASS_ON:
            found.append((name, child))
        else:
            inner = _inside(child, is_classifier, depth - 1)
            found += [(f"{name}.{path}", module) for path, module in inner]
    return found


def _difference(wrapper: nn.Module, inner: nn.Module) -> str:
    """Why the wrapper is not the classifier and nothing else; "" where it is."""
    weight = next(inner.parameters())
    if weight.is_meta:
        return ""
    sizes = [(224, 224), (64, 64)]
    for owner in (inner, getattr(inner, "config", None), getattr(inner, "patch_embed", None)):
        size: Any = getattr(owner, "img_size", None) or getattr(owner, "image_size", None)
        if size is not None:
            sizes.insert(0, (size, size) if isinstance(size, int) else tuple(size))
    cfg: Any = getattr(inner, "pretrained_cfg", None) or {}
    nominal = tuple(cfg.get("input_size") or ()) if isinstance(cfg, dict) else ()
    if nominal:
        sizes.insert(1, nominal[1:])
    first = next((m for m in inner.modules() if isinstance(m, nn.Conv2d)), None)
    channels = 3 if first is None else first.in_channels * (first.groups == 1) or 3
    error = "its forward pass fails"
    for size in sizes:
        x = noise((1, channels, *size), weight)
        eagerly = torch.compiler.set_stance("force_eager")  # two images are not worth compiling for
        with evaluating(wrapper), torch.no_grad(), eagerly:
            try:
                want = logits_in(inner(x))
            except Exception:  # any: the size was a guess
                continue
            try:
                got = logits_in(wrapper(x))
            except Exception as failure:  # any: it is the user's own code
                why = next(iter(str(failure).splitlines()), type(failure).__name__)
                error = f"its forward pass fails: {why}"
                continue
        if got.shape == want.shape and torch.allclose(got, want, rtol=1e-3, atol=1e-5):
            return ""
        return "computes something else with it"
    return error
