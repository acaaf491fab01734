"""Any source of one image becomes the same upright RGB picture, or is refused with a reason."""

from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from infodisent.data.images import ImageDataset, collate, load_image
from infodisent.data.pictures import load_picture


@pytest.fixture
def colours():
    return np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)


def pixels(source, **options):
    return np.asarray(load_picture(source, **options).image)


def texts(source, **options):
    return [note.text for note in load_picture(source, **options).notes]


def as_file(image, name="x.png", **options):
    file = io.BytesIO()
    image.save(file, name.rpartition(".")[2].upper(), **options)
    file.seek(0)
    return file


def png(rows, color_type):
    """A 16-bit PNG of rows [h, w, bands], with the filter "up", which Pillow cannot write."""

    def chunk(name, data):
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    height, width = rows.shape[:2]
    raw = rows.astype(">u2").reshape(height, -1).view(np.uint8).astype(np.int16)
    up = np.diff(raw, axis=0, prepend=0).astype(np.uint8)
    data = b"".join(b"\x02" + row.tobytes() for row in up)
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


def test_every_source_gives_the_same_picture(tmp_path, colours, monkeypatch):
    image = Image.fromarray(colours)
    image.save(tmp_path / "x.png")
    content = (tmp_path / "x.png").read_bytes()
    used = io.BytesIO(content)
    used.read()  # as a web framework leaves it
    monkeypatch.setenv("HOME", str(tmp_path))
    chw = torch.from_numpy(colours).permute(2, 0, 1)
    sources = [
        tmp_path / "x.png", str(tmp_path / "x.png"), "~/x.png", image, content,
        bytearray(content), memoryview(content), io.BytesIO(content), used,
        (tmp_path / "x.png").open("rb"),
        colours, colours[None], colours.astype(np.float32) / 255, colours.astype(np.int64),
        colours.astype(np.float16) / 255, colours.astype(np.uint16) * 257,
        np.asfortranarray(colours), colours[:, ::-1][:, ::-1], chw, chw[None], chw / 255,
        (chw / 255).requires_grad_(),
        (chw / 255).double(),
    ]  # fmt: skip
    for source in sources:
        picture = load_picture(source)
        assert picture.image.mode == "RGB"
        assert abs(np.asarray(picture.image).astype(int) - colours).max() <= 1, type(source)
        assert picture.notes == ()
    assert load_picture("~/x.png").path == str(tmp_path / "x.png")
    assert load_picture(image).path == load_picture(content).path == ""
    grey = colours[..., 0]
    for source in (grey, grey[..., None], torch.from_numpy(grey)[None], Image.fromarray(grey)):
        assert (pixels(source) == grey[..., None]).all()
    assert (pixels(grey > 99) == ((grey > 99) * 255)[..., None]).all()


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("https://example.org/a.jpg", ValueError, "is a URL, which is not fetched: download it"),
        ("S3://bucket/a.jpg", ValueError, "is a URL"),
        ("file:///a.jpg", ValueError, "is a file: URL"),
        ("data:image/png;base64,AAAA", ValueError, "decode base64"),
        ("A" * 9000, ValueError, "is no path"),
        ("no\0name", FileNotFoundError, "is not a file"),
        ("", FileNotFoundError, "is not a file"),
        (b"", ValueError, "bytes given cannot be read as an image: there are no bytes"),
        (io.BytesIO(), ValueError, "there are no bytes"),
        (io.StringIO("x"), TypeError, "open it in binary mode"),
        ([Image.new("RGB", (4, 4))], TypeError, "got a list: explain_many takes"),
        (None, TypeError, "got None: cv2.imread"),
        (3, TypeError, "got int"),
        (np.zeros((3, 40, 50), np.uint8), ValueError, r"channels come first, pass numpy.moveaxis"),
        (np.zeros((40, 50, 2), np.uint8), ValueError, "1, 3 or 4 channels"),
        (np.zeros((2, 40, 50, 3), np.uint8), ValueError, "explain_many"),
        (np.zeros((0, 5, 3), np.uint8), ValueError, "it is empty"),
        (np.zeros(7, np.uint8), ValueError, r"its shape is \[7\]"),
        (np.full((4, 4, 3), 200.0), ValueError, r"intensity_range=\(0, 255\)"),
        (np.full((4, 4, 3), -1), ValueError, "int64 from -1 to -1"),
        (np.full((4, 4), np.nan), ValueError, "NaN or infinite"),
        (np.zeros((4, 4), complex), ValueError, "complex128"),
        (np.array([["a", "b"], ["c", "d"]]), ValueError, "its values are"),
        (np.zeros((1, 999), np.uint8), ValueError, "too thin"),
        (torch.randn(3, 8, 8) * 2, ValueError, "it looks normalised"),
        (torch.zeros(40, 50, 3), ValueError, r"pass tensor.permute\(2, 0, 1\)"),
        (torch.zeros(2, 3, 8, 8), ValueError, "explain_many"),
        (torch.full((3, 8, 8), torch.nan), ValueError, "NaN or infinite"),
        (torch.zeros(0, 3, 8, 8), ValueError, "its shape is"),
        (torch.zeros(3, 0, 8), ValueError, "empty"),
        (torch.zeros(3, 8, 8, device="meta"), ValueError, "dense tensor"),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_refused_with_the_reason(source, error, message):
    with pytest.raises(error, match=message) as caught:
        load_picture(source)
    assert len(str(caught.value)) < 300


