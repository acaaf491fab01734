"""`FeatureStore`: feature maps on disk, as `infodisent.data.extraction` writes them.

A store is a folder: ``store.json`` says what it holds, ``shard-00000.safetensors`` … hold the maps.
A shard appears under its name only when it is complete.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infodisent.data.images import ImageItem
from infodisent.data.reader import ShardFiles
from infodisent.data.rows import ShardedRows, empty_rows, locate
from infodisent.files import read_json, read_tensors, reading

MANIFEST = "store.json"


class FeatureStore:
    """Feature maps of a labelled image set, read through memory maps.

    Args:
        path: a folder that `extract` has completed.

    Attributes:
        classes: K class names.
        files: path of every stored image, N.
        task: "multiclass" or "multilabel", see `infodisent.data.images.ImageSet`.
        labels: ``[N]`` int64; multi-label ``[N, K]`` float32 of zeros and ones.
        groups: of every stored image, N; "" where it has none.
        splits: "train" or "val" for every image, N.
        original_logits: ``[N, K']`` logits of the original head, or None; ``original_logits[i]``
            reads the rows at the positions ``i`` as float32, the whole is never in memory.
        skipped: ``(path, reason)`` of the images that could not be read.
        channels, pixels, grid: C, P and ``(H, W)`` with ``H·W = P``.
        meta: everything else that ``store.json`` says (backbone, transform, fingerprint …).

    Raises:
        FileNotFoundError: no store there.
        ValueError: the store is incomplete or damaged; the message names the file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        manifest = self.path / MANIFEST
        if not manifest.is_file():
            raise FileNotFoundError(f"{self.path} is not a feature store: it has no store.json")
        self.meta: dict[str, Any] = read_json(manifest)
        with reading(manifest):
            self._open()

    def _open(self) -> None:
        items = [ImageItem(*item) for item in self.meta["items"]]
        self.task: str = self.meta.get("task", "multiclass")
        self.classes = tuple(self.meta["classes"])
        self.channels, self.pixels = self.meta["channels"], self.meta["pixels"]
        self.grid: tuple[int, int] = tuple(self.meta["grid"])
        self.skipped: list[tuple[str, str]] = []
        self._shards: list[Tensor] = []
        kept: list[Tensor] = []
        logits: list[Tensor] = []
        for number in range(shard_count(len(items), self.meta["shard_size"])):
            tensors, skipped = read_shard(shard_path(self.path, number), self.meta)
            self._shards.append(tensors["features"])
            kept.append(tensors["item"])
            if "original_logits" in tensors:
                logits.append(tensors["original_logits"])
            self.skipped += [(items[i].path, reason) for i, reason in skipped]
        order = [items[i] for i in torch.cat(kept).tolist()] if kept else []
        self.files = [item.path for item in order]
        self.labels = label_tensor([item.label for item in order], len(self.classes), self.task)
        self.splits = [item.split for item in order]
        self.groups = [item.group for item in order]
        self.original_logits = ShardedRows(logits) if logits else None
        self._starts = torch.tensor([0] + [len(s) for s in self._shards]).cumsum(0)

    def __len__(self) -> int:
        return len(self.files)

    def indices(self, split: str) -> Tensor:
        """Positions of the images of one split, ``[n]`` int64."""
        return torch.tensor([i for i, s in enumerate(self.splits) if s == split], dtype=torch.int64)

    def gather(
        self,
        indices: Tensor,  # [n] int64
        dtype: torch.dtype | None = torch.float32,
    ) -> Tensor:
        """The maps at `indices`, channels last: ``[n, P, C]``; with `dtype` None as they are kept.

        Raises:
            IndexError: an index outside 0 … N-1.
        """
        stored = self._shards[0].dtype if self._shards else torch.float32
        maps = torch.empty(len(indices), self.pixels, self.channels, dtype=stored)
        for shard, here, within in locate(indices, self._starts):
            maps[here] = self._shards[shard][within]
        return maps.to(dtype or stored)  # once, and after half as many bytes have been moved

    def batches(
        self,
        indices: Tensor,  # [n] int64
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = torch.float32,
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield ``(maps [n, P, C], labels [n], indices [n])``; shuffled if a generator is given."""
        if generator is not None:
            indices = indices[torch.randperm(len(indices), generator=generator)]
        for part in indices.split(batch_size):
            yield self.gather(part, dtype), self.labels[part], part

    @property
    def image_bytes(self) -> int:
        """Bytes of one image's maps as they are stored."""
        itemsize = self._shards[0].dtype.itemsize if self._shards else 4
        return int(self.pixels * self.channels * itemsize)

    def files_of_maps(self, threads: int = 4) -> ShardFiles | None:
        """What reads the maps from their files, for `infodisent.data.reader.read_ahead`.

        None where they are in no files.
        """
        paths = [shard_path(self.path, number) for number in range(len(self._shards))]
        if not paths or not all(path.is_file() for path in paths):
            return None
        shape, dtype = (self.pixels, self.channels), self._shards[0].dtype
        return ShardFiles(paths, self._starts, shape, dtype, threads)

    def average(self) -> Tensor:
        """The average-pooled features of every image, ``[N, C]`` float32, for linear probes.

        A new table on every call, in memory or beside the store, see `empty_rows`.
        """
        rows = empty_rows(len(self), self.channels, self.path)
        at = 0
        for shard in self._shards:
            for maps in shard.split(64):
                rows[at : at + len(maps)] = maps.float().mean(1)
                at += len(maps)
        return rows


def label_tensor(labels: Sequence[Any], classes: int, task: str) -> Tensor:
    """Labels of `ImageItem` as a tensor: ``[N]`` int64, or multi-label ``[N, K]`` float32."""
    if task == "multiclass":
        return torch.tensor(labels, dtype=torch.int64)
    rows = torch.zeros(len(labels), classes)
    for row, present in zip(rows, labels, strict=True):
        row[list(present)] = 1
    return rows


def read_shard(path: Path, meta: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[Any]]:
    """A shard's tensors and its skipped items; ValueError where it is of another store."""
    tensors, written = read_rows(path, meta)
    return tensors, written["skipped"]


def read_rows(path: Path, meta: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a shard, or of a part of one, and what was written beside them.

    Raises:
        FileNotFoundError, ValueError: absent, damaged, or of another store.
    """
    tensors, written = read_tensors(path)
    with reading(path):
        shape = tensors["features"].shape[1:]
        if written["made_from"] != meta["made_from"] or shape != (meta["pixels"], meta["channels"]):
            raise ValueError(f"{path} belongs to features of something else")
        written["skipped"], tensors["item"]  # a KeyError is a damaged file
        return tensors, written


def shard_count(items: int, shard_size: int) -> int:
    """How many shards hold so many images."""
    return -(-items // shard_size)


def shard_path(folder: Path, number: int) -> Path:
    """The file of a shard."""
    return folder / f"shard-{number:05d}.safetensors"
