"""What a unit of a head means: the training images that excite it most, and where in them.

One streaming pass over the stored features. The head pools each batch of maps, and a running top-k
of every unit is kept for both sides, see `infodisent.ops.TopPixels`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from torch import Tensor

from infodisent import ranks
from infodisent.backbones.backbone import evaluating
from infodisent.backbones.preprocess import transform_problem
from infodisent.data.archives import is_there
from infodisent.data.store import FeatureStore
from infodisent.files import read_tensors, reading, write_tensors
from infodisent.methods import Head
from infodisent.ops import TopPixels
from infodisent.progress import bar

FORMAT = 1


@dataclass(frozen=True)
class Prototype:
    """One training image of one side of a unit.

    Attributes:
        file: path of the image.
        label_name: its class; of several labels all of them, with commas.
        value: how strongly the unit responds, > 0 on either side.
        pixel: (row, column) of the feature cell that responds.
    """

    file: str
    label_name: str
    value: float
    pixel: tuple[int, int]


@dataclass
class Prototypes:
    """The k strongest images of every unit (channel, prototype), for either side of it.

    Attributes:
        pos_value: activations, falling along dim 0, 0 where there is no image, ``[k, M]`` float32.
        pos_image: index into `files`, -1 where there is none, ``[k, M]`` int64.
        pos_index: flat pixel in row-major `grid`, -1 where there is none, ``[k, M]`` int32.
        neg_value, neg_image, neg_index: the same for the magnitude of the negative side.
        files: N paths.
        labels: ``[N]`` int64, index into `classes`; multi-label ``[N, K]`` float32, zeros and ones.
        classes: K class names.
        grid: rows and columns of the feature map.
        transform: configuration of the evaluation transform, see `infodisent.backbones.preprocess`.
    """

    pos_value: Tensor
    pos_image: Tensor
    pos_index: Tensor
    neg_value: Tensor
    neg_image: Tensor
    neg_index: Tensor
    files: list[str] = field(repr=False)
    labels: Tensor = field(repr=False)
    classes: tuple[str, ...]
    grid: tuple[int, int]
    transform: dict[str, Any] = field(repr=False)

    @property
    def k(self) -> int:
        """Images kept per unit and side."""
        return self.pos_value.shape[0]

    @property
    def channels(self) -> int:
        """M, the units."""
        return self.pos_value.shape[1]

    def of(self, channel: int, sign: int = 1) -> list[Prototype]:
        """The images of one side of a unit, strongest first; fewer than k where fewer respond.

        Args:
            channel: the unit, in 0 … M-1.
            sign: 1 for the positive side, -1 for the negative.

        Raises:
            ValueError: another channel or sign.
        """
        self.check_channel(channel)
        if sign not in (1, -1):
            raise ValueError(f"Prototypes.of: sign is {sign!r}, allowed are 1 and -1")
        value, image, index = (
            (self.pos_value, self.pos_image, self.pos_index)
            if sign == 1
            else (self.neg_value, self.neg_image, self.neg_index)
        )
        rows = zip(
            value[:, channel].tolist(),
            image[:, channel].tolist(),
            index[:, channel].tolist(),
            strict=True,
        )
        return [
            Prototype(self.files[i], self._label_name(i), v, divmod(p, self.grid[1]))
            for v, i, p in rows
            if i >= 0
        ]

    def _label_name(self, image: int) -> str:
        """The class of an image; of several labels all of them."""
        label = self.labels[image]
        if label.ndim == 0:
            return self.classes[int(label)]
        return ", ".join(self.classes[k] for k in label.nonzero().flatten().tolist()) or "no label"

    def check_channel(self, channel: int) -> None:
        """Raise ValueError unless `channel` is one of 0 … M-1."""
        if not 0 <= channel < self.channels:
            raise ValueError(
                f"Prototypes: channel is {channel}, allowed are 0 … {self.channels - 1}"
            )

    def relocated(self, root: str, images_root: str | os.PathLike[str] | None) -> Prototypes:
        """The same with the files where they are now, see `relocate`."""
        return dataclasses.replace(self, files=relocate(self.files, root, images_root))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, at once or not at all."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        metadata = {
            "kind": "prototypes",
            "format": FORMAT,
            "files": self.files,
            "classes": list(self.classes),
            "grid": list(self.grid),
            "transform": self.transform,
        }
        write_tensors(path, tensors, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Prototypes:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: truncated, not prototypes, or made by a newer version; names the file.
        """
        tensors, metadata = read_tensors(path)
        if not isinstance(metadata, dict) or metadata.get("kind") != "prototypes":
            raise ValueError(f"{path} was written by infodisent but does not hold prototypes")
        if metadata["format"] > FORMAT:
            raise ValueError(
                f"{path} has format {metadata['format']}, this version reads up to {FORMAT}: "
                "update infodisent"
            )
        rows, columns = metadata["grid"]
        read = cls(
            **{name: tensors[name] for name in _TENSORS},
            files=list(metadata["files"]),
            classes=tuple(metadata["classes"]),
            grid=(rows, columns),
            transform=metadata["transform"],
        )
        with reading(path):
            read._check()
        return read

    def _check(self) -> None:
        """Raise TypeError or IndexError unless what was read is of one piece."""
        if not all(isinstance(text, str) for text in (*self.files, *self.classes)):
            raise TypeError("files and classes must be texts")
        if not all(isinstance(side, int) and side > 0 for side in self.grid):
            raise TypeError(f"grid is {self.grid}, must be two numbers of cells")
        problem = transform_problem(self.transform, whole=False)  # `open_run` has the model's
        if problem is not None:
            raise TypeError(problem)
        shape, cells = self.pos_value.shape, self.grid[0] * self.grid[1]
        for name in _TENSORS[:-1]:
            values, below = getattr(self, name), None
            if name.endswith("_image"):
                below = len(self.files)
            elif name.endswith("_index"):
                below = cells
            if len(shape) != 2 or values.shape != shape:
                raise IndexError(f"{name} is {tuple(values.shape)}, pos_value {tuple(shape)}")
            if (below is None) != values.is_floating_point():
                raise TypeError(f"{name} is {values.dtype}")
            if below is None and not bool(values.isfinite().all()):
                raise TypeError(f"{name} holds NaN or Inf")
            if below is not None and not bool(((values >= -1) & (values < below)).all()):
                raise IndexError(f"{name} has numbers outside -1 … {below - 1}")
        labels, count = self.labels, len(self.classes)
        several = labels.ndim == 2 and labels.shape[1] == count
        if len(labels) != len(self.files) or not (several or labels.ndim == 1):
            raise IndexError(f"labels is {tuple(labels.shape)} for {len(self.files)} files")
        if not several and not bool(((labels >= 0) & (labels < count)).all()):
            raise IndexError(f"labels are outside 0 … {count - 1}")


