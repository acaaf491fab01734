"""Frozen backbone -> feature maps on disk, extracted once, resumable, safe against being killed.

A store is a folder: ``store.json`` says what it holds, ``shard-00000.safetensors`` … hold the maps.
A shard appears under its name only when it is complete; an interrupted extraction goes on at the
first missing shard. A store made with other weights, images or transforms is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from infodisent.data.images import ImageDataset, ImageItem, ImageSet, collate
from infodisent.files import read_json, read_tensors, reading, write_json, write_tensors
from infodisent.layout import to_bpc
from infodisent.progress import bar, console

if TYPE_CHECKING:
    from infodisent.classifier import InfoDisentClassifier

FORMAT = 1
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class FeatureStore:
    """Feature maps of a labelled image set, read through memory maps.

    Args:
        path: a folder that `extract` has completed.

    Attributes:
        classes: K class names.
        files: path of every stored image, N.
        labels: ``[N]`` int64.
        splits: "train" or "val" for every image, N.
        original_logits: ``[N, K']`` float32 logits of the original head, or None.
        skipped: ``(path, reason)`` of the images that could not be read.
        channels, pixels, grid: C, P and ``(H, W)`` with ``H·W = P``.
        meta: everything else that ``store.json`` says (backbone, transform, fingerprint …).

    Raises:
        FileNotFoundError: no store there.
        ValueError: the store is incomplete or damaged; the message names the file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        manifest = self.path / "store.json"
        if not manifest.is_file():
            raise FileNotFoundError(f"{self.path} is not a feature store: it has no store.json")
        self.meta: dict[str, Any] = read_json(manifest)
        with reading(manifest):
            self._open()

    def _open(self) -> None:
        items = [ImageItem(*item) for item in self.meta["items"]]
        self.classes = tuple(self.meta["classes"])
        self.channels, self.pixels = self.meta["channels"], self.meta["pixels"]
        self.grid: tuple[int, int] = tuple(self.meta["grid"])
        self.skipped: list[tuple[str, str]] = []
        self._shards: list[Tensor] = []
        kept: list[Tensor] = []
        logits: list[Tensor] = []
        for number in range(_shard_count(len(items), self.meta["shard_size"])):
            tensors, skipped = _read_shard(_shard_path(self.path, number), self.meta)
            self._shards.append(tensors["features"])
            kept.append(tensors["item"])
            if "original_logits" in tensors:
                logits.append(tensors["original_logits"].float())
            self.skipped += [(items[i].path, reason) for i, reason in skipped]
        order = [items[i] for i in torch.cat(kept).tolist()] if kept else []
        self.files = [item.path for item in order]
        self.labels = torch.tensor([item.label for item in order], dtype=torch.int64)
        self.splits = [item.split for item in order]
        self.original_logits = torch.cat(logits) if logits else None
        self._starts = torch.tensor([0] + [len(s) for s in self._shards]).cumsum(0)

    def __len__(self) -> int:
        return len(self.files)

    def indices(self, split: str) -> Tensor:
        """Positions of the images of one split, ``[n]`` int64."""
        return torch.tensor([i for i, s in enumerate(self.splits) if s == split], dtype=torch.int64)

    def gather(self, indices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """The maps at `indices` ``[n]``, channels last: ``[n, P, C]``.

        Raises:
            IndexError: an index outside 0 … N-1.
        """
        if len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= len(self)):
            raise IndexError(f"feature indices must be in 0 … {len(self) - 1}")
        out = torch.empty(len(indices), self.pixels, self.channels, dtype=dtype)
        shard_of = torch.searchsorted(self._starts, indices, right=True) - 1
        for shard in shard_of.unique().tolist():
            where = (shard_of == shard).nonzero().flatten()
            out[where] = self._shards[shard][indices[where] - self._starts[shard]].to(dtype)
        return out

    def batches(
        self,
        indices: Tensor,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield ``(maps [n, P, C], labels [n], indices [n])``; shuffled if a generator is given."""
        if generator is not None:
            indices = indices[torch.randperm(len(indices), generator=generator)]
        for part in indices.split(batch_size):
            yield self.gather(part, dtype), self.labels[part], part

    def average(self) -> Tensor:
        """The average-pooled features of every image, ``[N, C]`` float32, for linear probes."""
        parts = [shard[i : i + 64].float().mean(1) for shard in self._shards
                 for i in range(0, len(shard), 64)]  # fmt: skip
        return torch.cat(parts) if parts else torch.empty(0, self.channels)


def _read_shard(path: Path, meta: dict[str, Any]) -> tuple[dict[str, Tensor], list[Any]]:
    """A shard's tensors and its skipped items; ValueError where it is of another store."""
    tensors, written = read_tensors(path)
    with reading(path):
        shape = tensors["features"].shape[1:]
        if written["made_from"] != meta["made_from"] or shape != (meta["pixels"], meta["channels"]):
            raise ValueError(f"{path} belongs to features of something else")
        skipped: list[Any] = written["skipped"]
        return tensors, skipped


def _shard_count(items: int, shard_size: int) -> int:
    return -(-items // shard_size)


def _shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.safetensors"


def weights_digest(module: torch.nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of a module's state."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _describe(
    model: InfoDisentClassifier, images: ImageSet, transform: dict[str, Any], dtype: str
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
    return {
        "backbone": model.spec.get("name") or type(model.backbone.model).__name__,
        "options": [model.spec["source"], model.spec["model_kwargs"]],
        "weights": weights_digest(model.backbone),
        "images": listing.hexdigest(),
        "transform": transform,
        "dtype": dtype,
    }


def extract(
    model: InfoDisentClassifier,
    images: ImageSet,
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
        model: from `infodisent.attach`; its backbone runs in evaluation mode.
        images: from `scan_folder`.
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
    if dtype not in DTYPES:
        raise ValueError(f"extract: dtype is {dtype!r}, allowed are {', '.join(DTYPES)}")
    for name, value in (("batch_size", batch_size), ("shard_size", shard_size)):
        if value < 1:
            raise ValueError(f"extract: {name} is {value}, must be >= 1")
    if not images.items:
        raise ValueError("extract: the image set is empty")
    from infodisent.backbones.preprocess import transform_config, transform_from

    folder = Path(out)
    config = transform_config(model)
    made_from = _describe(model, images, config, dtype)
    grid = model.grid_size(tuple(config["input_size"][1:]))
    meta: dict[str, Any] = {
        "format": FORMAT,
        "made_from": made_from,
        "spec": model.spec,
        "transform": config,
        "classes": list(images.classes),
        "root": images.root,
        "channels": model.num_features,
        "pixels": grid[0] * grid[1],
        "grid": list(grid),
        "shard_size": shard_size,
        "items": [dataclasses.astuple(item) for item in images.items],
    }
    _prepare(folder, meta, overwrite)
    shards = _shard_count(len(images.items), shard_size)
    missing = [n for n in range(shards) if not _is_complete(_shard_path(folder, n), meta)]
    if missing:
        target = torch.device(device) if device is not None else _device_of(model)
        # convolutions run about twice as fast on channels-last memory, also on the CPU
        model.backbone.to(target, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        weight_dtype = next(model.backbone.parameters()).dtype
        transform = transform_from(config)
        done = len(images.items) - sum(
            min(shard_size, len(images.items) - n * shard_size) for n in missing
        )
        with bar(progress) as display:
            task = display.add_task(
                "extract features", total=len(images.items), completed=done, note=""
            )
            skipped = 0
            for number in missing:
                items = images.items[number * shard_size : (number + 1) * shard_size]
                loader = DataLoader(
                    ImageDataset([item.path for item in items], transform),
                    batch_size,
                    num_workers=num_workers,
                    collate_fn=collate,
                )
                maps, logits, kept, failures = [], [], [], []
                for good, batch, bad in loader:
                    if batch is not None:
                        x, y = _forward(
                            model,
                            batch.to(target, weight_dtype, memory_format=torch.channels_last),
                            DTYPES[dtype],
                        )
                        maps.append(x)
                        if y is not None:
                            logits.append(y)
                    kept += [number * shard_size + i for i in good]
                    failures += [(number * shard_size + i, why) for i, why in bad]
                    skipped += len(bad)
                    note = f"{skipped} unreadable, skipped" if skipped else ""
                    display.update(task, advance=len(good) + len(bad), note=note)
                tensors = {
                    "features": torch.cat(maps)
                    if maps
                    else torch.empty(0, meta["pixels"], meta["channels"], dtype=DTYPES[dtype]),
                    "item": torch.tensor(kept, dtype=torch.int64),
                }
                if logits:
                    tensors["original_logits"] = torch.cat(logits)
                write_tensors(
                    _shard_path(folder, number),
                    tensors,
                    {"made_from": made_from, "skipped": failures},
                )
    store = FeatureStore(folder)
    if not len(store):
        raise ValueError(f"extract: none of the {len(images.items)} images could be read: "
                         f"{store.skipped[0][1]}")  # fmt: skip
    if store.skipped and progress:
        console.print(f"[yellow]{len(store.skipped)} image(s) could not be read and were skipped:")
        for _, reason in store.skipped[:10]:
            console.print(f"  {reason}", markup=False)
    return store


@torch.inference_mode()
def _forward(
    model: InfoDisentClassifier, batch: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Maps [n, P, C] in the stored dtype and the original head's logits [n, K'] (None without)."""
    raw = model.backbone.raw(batch)
    features = to_bpc(model.backbone.to_map(raw), model.input_fmt, model.num_prefix_tokens)
    stored = features.to(dtype)
    if not torch.isfinite(stored).all():
        if torch.isfinite(features).all():
            raise ValueError(
                f"extract: a feature of {features.abs().max():.3g} does not fit "
                f"{str(dtype).removeprefix('torch.')}; store the maps as float32 or bfloat16"
            )
        raise ValueError("extract: the backbone returned NaN or Inf; check its weights")
    logits = model.backbone.classify(raw) if model.backbone.num_classes else None
    return (
        stored.cpu().contiguous(),
        None if logits is None else logits.to(torch.float16).cpu().contiguous(),
    )


def _device_of(module: torch.nn.Module) -> torch.device:
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def _prepare(folder: Path, meta: dict[str, Any], overwrite: bool) -> None:
    manifest = folder / "store.json"
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
        _read_shard(path, meta)
    except (FileNotFoundError, ValueError):
        return False
    return True
