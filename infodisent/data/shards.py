"""Images -> shards of a feature store. A killed run loses the images of the last seconds only.

While a shard grows, what is new is written beside it every `FLUSH` seconds, and when the run is
interrupted, as ``shard-00000.part-0000.safetensors`` …; the finished shard replaces its parts.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from infodisent.backbones.backbone import Backbone
from infodisent.data.encoding import DTYPES, encode, is_encoded
from infodisent.data.images import Sample, collate
from infodisent.data.prefetch import prefetched
from infodisent.data.store import read_rows, shard_path
from infodisent.files import write_tensors
from infodisent.layout import to_bpc

FLUSH = 10.0
"""Seconds between two parts."""
CACHED = 8
"""Images of a pass on the CPU. Measured with EfficientNet-Lite0 on two cores with 1 MiB of L2 each:
8 take half the time an image that 32 take."""


@dataclass
class Rows:
    """What is known of the first images of a shard.

    Attributes:
        seen: how many images; they are either kept or failed.
        maps: ``[n, P, C]`` each, in the stored dtype; scales: ``[n]`` each, of float8 maps;
            logits: ``[n, K']`` float32, where there are any.
        kept, failed: numbers of the images in the whole set, and the reasons.
    """

    seen: int = 0
    maps: list[Tensor] = field(default_factory=list)
    scales: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    failed: list[tuple[int, str]] = field(default_factory=list)

    def extend(self, other: Rows) -> None:
        """Append the rows of the images that come next."""
        self.seen += other.seen
        self.maps += other.maps
        self.scales += other.scales
        self.logits += other.logits
        self.kept += other.kept
        self.failed += other.failed

    def tensors(
        self, pixels: int, channels: int, dtype: torch.dtype, *, half: bool
    ) -> dict[str, Tensor]:
        """As they are stored; P, C and the dtype count where no image could be read.

        `half`: the logits in half of the room where they fit.
        """
        empty = torch.empty(0, pixels, channels, dtype=dtype)
        tensors = {
            "features": torch.cat(self.maps) if self.maps else empty,
            "item": torch.tensor(self.kept, dtype=torch.int64),
        }
        if is_encoded(dtype):
            tensors["scale"] = torch.cat(self.scales) if self.scales else torch.empty(0)
        if self.logits:
            logits = torch.cat(self.logits)
            tensors["original_logits"] = _half_if_it_fits(logits) if half else logits
        return tensors


@dataclass(frozen=True)
class Pass:
    """How a backbone is run over images.

    Attributes:
        raw: what takes the place of its `Backbone.raw`, such as the same compiled; None for itself.
        autocast: dtype of its products (`torch.autocast`); None for that of its weights.
    """

    raw: Callable[[Tensor], Tensor] | None = None
    autocast: torch.dtype | None = None

    def __call__(
        self,
        backbone: Backbone,
        batch: Tensor,  # [n, C, H, W]
        original: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """The map in the backbone's layout; the original head's logits where they are asked for and
        there is one.
        """
        half = self.autocast is not None
        with torch.autocast(batch.device.type, self.autocast, enabled=half):
            raw = (self.raw or backbone.raw)(batch)
            logits = backbone.classify(raw) if original and backbone.num_classes else None
            return backbone.to_map(raw), logits


@dataclass(frozen=True)
class ShardWriter:
    """What turns image files into shards.

    Attributes:
        folder: of the store.
        meta: what its ``store.json`` says.
        backbone: on its device, in evaluation mode.
        dataset: all images, as `collate` takes them, by their number.
        dtype: of the stored maps, a key of `DTYPES`.
        batch_size, num_workers: of the loader.
        advance: told after every batch how many images were seen and how many of them skipped.
        original: whether the original head's logits are kept too, where it has one.
        run: how the backbone is run.
        notes: what was done to the images read so far, by kind, with the number of images.
    """

    folder: Path
    meta: Mapping[str, Any]
    backbone: Backbone
    dataset: Dataset[Sample]
    dtype: str
    batch_size: int
    num_workers: int
    advance: Callable[[int, int], None]
    original: bool = True
    run: Pass = Pass()
    notes: Counter[str] = field(default_factory=Counter)

    def write(
        self,
        shards: Mapping[int, range],
    ) -> None:
        """Write shards, by number, of these images each; goes on after the parts that are there.

        One loader reads the images of all of them, so that its processes start once and decode on
        while a shard is written.

        Raises:
            OSError: no room or no right to write; what was computed before is kept.
            ValueError: a feature is not finite, or does not fit the dtype.
        """
        begun = {number: self._read_parts(number) for number in shards}
        parts = {
            number: list(_divided(images[begun[number][0].seen :], self.batch_size))
            for number, images in shards.items()
        }
        batches = self._batches([batch for number in shards for batch in parts[number]])
        with contextlib.closing(batches):
            for number in shards:
                self._write(number, *begun.pop(number), islice(batches, len(parts[number])))

    def _write(self, number: int, rows: Rows, parts: list[Path], batches: Iterator[Rows]) -> None:
        """Write one shard: `rows`, which stand in `parts`, and what `batches` make of the rest."""
        pixels, channels = self.meta["pixels"], self.meta["channels"]
        if rows.seen:
            self.advance(rows.seen, len(rows.failed))
        fresh, flushed = Rows(), time.monotonic()

        def flush() -> None:
            nonlocal fresh, flushed
            if fresh.seen:
                parts.append(_part_path(self.folder, number, len(parts)))
                self._save(parts[-1], fresh, rows.seen, pixels, channels)
                rows.extend(fresh)
            fresh, flushed = Rows(), time.monotonic()

        try:
            for batch in batches:
                fresh.extend(batch)
                self.advance(batch.seen, len(batch.failed))
                if time.monotonic() - flushed > FLUSH:
                    flush()
        except BaseException:
            flush()
            raise
        rows.extend(fresh)
        self._save(shard_path(self.folder, number), rows, 0, pixels, channels)
        for part in parts:
            part.unlink(missing_ok=True)

    def _batches(self, batches: Sequence[range]) -> Generator[Rows, None, None]:
        """The rows of batches of images, given by their numbers, one after the other."""
        weight = next(self.backbone.parameters())
        loader: Any = DataLoader(
            self.dataset,
            batch_sampler=[list(batch) for batch in batches],
            num_workers=self.num_workers,
            collate_fn=collate,
            pin_memory=weight.device.type == "cuda",
        )
        # worker processes read ahead by themselves
        for good, batch, bad, notes in loader if self.num_workers else prefetched(loader):
            self.notes.update(notes)
            rows = Rows(len(good) + len(bad), kept=good, failed=bad)
            if batch is not None:
                batch = batch.to(weight.device, weight.dtype, non_blocking=True)
                batch = batch.contiguous(memory_format=torch.channels_last)
                # a few images at a time stay in a CPU's caches from one layer to the next
                for images in batch.split(CACHED if weight.device.type == "cpu" else len(batch)):
                    maps, scale, logits = _forward(
                        self.backbone, images, DTYPES[self.dtype], self.original, self.run
                    )
                    rows.maps.append(maps)
                    if scale is not None:
                        rows.scales.append(scale)
                    if logits is not None:
                        rows.logits.append(logits)
            yield rows

    def _save(self, path: Path, rows: Rows, start: int, pixels: int, channels: int) -> None:
        is_part = ".part-" in path.name
        written = {"made_from": self.meta["made_from"], "skipped": rows.failed}
        if is_part:
            written |= {"start": start, "seen": rows.seen}
        tensors = rows.tensors(pixels, channels, DTYPES[self.dtype], half=not is_part)
        try:
            write_tensors(path, tensors, written)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise OSError(
                    f"extract: the disk of {self.folder} is full. What was finished is kept: make "
                    "room and run the same again"
                ) from error
            raise

    def _read_parts(self, number: int) -> tuple[Rows, list[Path]]:
        """The rows that an interrupted run has left, as far as its parts are whole."""
        rows = Rows()
        parts: list[Path] = []
        while (path := _part_path(self.folder, number, len(parts))).is_file():
            try:
                tensors, written = read_rows(path, self.meta)
                if written["start"] != rows.seen:
                    break
            except (ValueError, KeyError):
                break
            logits, scale = tensors.get("original_logits"), tensors.get("scale")
            part = Rows(
                seen=written["seen"],
                maps=[tensors["features"]] if len(tensors["features"]) else [],
                scales=[] if scale is None else [scale],
                logits=[] if logits is None else [logits],
                kept=tensors["item"].tolist(),
                failed=[(i, why) for i, why in written["skipped"]],
            )
            rows.extend(part)
            parts.append(path)
        return rows, parts


def _divided(images: range, size: int) -> Iterator[range]:
    """The numbers in stretches of `size`."""
    return (images[at : at + size] for at in range(0, len(images), size))


def _part_path(folder: Path, number: int, part: int) -> Path:
    return shard_path(folder, number).with_suffix(f".part-{part:04d}.safetensors")


@torch.inference_mode()
def _forward(
    backbone: Backbone,
    batch: Tensor,  # [n, C, H, W]
    dtype: torch.dtype,
    original: bool = True,
    run: Pass = Pass(),
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Maps [n, P, C] in the stored dtype, their scales [n] where it is float8, and the original
    head's logits [n, K'] float32, if any.
    """
    mapped, logits = run(backbone, batch, original)
    features = to_bpc(mapped, backbone.input_fmt, backbone.num_prefix_tokens)
    stored, scale = encode(features) if is_encoded(dtype) else (features.to(dtype), None)
    if not torch.isfinite(stored if scale is None else features).all():
        if torch.isfinite(features).all():
            raise ValueError(
                f"extract: a feature of {features.abs().max():.3g} does not fit "
                f"{str(dtype).removeprefix('torch.')}; store the maps as float32 or bfloat16"
            )
        raise ValueError("extract: the backbone returned NaN or Inf; check its weights")
    return (
        stored.cpu().contiguous(),
        None if scale is None else scale.cpu(),
        None if logits is None else logits.float().cpu(),
    )


def _half_if_it_fits(
    logits: Tensor,  # [n, K'] float32
) -> Tensor:
    """The logits as float16, or as they are where one is beyond its range."""
    half = logits.half()
    return half if torch.equal(half.isfinite(), logits.isfinite()) else logits
