"""Pictures of a report: heat maps over them, and thumbnails of files that may be lost."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont, ImageOps

from infodisent.backbones.preprocess import to_picture, transform_from
from infodisent.data.archives import without_place
from infodisent.data.pictures import load_picture, reading_options
from infodisent.explanations.drawing import heat_overlay as heat_overlay


class Thumbnail(NamedTuple):
    """A picture, and why it is only a placeholder ("" where it is not)."""

    image: Image.Image
    missing: str


class Pictures:
    """Pictures as the network sees them, decoded once each; a grey placeholder for lost files.

    Args:
        transform: configuration of the evaluation transform.
        side: longest side of the pictures kept.
    """

    def __init__(self, transform: Mapping[str, Any], side: int = 160) -> None:
        self._config, self._side = dict(transform), side
        self._transform = transform_from(self._config)
        self._cache: dict[str, Thumbnail] = {}

    def get(self, path: str | os.PathLike[str]) -> Thumbnail:
        """The picture of a file; never raises for a file that is lost or cannot be decoded."""
        key = os.fspath(path)
        if key not in self._cache:
            self._cache[key] = self._make(key)
        return self._cache[key]

    @property
    def count(self) -> int:
        """Pictures asked for so far."""
        return len(self._cache)

    def lost(self) -> list[str]:
        """Paths of those that are placeholders."""
        return [path for path, thumbnail in self._cache.items() if thumbnail.missing]

    def _make(self, path: str) -> Thumbnail:
        try:
            picture = to_picture(self._transform(self._decode(path)), self._config)
        except FileNotFoundError:
            return Thumbnail(self._placeholder(path, missing=True), "file is missing")
        except ValueError:
            return Thumbnail(self._placeholder(path, missing=False), "file cannot be read")
        return Thumbnail(shrink(picture, self._side), "")

    def _decode(self, path: str) -> Image.Image:
        """A file as `load_picture` reads it; a large JPEG, which decodes at a fraction of its size,
        only as large as its thumbnail needs. Errors as `load_picture`."""
        needed = round(2 * self._side / float(self._config.get("crop_pct") or 1))
        try:
            with Image.open(path) as image:
                if image.format == "JPEG" and image.mode in ("L", "RGB"):
                    image.draft(image.mode, (needed, needed))
                    return ImageOps.exif_transpose(image).convert("RGB")
        except (OSError, ValueError, Image.DecompressionBombError):
            pass  # the usual road says what is wrong
        return load_picture(path, **reading_options(self._config)).image

    def _placeholder(self, path: str, *, missing: bool) -> Image.Image:
        height, width = self._config["input_size"][-2:]
        image = shrink(Image.new("RGB", (width, height), (206, 208, 212)), self._side)
        draw = ImageDraw.Draw(image)
        # Pillow's own font may have Latin letters only; a name must not be able to break a report.
        name = PurePath(without_place(path)).name.encode("ascii", "backslashreplace").decode()
        lines = [name[i : i + 14] for i in range(0, len(name), 14)][:4]
        draw.multiline_text(
            (image.width / 2, image.height / 2),
            "\n".join(["image moved:" if missing else "unreadable:", *lines]),
            fill=(70, 74, 82),
            font=ImageFont.load_default(size=max(9, image.width // 10)),
            anchor="mm",
            align="center",
        )
        return image


def shrink(picture: Image.Image, side: int) -> Image.Image:
    """The picture with its longest side at most `side`."""
    factor = side / max(picture.size)
    if factor >= 1:
        return picture
    width, height = (max(1, round(n * factor)) for n in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)
