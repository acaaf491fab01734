"""Any source of one image -> an upright 8-bit RGB picture, and what had to be done for that.

Every entry of the package (folders, `explain`, the commands) reads its images here.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from infodisent.data.archives import is_there, member_of, open_file
from infodisent.data.intensity import Range, check_range, eight_bits, in_unit
from infodisent.data.notes import Note
from infodisent.data.sixteen_bit import open_image, own_values, sixteen_bit_colour

ImageSource = (
    str
    | os.PathLike[str]
    | Image.Image
    | NDArray[Any]
    | Tensor
    | bytes
    | bytearray
    | memoryview
    | BinaryIO
)
"""What `load_picture` takes."""

_URLS = ("http://", "https://", "ftp://", "s3://", "gs://", "file://")
_TIFF = "Pillow lacks this kind of TIFF (such as float colour): read it elsewhere, pass the array"
HINTS = {
    ".heic": "Pillow reads HEIC only with the package pillow-heif: convert it to JPEG",
    ".heif": "Pillow reads HEIF only with the package pillow-heif: convert it to JPEG",
    ".svg": "SVG is no pixels: render it to PNG",
    ".pdf": "PDF is no picture: render its page to PNG",
    ".dcm": "DICOM: read it with pydicom and pass its pixel_array",
    ".npy": "read it with numpy.load and pass the array",
    ".npz": "read it with numpy.load and pass the array",
    ".tif": _TIFF,
    ".tiff": _TIFF,
}
"""What to do with formats that people have and Pillow lacks, by the end of the file's name."""


@dataclass(frozen=True)
class Picture:
    """One image, ready for the network's transform.

    Attributes:
        image: upright, 8-bit RGB, decoded.
        path: its file; "" where it came from memory.
        notes: what was done to it that its owner may not expect.
    """

    image: Image.Image = field(repr=False)
    path: str = ""
    notes: tuple[Note, ...] = ()


def load_picture(
    source: ImageSource,
    *,
    intensity_range: Range | None = None,
    page: int | None = None,
) -> Picture:
    """Decode an image completely, upright, as RGB.

    Orientation tags are obeyed, transparency is shown on white, and pixels of more than 8 bits are
    stretched as `infodisent.data.intensity.eight_bits` says. Of a stack the first page is taken.
    Each of these is noted.

    Args:
        source: a file's path; a PIL image; the bytes of a file or a file opened in binary mode; an
            array ``[H, W]`` or ``[H, W, 1, 3 or 4]`` in RGB order (OpenCV's is BGR:
            ``array[..., ::-1]``), uint8, uint16 or float in [0, 1]; a tensor ``[C, H, W]`` or
            ``[1, C, H, W]`` of the same kinds, not normalised.
        intensity_range: ``(low, high)`` shown as black and white, where pixels are not 8-bit.
        page: of a multi-page file or an animation, from 0.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: `source` is none of the above, such as a list.
        ValueError: it cannot be used (not an image, truncated, too large, longer than 64 times its
            width, values that are no picture's …); names the source and says why.
    """
    if intensity_range is not None:
        intensity_range = check_range("load_picture", intensity_range)
    if page is not None:
        check_page("load_picture", page)
    if isinstance(source, (str, os.PathLike)):
        return _from_path(os.fsdecode(source), intensity_range, page)
    name = f"the {type(source).__name__} given"
    try:
        if isinstance(source, Image.Image):
            path = str(getattr(source, "filename", "") or "")
            name = path or "the PIL image given"
            frame = source.tell()
            try:
                return _from_pil(source, path, intensity_range, page)
            finally:
                if source.tell() != frame:
                    source.seek(frame)
        if isinstance(source, Tensor):
            return _from_array(_channels_last(source, intensity_range), intensity_range)
        if isinstance(source, (bytes, bytearray, memoryview)):
            return _from_bytes(bytes(source), "", intensity_range, page)
        if hasattr(source, "read"):
            path = str(getattr(source, "name", "") or "")
            return _from_bytes(_content(source), path, intensity_range, page)
        if isinstance(source, np.ndarray) or hasattr(source, "__array__"):
            return _from_array(np.asarray(source), intensity_range)
    except TypeError:
        raise
    # Pillow's decoders raise whatever their format's parser runs into; every one means "corrupt".
    except Exception as error:
        raise ValueError(f"{name} cannot be read as an image: {_reason(error)}") from error
    kind = type(source).__name__
    if source is None:
        raise TypeError("an image is expected, got None: cv2.imread returns it for a lost file")
    if isinstance(source, (list, tuple, set, dict)) or hasattr(source, "__next__"):
        raise TypeError(f"one image is expected, got a {kind}: explain_many takes a list of them")
    raise TypeError(
        f"an image is a path, PIL image, NumPy array, tensor, bytes or open file, got {kind}"
    )


