"""Pictures kept as numbered PNG files, each with the digest of its pixels."""

from __future__ import annotations

import hashlib
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from infodisent.files import replacing

_KEY = "infodisent-pixels"


class PngFolder:
    """A folder of ``000000.png`` …; what is there already is kept if it is the same picture.

    Args:
        path: the folder.
        overwrite: replace other pictures instead of refusing.
    """

    def __init__(self, path: Path, overwrite: bool) -> None:
        self.path, self.overwrite = path, overwrite

    def keep(self, number: int, image: Image.Image, where: str) -> str:
        """The path of the file that holds a picture; written if it is not there.

        Raises:
            ValueError: another picture is there.
        """
        file = self.path / f"{number:06d}.png"
        digest = hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).hexdigest()
        if file.is_file():
            if _digest(file) == digest:
                return str(file)
            if not self.overwrite:
                raise ValueError(
                    f"{where} is not the one in {file}, which is of another data set or of a "
                    "random transform; choose another folder or pass overwrite=True"
                )
        info = PngInfo()
        info.add_text(_KEY, digest)
        with replacing(file) as temporary:
            image.save(temporary, format="PNG", pnginfo=info, compress_level=1)
        return str(file)


def _digest(file: Path) -> str:
    """The digest a file holds; nothing where it is damaged or not ours."""
    try:
        with Image.open(file) as image:
            text: dict[str, str] = getattr(image, "text", {})
            return text.get(_KEY, "")
    except (OSError, ValueError, SyntaxError):
        return ""
