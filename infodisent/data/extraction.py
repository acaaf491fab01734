"""Frozen backbone -> feature maps on disk, extracted once, resumable, safe against being killed.

An interrupted extraction goes on where it stopped, also after the images have been moved or copied.
A store made with other weights, images or transforms is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from infodisent import ranks
from infodisent.backbones.backbone import Backbone, HasBackbone, backbone_of
from infodisent.backbones.preprocess import transform_config, transform_from
from infodisent.checks import check_choice
from infodisent.data.encoding import DTYPES
from infodisent.data.fingerprints import is_by_content, listing, listing_by_path
from infodisent.data.images import ImageDataset, ImageSet, Sample, as_image_set
from infodisent.data.manifest import LABELS, MANIFEST, labels_digest, read_manifest
from infodisent.data.notices import print_notes
from infodisent.data.shards import Pass, ShardWriter
from infodisent.data.store import FeatureStore, read_shard, shard_count, shard_path
from infodisent.files import size_text, sweep, write_json
from infodisent.progress import bar, console

FORMAT = 1
AUTOCAST = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Names of what a backbone's products may be computed in."""
_WORTH_SAYING = 10**8
"""Bytes of features from which on their size is said: 100 MB."""


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
    amp: str = "none",
    compiled: bool = False,
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
        shard_size: images per file.
        dtype: of the stored maps: "float16", "bfloat16", "float32", or "float8", e4m3 numbers with
            a scale an image (`infodisent.data.encoding`), which is half of the disk and of the
            reading.
        device: where the backbone runs; default: where its parameters are.
        amp: what the backbone's products are computed in: "none", the dtype of its weights; "bf16"
            or "fp16" (`torch.autocast`), which GPUs do several times as fast. Part of what a store
            was made from.
        compiled: run the backbone through `torch.compile`, which takes a minute before it is
            faster; the maps are the same up to the order of sums.
        overwrite: replace a store made from other weights, images or options.
        progress: show a progress bar.

    Images that cannot be read are skipped, counted and named in the store.

    Interrupted or killed, it loses the images of the last 10 seconds at most. Several processes
    (`infodisent.ranks`) divide the shards among them; `out` is on a disk that all of them see.

    Raises:
        ValueError: the folder holds a store of something else, an unknown dtype, no image is
            readable, or a feature does not fit the dtype's range.
        OSError: the folder can't be written to, or the disk has less room than the maps take.
    """
    with ranks.leader_first():  # of images in memory it writes a list
        images = as_image_set(images, out, overwrite=overwrite, progress=progress)
    check_choice("extract", "dtype", dtype, tuple(DTYPES))
    check_choice("extract", "amp", amp, tuple(AUTOCAST))
    for name, value in (("batch_size", batch_size), ("shard_size", shard_size)):
        if value < 1:
            raise ValueError(f"extract: {name} is {value}, must be >= 1")
    if not images.items:
        raise ValueError("extract: the image set is empty")
    backbone, folder = backbone_of(model), Path(out)
    transform = transform_config(backbone)
    to_input = transform_from(transform)  # before anything is written
    with contextlib.suppress(OSError):  # there to keep what is seen of the images; else said below
        folder.mkdir(parents=True, exist_ok=True)
    made_from = describe(backbone, images, transform, dtype, folder)
    made_from |= {} if amp == "none" else {"amp": amp}
    meta = manifest(backbone, made_from, transform) | {
        "original": {
            "trained": backbone.trained,
            "class_names": None if backbone.class_names is None else list(backbone.class_names),
        },
        "classes": list(images.classes),
        "task": images.task,
        "root": images.root,
        "shard_size": shard_size,
        "items": [dataclasses.astuple(item) for item in images.items],
    }
    with ranks.leader_first():
        prepare(folder, meta, images, overwrite and ranks.leads())

    notes = write_shards(
        backbone,
        folder,
        meta,
        ImageDataset([item.path for item in images.items], to_input, transform),
        dtype,
        label="extract features",
        batch_size=batch_size,
        num_workers=num_workers,
        device=device,
        run=Pass(torch.compile(backbone.raw) if compiled else None, AUTOCAST[amp]),
        progress=progress,
    )
    if progress:
        print_notes(notes)
    store = FeatureStore(folder)
    if not len(store):
        reason = store.skipped[0][1]
        raise ValueError(f"extract: none of the {len(images.items)} images could be read: {reason}")
    if store.skipped and progress:
        console.print(f"[yellow]{len(store.skipped)} image(s) could not be read and were skipped:")
        for _, reason in store.skipped[:10]:
            console.print(f"  {reason}", markup=False)
    return store


def manifest(
    backbone: Backbone, made_from: dict[str, Any], transform: dict[str, Any]
) -> dict[str, Any]:
    """What a manifest says of the maps themselves."""
    grid = backbone.grid_size(tuple(transform["input_size"][1:]))
    return {
        "format": FORMAT,
        "made_from": json.loads(json.dumps(made_from)),  # as it is read back: tuples are lists
        "spec": {**backbone.origin, "original_num_classes": backbone.num_classes},
        "transform": transform,
        "channels": backbone.num_features,
        "pixels": grid[0] * grid[1],
        "grid": list(grid),
    }


def write_shards(
    backbone: Backbone,
    folder: Path,
    meta: dict[str, Any],
    dataset: Dataset[Sample],
    dtype: str,
    *,
    label: str,
    batch_size: int,
    num_workers: int,
    device: torch.device | str | None,
    progress: bool,
    run: Pass,
) -> Counter[str]:
    """Write the shards that are missing; returns what was done to the images, by kind.

    `dataset`: all images, in the order of the manifest's items.
    """
    count, shard_size = len(meta["items"]), meta["shard_size"]
    shards = {
        number: range(count)[number * shard_size : (number + 1) * shard_size]
        for number in range(shard_count(count, shard_size))
    }
    # everybody's list is the leader's: while one looks, another writes already
    missing = ranks.told([n for n in shards if not _is_complete(shard_path(folder, n), meta)])
    left = sum(len(shards[number]) for number in missing)
    if missing:
        _check_room(folder, meta, dtype, left, progress)
    missing = list(ranks.share(missing))
    done = count - left
    left = sum(len(shards[number]) for number in missing)
    if missing:
        target = torch.device(device) if device is not None else _device_of(backbone)
        # convolutions run about twice as fast on channels-last memory, also on the CPU
        backbone.to(target, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    with bar(progress and bool(missing)) as display:
        of = f" ({left} images of this process)" if ranks.world() > 1 else ""
        task = display.add_task(f"{label}{of}", total=done + left, completed=done, note="")
        skipped = 0

        def advance(seen: int, bad: int) -> None:
            nonlocal skipped
            skipped += bad
            note = f"{skipped} unreadable, skipped" if skipped else ""
            display.update(task, advance=seen, note=note)

        writer = ShardWriter(
            folder,
            meta,
            backbone,
            dataset,
            dtype,
            batch_size,
            num_workers,
            advance,
            original=bool(meta["spec"]["original_num_classes"]),
            run=run,
        )
        if missing:
            writer.write({number: shards[number] for number in missing})
    return sum(ranks.everyones(writer.notes), start=Counter())  # waits for the others' shards


def describe(
    backbone: Backbone,
    images: ImageSet,
    transform: dict[str, Any],
    dtype: str,
    folder: Path | None = None,
) -> dict[str, Any]:
    """What the features depend on; a stored description that differs in any key is refused.

    `folder`: of the store, see `infodisent.data.fingerprints.listing`.
    """
    origin = backbone.origin
    described = {
        "backbone": origin["name"] or type(backbone.model).__name__,
        "options": [origin["source"], origin["model_kwargs"]],
        "weights": weights_digest(backbone),
        "images": listing(images, folder),
        "transform": transform,
        "dtype": dtype,
    }
    read_back: dict[str, Any] = json.loads(json.dumps(described))
    return read_back  # as it is read back: tuples are lists


def weights_digest(module: torch.nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of a module's state."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _device_of(module: torch.nn.Module) -> torch.device:
    return next((p.device for p in module.parameters()), torch.device("cpu"))


_FOLLOWING = ("root", "items", "classes", "task", LABELS)
"""What a manifest of the same maps takes over from the images as they are now."""


def prepare(folder: Path, meta: dict[str, Any], images: ImageSet | None, overwrite: bool) -> None:
    """Write the manifest, unless it is there already; refuse or clear a store of something else.

    `meta` takes over what an equal store of other paths, or of version 0.1, was made from.
    """
    manifest = folder / MANIFEST
    sweep(folder)
    meta[LABELS] = labels_digest(meta)
    if manifest.is_file():
        try:
            old = read_manifest(manifest)
        except ValueError:
            if not overwrite:
                raise
            old = {}
        differing = _differences(old, meta, images)
        if not differing:
            meta["made_from"] = old["made_from"]
            new = {**old, **{key: meta[key] for key in _FOLLOWING}}
            if json.loads(json.dumps(new)) != old:  # the images have moved
                write_json(manifest, new)
            return
        if not overwrite:
            raise ValueError(
                f"{folder} holds features made from something else (different: "
                f"{', '.join(differing)}); choose another folder or "
                "pass overwrite=True / --overwrite"
            )
        for shard in folder.glob("shard-*.safetensors"):
            shard.unlink()
    try:
        write_json(manifest, meta)
    except PermissionError as error:
        raise PermissionError(
            f"extract: {folder} cannot be written to: {error.strerror}"
        ) from error


def _differences(old: Any, meta: dict[str, Any], images: ImageSet | None) -> list[str]:
    """What a stored manifest says otherwise, by name."""
    keys = ("format", "made_from", "shard_size", "grid", "channels")
    differing = [k for k in keys if old.get(k) != meta[k]]
    then = old.get("made_from")
    if "made_from" in differing and isinstance(then, dict):
        differing.remove("made_from")
        now = dict(meta["made_from"])
        if images is not None and not is_by_content(str(then.get("images"))):
            now["images"] = listing_by_path(images)
        differing += [k for k in {**now, **then} if then.get(k) != now.get(k)]
    return differing


def _check_room(folder: Path, meta: dict[str, Any], dtype: str, missing: int, say: bool) -> None:
    """Say how much disk the missing images take, and refuse where there is not so much."""
    one = meta["pixels"] * meta["channels"] * DTYPES[dtype].itemsize
    one += 2 * meta["spec"]["original_num_classes"]
    need, free = missing * one, shutil.disk_usage(folder).free
    if say and need > _WORTH_SAYING:
        console.print(
            f"features: {size_text(need)} in {folder} ({size_text(free)} are free)",
            markup=False,
            highlight=False,
        )
    if need > free:
        raise OSError(
            f"extract: the maps of {missing} images take {size_text(need)}, but {folder} has "
            f"{size_text(free)} free; make room, use another folder, fewer images or smaller ones"
        )


def _is_complete(path: Path, meta: dict[str, Any]) -> bool:
    try:
        read_shard(path, meta)
    except (FileNotFoundError, ValueError):
        return False
    return True
