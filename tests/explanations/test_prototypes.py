"""Prototypes: what one streaming pass finds is what a loop over images and channels finds."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infodisent import reference
from infodisent.data.store import FeatureStore
from infodisent.explanations.prototypes import Prototypes, find_prototypes
from infodisent.files import write_json, write_tensors
from infodisent.nn import InfoDisentHead


def make_store(folder, maps, splits=None, grid=None):
    """A store of given maps [N, P, C]; labels alternate; shards of 4."""
    n, pixels, channels = maps.shape
    folder.mkdir(parents=True, exist_ok=True)
    splits = splits or ["train"] * n
    meta = {
        "made_from": {"test": 1},
        "items": [[f"image{i}.png", i % 2, s] for i, s in enumerate(splits)],
        "classes": ["even", "odd"],
        "channels": channels,
        "pixels": pixels,
        "grid": list(grid or (1, pixels)),
        "shard_size": 4,
        "transform": {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3},
    }
    write_json(folder / "store.json", meta)
    for number, part in enumerate(maps.split(4)):
        items = torch.arange(number * 4, number * 4 + len(part))
        written = {"made_from": {"test": 1}, "skipped": []}
        tensors = {"features": part.contiguous(), "item": items}
        write_tensors(folder / f"shard-{number:05d}.safetensors", tensors, written)
    return FeatureStore(folder)


def by_hand(y, images, k):
    """{(channel, sign): [(value, image, pixel)]} of maps y [N, P, C], one channel at a time."""
    strongest = {}
    for c in range(y.shape[2]):
        for sign in (1, -1):
            rows = []
            for i in images:
                values = [sign * v for v in y[i, :, c].tolist()]
                best = max(values)
                if best > 0:
                    rows.append((best, i, values.index(best)))
            strongest[c, sign] = sorted(rows, key=lambda row: (-row[0], row[1]))[:k]
    return strongest


def rows(prototypes, channel, sign):
    side = "pos" if sign == 1 else "neg"
    value, image, pixel = (
        getattr(prototypes, f"{side}_{what}")[:, channel].tolist()
        for what in ("value", "image", "index")
    )
    return list(zip(value, image, pixel, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 11),
    pixels=st.integers(1, 5),
    channels=st.integers(1, 4),
    k=st.integers(1, 13),
    batch_size=st.integers(1, 12),
    rotate=st.booleans(),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_equals_brute_force_with_ties_and_zeros(
    n, pixels, channels, k, batch_size, rotate, seed, data
):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randint(-2, 3, (n, pixels, channels), generator=generator).float()
    splits = data.draw(st.lists(st.sampled_from(["train", "val"]), min_size=n, max_size=n))
    splits[data.draw(st.integers(0, n - 1))] = "train"
    head = InfoDisentHead(channels, 2, rotate=rotate).eval()  # U is the identity at the start
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder), maps, splits)
        prototypes = find_prototypes(head, store, k=k, batch_size=batch_size, progress=False)
    images = [i for i, s in enumerate(splits) if s == "train"]
    for (c, sign), wanted in by_hand(maps, images, k).items():
        assert rows(prototypes, c, sign) == wanted + [(0.0, -1, -1)] * (k - len(wanted))


@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_rotated_maps(tmp_path, batch_size):
    maps = torch.randn(23, 6, 8)
    head = InfoDisentHead(8, 3).eval()
    with torch.no_grad():
        head.rotation.A.normal_(0, 0.5)
    u = reference.rotation(head.rotation.A.detach().double())
    y = maps.double() @ u.t()
    splits = ["val" if i % 5 == 0 else "train" for i in range(23)]
    store = make_store(tmp_path, maps, splits, grid=(2, 3))
    for split in ("train", "val"):
        prototypes = find_prototypes(
            head, store, k=4, split=split, batch_size=batch_size, progress=False
        )
        images = [i for i, s in enumerate(splits) if s == split]
        for (c, sign), wanted in by_hand(y, images, 4).items():
            actual = [row for row in rows(prototypes, c, sign) if row[1] >= 0]
            assert [r[1:] for r in actual] == [r[1:] for r in wanted]
            assert [r[0] for r in actual] == pytest.approx([r[0] for r in wanted], abs=1e-5)
            named = prototypes.of(c, sign)
            assert [p.file for p in named] == [f"image{r[1]}.png" for r in wanted]
            assert [p.label_name for p in named] == [("even", "odd")[r[1] % 2] for r in wanted]
            assert [p.pixel for p in named] == [(r[2] // 3, r[2] % 3) for r in wanted]


def test_equal_activations_keep_the_first_image_across_batches(tmp_path):
    store = make_store(tmp_path, torch.ones(40, 3, 2))
    head = InfoDisentHead(2, 2, rotate=False)
    for batch_size in (1, 3, 40):
        prototypes = find_prototypes(head, store, k=5, batch_size=batch_size, progress=False)
        assert prototypes.pos_image[:, 0].tolist() == [0, 1, 2, 3, 4]
        assert prototypes.pos_index[:, 1].tolist() == [0] * 5
        assert prototypes.neg_image.unique().tolist() == [-1]
        assert prototypes.of(0, -1) == []


def test_every_image_is_read_once_and_never_all_at_once(tmp_path, monkeypatch):
    store = make_store(tmp_path, torch.randn(30, 2, 3), ["train"] * 20 + ["val"] * 10)
    read = []
    plain = store.read
    monkeypatch.setattr(
        store, "read", lambda b, *a: (read.extend(i.tolist() for i in b), plain(b, *a))[1]
    )
    find_prototypes(InfoDisentHead(3, 2), store, batch_size=6, progress=False)
    assert [i for part in read for i in part] == list(range(20))
    assert max(map(len, read)) == 6


def test_real_store_and_the_channel_side_the_model_sees(store, tiny):
    prototypes = find_prototypes(tiny.head, store, k=3, progress=False)
    assert (prototypes.k, prototypes.channels) == (3, tiny.num_features)
    assert prototypes.files == store.files
    assert prototypes.grid == store.grid
    train = set(store.indices("train").tolist())
    assert set(prototypes.pos_image.flatten().tolist()) - {-1} <= train
    assert (prototypes.pos_value.diff(dim=0) <= 0).all()
    channel = int(prototypes.pos_value[0].argmax())
    first = prototypes.of(channel, 1)[0]
    index = store.files.index(first.file)
    y = store.gather(torch.tensor([index]))[0]  # U is the identity
    assert y[:, channel].max().item() == pytest.approx(first.value, rel=1e-5)
    assert y[first.pixel[0] * store.grid[1] + first.pixel[1], channel] == y[:, channel].max()


def test_round_trip(tmp_path):
    store = make_store(tmp_path / "store", torch.randn(9, 4, 5), grid=(2, 2))
    prototypes = find_prototypes(InfoDisentHead(5, 2), store, k=12, progress=False)
    path = tmp_path / "prototypes.safetensors"
    prototypes.save(path)
    again = Prototypes.load(path)
    for name, value in vars(prototypes).items():
        other = getattr(again, name)
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other)
            assert value.dtype == other.dtype
        else:
            assert value == other, name
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == [path.name]


def test_damaged_and_foreign_files(tmp_path):
    store = make_store(tmp_path / "store", torch.randn(4, 4, 5))
    path = tmp_path / "p.safetensors"
    find_prototypes(InfoDisentHead(5, 2), store, progress=False).save(path)
    content = path.read_bytes()
    for length in (0, 5, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"p\.safetensors is truncated"):
            Prototypes.load(path)
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors"):
        Prototypes.load(tmp_path / "gone.safetensors")
    write_tensors(path, {"a": torch.zeros(1)}, {"kind": "model", "format": 1})
    with pytest.raises(ValueError, match="does not hold prototypes"):
        Prototypes.load(path)
    write_tensors(path, {"a": torch.zeros(1)}, {"kind": "prototypes", "format": 99})
    with pytest.raises(ValueError, match="format 99, this version reads up to 1"):
        Prototypes.load(path)


def test_bad_arguments(tmp_path):
    store = make_store(tmp_path, torch.randn(4, 4, 5))
    head = InfoDisentHead(5, 2)
    with pytest.raises(ValueError, match="takes 6 channels, the store has 5"):
        find_prototypes(InfoDisentHead(6, 2), store)
    with pytest.raises(ValueError, match="split is 'val', the store has images in 'train'"):
        find_prototypes(head, store, split="val")
    for name in ("k", "batch_size"):
        with pytest.raises(ValueError, match=f"{name} is 0"):
            find_prototypes(head, store, **{name: 0})
    prototypes = find_prototypes(head, store, progress=False)
    for channel in (-1, 5):
        with pytest.raises(ValueError, match=rf"channel is {channel}, allowed are 0 … 4"):
            prototypes.of(channel, 1)
    with pytest.raises(ValueError, match="sign is 0, allowed are 1 and -1"):
        prototypes.of(0, 0)
    with torch.no_grad():
        head.rotation.A.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN or Inf"):
        find_prototypes(head, store, progress=False)


@pytest.mark.parametrize(
    "bad",
    [
        {"files": [None]},
        {"grid": (1, None)},
        {"transform": "x"},
        {"transform": {"mean": "grey"}},
        {"pos_image": torch.tensor([[1]])},
        {"neg_index": torch.tensor([[4]])},
        {"neg_value": torch.tensor([[torch.nan]])},
        {"pos_index": torch.tensor([0])},
        {"labels": torch.tensor([1])},
        {"labels": torch.tensor([], dtype=torch.int64)},
    ],
)
def test_a_file_that_is_not_of_one_piece(tmp_path, bad):
    place, value = torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1)
    whole = {
        "pos_value": value, "pos_image": place, "pos_index": place, "neg_value": value,
        "neg_image": place, "neg_index": place, "files": ["a"], "labels": place[0],
        "classes": ("one",), "grid": (2, 2), "transform": {},
    }  # fmt: skip
    path = tmp_path / "p.safetensors"
    Prototypes(**whole).save(path)
    assert Prototypes.load(path).files == ["a"]
    Prototypes(**{**whole, **bad}).save(path)
    with pytest.raises(ValueError, match=r"p\.safetensors does not hold what it should"):
        Prototypes.load(path)
