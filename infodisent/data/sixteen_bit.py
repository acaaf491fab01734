"""What files of more than 8 bits hold, where Pillow gives something else."""

from __future__ import annotations

import io
import sys
import warnings
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# The high bytes of 16-bit colour as Pillow reads them, and the name under which it reads the low.
_OTHER_BYTE = {
    f"{bands};16{order}": f"{bands};16{'L' if big else 'B'}"
    for bands in ("RGB", "RGBA", "RGBX")
    for order, big in (("B", True), ("L", False), ("N", sys.byteorder == "big"))
}


def open_image(file: str | BinaryIO) -> Image.Image:
    """`Image.open` without its warnings of large pictures and of broken tags."""
    with warnings.catch_warnings():  # Pillow warns of 89 million pixels, and refuses twice as many
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", "Corrupt EXIF", UserWarning)
        return Image.open(file)


def own_values(image: Image.Image) -> NDArray[Any]:
    """The numbers ``[H, W]`` of a picture of more than 8 bits, as its file has them.

    Pillow stretches those of a PGM file that says its largest value to 16 bits; this is undone.
    """
    tiles = getattr(image, "tile", None)
    largest = tiles[0].args[-1] if tiles and image.format == "PPM" else None
    values: NDArray[Any] = np.asarray(image)
    if isinstance(largest, int):
        values = np.rint(values * (largest / 65535)).astype(np.uint16)
    return values


def sixteen_bit_colour(image: Image.Image) -> tuple[Image.Image, NDArray[Any]] | None:
    """A 16-bit colour file decoded anew, and all its bits ``[H, W, 3 or 4]``; None for all others.

    Pillow keeps the high byte of such a file, so that 12-bit data would be almost black. Read once
    more in the other byte order, it gives the low byte. The image given is not decoded: the next
    call must find it as it is.
    """
    tiles = getattr(image, "tile", None)
    raw = _raw_mode(tiles[0]) if tiles else ""
    if raw not in _OTHER_BYTE:
        if ";16" in raw and not image.mode.startswith("I") and _brightest(image) < 64:
            raise ValueError(
                f"Pillow keeps the upper 8 of its 16 bits ({raw}), which are almost black: convert "
                "it to 8 bits"
            )
        return None
    file: Any = image.fp  # type: ignore[attr-defined]
    place = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(place)
    upper: Any = open_image(io.BytesIO(content))
    lower: Any = open_image(io.BytesIO(content))
    for reader in (upper, lower):
        if image.tell():
            reader.seek(image.tell())
    lower.tile = [_with_raw_mode(tile, _OTHER_BYTE[raw]) for tile in lower.tile]
    high, low = (np.asarray(reader).astype(np.uint16) for reader in (upper, lower))
    return upper, (high << 8) | low


def _raw_mode(tile: Any) -> str:
    return str(tile.args if isinstance(tile.args, str) else (tile.args or ("",))[0])


def _brightest(image: Image.Image) -> int:
    return int(np.asarray(image)[..., : len(image.getbands()) - ("A" in image.getbands())].max())


def _with_raw_mode(tile: Any, raw: str) -> Any:
    args = raw if isinstance(tile.args, str) else (raw, *tile.args[1:])
    return tile._replace(args=args)
