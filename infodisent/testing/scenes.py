"""Pictures whose truth is known: figures of a few parts, with keypoints, masks and distractors.

A figure has a part at each of a few places around its body. A part is one of several variants, each
a shape in a colour that nothing else in any picture has, and the class is the combination of
variants. Grey distractors and noise say nothing about it. So it is known what an explanation must
show, where it is, and what the picture is without it.

    scenes = Scenes(40, seed=1)
    scene = scenes[3]
    scene.image, scene.label, scene.keypoints, scene.masks
    scenes.scene(3, without=["head"]).image  # the same picture without that part

The same seed gives the same bytes on every machine: shapes are filled by comparing pixel centres,
without smoothing, and random numbers come from a generator of each scene's own.
"""

from __future__ import annotations

import colorsys
import dataclasses
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from infodisent.checks import check_positive

PARTS = ("head", "left wing", "left foot", "right foot", "right wing")
"""Names of the places around a body, clockwise from the top for a figure of five."""
SHAPES = ("disc", "square", "diamond", "cross", "ring", "triangle")
_BODY = 150
_SEED_STEP = 1_000_003


@dataclass(frozen=True)
class Variant:
    """How a part may look.

    Attributes:
        part: its number among the parts.
        shape: one of `SHAPES`.
        color: red, green, blue, 0 … 255, which nothing else in any picture has.
    """

    part: int
    shape: str
    color: tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    """One picture and what is in it. Coordinates are pixels; a pixel's centre is at + 0.5.

    Attributes:
        image: ``[3, size, size]`` uint8.
        label: class.
        variants: ``[J]`` int64, which variant (of all) each of the J parts has.
        keypoints: ``[J, 2]`` float32, x and y of each part's centre, also of one not drawn.
        visible: ``[J]`` bool, whether the part is drawn.
        masks: ``[J, size, size]`` bool, a part's pixels; none where it is not drawn.
        distractors: ``[size, size]`` bool, pixels of all distractors.
    """

    image: Tensor
    label: int
    variants: Tensor
    keypoints: Tensor
    visible: Tensor
    masks: Tensor
    distractors: Tensor


