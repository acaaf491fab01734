"""`ProtoPShareHead`: a ProtoPNet whose prototypes that say the same are merged."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from infodisent import ranks
from infodisent.checks import check_choice, check_positive
from infodisent.methods.protopnet import LAST, ProtoPNetHead
from infodisent.methods.stages import Batches, Stage, part_of

BY = ("data", "vectors")


class ProtoPShareHead(ProtoPNetHead):
    """ProtoPNet with fewer prototypes, which classes share.

    Before the last layer trains, prototypes are compared by how alike they see the training images
    and merged where they are alike: one of them stays as it is, its weights become the sum of all,
    and it belongs to all their classes. Weights for other classes start at 0, not at -0.5.

    Rymarczyk et al., "ProtoPShare: Prototypical Parts Sharing for Similarity Discovery in
    Interpretable Image Classification", KDD 2021 (arXiv 2011.14340). The rule is that of the
    published code: the squared distance of two prototypes is that of their vectors of distances to
    all training images; the threshold is the `share` · M-th smallest of the distances to the
    nearest other prototype; in order of their numbers, each takes all later ones within it. The
    paper compares inverse differences instead. One merge, where the code has one every five epochs.

    Besides the attributes of `ProtoPNetHead` it has ``owners`` ``[M, K]`` bool, the classes that a
    prototype belongs to; merged ones are not ``kept``.

    Args:
        in_features, num_classes, input_fmt, num_prefix_tokens, device, dtype: see `ProtoPNetHead`.
        share: part of the prototypes whose nearest other one is within the threshold, in (0, 1);
            published: 0.1 (200 of 2000).
        keep: instead, at most so many prototypes stay: the smallest threshold that reaches it.
        by: "data", as above; "vectors", by the prototypes' own squared distances, which needs no
            images (the published alternative).
        **options: of `ProtoPNetHead`.

    Raises:
        ValueError: a size, layout or option that is not allowed, named.
    """

    method = "protopshare"
    title = "ProtoPShare"
    summary = "ProtoPNet whose prototypes that see the same are merged, and shared by classes"
    paper = "Rymarczyk et al. 2021, arXiv 2011.14340"
    wrong_start = 0.0
    owners: Tensor

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        input_fmt: str = "NCHW",
        num_prefix_tokens: int = 0,
        share: float = 0.1,
        keep: int | None = None,
        by: str = "data",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        name = type(self).__name__
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < 1:
            raise ValueError(f"{name}: share is {share!r}, must be in (0, 1)")
        if keep is not None:
            check_positive(name, "keep", keep)
        check_choice(name, "by", by, BY)
        super().__init__(
            in_features,
            num_classes,
            input_fmt=input_fmt,
            num_prefix_tokens=num_prefix_tokens,
            device=device,
            dtype=dtype,
            **options,
        )
        self.share, self.keep, self.by = share, keep, by

    def _build_prototypes(self, place: dict[str, Any]) -> None:
        owners = super().own(place["device"] or "cpu")
        self.register_buffer("owners", owners)
        super()._build_prototypes(place)

    def own(self, device: torch.device | str = "cpu") -> Tensor:
        """Which prototype belongs to which classes, ``[M, K]`` bool."""
        return self.owners.to(device)

    def start_stage(self, stage: Stage, batches: Batches) -> None:
        """As of `ProtoPNetHead`; after the last projection the merge."""
        super().start_stage(stage, batches)
        if stage.name == LAST:
            self.merge(batches)

    @torch.no_grad()
    def merge(self, batches: Batches) -> None:
        """Merge prototypes, in place; one pass over the images, which "vectors" does without.

        Args:
            batches: of the training images.
        """
        distance = self._distances(batches)
        threshold = self._threshold(distance)
        weight = self.last.weight if isinstance(self.last, nn.Linear) else None
        kept = torch.ones(self.num_features, dtype=torch.bool)
        for unit, others in enumerate(merge_order(distance, threshold)):
            if not others:
                continue
            kept[others] = False
            self.owners[unit] |= self.owners[others].any(0)
            if weight is not None:
                weight[:, unit] += weight[:, others].sum(1)
                weight[:, others] = 0
        self.kept.copy_(kept)

    def _distances(self, batches: Batches) -> Tensor:
        """Squared distances of every two prototypes, ``[M, M]`` float64, Inf on the diagonal."""
        if self.by == "vectors":
            vectors = self.vectors().detach().cpu().double()
            gram = vectors @ vectors.mT
        else:
            # what all images say is summed up batch by batch: no table of images and prototypes
            gram = torch.zeros(self.num_features, self.num_features, dtype=torch.float64)
            for maps, _, _ in part_of(batches)():
                seen = self.compare(self.embed(maps, "NLC")).value.cpu().double()  # [n, M]
                gram += seen.mT @ seen
            gram = ranks.total(gram)
        norms = gram.diagonal()
        distance = (norms[:, None] - 2 * gram + norms).clamp_min(0)
        return distance.fill_diagonal_(torch.inf)

    def _threshold(self, distance: Tensor) -> float:
        """The published one, or the smallest that leaves `keep` prototypes."""
        closest = distance.amin(1).sort().values
        if self.keep is None:
            return float(closest[max(0, round(self.share * len(closest)) - 1)])
        if self.keep >= self.num_features:
            return -1.0
        candidates = distance[distance.isfinite()].unique()  # sorted
        low, high = 0, len(candidates) - 1
        while low < high:  # more is merged the larger it is, but for ties of the order
            middle = (low + high) // 2
            left = sum(others is not None for others in merge_order(distance, candidates[middle]))
            if left > self.keep:
                low = middle + 1
            else:
                high = middle
        return float(candidates[low])


def merge_order(
    distance: Tensor,  # [M, M]
    threshold: float | Tensor,
) -> list[list[int] | None]:
    """What each prototype takes over: numbers of others, none, or None where it was taken itself.

    In order of the numbers, each that is left takes all left ones within `threshold`.
    """
    near = distance <= threshold
    left = torch.ones(len(distance), dtype=torch.bool)
    taken: list[list[int] | None] = []
    for unit in range(len(distance)):
        if not left[unit]:
            taken.append(None)
            continue
        others = (near[unit] & left).nonzero().flatten()
        left[others] = False
        taken.append(others.tolist())
    return taken