def check_page(owner: str, page: Any) -> int:
    """`page` itself; ValueError unless it is an int >= 0."""
    if isinstance(page, bool) or not isinstance(page, int) or page < 0:
        raise ValueError(f"{owner}: page is {page!r}, must be an int >= 0")
    return page


def reading_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `load_picture` that a transform configuration holds."""
    options: dict[str, Any] = {}
    if config.get("intensity_range") is not None:
        options["intensity_range"] = tuple(config["intensity_range"])
    if config.get("page") is not None:
        options["page"] = config["page"]
    return options


def _from_path(given: str, intensity_range: Range | None, page: int | None) -> Picture:
    if given.lower().startswith(_URLS):
        what = "a URL" if not given.lower().startswith("file:") else "a file: URL"
        raise ValueError(f"{given} is {what}, which is not fetched: download it, pass its path")
    if given.startswith("data:") or len(given) > 4096:
        raise ValueError(
            f"{given[:40]}… is no path: decode base64 text (base64.b64decode), pass the bytes"
        )
    path = os.path.expanduser(given)
    if member_of(path) is not None:
        return _from_archive(path, intensity_range, page)
    if os.path.isdir(path):
        raise ValueError(f"{path} cannot be read as an image: it is a folder, pass the files in it")
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is not a file")
    try:
        if not os.path.getsize(path):
            raise ValueError("the file is empty")
        with open_image(path) as image:
            return _from_pil(image, path, intensity_range, page)
    except Exception as error:
        hint = ""
        if isinstance(error, UnidentifiedImageError):
            hint = HINTS.get(Path(path).suffix.lower(), "")
        raise ValueError(f"{path} cannot be read as an image: {hint or _reason(error)}") from error


def _from_archive(path: str, intensity_range: Range | None, page: int | None) -> Picture:
    if not is_there(path):
        raise FileNotFoundError(f"{path} is not there: its archive is not a file")
    try:
        with open_file(path) as file:
            return _from_bytes(file.read(), path, intensity_range, page)
    except Exception as error:
        raise ValueError(f"{path} cannot be read as an image: {_reason(error)}") from error


def _from_bytes(
    content: bytes, path: str, intensity_range: Range | None, page: int | None
) -> Picture:
    if not content:
        raise ValueError("there are no bytes in it")
    with open_image(io.BytesIO(content)) as image:
        return _from_pil(image, path, intensity_range, page)


def _content(file: Any) -> bytes:
    """What a file has left; all of it where another reader has left nothing."""
    content = file.read()
    if not content and callable(getattr(file, "seek", None)):
        file.seek(0)
        content = file.read()
    if isinstance(content, str):
        raise TypeError("the file is opened as text: open it in binary mode, open(path, 'rb')")
    return bytes(content)


def _reason(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        return (
            f"it has more than the {most:.0f} million pixels that Pillow opens: make it smaller, "
            "or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        )
    if isinstance(error, UnidentifiedImageError):
        return "it is of no format that Pillow knows"
    return str(error) or type(error).__name__


def _from_pil(
    source: Image.Image, path: str, intensity_range: Range | None, page: int | None
) -> Picture:
    notes: list[Note] = []
    if getattr(source, "tile", None) and getattr(source, "fp", source) is None:
        raise ValueError("its file was closed before it was decoded: open it again")
    image = _at_page(source, page, notes)
    width, height = image.size
    if min(width, height) < 1:
        raise ValueError(f"it has {width} × {height} pixels")
    if max(width, height) > 64 * min(width, height):  # resizing it would take gigabytes
        raise ValueError(f"{width} × {height} pixels is too thin a picture")
    sixteen = sixteen_bit_colour(image)
    if sixteen is not None:
        image, colour = sixteen
        picture, more = _from_numbers(colour, intensity_range, in_memory=False)
    elif image.mode == "F" or image.mode.startswith("I"):
        picture, more = _from_numbers(own_values(image), intensity_range, in_memory=False)
    else:
        image.load()
        picture, more = _on_white(image)
    return Picture(_upright(picture, image), path, (*notes, *more))


def _at_page(image: Image.Image, page: int | None, notes: list[Note]) -> Image.Image:
    """The image at `page`; the first, and said so, where none is asked for."""
    pages = int(getattr(image, "n_frames", 1))
    if page is None:
        # The further pictures of an MPO are other eyes or previews, those of a PSD layers.
        if pages > 1 and image.format not in ("MPO", "PSD"):
            at = image.tell()
            kind = "files of several pages, of which the first is taken (page chooses)"
            taken = "the first" if at == 0 else f"number {at}, counted from 0,"
            notes.append(Note(kind, f"{taken} of its {pages} pages is taken (page chooses)"))
        return image
    if page >= pages:
        raise ValueError(f"page is {page}, it has {pages} page(s), counted from 0")
    if pages > 1:
        image.seek(page)
    return image


def _upright(picture: Image.Image, original: Image.Image) -> Image.Image:
    """The picture turned as the tags of the file it was made from say."""
    with warnings.catch_warnings():  # a broken EXIF block, which is common, turns nothing
        warnings.simplefilter("ignore", UserWarning)
        orientation = original.getexif().get(0x0112, 1)
    if orientation not in range(2, 9):
        return picture
    picture.getexif()[0x0112] = orientation
    ImageOps.exif_transpose(picture, in_place=True)
    return picture


def _on_white(image: Image.Image) -> tuple[Image.Image, list[Note]]:
    """An 8-bit picture of any mode as RGB; what is transparent is white."""
    if image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if not image.has_transparency_data:
        return image.convert("RGB"), []
    return _blended(image.convert("RGBA"))


def _blended(image: Image.Image) -> tuple[Image.Image, list[Note]]:
    alpha = image.getchannel("A")
    lowest = alpha.getextrema()[0]
    picture = Image.new("RGB", image.size, (255, 255, 255))
    picture.paste(image.convert("RGB"), mask=alpha)
    text = "transparent parts are shown on white"
    return picture, [Note(text, text)] if lowest != 255 else []


def _from_numbers(
    values: NDArray[Any],  # [H, W] or [H, W, 3 or 4]
    intensity_range: Range | None,
    *,
    in_memory: bool,
) -> tuple[Image.Image, list[Note]]:
    alpha = None
    if values.ndim == 3 and values.shape[2] == 4:
        values, alpha = values[..., :3], values[..., 3]
    pixels, notes = eight_bits(values, intensity_range, in_memory=in_memory)
    if alpha is None:
        return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB"), notes
    full = 1.0 if alpha.dtype.kind in "fb" else float(np.iinfo(alpha.dtype).max)
    if alpha.dtype.kind == "i" and alpha.max() <= 255:
        full = 255.0
    opacity, _ = eight_bits(alpha, (0.0, full))
    picture, more = _blended(Image.fromarray(np.dstack([pixels, opacity])))
    return picture, [*notes, *more]


def _channels_last(tensor: Tensor, intensity_range: Range | None) -> NDArray[Any]:
    """A tensor ``[C, H, W]`` or ``[1, C, H, W]`` as an array ``[H, W, C]``."""
    shape = tuple(tensor.shape)
    if tensor.is_complex() or tensor.is_meta or tensor.is_sparse:
        raise ValueError("a dense tensor of real numbers is expected")
    if len(shape) == 4 and shape[0] == 1:
        tensor = tensor[0]
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3, 4):
        why = "expected [C, H, W] or [1, C, H, W] with 1, 3 or 4 channels"
        if len(shape) == 4:
            why += ": explain_many takes a list of images"
        elif len(shape) == 3 and shape[2] in (1, 3, 4):
            why += ": if it is [H, W, C], pass tensor.permute(2, 0, 1)"
        raise ValueError(f"its shape is {list(shape)}, {why}")
    if tensor.is_floating_point() and tensor.numel() and intensity_range is None:
        tensor = tensor.detach().cpu().float()
        low, high = float(tensor.min()), float(tensor.max())
        if not in_unit(low, high) and low == low:  # NaN is refused by its own name later
            raise ValueError(
                f"its values are {low:g} … {high:g}, expected [0, 1] or uint8: it looks "
                "normalised, which the model's transform does: pass it as it was before, or to "
                "explain with ready=True"
            )
    tensor = tensor.detach().cpu()
    tensor = tensor.float() if tensor.is_floating_point() else tensor
    array: NDArray[Any] = tensor.permute(1, 2, 0).numpy()
    return array


def _from_array(array: NDArray[Any], intensity_range: Range | None) -> Picture:
    shape = array.shape
    if array.ndim == 4 and shape[0] == 1:
        array = array[0]
    if not array.size:
        raise ValueError(f"its shape is {list(shape)}: it is empty")
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (1, 3, 4)):
        why = "expected [H, W] or [H, W, C] with 1, 3 or 4 channels"
        if len(shape) == 4:
            why += ": explain_many takes a list of images"
        elif len(shape) == 3 and shape[0] in (1, 3, 4):
            why += ": its channels come first, pass numpy.moveaxis(array, 0, -1)"
        raise ValueError(f"its shape is {list(shape)}, {why}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if max(array.shape[:2]) > 64 * min(array.shape[:2]):
        raise ValueError(f"{array.shape[1]} × {array.shape[0]} pixels is too thin a picture")
    if array.dtype.kind == "f":
        array = array.astype(np.float64)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    picture, notes = _from_numbers(array, intensity_range, in_memory=True)
    return Picture(picture, "", tuple(notes))
