"""The evaluation transform of a model, as data that can be stored and made again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from infodisent.backbones.backbone import Backbone, HasBackbone, backbone_of
from infodisent.backbones.input_size import own_image_size
from infodisent.backbones.torchvision_import import ensure_torchvision

_KEYS = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
# How files are read; in a configuration only where they are given, see `load_picture`.
_READING = ("intensity_range", "page")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
CROP_MODES = ("center", "squash", "border")
_NEEDED = ("input_size", "mean", "std")


def transform_config(model: Backbone | HasBackbone) -> dict[str, Any]:
    """Input size, interpolation, mean, std and crop of a model, JSON-able.

    From its ``pretrained_cfg``, with the channels and the image size that the model really takes:
    a size set later (``set_input_size``) counts, and mean and std have a value for each channel.
    """
    ensure_torchvision()
    from timm.data import resolve_data_config

    backbone = backbone_of(model)
    cfg = backbone.pretrained_cfg or {}
    config = resolve_data_config(pretrained_cfg=cfg, verbose=False)
    channels = backbone.in_chans
    config["input_size"] = (channels, *_image_size(backbone, config["input_size"][-2:]))
    for key in ("mean", "std"):
        config[key] = _for_channels(config[key], channels)
    config |= {key: cfg[key] for key in _READING if cfg.get(key) is not None}
    keys = (*_KEYS, *_READING)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in config.items() if k in keys}


def _image_size(backbone: Backbone, nominal: Sequence[int]) -> tuple[int, int]:
    """Height and width: those of the configuration, unless the model was made for others."""
    size = (int(nominal[0]), int(nominal[1]))
    own = own_image_size(backbone.model)
    if own is None or own == size:
        return size
    if own == backbone.built_size:  # else `set_input_size` came after and has the last word
        try:
            backbone.grid_size(size)
        except ValueError:
            return own
        return size
    return own


def _for_channels(values: Any, channels: int) -> tuple[float, ...]:
    each: tuple[float, ...] = tuple(values) if isinstance(values, Sequence) else (values,)
    if len(each) == channels:
        return each
    # ImageNet's three are near each other; grey is their mean
    return (sum(each) / len(each),) * channels


def transform_problem(config: Any, *, whole: bool = True) -> str | None:
    """What keeps a stored configuration from being one of a transform, or None.

    Size, mean and std must be there, unless it is not `whole`; what else is missing has timm's
    defaults.
    """
    if not isinstance(config, Mapping):
        return f"transform is a {type(config).__name__}, must be a mapping"
    missing = [key for key in _NEEDED if config.get(key) is None] if whole else []
    if missing:
        return (
            f"transform lacks {', '.join(missing)}: the preprocessing is not known in full; "
            "transform_config(model) of infodisent.backbones.preprocess gives the model's own"
        )
    for key, (allowed, right) in _ALLOWED.items():
        if config.get(key) is not None and not right(config[key]):
            return f"transform: {key} is {config[key]!r}, must be {allowed}"
    return None


def transform_from(config: Mapping[str, Any]) -> Callable[[Image.Image], Tensor]:
    """The transform of a config: RGB image to a normalised tensor ``[C, H, W]`` float32.

    Raises:
        ValueError: `transform_problem` has something to say, or the model takes neither 3 nor 1
            channels.
    """
    problem = transform_problem(config)
    if problem is not None:
        raise ValueError(problem)
    channels = config["input_size"][0] if len(config["input_size"]) == 3 else 3
    if channels not in (1, 3):
        raise ValueError(
            f"the model takes {channels}-channel images, photographs have 3 (or 1, grey): run the "
            "model on tensors of your own, model(x)"
        )
    ensure_torchvision()
    from timm.data import create_transform

    options = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
    for key in _READING:
        options.pop(key, None)
    transform: Callable[[Image.Image], Tensor] = create_transform(**options, is_training=False)
    mode = "L" if channels == 1 else "RGB"

    def to_input(picture: Image.Image) -> Tensor:
        return transform(picture if picture.mode == mode else picture.convert(mode))

    return to_input


def to_picture(
    x: Tensor,  # [C, H, W]
    config: Mapping[str, Any],
) -> Image.Image:
    """Undo the normalisation: what the network sees, ``[3 or 1, H, W]``, as an 8-bit RGB picture.

    One channel is shown as grey.
    """
    mean = torch.tensor(config["mean"]).view(-1, 1, 1)
    std = torch.tensor(config["std"]).view(-1, 1, 1)
    pixels = (x.cpu() * std + mean).clamp(0, 1).mul(255).round().to(torch.uint8)
    return Image.fromarray(pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())


def set_transform(backbone: Backbone, **options: Any) -> None:
    """Take the user's own preprocessing into ``backbone.pretrained_cfg``; None leaves the model's.

    Args:
        backbone: of the model.
        **options: `input_size`, `mean`, `std`, `interpolation`, `crop_pct`, `crop_mode`,
            `intensity_range` and `page`, as `infodisent.attach` describes them.

    Raises:
        ValueError: a value that is not allowed, or an image size that the model does not take;
            names the argument, what was given and what is allowed.
    """
    given = {key: value for key, value in options.items() if value is not None}
    channels = backbone.in_chans
    checked: dict[str, Any] = {}
    for key, value in given.items():
        if hasattr(value, "tolist"):  # a NumPy number, an array, a tensor
            value = value.tolist()
        elif isinstance(value, Sequence) and not isinstance(value, str):
            value = tuple(v.item() if hasattr(v, "item") else v for v in value)
        if key == "input_size":
            checked[key] = _checked_size(backbone, value)
        elif key in ("mean", "std"):
            checked[key] = _checked_values(key, value, channels)
        elif key == "interpolation":
            checked[key] = _checked_choice(key, value, INTERPOLATIONS)
        elif key == "crop_mode":
            checked[key] = _checked_choice(key, value, CROP_MODES)
        elif key == "crop_pct":
            if not _is_number(value) or not 0 < value <= 1:
                raise ValueError(f"attach: crop_pct is {value!r}, must be in (0, 1]")
            checked[key] = float(value)
        elif key == "page":
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"attach: page is {value!r}, must be an int >= 0")
            checked[key] = value
        elif key == "intensity_range":
            checked[key] = _checked_range(value)
        else:
            raise TypeError(f"attach: {key} is no option of the transform")
    backbone.pretrained_cfg = {**backbone.pretrained_cfg, **checked}


def is_preprocessing(cfg: Any) -> bool:
    """Whether a configuration has keys of the transform alone, none that leads to a file."""
    return isinstance(cfg, Mapping) and set(cfg) <= {*_KEYS, *_READING, "num_classes"}


def restore_transform(backbone: Backbone, config: Mapping[str, Any]) -> None:
    """Make a stored configuration the backbone's own, and set the image size it was used with."""
    kept = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
    backbone.pretrained_cfg = {**backbone.pretrained_cfg, **kept}
    size, own = tuple(kept.get("input_size", ()))[-2:], own_image_size(backbone.model)
    set_size: Any = getattr(backbone.model, "set_input_size", None)
    if own is None or not size or size == own or not callable(set_size):
        return
    try:
        backbone.grid_size(size)
    except ValueError:
        set_size(img_size=size)
        backbone.built_size = own_image_size(backbone.model)