def test_files_that_are_no_pictures(tmp_path):
    cases = {"empty.png": "the file is empty", "x.heic": "pillow-heif", "x.dcm": "pydicom",
             "x.npy": "numpy.load", "x.tif": "float colour",
             "x.jpg": "no format that Pillow knows"}  # fmt: skip
    for name, message in cases.items():
        (tmp_path / name).write_bytes(b"" if name.startswith("empty") else b"something else")
        with pytest.raises(ValueError, match=f"{name} cannot be read as an image: .*{message}"):
            load_picture(tmp_path / name)
    with pytest.raises(ValueError, match="is a folder"):
        load_picture(tmp_path)
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(FileNotFoundError, match="is not a file"):
        load_picture(tmp_path / "gone")


def test_what_people_have_besides(tmp_path, recwarn):
    image = Image.new("RGB", (40, 20), (9, 8, 7))
    for garbage in (
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
        b"Exif\0\0MM\0*\xff\xff",
    ):
        assert load_picture(as_file(image, "x.jpeg", exif=garbage)).image.size == (40, 20)
    assert not recwarn.list  # of a broken EXIF block
    overshoot = np.linspace(-1e-8, 1 + 1e-7, 300).reshape(10, 10, 3)  # what resizing leaves
    assert pixels(overshoot).max() == 255
    assert pixels(torch.from_numpy(overshoot).permute(2, 0, 1)).max() == 255
    image.save(tmp_path / "x.png")
    closed = Image.open(tmp_path / "x.png")
    closed.close()
    with pytest.raises(ValueError, match=r"x\.png .*closed before it was decoded"):
        load_picture(closed)
    with (tmp_path / "x.png").open("rb") as file:
        pass
    with pytest.raises(ValueError, match="closed file"):
        load_picture(file)

    class Entry:  # as os.scandir gives for a bytes path
        def __fspath__(self):
            return os.fsencode(tmp_path / "x.png")

    assert load_picture(Entry()).path == str(tmp_path / "x.png")

    class Upload:  # a stream that cannot be rewound
        def __init__(self, content):
            self.content = content

        def read(self):
            content, self.content = self.content, b""
            return content

    assert pixels(Upload((tmp_path / "x.png").read_bytes())).shape == (20, 40, 3)


def test_too_many_pixels_are_refused_in_a_sentence(tmp_path, monkeypatch, recwarn):
    Image.new("L", (60, 50)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    assert load_picture(tmp_path / "large.png").image.size == (60, 50)
    assert not recwarn.list
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"large\.png .*million pixels that Pillow opens"):
        load_picture(tmp_path / "large.png")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_orientation_is_obeyed_by_every_source(tmp_path, orientation, suffix):
    stored = np.zeros((20, 40), np.uint8)
    stored[:10, :10] = 255  # the corner tells all eight apart, with the size
    stored[10:, :10] = 120
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(stored).convert("RGB").save(path, exif=exif, **options)
    turns = {1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1], 5: stored.T,
             6: np.rot90(stored, -1), 7: stored[::-1, ::-1].T, 8: np.rot90(stored)}  # fmt: skip
    want = turns[orientation]
    for source in (path, path.read_bytes(), Image.open(path)):
        got = pixels(source)
        assert got.shape[:2] == want.shape
        assert abs(got[..., 0].astype(int) - want).mean() < 4


def test_orientation_of_sixteen_bits_and_of_a_picture_already_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = np.arange(200, dtype=np.uint16).reshape(10, 20) * 20
    Image.fromarray(grey).save(tmp_path / "x.png", exif=exif)
    assert pixels(tmp_path / "x.png").shape == (20, 10, 3)
    upright = load_picture(tmp_path / "x.png").image
    assert np.array_equal(pixels(upright), np.asarray(upright))  # not turned a second time


