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

from infodisent.data.encoding import computed_dtype, decode, is_encoded
from infodisent.data.images import ImageItem
from infodisent.data.manifest import AGAIN, MANIFEST, read_manifest
from infodisent.data.reader import AT_ONCE, CPU, ShardFiles, read_ahead
from infodisent.data.residence import ResidentRows, resident
from infodisent.data.rows import ShardedRows, empty_rows, locate
from infodisent.files import read_tensors, reading


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
        dtype: that maps are given in unless another is asked for: as they are stored, or of float8
            bfloat16, which holds the same numbers.
        meta: everything else that ``store.json`` says (backbone, transform, fingerprint …).

    Raises:
        FileNotFoundError: no store there.
        ValueError: the store is incomplete or damaged; the message names the file.
    """

    _scale: Tensor | None = None  # of every image, where maps are float8, [N] float32
    _files: ShardFiles | None = None
    _resident: ResidentRows | None = None

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        manifest = self.path / MANIFEST
        if not manifest.is_file():
            raise FileNotFoundError(
                f"{self.path} is not a feature store: it has no store.json; {AGAIN}"
            )
        self.meta: dict[str, Any] = read_manifest(manifest)
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
        scales: list[Tensor] = []
        kept: list[Tensor] = []
        logits: list[Tensor] = []
        for number in range(shard_count(len(items), self.meta["shard_size"])):
            tensors, skipped = self._read_shard(number)
            self._shards.append(tensors["features"])
            kept.append(tensors["item"])
            if is_encoded(tensors["features"].dtype):
                scales.append(tensors["scale"])
            if "original_logits" in tensors:
                logits.append(tensors["original_logits"])
            self.skipped += [(items[i].path, reason) for i, reason in skipped]
        order = [items[i] for i in torch.cat(kept).tolist()] if kept else []
        self.files = [item.path for item in order]
        self.labels = label_tensor([item.label for item in order], len(self.classes), self.task)
        self.splits = [item.split for item in order]
        self.groups = [item.group for item in order]
        self.original_logits = ShardedRows(logits) if logits else None
        self._scale = torch.cat(scales) if scales else None
        self._starts = torch.tensor([0] + [len(s) for s in self._shards]).cumsum(0)

    def _read_shard(self, number: int) -> tuple[dict[str, Tensor], list[Any]]:
        try:
            return read_shard(shard_path(self.path, number), self.meta)
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(f"{error}; {AGAIN}") from error

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
        """The maps at `indices`, channels last: ``[n, P, C]``; with `dtype` None in the store's.

        Raises:
            IndexError: an index outside 0 … N-1.
        """
        maps = torch.empty(len(indices), self.pixels, self.channels, dtype=self._stored)
        for shard, here, within in locate(indices, self._starts):
            maps[here] = self._shards[shard][within]
        if self._scale is not None:
            return decode(maps, self._scale[indices], dtype or self.dtype)
        return maps.to(dtype or self.dtype)  # once, and after half as many bytes have been moved

    @property
    def _stored(self) -> torch.dtype:
        """What the files hold."""
        return self._shards[0].dtype if self._shards else torch.float32

    @property
    def dtype(self) -> torch.dtype:
        """See the class."""
        return computed_dtype(self._stored)

    def read(
        self,
        batches: Sequence[Tensor],  # [n_i] int64 each
        device: torch.device = CPU,
        window: int = 0,
    ) -> Iterator[Tensor]:
        """The maps of one batch after the other, ``[n_i, P, C]`` in `dtype`, on `device`.

        Where they lie in files a thread reads ahead of the caller, see `read_ahead`, also for
        `window`; where `keep_on` has brought them to the device, from there.
        """
        if self._resident is not None and self._resident.device == device:
            return self._resident.read(batches)
        files = self.files_of_maps()
        if files is None:  # in memory
            return (self.gather(positions, dtype=None).to(device) for positions in batches)
        return read_ahead(files, batches, device, window)

    def keep_on(self, device: torch.device) -> bool:
        """Bring all maps to a GPU, for `read`, where they take less than half of its free memory.

        Returns:
            Whether they are there.
        """
        if device.type != "cuda":
            return False
        if self._resident is None or self._resident.device != device:
            self._resident = resident(self.files_of_maps(), device)
        return self._resident is not None

    def batches(
        self,
        indices: Tensor,  # [n] int64
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = torch.float32,
        device: torch.device = CPU,
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield ``(maps [n, P, C], labels [n], indices [n])``; shuffled if a generator is given.

        The maps are on `device` and of `dtype`, with None of the store's, and read ahead.
        """
        if generator is not None:
            indices = indices[torch.randperm(len(indices), generator=generator)]
        parts = indices.split(batch_size)
        for maps, part in zip(self.read(parts, device), parts, strict=True):
            yield maps.to(dtype or maps.dtype), self.labels[part], part

    @property
    def image_bytes(self) -> int:
        """Bytes of one image's maps as they are stored."""
        return int(self.pixels * self.channels * self._stored.itemsize)

    def files_of_maps(self, threads: int = 4) -> ShardFiles | None:
        """What reads the maps from their files, for `infodisent.data.reader.read_ahead`.

        The same for every call with as many threads; the files are looked for once. None where the
        maps are in no files.
        """
        if self._files is None or self._files.threads != threads:
            paths = [shard_path(self.path, number) for number in range(len(self._shards))]
            if not paths or not all(path.is_file() for path in paths):
                return None
            shape = (self.pixels, self.channels)
            self._files = ShardFiles(
                paths, self._starts, shape, self._stored, threads, scale=self._scale
            )
        return self._files

    def average(
        self,
        indices: Tensor | None = None,  # [n] int64
    ) -> Tensor:
        """The average-pooled features of images, ``[n, C]`` float32, for linear probes.

        A new table on every call, in memory or beside the store, see `empty_rows`; of all images by
        default.
        """
        indices = torch.arange(len(self)) if indices is None else indices
        rows = empty_rows(len(indices), self.channels, self.path)
        at = 0
        for maps in self.read([part for part in indices.split(AT_ONCE) if len(part)]):
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
        if is_encoded(tensors["features"].dtype):
            tensors["scale"]
        return tensors, written


def shard_count(items: int, shard_size: int) -> int:
    """How many shards hold so many images."""
    return -(-items // shard_size)


def shard_path(folder: Path, number: int) -> Path:
    """The file of a shard."""
    return folder / f"shard-{number:05d}.safetensors"
