"""Data sets in memory: torch data sets, tensors, arrays, Hugging Face data sets."""

from __future__ import annotations

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset, random_split

from infodisent.data.extraction import extract
from infodisent.data.images import as_image_set, load_image, scan_folder
from infodisent.training.fit import FitConfig
from infodisent.training.run import fit


def pixels(i: int, channels: int = 3) -> np.ndarray:
    shape = (8, 9) if channels == 1 else (8, 9, channels)
    return np.random.default_rng(i).integers(0, 256, shape, dtype=np.uint8)


class Pictures:
    """As torchvision and medmnist give them: (picture, label), class names."""

    classes = ("x", "y")

    def __init__(self, n=8, change=lambda a: Image.fromarray(a), label=lambda i: i % 2):
        self.n, self.change, self.label = n, change, label

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return self.change(pixels(i)), self.label(i)


CHANGES = {
    "PIL": Image.fromarray,
    "array": lambda a: a,
    "uint8 tensor": lambda a: torch.from_numpy(a).permute(2, 0, 1),
    "float tensor": lambda a: torch.from_numpy(a).permute(2, 0, 1) / 255,
    "float array": lambda a: a / 255,
}


@pytest.mark.parametrize("kind", CHANGES)
def test_pictures_are_kept_without_loss(tmp_path, kind):
    images = as_image_set(Pictures(change=CHANGES[kind]), tmp_path)
    assert images.classes == ("x", "y")
    assert images.items[3].path == str(tmp_path / "images" / "000003.png")
    assert [i.label for i in images.items] == [0, 1] * 4
    assert sum(i.split == "val" for i in images.items) == 2
    for i, item in enumerate(images.items):
        assert np.array_equal(np.asarray(load_image(item.path)), pixels(i))


def test_files_are_written_once_and_others_refused(tmp_path):
    as_image_set(Pictures(4), tmp_path)
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "images").iterdir()}
    (tmp_path / "images" / "000002.png").unlink()  # as if interrupted
    images = as_image_set(Pictures(8), tmp_path)
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "images").iterdir()}
    assert len(images.items) == len(after) == 8
    assert all(after[n] == before[n] for n in before if n != "000002.png")
    other = Pictures(4, change=lambda a: Image.fromarray(255 - a))
    with pytest.raises(ValueError, match=r"picture 0 of the data set is not the one in .*000000"):
        as_image_set(other, tmp_path)
    assert as_image_set(other, tmp_path, overwrite=True).items[0].path
    assert np.array_equal(
        np.asarray(load_image(tmp_path / "images" / "000000.png")), 255 - pixels(0)
    )


def test_tensors_and_arrays(tmp_path):
    x = torch.rand(6, 3, 8, 8)
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    for n, data in enumerate(
        [
            TensorDataset(x, y),
            (x, y),
            (list(x), y.tolist()),
            (x.permute(0, 2, 3, 1).numpy(), y.numpy()),
            [(a, int(b)) for a, b in zip(x, y, strict=True)],
        ]
    ):
        images = as_image_set(data, tmp_path / str(n))
        assert images.classes == ("0", "1", "2")
        assert [i.label for i in images.items] == y.tolist()
    grey = (torch.randint(0, 256, (4, 8, 8), dtype=torch.uint8), [0, 1, 0, 1])  # MNIST.data
    assert load_image(as_image_set(grey, tmp_path / "grey").items[0].path).size == (8, 8)


def test_a_pair_is_train_and_val(tmp_path):
    pair = (Pictures(4), Subset(Pictures(8), [4, 5]))
    images = as_image_set(pair, tmp_path / "a", val_fraction=0.5)
    assert [i.split for i in images.items] == ["train"] * 4 + ["val"] * 2
    assert any("val_fraction 0.5 has no effect" in line for line in images.notices)
    x, y = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 0, 1])
    columns = as_image_set(((x, y), (x[:2] / 2, y[:2])), tmp_path / "b")
    assert [i.split for i in columns.items] == ["train"] * 4 + ["val"] * 2
    named = as_image_set(
        {"train": Pictures(4), "test": Subset(Pictures(8), [4, 5])}, tmp_path / "c"
    )
    assert [i.split for i in named.items] == ["train"] * 4 + ["val"] * 2
    halves = random_split(Pictures(8), [0.5, 0.5], torch.Generator().manual_seed(1))
    assert as_image_set(tuple(halves), tmp_path / "d").classes == ("x", "y")
    assert [i.split for i in as_image_set(list(halves), tmp_path / "d").items].count("val") == 4
    two = [(Image.fromarray(pixels(i)), i % 2) for i in range(4)]
    assert len(as_image_set((two, two[:2]), tmp_path / "g").items) == 6
    assert [i.split for i in as_image_set(tuple(two), tmp_path / "g").items].count("val") == 2
    with pytest.raises(ValueError, match="nothing can be held out"):
        as_image_set(two[:2], tmp_path / "h")
    parts = {"train": Pictures(4), "test": Pictures(2), "validation": Subset(Pictures(8), [6, 7])}
    three = as_image_set(parts, tmp_path / "i")
    assert three.notices == ("left out: the splits test; validation is held out",)
    leak = as_image_set((Pictures(4), Pictures(2)), tmp_path / "e")
    assert any("2 held-out images are also" in line for line in leak.notices)
    with pytest.raises(ValueError, match="val has 1 class that train lacks: y"):
        as_image_set((Subset(Pictures(8), [0, 2]), Pictures(2)), tmp_path / "f")


