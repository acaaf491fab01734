"""Readers of the annotations that part and mask metrics need, by the format they come in.

cub:FOLDER          CUB-200-2011 as it is unpacked, with ``segmentations`` if they are there
funnybirds:FOLDER   FunnyBirds: dataset_*.json, images and part maps
coco:FILE           a COCO file, or a folder of them: PartImageNet, Pascal Parts …
scenes:FOLDER       what `infodisent.testing.scene_files.write_scenes` wrote
masks:FOLDER        a mask an image, of its name, in folders as the images are; 0 is background
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from infodisent.data.annotations import Annotations, merged
from infodisent.data.numbered_lines import check_whole, number, numbered, place_in, rows
from infodisent.files import read_json, reading
from infodisent.testing import scene_files

FUNNYBIRDS_COLORS = {
    "eye01": (255, 255, 253), "eye02": (255, 255, 254), "beak": (255, 255, 0),
    "foot01": (255, 0, 1), "foot02": (255, 0, 2), "wing01": (0, 255, 1), "wing02": (0, 255, 2),
    "tail": (0, 0, 255),
}  # fmt: skip
"""A part's colour in the part maps of FunnyBirds."""


def read_annotations(given: str) -> Annotations:
    """Read ``KIND:FOLDER``.

    Raises:
        FileNotFoundError: no such folder, or a file of the format is missing.
        ValueError: no such kind, or a file is damaged; the message names it.
        ModuleNotFoundError: run-length masks of a COCO file, without pycocotools.
    """
    kind, colon, place = given.partition(":")
    if not colon or kind not in FORMATS or not place:
        raise ValueError(
            f"annotations are {given!r}, must be KIND:FOLDER with one of the kinds "
            f"{', '.join(FORMATS)}"
        )
    path = Path(place).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"annotations: {path} does not exist")
    return FORMATS[kind](path)


def read_cub(folder: Path) -> Annotations:
    """Caltech-UCSD Birds-200-2011: classes, split, 15 keypoints, boxes, masks if unpacked.

    Wah et al. 2011. Segmentations (a download of their own) are looked for in the folder and beside
    it; a pixel is the bird's where most annotators say so.
    """
    names = numbered(folder / "images.txt")
    classes = numbered(folder / "classes.txt")
    parts = numbered(folder / "parts" / "parts.txt")
    image, part = place_in("images.txt", names), place_in("parts.txt", parts)
    labels = torch.full((len(names),), -1, dtype=torch.int64)
    training = torch.full((len(names),), torch.nan)
    boxes = torch.full((len(names), 4), torch.nan)
    keypoints = torch.full((len(names), len(parts), 2), torch.nan)
    path = folder / "image_class_labels.txt"
    for i, label in rows(path, image, place_in("classes.txt", classes)):
        labels[i] = label
    check_whole(path, labels >= 0, names)
    path = folder / "train_test_split.txt"
    for i, is_training in rows(path, image, number):
        training[i] = is_training
    check_whole(path, ~training.isnan(), names)
    for i, x, y, width, height in rows(folder / "bounding_boxes.txt", image, *[number] * 4):
        boxes[i] = torch.tensor([x, y, x + width, y + height])
    for i, j, across, down, visible in rows(
        folder / "parts" / "part_locs.txt", image, part, *[number] * 3
    ):
        if visible:
            keypoints[i, j] = torch.tensor([across, down])
    files = tuple(names.values())
    masks = next(
        (at for at in (folder / "segmentations", folder.parent / "segmentations") if at.is_dir()),
        None,
    )
    kinds = tuple(parts.values())
    return Annotations(
        kind="cub",
        folder=folder / "images",
        files=files,
        classes=tuple(classes.values()),
        labels=labels,
        splits=tuple("train" if t else "val" for t in training.tolist()),
        parts=kinds,
        groups=merged(kinds),
        boxes=boxes,
        keypoints=keypoints,
        object_mask=None if masks is None else lambda i: _grey(masks, files[i], 127),
    )


