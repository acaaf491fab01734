"""`ViewStore`: maps of augmented copies of the training images, in pairs of views."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infodisent import ranks
from infodisent.backbones.backbone import Backbone, HasBackbone, backbone_of
from infodisent.data.augmentation import VIEWS, Augmentation, Augmenter, Copy, CopyDataset
from infodisent.data.extraction import (
    AUTOCAST,
    manifest,
    prepare,
    weights_digest,
    write_shards,
)
from infodisent.data.images import ImageItem
from infodisent.data.shards import Pass
from infodisent.data.store import FeatureStore
from infodisent.files import reading


class ViewStore(FeatureStore):
    """A feature store of views: `infodisent.data.extraction.extract_views` writes it.

    Args:
        path: its folder.

    Attributes:
        pairs: of every image.
        positions: of the images in the store they were taken from, ``[n]`` int64, rising.

    Raises:
        FileNotFoundError: no store there.
        ValueError: it is incomplete, damaged, no store of views, or lacks an image.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        views = self.meta.get("views")
        if views is None:
            raise ValueError(f"{self.path} holds features of images, not pairs of views")
        with reading(self.path):
            self.pairs: int = views["pairs"]
            self.positions = torch.tensor(views["positions"], dtype=torch.int64)
        if self.skipped:
            raise ValueError(
                f"{self.path}: {len(self.skipped)} views could not be made: {self.skipped[0][1]}"
            )

    def check(
        self,
        store: FeatureStore,
        images: Tensor,  # [n] int64
    ) -> None:
        """Raise ValueError unless these are views of the images of `store` at these positions."""
        then = {key: value for key, value in self.meta["made_from"].items() if key != "views"}
        if then != store.meta["made_from"]:
            raise ValueError(f"fit_head: views {self.path} are not of the features {store.path}")
        lacking = int((~torch.isin(images, self.positions)).sum())
        if lacking:
            raise ValueError(
                f"fit_head: views {self.path} lack {lacking} of {len(images)} training images"
            )

    def pair(
        self,
        images: Tensor,  # [n] int64
        numbers: Tensor,  # [n] int64
    ) -> Tensor:
        """One pair of every image, ``[2n, P, C]`` in the stored dtype: rows i and i + n are a pair.

        Args:
            images: positions in the store of the images.
            numbers: which of the image's pairs, in 0 … `pairs` - 1.
        """
        return self.gather(self.rows(images, numbers), dtype=None)

    def rows(
        self,
        images: Tensor,  # [n] int64
        numbers: Tensor,  # [n] int64
    ) -> Tensor:
        """Where the maps of `pair` lie in this store, ``[2n]`` int64."""
        first = torch.searchsorted(self.positions, images) * self.pairs + numbers
        return torch.cat([first * VIEWS + view for view in range(VIEWS)])


def extract_views(
    model: Backbone | HasBackbone,
    store: FeatureStore,
    out: str | os.PathLike[str],
    *,
    pairs: int = 2,
    augmentation: Augmentation | None = None,
    seed: int = 0,
    batch_size: int = 32,
    num_workers: int = 0,
    device: torch.device | str | None = None,
    compiled: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> ViewStore:
    """Store maps of augmented copies of the training images, in pairs of views of one copy.

    For methods with a stage of two views, see `infodisent.methods.Stage.views`. Costs as much as
    extracting ``2 · pairs`` times as many images; goes on where a former run ended, as `extract`
    does, and the copies depend on `seed`, image and pair alone.

    Args:
        model: whose maps `store` holds, with the same weights.
        store: of `extract`; its "train" images are copied.
        out: folder of the views.
        pairs: of every image.
        augmentation: how far copies go; default `Augmentation()`.
        seed: of the copies.
        batch_size, num_workers, device, compiled, overwrite, progress: as of `extract`; products
            are computed in what those of `store` were.

    Raises:
        ValueError: the folder holds views of something else, `store` was made with other weights,
            an option is not allowed, or an image that `store` holds cannot be read any more.
        OSError: as of `extract`.
    """
    for name, value in (("pairs", pairs), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"extract_views: {name} is {value!r}, must be an int >= 1")
    backbone, folder = backbone_of(model), Path(out)
    augmentation = augmentation or Augmentation()
    made_from = dict(store.meta["made_from"])
    if made_from.get("weights") != weights_digest(backbone):
        raise ValueError(
            f"extract_views: {store.path} holds the maps of other weights than the model's"
        )
    transform, dtype = store.meta["transform"], made_from["dtype"]
    augmenter = Augmenter(transform, augmentation)
    train = store.indices("train").tolist()
    each = VIEWS * pairs
    views = {"pairs": pairs, "seed": seed, "augmentation": augmentation.as_dict()}
    views["images"] = hashlib.sha256(torch.tensor(train).numpy().tobytes()).hexdigest()
    items = [
        ImageItem(store.files[i], _label(store, i), "train", store.groups[i])
        for i in train
        for _ in range(each)
    ]
    meta = manifest(backbone, {**made_from, "views": views}, transform) | {
        "views": {**views, "positions": train},
        "classes": list(store.classes),
        "task": store.task,
        "root": store.meta["root"],
        "shard_size": store.meta["shard_size"],
        "items": [dataclasses.astuple(item) for item in items],
    }
    meta["spec"]["original_num_classes"] = 0  # the original head is not asked
    with ranks.leader_first():
        prepare(folder, meta, None, overwrite and ranks.leads())

    files = [store.files[i] for i in train]
    made = meta["made_from"].get("amp", "none")
    write_shards(
        backbone,
        folder,
        meta,
        CopyDataset(_Copies(files, train, seed, each), transform, augmenter),
        dtype,
        label="extract views",
        batch_size=batch_size,
        num_workers=num_workers,
        device=device,
        run=Pass(torch.compile(backbone.raw) if compiled else None, AUTOCAST[made]),
        progress=progress,
    )
    return ViewStore(folder)


class _Copies(Sequence[Copy]):
    """Every copy's views behind each other, made when asked for: there are millions of them."""

    def __init__(self, files: Sequence[str], numbers: Sequence[int], seed: int, each: int) -> None:
        self._files, self._numbers, self._seed, self._each = files, numbers, seed, each

    def __len__(self) -> int:
        return len(self._files) * self._each

    def __getitem__(self, n: Any) -> Any:
        image, view = divmod(n, self._each)
        return Copy(
            self._files[image], (self._seed, self._numbers[image], view // VIEWS), n % VIEWS
        )


def _label(store: FeatureStore, position: int) -> Any:
    """As `ImageItem` has it."""
    label = store.labels[position]
    return int(label) if label.ndim == 0 else tuple(label.nonzero().flatten().tolist())