def test_twelve_bits_are_not_black_and_it_is_said(tmp_path):
    ramp = np.linspace(100, 3900, 800).reshape(20, 40)
    Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / "12.png")
    Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / "12.tif")
    Image.fromarray(ramp.astype(np.int32)).save(tmp_path / "32.tif")
    Image.fromarray((ramp / 4095).astype(np.float32)).save(tmp_path / "f.tif")
    (tmp_path / "x.pgm").write_bytes(b"P5\n40 20\n65535\n" + ramp.astype(">u2").tobytes())
    want = (ramp - 100) / 3800 * 255
    for source in (
        *(tmp_path / name for name in ("12.png", "12.tif", "32.tif", "f.tif", "x.pgm")),
        ramp.astype(np.uint16), ramp.astype(">u2"), ramp.astype(np.int16) - 1000, ramp,
        Image.fromarray(ramp.astype(np.float32)), torch.from_numpy(ramp.astype(np.int32))[None],
    ):  # fmt: skip
        assert abs(pixels(source) - want[..., None]).max() <= 1.1
        (text,) = texts(source)
        assert "were stretched to 0 … 255 (intensity_range fixes the range)" in text
    assert texts(tmp_path / "12.png")[0].startswith("16-bit values 100 … 3900")
    fixed = pixels(tmp_path / "12.png", intensity_range=(0, 4095))
    assert abs(fixed - ramp[..., None] / 4095 * 255).max() <= 1
    assert texts(tmp_path / "12.png", intensity_range=(0, 4095)) == []
    assert "all outside" in texts(tmp_path / "12.png", intensity_range=(9000, 9999))[0]
    with pytest.raises(ValueError, match="intensity_range"):
        load_picture(tmp_path / "12.png", intensity_range=(5, 5))
    eight = ramp.astype(np.uint8)
    assert (pixels(eight, intensity_range=(0, 4095)) == eight[..., None]).all()


def test_a_pgm_has_the_values_that_it_says(tmp_path):
    ramp = np.linspace(100, 900, 800).reshape(20, 40).astype(">u2")
    (tmp_path / "x.pgm").write_bytes(b"P5\n40 20\n1023\n" + ramp.tobytes())
    assert texts(tmp_path / "x.pgm")[0].startswith("16-bit values 100 … 900 were")
    fixed = pixels(tmp_path / "x.pgm", intensity_range=(0, 1023))
    assert abs(fixed - ramp[..., None] / 1023 * 255).max() <= 1
    window = np.linspace(-1000, 3000, 800).reshape(20, 40)  # Hounsfield units of a CT
    Image.fromarray(window.astype(np.int32)).save(tmp_path / "x.tif")
    soft = pixels(tmp_path / "x.tif", intensity_range=(-160, 240))[..., 0]
    assert abs(soft - ((window + 160) / 400).clip(0, 1) * 255).max() <= 1.2


def test_one_bright_pixel_and_one_value(tmp_path):
    stuck = np.full((40, 40), 900, np.uint16)
    stuck[3, 4] = 65535
    assert "nearly all of it is black" in texts(stuck)[1]
    assert "all have the value 900" in texts(np.full((9, 9), 900, np.uint16))[0]
    with pytest.raises(ValueError, match="NaN"):
        load_picture(Image.fromarray(np.full((9, 9), np.inf, np.float32)))


@pytest.mark.parametrize("bands", [3, 4])
def test_sixteen_bit_colour_keeps_all_its_bits(bands):
    values = np.random.default_rng(0).integers(0, 4096, (16, 24, bands)).astype(np.uint16)
    if bands == 4:
        values[..., 3] = 65535
    content = png(values, {3: 2, 4: 6}[bands])
    assert np.asarray(Image.open(io.BytesIO(content))).max(axis=(0, 1))[:3].max() < 16  # Pillow's
    low, high = values[..., :3].min(), values[..., :3].max()
    want = (values[..., :3] - float(low)) / (high - low) * 255
    for source in (content, Image.open(io.BytesIO(content)), values):
        assert abs(pixels(source) - want).max() <= 1
        assert "16-bit values" in texts(source)[0]
    full = values[..., :3] * 16
    assert abs(pixels(png(full, 2)) - full / 257).max() <= 1
    assert texts(png(full, 2)) == []
    dark = png(np.full((4, 4, 2), 2000), 4)  # grey and alpha: Pillow has no way to the low byte
    with pytest.raises(ValueError, match="upper 8 of its 16 bits"):
        load_picture(dark)


