"""The evaluation transform of a model, as data that can be stored and made again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from infodisent.backbones.backbone import Backbone, HasBackbone, backbone_of
from infodisent.backbones.torchvision_import import ensure_torchvision

_KEYS = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")


def transform_config(model: Backbone | HasBackbone) -> dict[str, Any]:
    """Input size, interpolation, mean, std and crop of a model, JSON-able, from its own config."""
    ensure_torchvision()
    from timm.data import resolve_data_config

    cfg = backbone_of(model).pretrained_cfg
    config = resolve_data_config(pretrained_cfg=cfg or {}, verbose=False)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in config.items() if k in _KEYS}


def transform_from(config: dict[str, Any]) -> Callable[[Image.Image], Tensor]:
    """The transform of a config: RGB image to a normalised tensor ``[3, H, W]`` float32."""
    ensure_torchvision()
    from timm.data import create_transform

    options = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
    transform: Callable[[Image.Image], Tensor] = create_transform(**options, is_training=False)
    return transform


def to_picture(
    x: Tensor,  # [3, H, W]
    config: dict[str, Any],
) -> Image.Image:
    """Undo the normalisation: what the network sees, ``[3, H, W]``, as an 8-bit RGB picture."""
    mean = torch.tensor(config["mean"]).view(3, 1, 1)
    std = torch.tensor(config["std"]).view(3, 1, 1)
    pixels = (x.cpu() * std + mean).clamp(0, 1).mul(255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
