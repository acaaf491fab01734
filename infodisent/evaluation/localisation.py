"""Whether an explanation lies on the object, from its mask: Quantus's three localisation metrics.

All take attributions ``[B, H, W]`` and masks ``[B, H, W]`` bool, and give a value for every image,
``[B]`` in [0, 1], higher is better, NaN where the mask is empty or an attribution is NaN. Hedström
et al., "Quantus", JMLR 2023; definitions as in its code.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pointing_game(
    saliency: Tensor,  # [B, H, W]
    mask: Tensor,  # [B, H, W] bool
) -> Tensor:
    """1 where the largest attribution lies in the mask (of several equal ones, any), else 0.

    Zhang et al., "Top-down neural attention by excitation backprop", ECCV 2016.
    """
    flat, inside = _flat("pointing_game", saliency, mask)
    largest = flat == flat.amax(1, keepdim=True)
    return _known((largest & inside).any(1).float(), inside, flat)


def mass_accuracy(
    saliency: Tensor,  # [B, H, W]
    mask: Tensor,  # [B, H, W] bool
) -> Tensor:
    """Part of the positive attribution that lies in the mask; 0 where there is none at all.

    Arras, Osman and Samek, "CLEVR-XAI", Information Fusion 2022: relevance mass accuracy.
    """
    flat, inside = _flat("mass_accuracy", saliency, mask)
    flat = flat.clamp_min(0)
    total = flat.sum(1)
    return _known(torch.where(total > 0, (flat * inside).sum(1) / total, 0), inside, flat)


def rank_accuracy(
    saliency: Tensor,  # [B, H, W]
    mask: Tensor,  # [B, H, W] bool
) -> Tensor:
    """Part of the n most important pixels that lie in the mask of n pixels.

    Arras, Osman and Samek 2022: relevance rank accuracy. Of equal attributions at the border of the
    n the expected part is taken, so that a constant map gets the mask's part of the picture; the
    published code leaves them to the sort.
    """
    flat, inside = _flat("rank_accuracy", saliency, mask)
    count = inside.sum(1)
    ordered = flat.sort(dim=1, descending=True).values
    least = ordered.gather(1, (count - 1).clamp_min(0)[:, None])
    above, equal = flat > least, flat == least
    open_places = count - above.sum(1)
    share = (equal & inside).sum(1) / equal.sum(1)
    hits = (above & inside).sum(1) + open_places * share
    return _known(hits / count.clamp_min(1), inside, flat)


def _flat(what: str, saliency: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    if saliency.ndim != 3 or saliency.shape != mask.shape:
        raise ValueError(
            f"{what}: saliency is {tuple(saliency.shape)} and mask {tuple(mask.shape)}, must be "
            "(images, rows, columns) both"
        )
    if mask.is_floating_point():
        raise TypeError(f"{what}: mask is {mask.dtype}, must be bool")
    return saliency.flatten(1), mask.flatten(1).bool()


def _known(values: Tensor, inside: Tensor, flat: Tensor) -> Tensor:
    return torch.where(inside.any(1) & ~flat.isnan().any(1), values, torch.nan)


LOCALISATION = {"pointing": pointing_game, "mass": mass_accuracy, "rank": rank_accuracy}
"""Every one by its key in tables and files."""