def relocate(
    files: Sequence[str], root: str, images_root: str | os.PathLike[str] | None
) -> list[str]:
    """Paths of images whose folder was moved; those outside of it stay as they are.

    Args:
        files: where the images were.
        root: the folder they were in.
        images_root: where that folder is now; None: where it was.

    Raises:
        NotADirectoryError: `images_root` is not a folder.
        FileNotFoundError: none of the images is there.
    """
    if images_root is None:
        return list(files)
    if not os.path.isdir(images_root):
        raise NotADirectoryError(f"images_root is {os.fspath(images_root)!r}, which is no folder")
    # the machine they come from may write paths in another way than this one
    flavour = PureWindowsPath if "\\" in root and "/" not in root else PurePosixPath
    old = flavour(root)
    moved = []
    for file in files:
        path = flavour(file)
        inside = root and path.is_relative_to(old)
        moved.append(str(Path(images_root, *path.relative_to(old).parts)) if inside else file)
    if moved and not any(map(is_there, moved)):
        raise FileNotFoundError(
            f"images_root: none of the run's images is there, such as {moved[0]}"
        )
    return moved


_TENSORS = (
    *(f"{side}_{what}" for side in ("pos", "neg") for what in ("value", "image", "index")),
    "labels",
)


@torch.no_grad()
def find_prototypes(
    head: Head,
    store: FeatureStore,
    *,
    k: int = 5,
    split: str = "train",
    batch_size: int = 256,
    progress: bool = True,
) -> Prototypes:
    """The k images of a split with the highest activation, for every unit and side of it.

    Args:
        head: trained; pools in evaluation mode, on the device it is on.
        store: features of C channels.
        k: images to keep; where fewer respond, the rest is 0 / -1.
        split: "train" or "val".
        batch_size: maps pooled at a time.
        progress: show a progress bar.

    Equal activations: the image that comes first in the store wins. Several processes
    (`infodisent.ranks`) search a part of the images each.

    Raises:
        ValueError: the head does not fit the store, the split has no images, k or batch_size is
            below 1, or an activation is NaN or Inf.
    """
    for name, number in (("k", k), ("batch_size", batch_size)):
        if number < 1:
            raise ValueError(f"find_prototypes: {name} is {number}, must be >= 1")
    if head.in_features != store.channels:
        raise ValueError(
            f"find_prototypes: the head takes {head.in_features} channels, the store has "
            f"{store.channels}"
        )
    indices = store.indices(split)
    if not len(indices):
        allowed = ", ".join(repr(s) for s in sorted(set(store.splits)))
        raise ValueError(f"find_prototypes: split is {split!r}, the store has images in {allowed}")
    sides = [TopPixels(k, head.num_features, above=0.0) for _ in range(2)]
    with bar(progress) as display, evaluating(head):
        own = ranks.piece(indices)
        task = display.add_task("find prototypes", total=len(own), note="")
        for maps, _, images in store.batches(own, batch_size, dtype=None, device=head.device):
            pool = head.pool(maps, input_fmt="NLC")
            if not torch.isfinite(pool.pooled).all():
                raise ValueError("find_prototypes: an activation is NaN or Inf; check the weights")
            sides[0].update(pool.pos, pool.pos_index, images)
            sides[1].update(pool.neg, pool.neg_index, images)
            display.update(task, advance=len(images))
    for side in sides:
        side.gather()
    pos, neg = (
        (best.value.nan_to_num(0.0), best.image, best.index)
        for best in (side.result() for side in sides)
    )
    return Prototypes(
        *pos,
        *neg,
        files=list(store.files),
        labels=store.labels.clone(),
        classes=tuple(store.classes),
        grid=store.grid,
        transform=store.meta["transform"],
    )
