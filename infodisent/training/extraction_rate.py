"""How fast images become maps here, by a short extraction into a folder that is removed."""

from __future__ import annotations

import contextlib
import io
import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from infodisent.backbones.backbone import Backbone
from infodisent.backbones.preprocess import transform_config, transform_from
from infodisent.classifier import InfoDisentClassifier
from infodisent.data.augmentation import VIEWS, Augmentation, Augmenter, Copy, CopyDataset
from infodisent.data.encoding import DTYPES
from infodisent.data.extraction import manifest
from infodisent.data.images import ImageDataset, Sample
from infodisent.data.shards import CACHED, ShardWriter

MOST = 4096
"""Images of it at most."""
_LEAST = 4
"""Batches of it at least."""


class _EnoughError(Exception):
    """The time is over."""


def extraction_rate(
    backbone: Backbone,
    dataset: Dataset[Sample],
    folder: Path,
    seconds: float,
    *,
    item_bytes: int,
    workers: int = 0,
    original: bool = True,
) -> tuple[float, float]:
    """Images a second from files to maps, and the seconds that pass before the first ones besides.

    Decoding goes on beside the backbone, as in an extraction: on a processor they wait for each
    other, by how much neither tells alone. The first pass also readies the backbone's kernels,
    unless it has run before in this process.

    Args:
        backbone: on its device, in evaluation mode.
        dataset: of images, or of their copies; the first `MOST` of them at most are taken.
        folder: on the store's disk.
        seconds: for the whole of it, at least `_LEAST` batches.
        item_bytes: of one number of the stored maps.
        workers: processes that decode; 0 decodes in a thread.
        original: the original head's logits are stored too.
    """
    marks: list[tuple[float, int]] = []
    start = time.perf_counter()

    def seen(images: int, bad: int) -> None:
        marks.append((time.perf_counter(), images))
        if len(marks) >= _LEAST and marks[-1][0] - start > seconds:
            raise _EnoughError

    count = min(MOST, len(dataset))  # type: ignore[arg-type]
    dtype = next(n for n, t in DTYPES.items() if t.itemsize == item_bytes)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        meta = manifest(backbone, {}, transform_config(backbone))
        writer = ShardWriter(
            Path(place), meta, backbone, dataset, dtype, CACHED, workers, seen, original=original
        )
        with contextlib.suppress(_EnoughError):
            writer.write({0: range(count)})
    (first, some), (last, _) = marks[0], marks[-1]
    rate = sum(images for _, images in marks[1:]) / (last - first)
    return rate, max(0.0, first - start - some / rate)


def images_of(model: InfoDisentClassifier, pictures: Sequence[str]) -> ImageDataset:
    """`MOST` images, of some of these."""
    config = transform_config(model.backbone)
    return ImageDataset(list(_again(pictures, MOST)), transform_from(config), config)


def copies_of(model: InfoDisentClassifier, pictures: Sequence[str]) -> CopyDataset:
    """`MOST` copies of some of these, in pairs of views, each of a picture that is read for it."""
    config = transform_config(model.backbone)
    some = _again(pictures, MOST // VIEWS)
    copies = [Copy(path, (0, at), view) for at, path in enumerate(some) for view in range(VIEWS)]
    return CopyDataset(copies, config, Augmenter(config, Augmentation()))


def _again(pictures: Sequence[str], count: int) -> Iterator[str]:
    """So many of the pictures, from all over the list, over and over."""
    some = list(pictures[:: max(1, len(pictures) // 32)])
    return itertools.islice(itertools.cycle(some), count)


def photograph(seed: int = 0) -> bytes:
    """A JPEG file of 500 x 375 pixels with the detail of a photograph: noise of every scale."""
    random = np.random.default_rng(seed)
    scales = [
        np.asarray(
            Image.fromarray(random.integers(0, 256, (h, w, 3), np.uint8)).resize((500, 375)),
            np.float32,
        )
        for h, w in ((375, 500), (94, 125), (24, 32), (6, 8))
    ]
    pixels = sum(scale * share for scale, share in zip(scales, (0.1, 0.15, 0.25, 0.5), strict=True))
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.float32).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()
