"""The units of a head at every pixel: what the closed forms below are closed in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from infodisent.contract import SparsePool
from infodisent.methods import Head

BYTES = 1 << 26
"""Of a dense table ``[images, pixels, units]`` that is worked on at a time: 64 MiB."""
_CLOSE = 1e-3
"""Relative: maps may be computed in another order, or at another precision, than the pool."""


class UnitMaps:
    """`Head.maps` of many images, and what is known of a head through it.

    Where the units are linear in a pixel (channels of a rotated map) their vectors are read once,
    as the maps of the unit vectors; otherwise `Head.maps` itself is asked.

    Args:
        head: of any method; in evaluation mode.

    Attributes:
        head: the same.
        vectors: ``[M, C]`` float32 where units are linear in a pixel, else None.
        pointwise: whether a pixel's values are its own, whatever the image's other pixels are. Not
            of a method that subtracts their mean.
    """

    def __init__(self, head: Head) -> None:
        self.head = head
        self.vectors = _linear_vectors(head)
        self.pointwise = self.vectors is not None or _pointwise(head)

    def values(
        self,
        pixels: Tensor,  # [n, C]
        units: Tensor | None = None,  # [m] int64
    ) -> Tensor:
        """The units (all by default) at every pixel, ``[n, m]`` float32, differentiable."""
        if self.vectors is not None:
            vectors = self.vectors if units is None else self.vectors[units]
            return pixels.float() @ vectors.mT
        if units is None:
            units = torch.arange(self.head.num_features, device=pixels.device)
        return self.head.maps(pixels, units)

    def of_images(
        self,
        maps: Tensor,  # [b, P, C]
        units: Tensor | None = None,  # [m] int64
    ) -> Tensor:
        """The units (all by default) at every pixel of several images, ``[b, P, m]`` float32."""
        if not self.pointwise:  # each image by itself
            return torch.stack([self.values(pixels, units) for pixels in maps])
        table: Tensor = self.values(maps.flatten(0, 1), units).unflatten(0, maps.shape[:2])
        return table

    def chunks(
        self,
        maps: Tensor,  # [B, P, C]
    ) -> Iterator[slice]:
        """Slices of the images whose table of all units is within `BYTES`, or one image each."""
        each = 4 * maps.shape[1] * max(self.head.num_features, maps.shape[2])
        size = max(1, BYTES // max(1, each))
        return (slice(at, at + size) for at in range(0, len(maps), size))

    def check_extreme(
        self,
        what: str,
        values: Tensor,  # [b, P, M]
        pool: SparsePool,  # [b, M] each
    ) -> bool:
        """Whether the pool has a negative side; raises where it is no maximum over pixels.

        Raises:
            ValueError: a unit's value is not the largest of its map (clamped at 0), or the map of
                a part of the pixels is another, such as of a method that also subtracts a mean;
                `what` begins the message.
        """
        if not self.pointwise:
            raise ValueError(
                f"{what}: the units of {self.head.title} at a pixel depend on the image's other "
                "pixels, while this closed form needs maps that do not"
            )
        two_sided = bool((pool.neg != 0).any())
        sides = [(values, pool.pos)] + ([(-values, pool.neg)] if two_sided else [])
        for side, pooled in sides:
            largest = side.amax(1).clamp_min(0)
            scale = max(float(largest.abs().amax()), 1e-12) if largest.numel() else 1.0
            if not bool(((largest - pooled).abs() <= _CLOSE * scale).all()):
                raise ValueError(
                    f"{what}: the units of {self.head.title} are not the largest values of their "
                    "maps, which this closed form needs"
                )
        return two_sided


def is_linear(
    head: Head,
    pooled: Tensor,  # [n, M]
) -> bool:
    """Whether the scores of units, and of any part of them, are ``pooled · W^T + offset``.

    Decided by trying: the units given, half of them, and those at half their values.
    """
    half = torch.rand(pooled.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    half = half.to(pooled.device)
    weights = head.class_weights()
    offsets = head.offsets(torch.arange(len(weights), device=weights.device))
    for units in (pooled, pooled * half, pooled / 2):
        scores = head.scores(head.classify(units)).float()
        expected = units.to(weights.dtype) @ weights.mT + offsets
        scale = max(float(expected.abs().amax()), 1e-12) if expected.numel() else 1.0
        if not bool(((scores - expected).abs() <= _CLOSE * scale).all()):
            return False
    return True


@torch.no_grad()
def _pointwise(head: Head) -> bool:
    """Whether `Head.maps` of a pixel is the same with other pixels beside it, and without."""
    g = torch.Generator().manual_seed(0)
    trial = torch.randn(3, head.in_features, generator=g).to(head.device)
    units = torch.arange(head.num_features, device=head.device)
    together = head.maps(trial, units)
    alone = torch.cat([head.maps(pixel[None], units) for pixel in trial])
    scale = max(float(together.abs().amax()), 1e-12) if together.numel() else 1.0
    return bool(((together - alone).abs() <= _CLOSE * scale).all())


@torch.no_grad()
def _linear_vectors(head: Head) -> Tensor | None:
    """``[M, C]`` such that ``maps(x) = x · vectors^T``, or None where there is no such thing."""
    channels = head.in_features
    place: dict[str, Any] = {"device": head.device, "dtype": torch.float32}
    g = torch.Generator().manual_seed(0)
    trial = torch.randn(3, channels, generator=g).to(**place)
    units = torch.arange(head.num_features, device=head.device)
    values = head.maps(torch.cat([trial, -2 * trial, torch.zeros_like(trial)]), units)
    once, twice, none = values.split(3)
    if not torch.allclose(twice, -2 * once, rtol=1e-4, atol=1e-5) or bool((none != 0).any()):
        return None  # without asking for C more pixels
    vectors = head.maps(torch.eye(channels, **place), units).mT.contiguous()
    scale = float(once.abs().amax())
    close = bool(((trial @ vectors.mT - once).abs() <= _CLOSE * scale).all())
    return vectors if close else None
