"""Any other classifier: where its map is, told by the user."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from infodisent.backbones.backbone import evaluating, noise
from infodisent.backbones.known_forms import hooked
from infodisent.backbones.plan import HeadPlan

Features = Callable[[Any, Tensor], Tensor] | str
"""``(module, images) -> map``, or the path of the submodule whose output is the map."""
Logits = Callable[[Any, Tensor], Tensor] | str
"""``(module, map) -> logits [B, K]``, or the path of the submodule that makes them of the map."""
_OPAQUE = "how it gets from the map to its logits is the caller's own"


def custom_reading(
    model: nn.Module,
    features: Features,
    logits: Logits | None,
    input_fmt: str | None,
    num_prefix_tokens: int,
    image_size: tuple[int, int],
    in_chans: int,
) -> dict[str, Any]:
    """`Backbone`'s arguments for what the user says of a module; see `infodisent.attach`."""
    kind = type(model).__name__
    read = _features_of(model, features)
    classify = _logits_of(model, logits)
    x = noise((1, in_chans, *image_size), next(model.parameters()))
    with evaluating(model), torch.no_grad():
        try:
            raw = read(model, x)
        except Exception as error:  # any: it is the user's own code
            raise ValueError(
                f"attach: features of {kind} fail for images {tuple(x.shape)}: {error}"
            ) from error
    if not isinstance(raw, Tensor) or raw.ndim not in (3, 4):
        got = tuple(raw.shape) if isinstance(raw, Tensor) else f"a {type(raw).__name__}"
        raise ValueError(
            f"attach: features of {kind} give {got}, where a map [B, C, H, W], [B, H, W, C] or "
            "[B, N, C] is needed"
        )
    fmt = input_fmt or _layout_of(raw, kind)
    if fmt not in ("NCHW", "NHWC", "NLC"):
        raise ValueError(f"attach: input_fmt is {fmt!r}, allowed are 'NCHW', 'NHWC' and 'NLC'")
    if fmt == "NLC" and raw.ndim == 3:
        _check_grid(model, raw.shape[1], num_prefix_tokens, image_size)
    pool, opaque = ("avg", _OPAQUE) if classify else ("", "")
    given: dict[str, Any] = {"features": read, "image_size": image_size, "in_chans": in_chans}
    if classify:
        given["classifier"] = classify
    return {**given, "plan": HeadPlan(fmt, num_prefix_tokens, pool, opaque=opaque)}


def _features_of(model: nn.Module, features: Features) -> Callable[[Any, Tensor], Any]:
    if callable(features):
        return features
    _submodule(model, features, "features")
    return hooked(features)


def _logits_of(model: nn.Module, logits: Logits | None) -> Callable[[Any, Tensor], Any] | None:
    if logits is None or callable(logits):
        return logits
    _submodule(model, logits, "logits")
    return lambda model, raw: model.get_submodule(logits)(raw)


def _submodule(model: nn.Module, path: str, what: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        known = [n for n, _ in model.named_modules() if n and n.count(".") < 2][:12]
        raise ValueError(
            f"attach: {what} is {path!r}, but {type(model).__name__} has no such submodule; it has "
            f"{', '.join(known)}"
        ) from error


def _layout_of(raw: Tensor, kind: str) -> str:
    """NLC of three axes; NCHW of four, unless the shape speaks against it."""
    if raw.ndim == 3:
        return "NLC"
    _, first, second, last = raw.shape
    if first == second and last > first:
        raise ValueError(
            f"attach: features of {kind} are {tuple(raw.shape)}, which looks like [B, H, W, C]: "
            "pass input_fmt='NHWC', or 'NCHW' if it is not"
        )
    return "NCHW"


def _check_grid(model: Any, tokens: int, prefix: int, size: tuple[int, int]) -> None:
    """Say which number of prefix tokens would leave a square where the given one leaves none."""
    if size[0] != size[1] or math.isqrt(tokens - prefix) ** 2 == tokens - prefix:
        return
    fits = [n for n in range(9) if math.isqrt(tokens - n) ** 2 == tokens - n]
    if fits:
        raise ValueError(
            f"attach: {tokens} tokens less {prefix} prefix tokens fill no square grid; pass "
            f"num_prefix_tokens={fits[0]} if the first {fits[0]} are class or register tokens"
        )


def help_for(model: nn.Module) -> str:
    """What to write for a module that cannot be read by itself."""
    kind = f"{type(model).__module__}.{type(model).__name__}"
    if isinstance(model, nn.Sequential):
        how = "attach(model, K, features=lambda m, x: m(x)) if its output is the map"
    else:
        names = [n for n, m in model.named_children() if any(True for _ in m.parameters())]
        example = names[-2] if len(names) > 1 else "layer4"
        how = f"attach(model, K, features={example!r}), the submodule whose output is the map"
    return (
        f"attach: {kind} is of neither timm nor torchvision nor transformers. Say where its map "
        f"is: {how}; or put InfoDisentHead(channels, K) on your own feature map"
    )
