"""Images that are already as the backbone is fed: what data loaders give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def ready_tensor(image: Any, channels: int) -> Tensor:
    """A normalised tensor or array ``[C, H, W]`` or ``[1, C, H, W]`` as float32 on the CPU.

    Raises:
        TypeError: it is neither.
        ValueError: another shape, integers, or values that are not finite.
    """
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(image)
    if not isinstance(image, Tensor):
        raise TypeError(
            f"explain: with ready=True an image is a tensor or array, got {type(image).__name__}"
        )
    x = image[0] if image.ndim == 4 and len(image) == 1 else image
    if x.ndim != 3 or x.shape[0] != channels or not x.is_floating_point():
        raise ValueError(
            f"explain: with ready=True an image is [{channels}, H, W] of floats as the backbone is "
            f"fed, got {list(image.shape)} of {str(image.dtype).removeprefix('torch.')}"
        )
    x = x.detach().float().cpu()
    if not bool(torch.isfinite(x).all()):
        raise ValueError("explain: the image has values that are not finite")
    return x


def check_one_size(images: Sequence[Tensor]) -> None:
    """ValueError unless all are of one size, as they are fed together."""
    sizes = {tuple(x.shape[1:]) for x in images}
    if len(sizes) > 1:
        named = ", ".join(f"{height} x {width}" for height, width in sorted(sizes))
        raise ValueError(f"explain: images of several sizes were given together: {named}")