def read_funnybirds(folder: Path) -> Annotations:
    """FunnyBirds: rendered birds of 50 classes, with a map of their parts for every image.

    Hesse, Schaub-Meyer and Roth, ICCV 2023. A class is called as its folder, by its number.
    """
    files, splits, labels = [], [], []
    for mode, split in (("train", "train"), ("test", "val")):
        path = folder / f"dataset_{mode}.json"
        if mode == "train" and not path.is_file():
            continue  # people who only judge unpack the test set
        known = read_json(path)
        with _reading(path):
            for at, image in enumerate(known):
                files.append(f"{mode}/{image['class_idx']}/{at:06d}.png")
                splits.append(split)
                labels.append(int(image["class_idx"]))
    classes = read_json(folder / "classes.json")
    with _reading(folder / "classes.json"):
        names = tuple(str(known["class_idx"]) for known in classes)
        if not files or not 0 <= min(labels) <= max(labels) < len(names):
            raise ValueError(f"{len(names)} classes, images of {sorted(set(labels))[-9:]}")

    def part_mask(index: int) -> Tensor:
        mode, rest = files[index].split("/", 1)
        with Image.open(folder / f"{mode}_part_map" / rest) as picture:
            pixels = torch.from_numpy(np.array(picture.convert("RGB")))
        colors = torch.tensor(list(FUNNYBIRDS_COLORS.values()), dtype=torch.uint8)
        return (pixels == colors[:, None, None]).all(3)

    parts = tuple(FUNNYBIRDS_COLORS)
    return Annotations(
        kind="funnybirds",
        folder=folder,
        files=tuple(files),
        classes=names,
        labels=torch.tensor(labels, dtype=torch.int64),
        splits=tuple(splits),
        parts=parts,
        groups=merged(parts),
        part_mask=part_mask,
    )


def read_coco(path: Path) -> Annotations:
    """Parts as the categories of COCO files: PartImageNet (He et al., ECCV 2022) and its like.

    Args:
        path: a file, or a folder in which all ``*.json`` with images and annotations are read. A
            file whose name begins with "train" is of the training split. The class of an image is
            the folder above it, or what stands before the first "_" of its name, as in ImageNet.
    """
    found = [path] if path.is_file() else sorted(path.rglob("*.json"))
    files: list[str] = []
    splits: list[str] = []
    sizes: list[tuple[int, int]] = []
    shapes: list[list[tuple[int, Any]]] = []
    categories: dict[int, str] = {}
    for file in found:
        known = read_json(file)
        if not isinstance(known, Mapping) or not {"images", "annotations"} <= set(known):
            if path.is_file():
                raise ValueError(f"{path} has no images and annotations, as COCO files have")
            continue
        with _reading(file):
            categories |= {int(c["id"]): str(c["name"]) for c in known.get("categories", ())}
            place = {}
            for image in known["images"]:
                place[image["id"]] = len(files)
                files.append(str(image["file_name"]))
                splits.append("train" if file.stem.lower().startswith("train") else "val")
                sizes.append((int(image["height"]), int(image["width"])))
                if min(sizes[-1]) < 1:
                    raise ValueError(f"{files[-1]} has height and width {sizes[-1]}")
                shapes.append([])
            for part in known["annotations"]:
                if part["category_id"] not in categories:
                    raise KeyError(f"category_id {part['category_id']}")
                if part.get("segmentation"):
                    shapes[place[part["image_id"]]].append(
                        (int(part["category_id"]), part["segmentation"])
                    )
    if not files:
        raise ValueError(f"annotations: {path} has no COCO file with images")
    numbers = sorted(categories)
    column = {number: i for i, number in enumerate(numbers)}

    def part_mask(index: int) -> Tensor:
        masks = torch.zeros(len(numbers), *sizes[index], dtype=torch.bool)
        for category, shape in shapes[index]:
            masks[column[category]] |= _coco_mask(shape, sizes[index])
        return masks

    owners = [_owner(file) for file in files]
    classes = tuple(sorted(set(owners)))
    parts = tuple(categories[number] for number in numbers)
    folder = path if path.is_dir() else path.parent
    return Annotations(
        kind="coco",
        folder=folder / "images" if (folder / "images").is_dir() else folder,
        files=tuple(files),
        classes=classes,
        labels=torch.tensor([classes.index(owner) for owner in owners], dtype=torch.int64),
        splits=tuple(splits),
        parts=parts,
        groups=merged(parts),
        part_mask=part_mask,
    )


def read_scenes(folder: Path) -> Annotations:
    """Scenes of known truth, with keypoints, boxes and masks of their parts."""
    known = scene_files.read_annotations(folder)
    boxes = known.boxes.float()
    boxes[(known.boxes == 0).all(1)] = torch.nan
    return Annotations(
        kind="scenes",
        folder=folder / scene_files.IMAGES,
        files=known.files,
        classes=known.classes,
        labels=known.labels,
        splits=("val",) * len(known.files),
        parts=known.parts,
        groups=merged(known.parts),
        boxes=boxes,
        keypoints=torch.where(known.visible[..., None], known.keypoints, torch.nan),
        part_mask=known.masks,
    )