def test_hugging_face_items_and_names(tmp_path):
    class Hub:
        def __init__(self):
            self.features = {"image": None, "label": SimpleNamespace(names=["ant", "bee"])}

        def __len__(self):
            return 4

        def __getitem__(self, i):
            return {"image": Image.fromarray(pixels(i)), "label": i % 2}

    images = as_image_set(Hub(), tmp_path)
    assert images.classes == ("ant", "bee")
    with pytest.raises(TypeError, match="splits are unsupervised"):
        as_image_set({"unsupervised": Hub()}, tmp_path)


def test_labels(tmp_path):
    def labelled(name, label, **options):
        data = Pictures(label=label)
        data.classes = None
        return as_image_set(data, tmp_path / name, **options)

    text = labelled("text", lambda i: ("dog", "cat")[i % 2])
    assert (text.classes, text.items[0].label) == (("cat", "dog"), 1)
    column = labelled("column", lambda i: np.array([i % 2]))  # medmnist
    assert [i.label for i in column.items[:2]] == [0, 1]
    several = labelled("several", lambda i: torch.tensor([1.0, i % 2, i % 3 == 0]))
    assert several.task == "multilabel"
    assert several.items[1].label == (0, 1)
    one = labelled("one", lambda i: [1 - i % 2, i % 2])
    assert (one.task, one.items[1].label) == ("multiclass", 1)
    given = labelled("given", lambda i: i % 2, classes=["a", "b"])
    assert given.classes == ("a", "b")
    gaps = labelled("gaps", lambda i: (2, 10)[i % 2])
    assert (gaps.classes, gaps.items[1].label) == (("2", "10"), 1)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (lambda i: i, "picture 2 of the data set: its label is 2, there are 2 class names"),
        (lambda i: -i, "label is -1, must be >= 0"),
        (lambda i: i + 0.5, "is 0.5, expected the index"),
        (lambda i: {"boxes": []}, "label is a dict, expected an int"),
        (lambda i: [3, 4], "must hold zeros and ones"),
        (lambda i: "x" if i else 0, "label is 'x', those before are 0"),
        (lambda i: 0, None),
    ],
)
def test_labels_that_are_refused(tmp_path, label, message):
    if message is None:  # a class without any image is kept, its index means something
        images = as_image_set(Pictures(label=label), tmp_path)
        assert any("1 class without any image (y)" in line for line in images.notices)
        return
    with pytest.raises(ValueError, match=message):
        as_image_set(Pictures(label=label), tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Pictures(change=lambda a: torch.from_numpy(a).permute(2, 0, 1) / 50 - 1), "drop the"),
        (Pictures(change=lambda a: np.float32(a / 127 - 1)), "drop the transform"),
        (Pictures(change=lambda a: torch.rand(3, 8, 8)), "another one at every access"),
        (Pictures(change=lambda a: torch.rand(5, 8, 8)), r"picture 0 .* \[5, 8, 8\]"),
        (Pictures(0), "is empty"),
        ((torch.rand(3, 3, 8, 8), [0, 1]), "3 images and 2 labels"),
    ],
)
def test_pictures_that_are_refused(tmp_path, data, message):
    with pytest.raises(ValueError, match=message):
        as_image_set(data, tmp_path)
    assert not (tmp_path / "images").exists() or not os.listdir(tmp_path / "images")


class Stream(IterableDataset):
    def __iter__(self):
        return iter(())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (DataLoader(Pictures()), "pass the data set it loads from"),
        (Stream(), "no length"),
        (torch.rand(2, 3, 8, 8), "without labels"),
        ([pixels(0), pixels(1)], r"expected \(picture, label\)"),
        (3, "no length"),
    ],
)
def test_what_is_no_labelled_data_set(tmp_path, data, message):
    with pytest.raises(TypeError, match=message):
        as_image_set(data, tmp_path)


def test_sixteen_bits_stay_until_the_file_is_read(tmp_path):
    ramp = np.linspace(0, 4095, 72).reshape(8, 9).astype(np.uint16)
    images = as_image_set(([ramp, ramp // 2, ramp // 3, ramp // 4], [0, 1, 0, 1]), tmp_path)
    with Image.open(images.items[1].path) as image:
        assert np.array_equal(np.asarray(image), ramp // 2)


def test_paths_and_folders_stay_where_they_are(tmp_path, image_folder):
    paths = sorted(map(str, image_folder.rglob("*.png")))
    images = as_image_set((paths, [i % 2 for i in range(len(paths))]), tmp_path / "a")
    assert [i.path for i in images.items] == paths
    assert not (tmp_path / "a").exists()
    assert as_image_set(image_folder, tmp_path / "a") == scan_folder(image_folder)
    with pytest.raises(FileNotFoundError, match=r"picture 1 .*nowhere"):
        as_image_set(([paths[0], "nowhere.png"], [0, 1]), tmp_path / "b")
    assert as_image_set(images, tmp_path / "c") is images
    listed = [(path, i % 2) for i, path in enumerate(paths)]
    pair = as_image_set((listed[:10], listed[10:]), tmp_path / "d")
    assert [i.split for i in pair.items] == ["train"] * 10 + ["val"] * (len(paths) - 10)


def test_extract_and_fit_take_them(tmp_path, tiny):
    store = extract(tiny, Pictures(), tmp_path / "store", progress=False)
    assert len(store) == 8
    again = extract(tiny, Pictures(), tmp_path / "store", progress=False)
    assert again.files == store.files
    run = fit(tiny, Pictures(12), tmp_path / "run", FitConfig(epochs=1), progress=False)
    assert run.metrics["images"]["train"] == 8
    assert run.metrics["images"]["notices"] == []
    assert run.store.files[0].startswith(str(tmp_path / "run" / "images"))
