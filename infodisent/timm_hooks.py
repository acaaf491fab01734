"""What timm's training tools ask of a model beside its logits, for a backbone under a head.

``timm.optim.create_optimizer_v2`` (weight decay, layer decay), gradient checkpointing, feature
extraction and another input size work on an attached model as on the original one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn

from infodisent.backbones.backbone import Backbone
from infodisent.methods import Head

PREFIX = "backbone.model."
"""Where the original model's parameters are found in an attached one."""
LAST = (float("inf"),)
"""timm's ordinal of the layers after all others."""

Matcher = Callable[[str], tuple[float, ...]]


class TimmHooks(nn.Module):
    """Mixed into `InfoDisentClassifier`; hands on to the original model what is its business."""

    backbone: Backbone
    head: Head
    spec: dict[str, Any]

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay must not reach: the head's and the backbone's own.

        Of an InfoDisent head that is the rotation, whose norm is an angle and no size. Its class
        weights may decay, as any classifier's do, except under ``nonneg="softplus"``, where zero
        means 0.69.
        """
        ask: Any = getattr(self.backbone.model, "no_weight_decay", None)
        own = ask() if callable(ask) else ()
        return {PREFIX + name for name in own} | {
            f"head.{name}" for name in self.head.no_weight_decay()
        }

    def group_matcher(self, coarse: bool = False) -> Matcher:
        """Layer of a parameter (or module) by its name, for timm's layer decay; the head is last.

        Args:
            coarse: stages rather than blocks, where the original model makes a difference.
        """
        model: Any = self.backbone.model
        if hasattr(model, "group_matcher"):
            inner = _compiled(model.group_matcher(coarse=coarse))
        else:
            inner = _in_order(name for name, _ in model.named_parameters())

        def match(name: str) -> tuple[float, ...]:
            return inner(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else LAST

        return match

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the backbone's activations again in backward and keep fewer of them.

        Raises:
            ValueError: the original model has no such switch.
        """
        self._original("set_grad_checkpointing")(enable=enable)

    def forward_intermediates(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """The maps of several of the original model's layers, as timm's method of this name.

        Raises:
            ValueError: the original model has no such method.
        """
        return self._original("forward_intermediates")(x, *args, **kwargs)

    @property
    def feature_info(self) -> Any:
        """Channels and reductions of the original model's layers, where it says them."""
        return self.backbone.model.feature_info

    def set_input_size(
        self,
        img_size: int | Sequence[int],
        patch_size: int | Sequence[int] | None = None,
    ) -> None:
        """Make the backbone take images of another size, and its transform give them.

        Position embeddings and windows are fitted by the original model's method of this name; a
        model without one must take the size as it is. A checkpoint rebuilds the new size.

        Args:
            img_size: side, or height and width, in pixels.
            patch_size: of a transformer, if that is to change too.

        Raises:
            ValueError: the model does not take it; the message says why.
        """
        backbone, model = self.backbone, self.backbone.model
        height, width = _pair("img_size", img_size)
        changes: dict[str, Any] = {"img_size": (height, width)}
        if patch_size is not None:
            changes["patch_size"] = _pair("patch_size", patch_size)
        known = dict(backbone._grids)
        resize: Any = getattr(model, "set_input_size", None)
        if resize is None and patch_size is not None:
            raise ValueError(f"set_input_size: {type(model).__name__} has no patches to resize")
        if resize is not None:
            try:
                resize(**changes)
            except (AssertionError, RuntimeError, TypeError, ValueError) as error:
                raise ValueError(
                    f"set_input_size: {type(model).__name__} does not take {height} x {width}: "
                    f"{error}"
                ) from error
        backbone._grids.clear()
        try:
            backbone.grid_size((height, width))
        except ValueError:
            backbone._grids.update(known)
            raise
        backbone.image_size = (height, width)
        channels = backbone.pretrained_cfg.get("input_size", (backbone.in_chans,))[0]
        backbone.pretrained_cfg = {
            **backbone.pretrained_cfg,
            "input_size": (channels, height, width),
        }
        if resize is not None:  # the shapes of its weights may follow from it
            kwargs = self.spec["model_kwargs"] | {k: list(v) for k, v in changes.items()}
            self.spec["model_kwargs"] = kwargs
            backbone.origin = {**backbone.origin, "model_kwargs": kwargs}

    def __prepare_scriptable__(self) -> Any:
        """What torch.jit.script asks first; TypeError, as of the head."""
        return self.head.__prepare_scriptable__()

    def _original(self, name: str) -> Callable[..., Any]:
        method = getattr(self.backbone.model, name, None)
        if not callable(method):
            raise ValueError(f"{name}: {type(self.backbone.model).__name__} has no {name}")
        found: Callable[..., Any] = method
        return found


def _pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    sizes = (value, value) if isinstance(value, int) else tuple(value)
    if len(sizes) != 2 or not all(isinstance(s, int) and s > 0 for s in sizes):
        raise ValueError(f"set_input_size: {name} is {value!r}, must be a size or (height, width)")
    return int(sizes[0]), int(sizes[1])


def _compiled(matcher: Any) -> Matcher:
    """A callable of what timm's models return: one, or patterns by the name of a group."""
    if callable(matcher):

        def ask(name: str) -> tuple[float, ...]:
            ordinal = matcher(name)
            return tuple(ordinal) if isinstance(ordinal, Iterable) else (ordinal,)

        return ask
    patterns = []
    for group, specification in enumerate(matcher.values()):
        several = isinstance(specification, (tuple, list))
        for pattern, suffix in specification if several else [(specification, None)]:
            if pattern is not None:
                patterns.append((group, re.compile(pattern), suffix or ()))

    def match(name: str) -> tuple[float, ...]:
        for group, pattern, suffix in patterns:
            found = pattern.match(name)
            if found:
                numbers = [number for number in found.groups() if number is not None]
                return tuple(float(part) for part in (group, *numbers, *suffix))
        return LAST

    return match


def _in_order(names: Iterable[str]) -> Matcher:
    """Layers in the order of the parameters: down to the first numbered part of their names."""

    def layer(name: str) -> str:
        numbered = re.match(r"(?:[^.]*\.)*?[^.]*\d+(?=\.|$)", name)
        return numbered.group() if numbered else name.rpartition(".")[0]

    order: dict[str, int] = {}
    for name in names:
        order.setdefault(layer(name), len(order))
    return lambda name: (float(order.get(layer(name), len(order))),)
