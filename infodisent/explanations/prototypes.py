"""What a channel means: the training images that excite it most, and where in them.

One streaming pass over the stored features. Each batch of maps is rotated and pooled by the fused
operator (the rotated maps never exist whole), and a running top-k of every channel, both sides, is
kept by `torch.topk` over ``[k + batch, C]``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from infodisent import ops
from infodisent.data.features import FeatureStore
from infodisent.files import read_tensors, write_tensors
from infodisent.methods.infodisent import InfoDisentHead
from infodisent.progress import bar

FORMAT = 1
_LOW = (1 << 32) - 1


@dataclass(frozen=True)
class Prototype:
    """One training image of one side of a channel.

    Attributes:
        file: path of the image.
        label_name: its class.
        value: how strongly the channel responds, > 0 on either side.
        pixel: (row, column) of the feature cell that responds.
    """

    file: str
    label_name: str
    value: float
    pixel: tuple[int, int]


@dataclass
class Prototypes:
    """The k strongest images of every channel, for its positive and its negative side.

    Attributes:
        pos_value: activations, falling along dim 0, 0 where there is no image, ``[k, C]`` float32.
        pos_image: index into `files`, -1 where there is none, ``[k, C]`` int64.
        pos_index: flat pixel in row-major `grid`, -1 where there is none, ``[k, C]`` int32.
        neg_value, neg_image, neg_index: the same for the magnitude of the negative side.
        files: N paths.
        labels: ``[N]`` int64, index into `classes`.
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
        """Images kept per channel and side."""
        return self.pos_value.shape[0]

    @property
    def channels(self) -> int:
        """C."""
        return self.pos_value.shape[1]

    def of(self, channel: int, sign: int = 1) -> list[Prototype]:
        """The images of one side of a channel, strongest first; fewer than k where fewer respond.

        Args:
            channel: in 0 … C-1.
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
        found = zip(
            value[:, channel].tolist(),
            image[:, channel].tolist(),
            index[:, channel].tolist(),
            strict=True,
        )
        return [
            Prototype(self.files[i], self.classes[int(self.labels[i])], v, divmod(p, self.grid[1]))
            for v, i, p in found
            if i >= 0
        ]

    def check_channel(self, channel: int) -> None:
        """Raise ValueError unless `channel` is one of 0 … C-1."""
        if not 0 <= channel < self.channels:
            raise ValueError(
                f"Prototypes: channel is {channel}, allowed are 0 … {self.channels - 1}"
            )

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
        return cls(
            **{name: tensors[name] for name in _TENSORS},
            files=list(metadata["files"]),
            classes=tuple(metadata["classes"]),
            grid=(rows, columns),
            transform=metadata["transform"],
        )


_TENSORS = (
    *(f"{side}_{what}" for side in ("pos", "neg") for what in ("value", "image", "index")),
    "labels",
)


@torch.no_grad()
def find_prototypes(
    head: InfoDisentHead,
    store: FeatureStore,
    *,
    k: int = 5,
    split: str = "train",
    batch_size: int = 256,
    progress: bool = True,
) -> Prototypes:
    """The k images of a split with the highest activation, for every channel and side.

    Args:
        head: trained; rotates on the device it is on.
        store: features of C channels.
        k: images to keep; where fewer respond, the rest is 0 / -1.
        split: "train" or "val".
        batch_size: maps rotated at a time.
        progress: show a progress bar.

    Equal activations: the image that comes first in the store wins.

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
    device = next(head.parameters()).device
    U = None if head.rotation is None else head.rotation()
    sides = [_TopK(k, store.channels, device) for _ in range(2)]
    with bar(progress) as display:
        task = display.add_task("find prototypes", total=len(indices), note="")
        for maps, _, images in store.batches(indices, batch_size):
            x = maps.to(device)  # [n, P, C]
            pool = (
                ops.mx_pool(x, input_fmt="NLC")
                if U is None
                else ops.rotate_pool(x, U, input_fmt="NLC")
            )
            if not torch.isfinite(pool.pooled).all():
                raise ValueError(
                    "find_prototypes: an activation is NaN or Inf; check the head's rotation"
                )
            images = images.to(device)
            sides[0].update(pool.pos, pool.pos_index, images)
            sides[1].update(pool.neg, pool.neg_index, images)
            display.update(task, advance=len(images))
    pos, neg = (side.result() for side in sides)
    return Prototypes(
        *pos,
        *neg,
        files=list(store.files),
        labels=store.labels.clone(),
        classes=tuple(store.classes),
        grid=store.grid,
        transform=store.meta["transform"],
    )


class _TopK:
    """A running top-k along images, per channel.

    Value and image share one integer, ``bits(value) << 32 | (2^32 - 1 - image)``: the bits of
    nonnegative floats are ordered as the floats are, so the larger value wins and, among equals,
    the earlier image; `torch.topk` alone promises nothing about ties. A value of 0 is the key 0.
    """

    def __init__(self, k: int, channels: int, device: torch.device) -> None:
        self.key = torch.zeros(k, channels, dtype=torch.int64, device=device)
        self.pixel = torch.full((k, channels), -1, dtype=torch.int32, device=device)

    def update(self, value: Tensor, pixel: Tensor, image: Tensor) -> None:
        """Merge a batch: value, pixel ``[n, C]``, image ``[n]``."""
        value = value.float().contiguous()
        key = (value.view(torch.int32).long() << 32) | (_LOW - image)[:, None]
        key = torch.where(value > 0, key, 0)
        self.key, place = torch.cat([self.key, key]).topk(len(self.key), dim=0)
        self.pixel = torch.cat([self.pixel, pixel]).gather(0, place)

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        """Value float32, image int64 and pixel int32, each ``[k, C]``."""
        value = (self.key >> 32).to(torch.int32).view(torch.float32)
        found = self.key > 0
        image = torch.where(found, _LOW - (self.key & _LOW), -1)
        index = torch.where(found, self.pixel, -1)
        return value.cpu(), image.cpu(), index.cpu()