def read_masks(folder: Path) -> Annotations:
    """A mask for every image, found by its name without the ending; what is not 0 is the object."""
    found = sorted(
        p for p in folder.rglob("*") if p.suffix.lower() in (".png", ".bmp", ".tif", ".tiff")
    )
    if not found:
        raise FileNotFoundError(f"annotations: {folder} has no mask (.png, .bmp, .tif)")
    files = [p.relative_to(folder).as_posix() for p in found]
    owners = [PurePosixPath(file).parent.name for file in files]
    classes = tuple(sorted(set(owners)))
    return Annotations(
        kind="masks",
        folder=folder,
        files=tuple(files),
        classes=classes,
        labels=torch.tensor([classes.index(owner) for owner in owners], dtype=torch.int64),
        splits=("val",) * len(files),
        object_mask=lambda i: _grey(folder, files[i], 0),
    )


FORMATS: dict[str, Callable[[Path], Annotations]] = {
    "cub": read_cub,
    "funnybirds": read_funnybirds,
    "coco": read_coco,
    "scenes": read_scenes,
    "masks": read_masks,
}
"""Every format by the name that stands before the colon."""


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """`reading`, also of values that are no numbers."""
    try:
        with reading(path):
            yield
    except (ValueError, OverflowError) as error:
        text = str(error)
        if not text.startswith(str(path)):
            text = f"{path} does not hold what it should ({text})"
        raise ValueError(text) from error


def _grey(folder: Path, file: str, above: int) -> Tensor | None:
    """A mask beside an image: pixels brighter than `above`; None where there is no file."""
    path = folder / os.path.splitext(file)[0]
    path = path.with_name(f"{path.name}.png") if not (folder / file).is_file() else folder / file
    if not path.is_file():
        return None
    with Image.open(path) as picture:
        pixels = np.array(picture.convert("L") if picture.mode != "P" else picture)
    return torch.from_numpy(pixels) > above


def _owner(file: str) -> str:
    path = PurePosixPath(file)
    return path.parent.name or path.stem.split("_")[0]


def _coco_mask(shape: Any, size: tuple[int, int]) -> Tensor:
    """Polygons, or a run-length code, as pixels ``[H, W]`` bool.

    Raises:
        ValueError: it is neither, or a code of a photograph of another size.
        ModuleNotFoundError: it is a code, and pycocotools is not installed.
    """
    if isinstance(shape, list):
        picture = Image.new("1", (size[1], size[0]))
        draw = ImageDraw.Draw(picture)
        for ring in shape:
            if not _is_ring(ring):
                raise ValueError(
                    f"annotations: segmentation holds {_brief(ring)}, must hold polygons, each a "
                    "list of x and y in turn"
                )
            if len(ring) >= 6:
                draw.polygon(list(zip(ring[::2], ring[1::2], strict=True)), fill=1)
        return torch.from_numpy(np.array(picture))
    _check_run_lengths(shape, size)
    try:
        from pycocotools import mask as run_lengths
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "these COCO annotations are run-length codes, which pycocotools reads: "
            "pip install pycocotools"
        ) from None
    code = shape
    if isinstance(shape["counts"], list):
        code = run_lengths.frPyObjects(shape, *size)
    return torch.from_numpy(np.asarray(run_lengths.decode(code))).bool()


def _is_ring(ring: Any) -> bool:
    """Whether it is x and y in turn."""
    return (
        isinstance(ring, list)
        and len(ring) % 2 == 0
        and all(isinstance(v, (int, float)) and math.isfinite(v) for v in ring)
    )


def _check_run_lengths(code: Any, size: tuple[int, int]) -> None:
    """Before pycocotools has it: what it makes of runs of another length is not defined."""
    if not isinstance(code, dict) or not {"size", "counts"} <= code.keys():
        raise ValueError(
            f"annotations: segmentation is {_brief(code)}, must be a list of polygons, or a "
            "run-length code with size and counts"
        )
    if code["size"] != list(size):
        raise ValueError(
            f"annotations: a run-length code has size {_brief(code['size'])}, its photograph "
            f"{list(size)} (height, width): it is of another version of it"
        )
    counts = code["counts"]
    if isinstance(counts, str):
        return
    whole = isinstance(counts, list) and all(type(n) is int and n >= 0 for n in counts)
    if not whole or sum(counts) != size[0] * size[1]:
        raise ValueError(
            f"annotations: a run-length code has counts {_brief(counts)}, must be a text, or "
            f"numbers >= 0 whose sum is height x width, {size[0] * size[1]}"
        )


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
