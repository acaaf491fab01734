"""The held-out images of a run that are annotated, with what is known of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from infodisent import ranks
from infodisent.backbones.geometry import crop_geometry
from infodisent.backbones.preprocess import transform_from
from infodisent.data.annotations import Annotations, mask_in_input, points_in_input
from infodisent.data.pictures import load_picture, reading_options
from infodisent.evaluation.annotated import AnnotatedBatch

_BATCH = 16


class AnnotatedImages:
    """Batches of the images that are annotated, as the backbone is fed.

    Of several processes (`infodisent.ranks`) each reads a part of them.

    Args:
        known: the annotations.
        files, labels: of images, ``N`` and ``[N]``.
        config: of the evaluation transform.

    Attributes:
        found: positions in `files` and in the annotations, of the images that are annotated.
        sources: what their objects' masks came from, counted as batches are read.
        unreadable: the reasons why images were left out, in the same way.

    Raises:
        ValueError: none is annotated.
    """

    def __init__(
        self,
        known: Annotations,
        files: Sequence[str],
        labels: Tensor,
        config: Mapping[str, Any],
    ) -> None:
        self._known, self._files, self._labels, self._config = known, files, labels, config
        pairs = ((i, known.find(file)) for i, file in enumerate(files))
        self.found = [(i, at) for i, at in pairs if at is not None]
        self.sources: Counter[str] = Counter()
        self.unreadable: list[str] = []
        if not self.found:
            raise ValueError(
                f"annotations: none of the {len(files)} images is annotated, such as {files[0]}; "
                f"annotated are files such as {known.files[0]}"
            )

    def __len__(self) -> int:
        return len(self.found)

    def __iter__(self) -> Iterator[AnnotatedBatch]:
        starts = list(enumerate(range(0, len(self.found), _BATCH)))
        for number, start in ranks.share(starts):
            rows = []
            for position, at in self.found[start : start + _BATCH]:
                try:
                    rows.append((*self._read(position, at), self._labels[position]))
                except (OSError, ValueError) as error:  # also of a mask's file
                    self.unreadable.append(str(error))
            if rows:
                images, keypoints, masks, labels = (
                    torch.stack(column) for column in zip(*rows, strict=True)
                )
                yield AnnotatedBatch(images, labels, keypoints, masks, number)

    def _read(self, position: int, at: int) -> tuple[Tensor, Tensor, Tensor]:
        config = self._config
        picture = load_picture(self._files[position], **reading_options(config)).image
        image: Tensor = transform_from(config)(picture)
        geometry = crop_geometry(config, picture.size)
        points = self._known.keypoints_of(at)
        seen = torch.zeros(0, 2)
        if points is not None:
            seen = points_in_input(points, geometry)
            limits = torch.tensor(geometry.input_size)
            cut = ((seen < 0) | (seen >= limits)).any(1)
            seen[cut] = torch.nan  # a part that the crop has cut away is not visible
        found = self._known.mask_of(at)
        mask = torch.zeros(image.shape[1:], dtype=torch.bool)
        if found is not None:
            mask = mask_in_input(found[0], geometry)
            self.sources[found[1]] += 1
        return image, seen, mask
