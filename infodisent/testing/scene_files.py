"""Scenes as files: a folder of class folders, and annotations beside it.

folder/images/<class>/00003.png    what `infodisent fit folder/images` reads
folder/masks/<class>/00003.png     0 nothing, 1 … J a part, 255 a distractor
folder/annotations.json            keypoints, visibility, boxes; written last
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from infodisent.files import read_json, reading, replacing, write_json
from infodisent.testing.scenes import Scene, Scenes

IMAGES, MASKS, ANNOTATIONS = "images", "masks", "annotations.json"
DISTRACTOR = 255
"""Value of a distractor's pixels in the masks."""


@dataclass(frozen=True)
class Annotations:
    """What is known of the images of a folder.

    Attributes:
        folder: of the whole.
        files: N paths of images, relative to ``folder/images`` (masks: to ``folder/masks``).
        classes, parts: names.
        labels: ``[N]`` int64.
        keypoints: ``[N, J, 2]`` float32, x and y in pixels.
        visible: ``[N, J]`` bool.
        boxes: ``[N, 4]`` int64, x0, y0, x1, y1 around all parts, ends excluded; zeros without any.
    """

    folder: Path
    files: tuple[str, ...]
    classes: tuple[str, ...]
    parts: tuple[str, ...]
    labels: Tensor
    keypoints: Tensor
    visible: Tensor
    boxes: Tensor

    def masks(self, index: int) -> Tensor:
        """Pixels of every part of one image, ``[J, H, W]`` bool."""
        import numpy as np
        from PIL import Image

        with Image.open(self.folder / MASKS / self.files[index]) as picture:
            numbers = torch.from_numpy(np.array(picture))
        return numbers == torch.arange(1, len(self.parts) + 1)[:, None, None]


def write_scenes(scenes: Scenes, folder: str | os.PathLike[str]) -> Annotations:
    """Write images, masks and annotations; read them back with `read_annotations`.

    Each file appears under its name at once or not at all, the annotations last.
    """
    from PIL import Image

    base = Path(folder)
    images = []
    for number, scene in enumerate(scenes):
        name = f"{scenes.classes[scene.label]}/{number:05d}.png"
        for kind, pixels in ((IMAGES, scene.image.permute(1, 2, 0)), (MASKS, _numbers(scene))):
            with replacing(base / kind / name) as temporary:
                Image.fromarray(pixels.contiguous().numpy()).save(temporary)
        images.append(
            {
                "file": name,
                "label": scene.label,
                "keypoints": scene.keypoints.tolist(),
                "visible": scene.visible.tolist(),
                "box": _box(scene),
            }
        )
    write_json(
        base / ANNOTATIONS,
        {"classes": scenes.classes, "parts": scenes.part_names, "images": images},
    )
    return read_annotations(base)


def read_annotations(folder: str | os.PathLike[str]) -> Annotations:
    """Read what `write_scenes` wrote.

    Raises:
        FileNotFoundError: no annotations there.
        ValueError: they are damaged; the message names the file.
    """
    path = Path(folder) / ANNOTATIONS
    known = read_json(path)
    with reading(path):
        images = known["images"]
        return Annotations(
            folder=Path(folder),
            files=tuple(image["file"] for image in images),
            classes=tuple(known["classes"]),
            parts=tuple(known["parts"]),
            labels=torch.tensor([image["label"] for image in images]),
            keypoints=torch.tensor([image["keypoints"] for image in images]),
            visible=torch.tensor([image["visible"] for image in images]),
            boxes=torch.tensor([image["box"] for image in images]),
        )


def _numbers(scene: Scene) -> Tensor:
    """The mask file's values, ``[size, size]`` uint8; parts lie over distractors."""
    parts = torch.arange(1, len(scene.masks) + 1)[:, None, None]
    of_parts = (scene.masks * parts).amax(0)
    behind = torch.where(scene.distractors, DISTRACTOR, 0)
    return torch.where(of_parts > 0, of_parts, behind).to(torch.uint8)


def _box(scene: Scene) -> list[int]:
    rows, columns = scene.masks.any(0).nonzero(as_tuple=True)
    if not len(rows):
        return [0, 0, 0, 0]
    ends = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    return [int(end) for end in ends]
