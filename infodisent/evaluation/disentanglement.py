"""Whether units mean one thing: purity, entropy, duplicates. None needs annotations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from infodisent import ranks
from infodisent.checks import check_choice, check_positive
from infodisent.evaluation.arguments import check_maps, check_tensor
from infodisent.explanations.prototypes import Prototypes
from infodisent.explanations.unit_maps import UnitMaps
from infodisent.methods import Head

RANKS = ("sum", "max")


@torch.no_grad()
def channel_purity(
    head: Head,
    batches: Iterable[Tensor],  # of maps [b, P, C]
    *,
    count: int = 5,
    by: str = "sum",
    sign: int = 1,
    divided: bool = False,
) -> Tensor:
    """EPIC's purity of every unit, ``[M]`` in [-1, 1]; higher is better.

    Of an image and a unit k it is ``y_k / ||y||`` at the pixel where y_k is largest: 1 where
    nothing but k responds there. Of a unit it is the mean over its `count` images with the largest
    sum over pixels of y_k. Borycki et al., "EPIC", AAAI 2026 (arXiv 2505.12897). For heads that
    keep a maximum, ``by="max"`` ranks images by it: those are the prototypes they show.

    Args:
        head: in evaluation mode.
        batches: maps of the images to search, in any order; ties go to the earlier image.
        count: images a unit; all where there are fewer.
        by: "sum", as published, or "max".
        sign: 1, or -1 for the same of -y.
        divided: of several processes (`infodisent.ranks`) each has a part of the images, in the
            order of the processes; the result is that of all images.

    Raises:
        ValueError: an argument is not allowed, or there are no images.
    """
    check_positive("channel_purity", "count", count)
    check_choice("channel_purity", "by", by, RANKS)
    if sign not in (1, -1):
        raise ValueError(f"channel_purity: sign is {sign!r}, allowed are 1 and -1")
    units = UnitMaps(head)
    best: Tensor | None = None
    purity: Tensor | None = None
    for maps in batches:
        check_maps("channel_purity", head, maps)
        for chunk in units.chunks(maps):
            values = sign * units.of_images(maps[chunk].to(head.device))  # [b, P, M]
            top, place = values.max(1)  # [b, M]
            norm = values.norm(dim=2).clamp_min(1e-8).gather(1, place)
            rank, pure = (values.sum(1) if by == "sum" else top), top / norm
            if best is not None and purity is not None:
                rank, pure = torch.cat([best, rank]), torch.cat([purity, pure])
            order = rank.argsort(dim=0, descending=True, stable=True)[:count]
            best, purity = rank.gather(0, order), pure.gather(0, order)
    if purity is None:
        raise ValueError("channel_purity: there are no images")
    if divided and best is not None:
        best, purity = ranks.gathered(best), ranks.gathered(purity)
        purity = purity.gather(0, best.argsort(dim=0, descending=True, stable=True)[:count])
    return purity.mean(0)


@torch.no_grad()
def spatial_entropy(
    head: Head,
    maps: Tensor,  # [B, P, C]
) -> Tensor:
    """How spread out units are over an image, ``[B]`` in nats, 0 … log P; lower is better.

    Entropy of the softmax over pixels of each unit (1e-8 inside the logarithm), averaged with the
    weights ``max |y| / sum of max |y|``. The objective of PiPS, the segmentation relative of EPIC.
    """
    check_maps("spatial_entropy", head, maps)
    units = UnitMaps(head)
    parts = [maps.new_zeros(0)]
    for chunk in units.chunks(maps):
        values = units.of_images(maps[chunk])  # [b, P, M]
        chance = values.softmax(1)
        entropy = -(chance * (chance + 1e-8).log()).sum(1)  # [b, M]
        weight = values.abs().amax(1)
        weight = weight / weight.sum(1, keepdim=True).clamp_min(1e-30)
        parts.append((weight * entropy).sum(1))
    return torch.cat(parts)


def complexity(
    saliency: Tensor,  # [B, P]
) -> Tensor:
    """Entropy of ``|a| / sum |a|`` of an explanation, ``[B]`` in nats; lower is simpler.

    Bhatt, Weller and Moura, IJCAI 2020, as in Quantus. NaN where all is 0.
    """
    check_tensor("complexity", "saliency", saliency, "images", "pixels")
    size = saliency.abs()
    part = size / size.sum(1, keepdim=True)
    entropy: Tensor = torch.special.entr(part)
    return entropy.sum(1)


class Duplicates(NamedTuple):
    """Sides of units that have a prototype, and how many of them show one shown before."""

    sides: int
    duplicates: int

    @property
    def part(self) -> float | None:
        """Duplicates of all; None without any side."""
        return self.duplicates / self.sides if self.sides else None


def duplicate_prototypes(prototypes: Prototypes) -> Duplicates:
    """Units whose first prototype is the very patch of an earlier unit's; fewer are better.

    A patch is an image and a feature cell; either side of a unit counts as one. What users of
    ProtoPNet complain of: all prototypes of a class on one patch.
    """
    image = torch.cat([prototypes.pos_image[0], prototypes.neg_image[0]])
    pixel = torch.cat([prototypes.pos_index[0], prototypes.neg_index[0]])
    has = image >= 0
    patches = torch.stack([image[has], pixel[has].long()], 1)
    different = len(patches.unique(dim=0)) if len(patches) else 0
    return Duplicates(len(patches), len(patches) - different)
