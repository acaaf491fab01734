"""`PrototypeHead`: what the methods share that compare pixels with learned vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from infodisent import ops, ranks
from infodisent.checks import check_positive
from infodisent.layout import to_bpc
from infodisent.methods.base import Head
from infodisent.methods.stages import Batches, part_of


class PrototypeHead(Head):
    """Every pixel is embedded in D dimensions and compared with M vectors, its prototypes.

    A method on it makes `add_on` and `prototypes`, says which images each prototype may become a
    patch of (`allowed`) and when (`project`), and turns the best pixels into units and logits.

    Args:
        in_features: channels C of the map.
        num_features: prototypes M.
        dimension: D of `prototypes`.
        similarity: of `infodisent.ops.similarity_pool`: "cosine", "l2" or "dot".
        input_fmt, num_prefix_tokens, drop_rate: see `Head`.
        device: of the buffers.

    Attributes:
        add_on: layers from C channels to D, applied to every pixel (``[..., C]``).
        prototypes: ``[M, D]``, a parameter.
        unprojected: ``[M]`` bool, prototypes that no training image was allowed for.
        duplicate_of: ``[M]`` int64, the first prototype that was moved onto the same patch; a
            prototype's own number where it is the first, or where none has moved yet.

    Raises:
        ValueError: a size, layout or rate that is not allowed, named.
    """

    unit = "prototype"
    add_on: nn.Module
    prototypes: nn.Parameter
    unprojected: Tensor
    duplicate_of: Tensor

    def __init__(
        self,
        in_features: int,
        num_features: int,
        dimension: int,
        *,
        similarity: str,
        input_fmt: str = "NCHW",
        num_prefix_tokens: int = 0,
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
    ) -> None:
        check_positive(type(self).__name__, "dimension", dimension)
        super().__init__(
            in_features,
            num_features,
            input_fmt=input_fmt,
            num_prefix_tokens=num_prefix_tokens,
            drop_rate=drop_rate,
        )
        self.dimension, self.similarity = dimension, similarity
        self.start_record(device)

    def start_record(self, device: torch.device | str | None = None) -> None:
        """Buffers of `num_features` prototypes, none of which has moved yet."""
        units = self.num_features
        self.register_buffer("unprojected", torch.zeros(units, dtype=torch.bool, device=device))
        self.register_buffer("duplicate_of", torch.arange(units, device=device))

    # -- from a map to units ----------------------------------------------------------------------

    def embed(
        self,
        x: Tensor,  # a map [B, ...] in layout input_fmt
        input_fmt: str | None = None,
    ) -> Tensor:
        """What is compared with the prototypes, ``[B, P, D]``."""
        embedded: Tensor = self.add_on(self.rows(x, input_fmt))
        return embedded

    def rows(
        self,
        x: Tensor,  # a map [B, ...] in layout input_fmt
        input_fmt: str | None = None,
    ) -> Tensor:
        """The map's pixels, ``[B, P, C]``, in the prototypes' dtype."""
        layout = self.layout(input_fmt)
        rows = to_bpc(x, layout["input_fmt"], layout["num_prefix_tokens"])
        return rows.to(self.prototypes.dtype)

    def vectors(self) -> Tensor:
        """What pixels are compared with, ``[M, D]``: the prototypes themselves here."""
        return self.prototypes

    def compare(
        self,
        embedded: Tensor,  # [B, P, D]
        units: Tensor | None = None,  # [n] int64
        **options: Any,
    ) -> ops.Pool:
        """Every prototype's best pixel, or that of some prototypes.

        Args:
            embedded: of `embed`.
            units: which prototypes; default: all.
            **options: of `infodisent.ops.similarity_pool`.
        """
        vectors = self.vectors()
        if units is not None:
            vectors = vectors[units.to(vectors.device)]
        return ops.similarity_pool(
            embedded, vectors, similarity=self.similarity, input_fmt="NLC", **options
        )

    def values(
        self,
        best: Tensor,  # [n, M]
    ) -> Tensor:
        """The units' values of the best cosines, products or squared distances; themselves here."""
        return best

    def maps(
        self,
        pixels: Tensor,  # [P, C]
        units: Tensor,  # [n] int64
    ) -> Tensor:
        """The values of every pixel, see `values`, for a few prototypes: ``[P, n]`` float32."""
        embedded = self.embed(pixels[:, None], "NLC")  # every pixel an image of its own
        return self.values(self.compare(embedded, units).value).float()

    # -- prototypes that are patches --------------------------------------------------------------

    def allowed(self) -> Tensor:
        """Whose classes' images each prototype may become a patch of, ``[K, M]`` bool: all here."""
        shape = (max(1, self.num_classes), self.num_features)
        return torch.ones(shape, dtype=torch.bool, device=self.prototypes.device)

    def best_patches(self, batches: Batches) -> ops.BestPixels:
        """Every prototype's nearest patch among the images of its classes, with its vector.

        Images are numbered by their positions. Several processes look at a part each.
        """
        return ops.best_pixels(
            ((self.embed(maps, "NLC"), *of) for maps, *of in part_of(batches)()),
            self.vectors().detach(),
            similarity=self.similarity,
            allowed=self.allowed().cpu(),
            vectors=True,
            gather=True,
        )

    @torch.no_grad()
    def project(self, batches: Batches) -> None:
        """Move every prototype onto its nearest patch among the images of its classes, in place.

        One pass over the images ("push" of the published code). The first of equal patches wins.
        A prototype without an image stays where it is: `unprojected`; those that meet on one patch
        are told by `duplicate_of`.

        Args:
            batches: of the training images.
        """
        best = self.best_patches(batches)
        assert best.vector is not None
        image, pixel = best.image[0].cpu(), best.index[0].cpu()
        found = image >= 0
        moved = found.to(self.prototypes.device)
        vectors = best.vector[0].to(self.prototypes)
        self.prototypes.copy_(torch.where(moved[:, None], vectors, self.prototypes))
        self.unprojected.copy_(~moved)
        first = torch.arange(len(image))
        of_patch: dict[tuple[int, int], int] = {}
        for unit in found.nonzero().flatten().tolist():
            patch = (int(image[unit]), int(pixel[unit]))
            first[unit] = of_patch.setdefault(patch, unit)
        self.duplicate_of.copy_(first)

    def notices(self) -> tuple[str, ...]:
        """Prototypes that share a patch, and those that no image was allowed for, by number."""
        found: list[str] = []
        own = torch.arange(self.num_features, device=self.duplicate_of.device)
        twice = (self.duplicate_of != own).nonzero().flatten().tolist()
        if twice:
            found.append(
                f"{len(twice)} of {self.num_features} {self.unit}s show a patch that an earlier "
                f"one shows: {_some(twice)}"
            )
        alone = self.unprojected.nonzero().flatten().tolist()
        if alone:
            found.append(
                f"{len(alone)} of {self.num_features} {self.unit}s have no training image of their "
                f"class and are no patch: {_some(alone)}"
            )
        return tuple(found)