def test_transparency_is_white():
    icon = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    icon.paste((20, 20, 20, 255), (2, 2, 6, 6))
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 20, 20, 20])
    palette.paste(0, (0, 0, 2, 8))
    palette.info["transparency"] = 0
    keyed = Image.new("RGB", (8, 8), (20, 20, 20))
    keyed.paste((1, 2, 3), (0, 0, 2, 8))
    keyed.info["transparency"] = (1, 2, 3)
    rgba = np.asarray(icon)
    sources = [icon, icon.convert("LA"), icon.convert("RGBa"), palette, keyed, as_file(icon),
               as_file(palette, transparency=0), rgba, rgba / 255.0,
               torch.from_numpy(rgba.copy()).permute(2, 0, 1)]  # fmt: skip
    for source in sources:
        got = pixels(source)
        assert (got[0, 0] == 255).all()
        assert (got[4, 4] == 20).all()
        assert texts(source) == ["transparent parts are shown on white"]
        if hasattr(source, "seek"):
            source.seek(0)
    half = np.full((4, 4, 4), 128, np.uint8)
    assert abs(pixels(half).astype(int) - 191).max() <= 1
    assert texts(np.full((4, 4, 4), 255, np.uint8)) == []


def test_pages_are_chosen_or_said(tmp_path):
    pages = [Image.new("L", (9, 7), v) for v in (10, 120, 250)]
    for name in ("x.tif", "x.gif", "x.webp", "x.png"):
        path = tmp_path / name
        options = {"lossless": True} if name == "x.webp" else {}
        pages[0].convert("RGB").save(
            path, save_all=True, append_images=[p.convert("RGB") for p in pages[1:]], **options
        )
        assert abs(pixels(path).astype(int) - 10).max() <= 1
        assert texts(path) == ["the first of its 3 pages is taken (page chooses)"]
        assert abs(pixels(path, page=2).astype(int) - 250).max() <= 1
        assert texts(path, page=2) == []
        with pytest.raises(ValueError, match="page is 3, it has 3"):
            load_picture(path, page=3)
    turned = Image.open(tmp_path / "x.tif")
    turned.seek(1)
    assert (pixels(turned) == 120).all()
    assert (pixels(turned, page=2) == 250).all()
    assert turned.tell() == 1  # as it was
    with pytest.raises(ValueError, match="page is -1"):
        load_picture(tmp_path / "x.tif", page=-1)
    with pytest.warns(UserWarning, match="first of its 3 pages"):
        load_image(tmp_path / "x.tif")


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "CMYK", "YCbCr", "LAB", "HSV", "La", "PA", "I;16B"]
)
def test_every_mode_becomes_rgb(mode):
    if mode in ("La", "PA", "I;16B"):
        image = Image.new(mode, (9, 9))
    else:
        image = (
            Image.new("RGB", (9, 9), (255, 255, 255)).convert(mode)
            if mode != "LAB"
            else Image.new(mode, (9, 9))
        )
    picture = load_picture(image).image
    assert (picture.mode, picture.size) == ("RGB", (9, 9))
    if mode in ("1", "L", "P", "CMYK", "YCbCr", "HSV"):
        assert np.asarray(picture).min() >= 254


def test_the_source_is_left_as_it_was(tmp_path):
    image = Image.new("RGB", (40, 20), (9, 8, 7))
    image.getexif()[0x0112] = 6
    assert load_picture(image).image.size == (20, 40)
    assert image.size == (40, 20)
    array = np.linspace(0, 1, 60).reshape(6, 10)
    before = array.copy()
    load_picture(array)
    assert np.array_equal(array, before)


def test_notes_of_a_folder_are_counted(tmp_path):
    for i in range(3):
        Image.fromarray(np.full((9, 9), i, np.uint16) + np.arange(9, dtype=np.uint16)).save(
            tmp_path / f"{i}.png"
        )
    files = [str(tmp_path / f"{i}.png") for i in range(3)] + [str(tmp_path / "gone.png")]
    config = {"input_size": [3, 4, 4], "crop_pct": 0.5, "intensity_range": [0, 10]}
    plain = ImageDataset(files, lambda p: torch.zeros(1))
    _, _, bad, notes = collate([plain[i] for i in range(4)])
    assert len(set(notes)) == 1
    assert len(notes) == 3
    assert len(bad) == 1
    cut = ImageDataset(files, lambda p: torch.zeros(1), config)
    *_, notes = collate([cut[i] for i in range(4)])
    assert len(notes) == 3
    assert all("the crop cut away more than 25%" in note for note in notes)
