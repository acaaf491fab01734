"""The one table of map sizes: what is compared, tuned and reported is of these."""

from __future__ import annotations

import math
import re
from typing import NamedTuple


class MapSize(NamedTuple):
    """The feature map of a backbone.

    Attributes:
        title: its usual name.
        channels, height, width: C, H and W.
        tokens: further pixels beside H·W: a class token that is pooled with the rest.
    """

    title: str
    channels: int
    height: int
    width: int
    tokens: int = 0

    @property
    def pixels(self) -> int:
        """P, which counts the tokens."""
        return self.height * self.width + self.tokens


AT_224: dict[str, MapSize] = {
    "resnet34": MapSize("ResNet-34", 512, 7, 7),
    "resnet50": MapSize("ResNet-50", 2048, 7, 7),
    "densenet121": MapSize("DenseNet-121", 1024, 7, 7),
    "convnext_tiny": MapSize("ConvNeXt-T", 768, 7, 7),
    "convnext_large": MapSize("ConvNeXt-L", 1536, 7, 7),
    "vit_base_patch16_224": MapSize("ViT-B/16", 768, 14, 14),
    "swin_small_patch4_window7_224": MapSize("Swin-S", 768, 7, 7),
    "maxvit_tiny_tf_224": MapSize("MaxViT-T", 512, 7, 7),
    "tf_efficientnet_lite0": MapSize("EfficientNet-Lite0", 1280, 7, 7),
}
"""Names of timm, and their maps of images of 224 x 224 pixels."""

OTHERS: dict[str, MapSize] = {
    "vit_base_patch16_224, class token": MapSize("ViT-B/16 with class token", 768, 14, 14, 1),
    "convnext_large, 384": MapSize("ConvNeXt-L at 384", 1536, 12, 12),
    "resnet50, 448": MapSize("ResNet-50 at 448", 2048, 14, 14),
    "vit_base_patch16_384": MapSize("ViT-B/16 at 384", 768, 24, 24),
}
"""Larger images, and tokens that count as pixels: other tiles of the GPU kernels."""

SHAPES: dict[str, tuple[int, int, int]] = {name: size[1:4] for name, size in AT_224.items()}
"""``(C, H, W)`` of `AT_224`."""

EACH_SIZE = (
    "resnet34",
    "convnext_tiny",
    "vit_base_patch16_224",
    "densenet121",
    "convnext_large",
    "resnet50",
)
"""A backbone of each map size that the paper's backbones have, smallest work first."""


class PoolSize(NamedTuple):
    """What a method of the prototype family pools.

    Attributes:
        title: method and data.
        similarities: what is compared, one or two views of one product, or "softmax" (of the
            channels where there are no prototypes, else of the products); "alignment" of two maps
            of scores.
        batch: images of a step, or pairs; where published ones need gigabytes a map, fewer.
        prototypes: M; None where the channels themselves are the scores.
        channels, height, width: C, H and W.
    """

    title: str
    similarities: tuple[str, ...]
    batch: int
    prototypes: int | None
    channels: int
    height: int
    width: int

    @property
    def op(self) -> str:
        """The operator that this is a case of."""
        others = {"softmax": "softmax_pool", "alignment": "softmax_alignment"}
        return others.get(self.similarities[0], "similarity_pool")


POOLS: dict[str, PoolSize] = {
    "protopnet_cub": PoolSize("ProtoPNet, CUB", ("l2",), 80, 2000, 128, 7, 7),
    "tesnet_cub": PoolSize("TesNet, CUB", ("dot", "cosine"), 80, 2000, 64, 7, 7),
    "st_full": PoolSize("ST-ProtoPNet, full images", ("cosine",), 80, 2000, 64, 14, 14),
    "prototree_cub": PoolSize("ProtoTree, CUB", ("l2",), 64, 511, 256, 7, 7),
    "protopnet_imagenet": PoolSize("10,000 prototypes", ("l2",), 256, 10000, 128, 7, 7),
    "pipnet_small": PoolSize("PIP-Net, ConvNeXt, 16 views", ("softmax",), 16, None, 768, 26, 26),
    "pipnet_convnext": PoolSize("PIP-Net, ConvNeXt", ("softmax",), 128, None, 768, 26, 26),
    "softmax_codes": PoolSize("Softmax over 2,000 codes", ("softmax",), 80, 2000, 128, 7, 7),
    "pipnet_alignment": PoolSize(
        "PIP-Net's alignment, ConvNeXt, 8 pairs", ("alignment",), 8, None, 768, 26, 26
    ),
}
"""Sizes of `similarity_pool`, `softmax_pool` and `softmax_alignment`, of the published training
configurations."""

CHANNELS = tuple(sorted({size.channels for size in AT_224.values()}))
"""Sizes of the rotation."""


def shape_size(shape: str, owner: str = "bench") -> tuple[tuple[int, int, int], int | None]:
    """``(C, H, W)`` of a name of `SHAPES` or of sizes given as text, and the batch if it has one.

    Sizes are ``C,P`` or ``B,C,P`` (channels and pixels, images) or ``CxHxW``.

    Raises:
        ValueError: neither.
    """
    if shape in SHAPES:
        return SHAPES[shape], None
    if re.fullmatch(r"[1-9]\d*(,[1-9]\d*){1,2}", shape):
        *batch, channels, pixels = (int(number) for number in shape.split(","))
        side = math.isqrt(pixels)
        rows = side if side * side == pixels else 1
        return (channels, rows, pixels // rows), batch[0] if batch else None
    if re.fullmatch(r"[1-9]\d*([x×][1-9]\d*){2}", shape):
        channels, height, width = (int(number) for number in re.split("[x×]", shape))
        return (channels, height, width), None
    raise ValueError(
        f"{owner}: shape is {shape!r}, allowed here: {', '.join(SHAPES)}; or sizes of your own: "
        "B,C,P such as 16,768,196 (images, channels, pixels), C,P or CxHxW"
    )