class Scenes:
    """A set of scenes, made when they are asked for.

    Args:
        count: how many.
        parts: J of a figure, 2 … 5.
        variants: of each part; at most 12 in all, so that their colours stay apart.
        size: side of the pictures in pixels, at least 32.
        distractors: grey shapes beside the figure.
        hidden: chance of each part not to be drawn.
        cell: parts lie at the centres of square cells of so many pixels, so that a feature map of
            that stride has each part in one cell; None: anywhere.
        seed: of everything that is random.

    Attributes:
        part_names: J names.
        variants: all J·V `Variant`, those of a part behind each other.
        classes: V^J class names, such as "A-B-A".

    Raises:
        ValueError: an argument that is not allowed, named.
    """

    def __init__(
        self,
        count: int,
        *,
        parts: int = 3,
        variants: int = 2,
        size: int = 64,
        distractors: int = 3,
        hidden: float = 0.0,
        cell: int | None = None,
        seed: int = 0,
    ) -> None:
        for name, value in (("count", count), ("variants", variants), ("parts", parts)):
            check_positive("Scenes", name, value)
        if not 2 <= parts <= len(PARTS):
            raise ValueError(f"Scenes: parts is {parts}, allowed are 2 … {len(PARTS)}")
        if parts * variants > 12:
            raise ValueError(f"Scenes: {parts} parts of {variants} variants are more than 12")
        if size < 32 or (cell is not None and not 1 <= cell <= size // 4):
            raise ValueError(
                f"Scenes: size is {size} and cell {cell}, must be >= 32 and 1 … size / 4"
            )
        if distractors < 0 or not 0 <= hidden <= 1:
            raise ValueError(
                f"Scenes: distractors is {distractors} and hidden {hidden}, must be >= 0 and 0 … 1"
            )
        self.count, self.size, self.cell, self.seed = count, size, cell, seed
        self.distractors, self.hidden = distractors, hidden
        self.part_names = PARTS[:parts]
        total = parts * variants
        self.variants = tuple(
            Variant(n // variants, SHAPES[n % len(SHAPES)], _color(n / total)) for n in range(total)
        )
        self.codes = torch.cartesian_prod(*[torch.arange(variants)] * parts)  # [K, J]
        self.classes = tuple("-".join(chr(65 + v) for v in code) for code in self.codes.tolist())
        self.radius = max(2, 3 * size // 64)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Scene:
        return self.scene(index)

    def __iter__(self) -> Iterator[Scene]:
        return (self.scene(i) for i in range(self.count))

    def class_variants(self) -> Tensor:
        """Which variants each class has, ``[K, J·V]`` float32 of zeros and ones."""
        number = self.codes + torch.arange(len(self.part_names)) * self._per_part
        return nn.functional.one_hot(number, len(self.variants)).sum(1).float()

    def scene(
        self, index: int, *, without: Collection[str] = (), distractors: bool = True
    ) -> Scene:
        """One scene, or the same one with something taken away and all else unchanged.

        Args:
            index: 0 … count - 1; its class is ``index % K``.
            without: names of parts to leave out.
            distractors: draw them.

        Raises:
            IndexError, ValueError: no such scene, or no such part.
        """
        if not 0 <= index < self.count:
            raise IndexError(f"Scenes: index is {index}, allowed are 0 … {self.count - 1}")
        if unknown := set(without) - set(self.part_names):
            raise ValueError(
                f"Scenes: without has {sorted(unknown)[0]!r}, parts are "
                f"{', '.join(self.part_names)}"
            )
        g = torch.Generator().manual_seed(self.seed * _SEED_STEP + index)
        label = index % len(self.classes)
        numbers = self.codes[label] + torch.arange(len(self.part_names)) * self._per_part
        centre, keypoints = self._places(g)
        shown = torch.rand(len(self.part_names), generator=g) >= self.hidden
        shown &= torch.tensor([name not in without for name in self.part_names])
        grey = torch.randint(30, 70, (self.size, self.size), generator=g)
        image = grey.expand(3, -1, -1).to(torch.uint8).clone()
        clutter = self._distractors(g, image, centre, shown=distractors)
        self._paint(image, self._fill("disc", *centre, self.size / 10), (_BODY,) * 3)
        masks = torch.zeros(len(self.part_names), self.size, self.size, dtype=torch.bool)
        for part, (x, y) in enumerate(keypoints.tolist()):
            if shown[part]:
                variant = self.variants[int(numbers[part])]
                masks[part] = self._fill(variant.shape, x, y, self.radius)
                self._paint(image, masks[part], variant.color)
        return Scene(image, label, numbers, keypoints, shown, masks, clutter)

    def batch(self, indices: Sequence[int] | None = None) -> SceneBatch:
        """Several scenes as stacked tensors, all of them by default."""
        chosen = [self.scene(i) for i in (range(self.count) if indices is None else indices)]
        fields = {
            field.name: torch.stack([torch.as_tensor(getattr(s, field.name)) for s in chosen])
            for field in dataclasses.fields(Scene)
        }
        images = fields.pop("image").float() / 255
        return SceneBatch(images=images, labels=fields.pop("label"), **fields)

    @property
    def _per_part(self) -> int:
        return len(self.variants) // len(self.part_names)

    def _places(self, g: torch.Generator) -> tuple[tuple[float, float], Tensor]:
        """Centre of the body, and keypoints ``[J, 2]``."""
        half, ring = self.size / 2, self.size / 4
        shift = (torch.rand(2, generator=g) - 0.5) * (self.size / 4)
        turn = float(torch.rand((), generator=g) - 0.5) * 0.3
        x, y = (shift + half).tolist()
        angles = [
            turn + 2 * math.pi * j / len(self.part_names) for j in range(len(self.part_names))
        ]
        places = [(x + ring * math.sin(a), y - ring * math.cos(a)) for a in angles]
        keypoints = torch.tensor(places)
        grid = self.cell or 1
        keypoints = (keypoints / grid).floor() * grid + grid / 2
        return (x, y), keypoints

    def _distractors(
        self, g: torch.Generator, image: Tensor, centre: tuple[float, float], *, shown: bool
    ) -> Tensor:
        """Draw grey shapes outside the ring of parts; their pixels ``[size, size]``."""
        pixels = torch.zeros(self.size, self.size, dtype=torch.bool)
        least = self.size / 4 + 2.5 * self.radius + (self.cell or 1)
        for _ in range(self.distractors):
            value = int(torch.randint(90, 130, (), generator=g))
            shape = SHAPES[int(torch.randint(len(SHAPES), (), generator=g))]
            places = self.radius + torch.rand(64, 2, generator=g) * (self.size - 2 * self.radius)
            far = (places - torch.tensor(centre)).norm(dim=1)
            x, y = places[int((far >= least).to(torch.uint8).argmax())].tolist()
            if shown and (far >= least).any():
                filled = self._fill(shape, x, y, self.radius)
                self._paint(image, filled, (value,) * 3)
                pixels |= filled
        return pixels

    def _fill(self, shape: str, x: float, y: float, r: float) -> Tensor:
        """Pixels of a shape ``[size, size]`` whose centres lie in it."""
        at = torch.arange(self.size) + 0.5
        dx, dy = (at - x)[None, :], (at - y)[:, None]
        if shape == "disc":
            return dx**2 + dy**2 <= r**2
        if shape == "square":
            return torch.maximum(dx.abs(), dy.abs()) <= 0.85 * r
        if shape == "diamond":
            return dx.abs() + dy.abs() <= 1.2 * r
        if shape == "cross":
            arm = torch.minimum(dx.abs(), dy.abs()) <= r / 2.5
            return arm & (torch.maximum(dx.abs(), dy.abs()) <= r)
        if shape == "ring":
            d = dx**2 + dy**2
            return (d <= r**2) & (d >= (0.35 * r) ** 2)
        return (dx.abs() <= (dy + r) / 2 + 0.25) & (dy.abs() <= r)

    @staticmethod
    def _paint(image: Tensor, where: Tensor, color: Sequence[int]) -> None:
        for channel, value in enumerate(color):
            image[channel][where] = value


@dataclass(frozen=True)
class SceneBatch:
    """Scenes as tensors: images in 0 … 1, ``[n, 3, size, size]`` float32; the rest as `Scene`.

    `labels` is ``[n]``, and the other fields have their shape in `Scene` behind a dimension n.
    """

    images: Tensor
    labels: Tensor
    variants: Tensor
    keypoints: Tensor
    visible: Tensor
    masks: Tensor
    distractors: Tensor

    @property
    def figure(self) -> Tensor:
        """Pixels of any part, ``[n, size, size]`` bool."""
        return self.masks.any(1)


class SceneDetector(nn.Module):
    """A backbone that is right by construction: a channel for every variant's colour.

    A cell's value is the part of its pixels that has the colour, falling to 0 within a distance of
    `width`; differentiable, so that attacks find a gradient. Images in 0 … 1, ``[B, 3, H, W]``, to
    ``[B, J·V, H / cell, W / cell]``.

    Args:
        scenes: whose colours.
        cell: stride in pixels.
        width: distance of colours, in units of pixel values 0 … 1, at which a pixel counts nothing;
            variants' colours are further apart than 0.25.
    """

    def __init__(self, scenes: Scenes, cell: int = 8, width: float = 0.25) -> None:
        super().__init__()
        colors = torch.tensor([variant.color for variant in scenes.variants]) / 255
        self.colors = nn.Parameter(colors)  # [J·V, 3]
        self.cell, self.width = cell, width

    def forward(
        self,
        x: Tensor,  # [B, 3, H, W]
    ) -> Tensor:
        """The map ``[B, J·V, H / cell, W / cell]``."""
        away = x[:, None] - self.colors[None, :, :, None, None]  # [B, J·V, 3, H, W]
        match = (1 - away.pow(2).sum(2) / self.width**2).clamp_min(0)
        return nn.functional.avg_pool2d(match, self.cell)


def _color(hue: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue, 1.0, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)
