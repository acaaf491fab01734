"""The images a model was built for: what its modules say, which its configuration may not know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


def own_image_size(model: nn.Module) -> tuple[int, int] | None:
    """Height and width the model was made for or set to; None where its modules take any.

    Read anew at every call: timm's ``set_input_size`` changes it.
    """
    embed: Any = getattr(model, "patch_embed", None)
    for size in (getattr(embed, "img_size", None), getattr(model, "image_size", None)):
        if (pair := _pair(size)) is not None:
            return pair
    return None


def built_image_size(model: nn.Module, kwargs: Mapping[str, Any]) -> tuple[int, int] | None:
    """`own_image_size`, or what the constructor was told where the modules do not say."""
    own = own_image_size(model)
    names = ("img_size", "image_size", "input_size")
    given = (_pair(kwargs.get(name)) for name in names)
    return own or next((pair for pair in given if pair is not None), None)


def image_channels(model: nn.Module, nominal: int) -> int:
    """Channels of the images a model takes.

    Its first convolution counts, which people replace for grey images; one that takes more channels
    than images have comes after a rearrangement of pixels, and the model's own word counts.
    """
    own = getattr(model, "in_chans", None)
    own = own if isinstance(own, int) and own > 0 else nominal
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    return own if first is None or first.in_channels > 16 else first.in_channels


def _pair(size: Any) -> tuple[int, int] | None:
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return size, size
    if isinstance(size, (tuple, list)) and len(size) == 2 and all(isinstance(s, int) for s in size):
        return int(size[0]), int(size[1])
    return None