def pixels_of(
    best: ops.BestPixels,
    batches: Batches,
    otherwise: Tensor,  # [M, C]
) -> Tensor:
    """The map's own pixels at the best places, ``[M, C]``; `otherwise` where there is none.

    Args:
        best: of `PrototypeHead.best_patches`: images are numbered by their positions.
        batches: those that it was made from.
        otherwise: what a unit without a place has.
    """
    of_image: dict[int, list[int]] = {}
    for unit, image in enumerate(best.image[0].tolist()):
        of_image.setdefault(image, []).append(unit)
    pixels = torch.zeros_like(otherwise)
    for maps, _, positions in part_of(batches)():
        for image, number in zip(maps, positions.tolist(), strict=True):
            for unit in of_image.get(number, ()):
                pixels[unit] = image[int(best.index[0, unit])]
    nowhere = (best.image[0] < 0).to(pixels.device)[:, None]
    # every image was in one process, the others have zeros
    return torch.where(nowhere, otherwise, ranks.total(pixels))


def nearest(
    similarity: Tensor,  # [n, M]
    mask: Tensor,  # [n, M] bool
) -> tuple[Tensor, Tensor]:
    """Of every image the largest similarity among the masked prototypes, ``[n]``, and whether any.

    An image without any has some other prototype's. What falls as similarities rise, a distance, is
    least for this one: it need not be computed of the others, nor their gradients, which are 0. The
    published code has the least distance as ``D - max((D - d) · mask)``, right only while distances
    are below D.
    """
    most, place = torch.where(mask, similarity.detach(), -torch.inf).max(dim=1)
    return similarity.gather(1, place[:, None])[:, 0], most != -torch.inf


def mean_of(
    value: Tensor,  # [n]
    counts: Tensor,  # [n] bool
) -> Tensor:
    """Mean over the images, a scalar, of those that count; the others have 0."""
    return torch.where(counts, value, 0).mean()


def of_own_classes(
    labels: Tensor,  # [n] int64, or [n, K] float32
    own: Tensor,  # [M, K] bool
) -> Tensor:
    """Which prototypes are of a class that the image has, ``[n, M]`` bool."""
    if labels.ndim == 1:
        return own.mT[labels.to(own.device)]
    return present(labels.to(own.device), own.shape[1]).float() @ own.mT.float() > 0


def magnitude(
    weight: Tensor,  # [K, M]
    own: Tensor,  # [M, K] bool
) -> Tensor:
    """Sum of the absolute weights of other classes' prototypes, a scalar."""
    # no list of places, whose length the device would have to tell
    return torch.where(own.mT, 0, weight).abs().sum()


def present(
    labels: Tensor,  # [n] int64, or [n, K] float32
    classes: int,
) -> Tensor:
    """Which classes each image has, ``[n, K]`` bool."""
    if labels.ndim == 2:
        return labels > 0.5
    return nn.functional.one_hot(labels, classes) > 0


def _some(units: list[int], count: int = 12) -> str:
    named = ", ".join(str(unit) for unit in units[:count])
    return named + (f" and {len(units) - count} more" if len(units) > count else "")
