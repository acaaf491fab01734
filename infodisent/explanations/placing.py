"""Maps of feature cells laid over the photograph they come from."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from infodisent.backbones.geometry import CropGeometry


def on_photograph(
    heat: Tensor,  # [gh, gw]
    geometry: CropGeometry | None,
    size: tuple[int, int],
) -> NDArray[np.float32]:
    """A map of cells at the size of its photograph, ``[H, W]`` float32, between its values.

    Bilinear between the centres of cells, as images are resized; 0 outside of what the network saw.

    Args:
        heat: of the cells.
        geometry: where the network's picture lies in the photograph; None: it is the photograph.
        size: ``(width, height)`` of the photograph.
    """
    at = geometry or CropGeometry.identity(size)
    axes, inside = [], []
    for axis in (0, 1):
        pixels = torch.arange(size[axis], dtype=torch.float64) + 0.5
        seen = pixels * at.resized[axis] / at.image_size[axis] - at.offset[axis]
        inside.append((seen >= 0) & (seen <= at.input_size[axis]))
        axes.append(2 * seen / at.input_size[axis] - 1)  # -1 and 1 are the picture's edges
    places = torch.stack(torch.meshgrid(*axes, indexing="xy"), -1)[None].float()
    large = nn.functional.grid_sample(
        heat.detach().float().cpu()[None, None], places, padding_mode="border", align_corners=False
    )[0, 0]
    values: NDArray[np.float32] = (large * (inside[1][:, None] & inside[0])).numpy()
    return values
