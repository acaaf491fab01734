"""Which parameters of a backbone train, stage by stage, and which parts stay in eval mode."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def train_only(model: nn.Module, names: Collection[str]) -> None:
    """Let the named parameters train and no others."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(name in names)


def frozen_parts(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules with parameters of which none trains."""
    parameters = list(module.parameters())
    if parameters and not any(p.requires_grad for p in parameters):
        yield module
    elif parameters:
        for child in module.children():
            yield from frozen_parts(child)


def is_watched(model: nn.Module, x: Any) -> bool:
    """Nothing asks for a gradient, but a user's hook looks at activations while gradients are on.

    Methods such as Grad-CAM hook a layer, run the model and differentiate with respect to what
    the hook has seen. With frozen parameters and plain images there would be no graph to do it in.
    """
    if not (isinstance(x, Tensor) and torch.is_grad_enabled()) or torch.compiler.is_compiling():
        return False
    if x.requires_grad or x.is_inference() or not x.is_floating_point():
        return False
    hooks: list[Callable[..., Any]] = []
    for module in model.modules():
        hooks += module._forward_hooks.values()
    # those of sharded training gather weights and need no graph
    theirs = [h for h in hooks if not str(getattr(h, "__module__", "")).startswith("torch.")]
    return bool(theirs) and not any(p.requires_grad for p in model.parameters())


def stages(model: nn.Module, needed: Collection[str]) -> dict[str, list[str]]:
    """Stages in the order they run, each with the names of its parameters among `needed`.

    timm's classifiers say themselves what belongs together (`group_matcher`). Of others, they are
    the children in order; the elements of containers, such as transformer blocks, are stages too.
    """
    groups = _timm_groups(model) or _groups(model, needed)
    kept = [[n for n in group if n in needed] for group in groups]
    sizes = {name: parameter.ndim for name, parameter in model.named_parameters()}
    merged: list[list[str]] = []
    for group in filter(None, kept):
        if merged and all(sizes[name] <= 1 for name in group):  # a norm belongs to what it follows
            merged[-1] += group
        else:
            merged.append(list(group))
    named: dict[str, list[str]] = {}
    for group in merged:
        paths = [name.split(".")[:-1] for name in group if sizes[name] > 1 and "." in name]
        first, *others = paths or [group[:1]]
        common = [
            p for i, p in enumerate(first) if all(o[: i + 1] == first[: i + 1] for o in others)
        ]
        common = common or first
        names = [".".join(common[:depth]) for depth in range(2, len(common) + 2)]
        free = [name for name in names if name not in named]
        named[free[0] if free else f"{names[0]} {len(named)}"] = group
    return named


def chosen(stages: dict[str, list[str]], last: int | str, name: str) -> list[str]:
    """Parameters of the last stages; ValueError for a number that is none of them."""
    groups = list(stages.values())
    if last == "all":
        last = len(groups)
    if isinstance(last, bool) or not isinstance(last, int) or not 1 <= last <= len(groups):
        raise ValueError(
            f"unfreeze: last is {last!r}, allowed are 'all' and 1 to {len(groups)}: {name} has the "
            f"stages {', '.join(stages)}"
        )
    return [n for group in groups[len(groups) - last :] for n in group]


def _timm_groups(model: Any) -> list[list[str]]:
    if not callable(getattr(model, "group_matcher", None)):
        return []
    from timm.models import group_parameters

    try:
        groups = group_parameters(model, model.group_matcher(coarse=True))
    except (AttributeError, AssertionError, KeyError, TypeError, ValueError):
        return []  # some classes inherit a matcher that does not fit them
    return [names for _, names in sorted(groups.items())]


def _groups(model: nn.Module, needed: Collection[str]) -> list[list[str]]:
    """Parameters by child, in order; the largest of too few is opened, and so are containers."""
    wanted = {id(p) for name, p in model.named_parameters() if name in needed}

    def matters(module: nn.Module, ndim: int = 2) -> bool:
        return any(id(p) in wanted and p.ndim >= ndim for p in module.parameters())

    parts: list[tuple[str, nn.Module, bool]] = [("", model, True)]
    while sum(matters(module) for _, module, _ in parts) < 3:
        openable = [p for p in parts if p[2] and any(matters(c) for c in p[1].children())]
        if not openable:
            break
        at = parts.index(max(openable, key=lambda p: _size(p[1])))
        path, module, _ = parts[at]
        parts[at : at + 1] = [
            (f"{path}.{name}".lstrip("."), child, not isinstance(module, _CONTAINERS))
            for name, child in module.named_children()
            if matters(child, 0)
        ]
    held = [[f"{path}.{n}".lstrip(".") for n, _ in m.named_parameters()] for path, m, _ in parts]
    inside = {name for group in held for name in group}
    own = [name for name, _ in model.named_parameters() if name not in inside]
    return [own + group if i == 0 else group for i, group in enumerate(held)]


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
