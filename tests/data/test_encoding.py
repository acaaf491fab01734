"""Float8 maps with a scale an image: what is kept of a number, and stores of them."""

from __future__ import annotations

import math

import pytest
import torch

from infodisent.data import encoding, shards
from infodisent.data.encoding import decode, encode
from infodisent.data.extraction import extract
from infodisent.data.images import scan_folder
from infodisent.data.store import FeatureStore
from infodisent.data.views import extract_views
from infodisent.files import read_tensors, write_tensors


def number(byte):
    """What a byte of e4m3 says, from the format's definition."""
    sign, exponent, mantissa = byte >> 7, (byte >> 3) & 15, byte & 7
    value = mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)
    return -value if sign else value


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_byte_means_what_the_format_says(dtype, monkeypatch):
    monkeypatch.setattr(encoding, "_TILE", 600)  # several tiles
    codes = [byte for byte in range(256) if byte & 127 != 127]  # those are NaN
    stored = torch.tensor(codes, dtype=torch.uint8).view(torch.float8_e4m3fn)
    exponents = [-9, 0, 3, 6] if dtype == torch.float16 else [-90, -9, 0, 3, 100]
    scale = torch.tensor([2.0**e for e in exponents])
    maps = decode(stored.repeat(len(scale), 1).view(len(scale), 2, -1), scale, dtype)
    assert maps.dtype == dtype
    for row, exponent in zip(maps.double().flatten(1).tolist(), exponents, strict=True):
        assert row == [number(byte) * 2.0**exponent for byte in codes]


def test_numbers_are_rounded_to_four_bits_under_a_scale_of_their_image():
    size = torch.tensor([3.0, 1e-20, 1e20, 448.0, 0.0])
    maps = torch.randn(5, 6, 8) * size[:, None, None]
    maps[3] = maps[3].clamp(-448, 448)
    maps[3, 0, 0] = 448
    stored, scale = encode(maps)
    back = decode(stored, scale, torch.float32).double()
    for i in range(5):
        largest = maps[i].abs().max().item()
        unit = 2.0 ** math.floor(math.log2(scale[i].item()))
        assert unit == scale[i].item()
        assert largest <= 448 * unit
        if largest:
            assert largest >= 224 * unit
        for value, kept in zip(maps[i].flatten().tolist(), back[i].flatten().tolist(), strict=True):
            step = max(abs(value) / 16, unit * 2.0**-10)
            assert abs(value - kept) <= step * (1 + 1e-6)
    assert scale[3] == 1
    assert torch.equal(decode(*encode(back.float()), torch.float64), back)
    assert decode(*encode(maps[:0]), torch.bfloat16).shape == (0, 6, 8)


@pytest.fixture
def images(image_folder):
    return scan_folder(image_folder)


def test_a_store_of_half_the_bytes(tmp_path, tiny, images, monkeypatch):
    options = {"shard_size": 10, "batch_size": 5, "progress": False}
    exact = extract(tiny, images, tmp_path / "exact", dtype="float32", **options)
    every = torch.arange(len(exact))
    store = extract(tiny, images, tmp_path / "small", dtype="float8", **options)
    assert store.image_bytes * 4 == exact.image_bytes
    assert store.dtype == torch.bfloat16
    wanted = decode(*encode(exact.gather(every)), torch.bfloat16)
    assert torch.equal(store.gather(every, dtype=None), wanted)
    assert store.gather(every[:2], torch.float16).dtype == torch.float16
    mixed = torch.randperm(len(store))
    read = list(store.read(mixed.split(7)))  # from the files
    assert torch.equal(torch.cat(read), wanted[mixed])
    for maps, labels, index in store.batches(mixed, 4, generator=torch.Generator()):
        assert torch.equal(maps, wanted[index].float())
        assert torch.equal(labels, store.labels[index])
    torch.testing.assert_close(store.average(), wanted.float().mean(1))
    monkeypatch.setattr(shards, "_forward", lambda *a: pytest.fail("was extracted again"))
    extract(tiny, images, tmp_path / "small", dtype="float8", **options)
    with pytest.raises(ValueError, match="different: dtype"):
        extract(tiny, images, tmp_path / "small", dtype="float16", **options)
    with pytest.raises(ValueError, match="allowed are float16, bfloat16, float32, float8"):
        extract(tiny, images, tmp_path / "other", dtype="float4", **options)


def test_views_and_parts_have_scales_too(tmp_path, tiny, images, monkeypatch):
    monkeypatch.setattr(shards, "FLUSH", -1.0)  # every batch is a part
    plain, calls = shards._forward, []

    def dies(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(*arguments)

    options = {"batch_size": 5, "progress": False}
    whole = extract(tiny, images, tmp_path / "whole", dtype="float8", **options)
    monkeypatch.setattr(shards, "_forward", dies)
    with pytest.raises(KeyboardInterrupt):
        extract(tiny, images, tmp_path / "part", dtype="float8", **options)
    monkeypatch.setattr(shards, "_forward", plain)
    resumed = extract(tiny, images, tmp_path / "part", dtype="float8", **options)
    every = torch.arange(len(whole))
    assert torch.equal(resumed.gather(every), whole.gather(every))
    views = extract_views(tiny, whole, tmp_path / "views", pairs=1, progress=False)
    assert views.gather(torch.arange(3), dtype=None).dtype == torch.bfloat16
    assert views.image_bytes == whole.image_bytes


def test_a_shard_without_scales_is_damaged(tmp_path, tiny, images):
    extract(tiny, images, tmp_path / "f", dtype="float8", progress=False)
    path = tmp_path / "f" / "shard-00000.safetensors"
    tensors, written = read_tensors(path)
    del tensors["scale"]
    write_tensors(path, {name: value.clone() for name, value in tensors.items()}, written)
    with pytest.raises(ValueError, match=r"shard-00000.*does not hold what it should.*scale"):
        FeatureStore(tmp_path / "f")
