"""Frozen backbone -> feature maps on disk, extracted once, resumable, safe against being killed.

An interrupted extraction goes on at the first missing shard. A store made with other weights,
images or transforms is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from infodisent.backbones.backbone import Backbone, HasBackbone, backbone_of
from infodisent.backbones.preprocess import transform_config, transform_from
from infodisent.data.images import ImageDataset, ImageItem, ImageSet, as_image_set, collate
from infodisent.data.notes import note_lines
from infodisent.data.store import MANIFEST, FeatureStore, read_shard, shard_count, shard_path
from infodisent.files import read_json, write_json, write_tensors
from infodisent.layout import to_bpc
from infodisent.progress import bar, console

FORMAT = 1
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def extract(
    model: Backbone | HasBackbone,
    images: ImageSet | Any,
    out: str | os.PathLike[str],
    *,
    batch_size: int = 32,
    num_workers: int = 0,
    shard_size: int = 512,
    dtype: str = "float16",
    device: torch.device | str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> FeatureStore:
    """Run the frozen backbone over all images and store the maps; go on where a former run ended.

    Args:
        model: a backbone, or a model that has one; runs in evaluation mode.
        images: from `infodisent.data.images.scan_folder`, or any labelled images that
            `infodisent.data.images.as_image_set` takes, such as a torch data set.
        out: folder of the store.
        batch_size: images per forward pass.
        num_workers: decoding processes; 0 decodes in this one.
        shard_size: images per file, the most work a killed run can lose.
        dtype: of the stored maps: "float16", "bfloat16" or "float32".
        device: where the backbone runs; default: where its parameters are.
        overwrite: replace a store made from other weights, images or options.
        progress: show a progress bar.

    Images that cannot be read are skipped, counted and named in the store.

    Raises:
        ValueError: the folder holds a store of something else, an unknown dtype, no image is
            readable, or a feature does not fit the dtype's range.
    """
    images = as_image_set(images, out, overwrite=overwrite, progress=progress)
    if dtype not in DTYPES:
        raise ValueError(f"extract: dtype is {dtype!r}, allowed are {', '.join(DTYPES)}")
    for name, value in (("batch_size", batch_size), ("shard_size", shard_size)):
        if value < 1:
            raise ValueError(f"extract: {name} is {value}, must be >= 1")
    if not images.items:
        raise ValueError("extract: the image set is empty")
    backbone, folder = backbone_of(model), Path(out)
    transform = transform_config(backbone)
    to_input = transform_from(transform)  # before anything is written
    grid = backbone.grid_size(tuple(transform["input_size"][1:]))
    meta: dict[str, Any] = {
        "format": FORMAT,
        "made_from": describe(backbone, images, transform, dtype),
        "spec": {**backbone.origin, "original_num_classes": backbone.num_classes},
        "transform": transform,
        "classes": list(images.classes),
        "task": images.task,
        "root": images.root,
        "channels": backbone.num_features,
        "pixels": grid[0] * grid[1],
        "grid": list(grid),
        "shard_size": shard_size,
        "items": [dataclasses.astuple(item) for item in images.items],
    }
    _prepare(folder, meta, overwrite)
    missing = [
        number
        for number in range(shard_count(len(images.items), shard_size))
        if not _is_complete(shard_path(folder, number), meta)
    ]
    if missing:
        target = torch.device(device) if device is not None else _device_of(backbone)
        # convolutions run about twice as fast on channels-last memory, also on the CPU
        backbone.to(target, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        reader = _Reader(backbone, to_input, dtype, batch_size, num_workers, transform)
        _write_shards(reader, images.items, folder, meta, missing, progress)
        for line in note_lines(reader.notes) if progress else ():
            console.print(line, style="yellow", markup=False)
    store = FeatureStore(folder)
    if not len(store):
        reason = store.skipped[0][1]
        raise ValueError(f"extract: none of the {len(images.items)} images could be read: {reason}")
    if store.skipped and progress:
        console.print(f"[yellow]{len(store.skipped)} image(s) could not be read and were skipped:")
        for _, reason in store.skipped[:10]:
            console.print(f"  {reason}", markup=False)
    return store


def describe(
    backbone: Backbone, images: ImageSet, transform: dict[str, Any], dtype: str
) -> dict[str, Any]:
    """What the features depend on; a stored description that differs in any key is refused."""
    listing = hashlib.sha256()
    for item in images.items:
        try:
            status = os.stat(item.path)
            state = [status.st_size, status.st_mtime_ns]
        except OSError:
            state = []
        listing.update(json.dumps([item.path, item.label, item.split, *state]).encode())
    origin = backbone.origin
    return {
        "backbone": origin["name"] or type(backbone.model).__name__,
        "options": [origin["source"], origin["model_kwargs"]],
        "weights": weights_digest(backbone),
        "images": listing.hexdigest(),
        "transform": transform,
        "dtype": dtype,
    }


def weights_digest(module: torch.nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of a module's state."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class _Reader:
    """What turns image files into the tensors of a shard.

    Attributes:
        backbone: on its device, in evaluation mode.
        transform: RGB image to ``[C, H, W]``.
        dtype: of the stored maps, a key of `DTYPES`.
        batch_size, num_workers: of the loader.
        config: of the transform.
        notes: what was done to the images read so far, by kind, with the number of images.
    """

    backbone: Backbone
    transform: Callable[[Image.Image], Tensor]
    dtype: str
    batch_size: int
    num_workers: int
    config: dict[str, Any] | None = None
    notes: Counter[str] = field(default_factory=Counter)

    def shard(
        self,
        items: Sequence[ImageItem],
        first: int,
        pixels: int,
        advance: Callable[[int, int], None],
    ) -> tuple[dict[str, Tensor], list[tuple[int, str]]]:
        """The tensors of some images, and those that cannot be read with the reasons.

        Args:
            items: the images; `first` is the position of the first among all.
            pixels: P of the maps.
            advance: told after every batch how many images were seen and how many of them skipped.
        """
        weight = next(self.backbone.parameters())
        loader = DataLoader(
            ImageDataset([item.path for item in items], self.transform, self.config),
            self.batch_size,
            num_workers=self.num_workers,
            collate_fn=collate,
        )
        maps: list[Tensor] = []
        logits: list[Tensor] = []
        kept: list[int] = []
        failures: list[tuple[int, str]] = []
        for good, batch, bad, notes in loader:
            self.notes.update(notes)
            if batch is not None:
                batch = batch.to(weight.device, weight.dtype, memory_format=torch.channels_last)
                batch_maps, batch_logits = _forward(self.backbone, batch, DTYPES[self.dtype])
                maps.append(batch_maps)
                if batch_logits is not None:
                    logits.append(batch_logits)
            kept += [first + i for i in good]
            failures += [(first + i, why) for i, why in bad]
            advance(len(good) + len(bad), len(bad))
        empty = torch.empty(0, pixels, self.backbone.num_features, dtype=DTYPES[self.dtype])
        tensors = {
            "features": torch.cat(maps) if maps else empty,
            "item": torch.tensor(kept, dtype=torch.int64),
        }
        if logits:
            tensors["original_logits"] = _half_if_it_fits(torch.cat(logits))
        return tensors, failures


def _write_shards(
    reader: _Reader,
    items: Sequence[ImageItem],
    folder: Path,
    meta: dict[str, Any],
    missing: Sequence[int],
    progress: bool,
) -> None:
    size = meta["shard_size"]
    parts = {number: items[number * size : (number + 1) * size] for number in missing}
    done = len(items) - sum(map(len, parts.values()))
    skipped = 0
    with bar(progress) as display:
        task = display.add_task("extract features", total=len(items), completed=done, note="")

        def advance(seen: int, bad: int) -> None:
            nonlocal skipped
            skipped += bad
            note = f"{skipped} unreadable, skipped" if skipped else ""
            display.update(task, advance=seen, note=note)

        for number, part in parts.items():
            tensors, failures = reader.shard(part, number * size, meta["pixels"], advance)
            written = {"made_from": meta["made_from"], "skipped": failures}
            write_tensors(shard_path(folder, number), tensors, written)


@torch.inference_mode()
def _forward(
    backbone: Backbone,
    batch: Tensor,  # [n, 3, H, W]
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:
    """Maps [n, P, C] in the stored dtype and the original head's logits [n, K'] float32, if any."""
    raw = backbone.raw(batch)
    features = to_bpc(backbone.to_map(raw), backbone.input_fmt, backbone.num_prefix_tokens)
    stored = features.to(dtype)
    if not torch.isfinite(stored).all():
        if torch.isfinite(features).all():
            raise ValueError(
                f"extract: a feature of {features.abs().max():.3g} does not fit "
                f"{str(dtype).removeprefix('torch.')}; store the maps as float32 or bfloat16"
            )
        raise ValueError("extract: the backbone returned NaN or Inf; check its weights")
    logits = backbone.classify(raw) if backbone.num_classes else None
    return stored.cpu().contiguous(), None if logits is None else logits.float().cpu()


def _half_if_it_fits(
    logits: Tensor,  # [n, K'] float32
) -> Tensor:
    """The logits as float16, or as they are where one is beyond its range."""
    half = logits.half()
    return half if torch.equal(half.isfinite(), logits.isfinite()) else logits


def _device_of(module: torch.nn.Module) -> torch.device:
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def _prepare(folder: Path, meta: dict[str, Any], overwrite: bool) -> None:
    """Write the manifest, unless it is there already; refuse or clear a store of something else."""
    manifest = folder / MANIFEST
    if manifest.is_file():
        old = read_json(manifest)
        keys = ("format", "made_from", "shard_size", "grid", "channels")
        differing = [k for k in keys if old.get(k) != meta[k]]
        if "made_from" in differing and isinstance(old.get("made_from"), dict):
            differing.remove("made_from")
            differing += [k for k, v in meta["made_from"].items() if old["made_from"].get(k) != v]
        if not differing:
            return
        if not overwrite:
            raise ValueError(
                f"{folder} holds features made from something else (different: "
                f"{', '.join(differing)}); choose another folder or "
                "pass overwrite=True / --overwrite"
            )
        for shard in folder.glob("shard-*.safetensors"):
            shard.unlink()
    write_json(manifest, meta)


def _is_complete(path: Path, meta: dict[str, Any]) -> bool:
    try:
        read_shard(path, meta)
    except (FileNotFoundError, ValueError):
        return False
    return True