def _checked_size(backbone: Backbone, value: Any) -> tuple[int, int, int]:
    channels = backbone.in_chans
    sides = (value, value) if isinstance(value, int) else value
    whole = isinstance(sides, Sequence) and not isinstance(sides, str)
    if not whole or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in sides):
        raise ValueError(
            f"attach: input_size is {value!r}, must be a side, (height, width) or "
            "(channels, height, width) in pixels"
        )
    if len(sides) == 3 and sides[0] != channels:
        raise ValueError(
            f"attach: input_size is {value!r}, but the model takes {channels} channels; "
            'model_kwargs={"in_chans": ...} builds another'
        )
    if len(sides) not in (2, 3):
        raise ValueError(f"attach: input_size is {value!r}, must be (height, width)")
    height, width = sides[-2:]
    try:
        backbone.grid_size((height, width))
    except ValueError as error:
        own = own_image_size(backbone.model)
        hint = ""
        if own is not None:
            hint = (
                f": it was built for {own[0]} x {own[1]}; "
                f'model_kwargs={{"img_size": ({height}, {width})}} builds another'
            )
        raise ValueError(
            f"attach: input_size is {value!r}, which {type(backbone.model).__name__} does not take"
            f"{hint or f': {error}'}"
        ) from error
    return channels, height, width


def _checked_values(key: str, value: Any, channels: int) -> tuple[float, ...]:
    values = (
        tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    )
    if len(values) == 1:
        values *= channels
    if len(values) != channels or not all(_is_number(v) for v in values):
        raise ValueError(f"attach: {key} is {value!r}, must be one number or {channels}")
    low_ok = all(v > 0 for v in values) if key == "std" else all(v >= 0 for v in values)
    if not low_ok or any(v > 1 for v in values):
        allowed = "(0, 1]" if key == "std" else "[0, 1]"
        raise ValueError(
            f"attach: {key} is {value!r}, must be in {allowed}: pixels are 0 … 1 here, so divide "
            "values for 0 … 255 by 255"
        )
    return tuple(float(v) for v in values)


def _checked_choice(key: str, value: Any, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"attach: {key} is {value!r}, allowed are {', '.join(allowed)}")
    return str(value)


def _checked_range(value: Any) -> tuple[float, float]:
    pair = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2
    if not pair or not all(_is_number(v) for v in value) or not value[0] < value[1]:
        raise ValueError(
            f"attach: intensity_range is {value!r}, must be two finite numbers (low, high), "
            "low < high"
        )
    return float(value[0]), float(value[1])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _all(values: Any, right: Callable[[Any], bool]) -> bool:
    listed = isinstance(values, Sequence) and not isinstance(values, str) and len(values) > 0
    return listed and all(map(right, values))


_ALLOWED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "input_size": (
        "(height, width) or (channels, height, width) in pixels",
        lambda value: _all(value, lambda n: type(n) is int and n > 0) and len(value) in (2, 3),
    ),
    "mean": ("numbers", lambda value: _all(value, _is_number)),
    "std": ("numbers > 0", lambda value: _all(value, lambda n: _is_number(n) and n > 0)),
    "crop_pct": ("a number > 0", lambda value: _is_number(value) and value > 0),
    "crop_mode": (f"one of {', '.join(CROP_MODES)}", CROP_MODES.__contains__),
    "interpolation": (f"one of {', '.join(INTERPOLATIONS)}", INTERPOLATIONS.__contains__),
}
"""What a configuration that was read from a file may hold, in words and as a check."""
