"""Options of `fit` and `explain` that say how images are read and shown to the network."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import infodisent
from infodisent.cli.preprocessing import numbers, sizes
from tests.cli.test_cli import FIT, go

__all__ = ["go"]


@pytest.fixture
def scans(tmp_path):
    """Two classes of 12-bit TIFF scans, of two pages each: the second is the image."""
    generator = np.random.default_rng(0)
    for label, name in enumerate(("a", "b")):
        (tmp_path / "scans" / name).mkdir(parents=True)
        for i in range(4):
            pages = generator.integers(100, 900, (2, 40, 60)).astype(np.uint16)
            pages[1, 5 + 15 * label : 20 + 15 * label, 10:40] = 3500
            first, second = map(Image.fromarray, pages)
            path = tmp_path / "scans" / name / f"{i}.tif"
            first.save(path, save_all=True, append_images=[second])
    return tmp_path / "scans"


def test_own_preprocessing_from_fit_to_explain(tmp_path, scans, go):
    out = tmp_path / "run"
    code, text = go(
        "fit", scans, *FIT, "--out", out, "--input-size", "64x96", "--mean", "0.5", "--std",
        "0.2,0.25,0.3", "--interpolation", "bicubic", "--crop-pct", 1, "--crop", "squash",
        "--intensity-range", 0, 4095, "--page", 1,
    )  # fmt: skip
    assert code == 0, text
    assert "image(s):" not in text  # nothing is left to say
    loaded = infodisent.load(out / "model.safetensors")
    assert loaded.transform == {
        "input_size": [3, 64, 96], "interpolation": "bicubic", "mean": [0.5] * 3,
        "std": [0.2, 0.25, 0.3], "crop_pct": 1.0, "crop_mode": "squash",
        "intensity_range": [0.0, 4095.0], "page": 1,
    }  # fmt: skip
    e = infodisent.explain(loaded, scans / "b" / "0.tif")
    assert e.picture.size == (96, 64)
    assert e.notes == ()
    assert e.picture.getpixel((48, 44))[0] == pytest.approx(3500 / 4095 * 255, abs=2)
    code, text = go("explain", scans / "a" / "0.tif", "--run", out, "--out", tmp_path / "x")
    assert code == 0, text
    assert "image(s):" not in text
    code, text = go(
        "explain", scans / "a" / "0.tif", "--run", out, "--out", tmp_path / "x",
        "--page", 0, "--intensity-range", 9000, 9999,
    )  # fmt: skip
    assert code == 0, text
    assert "1 image(s): all pixels are outside intensity_range" in text
    code, text = go("evaluate", "--run", out, "--images", scans)
    assert code == 0, text


def test_what_was_done_to_the_images_is_said_once(tmp_path, scans, go):
    code, text = go("fit", scans, *FIT, "--out", tmp_path / "run")
    assert code == 0, text
    for kind in ("files of several pages", "pixels of more than 8 bits", "the crop cut away more"):
        assert text.count(f"8 image(s): {kind}") == 1
    code, text = go("fit", scans, *FIT, "--out", tmp_path / "other", "--mean", 123.7)
    assert code != 0
    assert "mean is (123.7,), must be in [0, 1]" in text


def test_texts_to_numbers():
    assert sizes(None) is None
    assert sizes("224") == 224
    assert sizes("256x128") == sizes("256,128") == sizes(" 256 X 128 ") == (256, 128)
    assert numbers("mean", "0.5") == (0.5,)
    assert numbers("mean", "0.1, 0.2,0.3") == (0.1, 0.2, 0.3)
    for text in ("", "a", "1x2x3x4", "-3", "2²"):
        with pytest.raises(ValueError, match="expected 224 or HEIGHTxWIDTH"):
            sizes(text)
    with pytest.raises(ValueError, match="--std is 'x', expected one number"):
        numbers("std", "x")
