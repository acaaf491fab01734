"""Shared fixtures: uninitialised memory is poisoned, randomness is fixed."""

from __future__ import annotations

import os
from collections.abc import Iterator

# Small tensors gain nothing from a second thread, and on a busy machine two threads that wait for
# each other are ten times slower than one: here and in every process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from PIL import Image

from infodisent import backends
from infodisent.backbones.torchvision_import import ensure_torchvision
from infodisent.backends.native import module as _native
from infodisent.testing import poisoned_memory

ensure_torchvision()
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


BACKENDS = [
    pytest.param(
        "native",
        marks=pytest.mark.skipif(
            _native.objection() is not None, reason=_native.objection() or "built"
        ),
    ),
    "sparse",
]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The test once with compiled code and once without."""
    with backends.use_backend(request.param):
        yield request.param


@pytest.fixture
def poisoned() -> Iterator[None]:
    """What is allocated holds NaN or the smallest integer, so that an unwritten output shows."""
    with poisoned_memory():
        yield


LAYOUTS = {  # how a [B, C, H, W] map is presented: (format, prefix tokens, builder)
    "NCHW": ("NCHW", 0, lambda x: x),
    "NCHW channels-last": ("NCHW", 0, lambda x: x.to(memory_format=torch.channels_last)),
    "NCHW strided": ("NCHW", 0, lambda x: torch.stack([x, x * 0], -1)[..., 0]),
    "NHWC": ("NHWC", 0, lambda x: x.permute(0, 2, 3, 1).contiguous()),
    "NHWC strided": ("NHWC", 0, lambda x: x.permute(0, 2, 3, 1)),
    "NCL": ("NCL", 0, lambda x: x.flatten(2)),
    "NLC": ("NLC", 0, lambda x: x.flatten(2).mT.contiguous()),
    "NLC prefix": ("NLC", 2, lambda x: torch.cat([_prefix(x), x.flatten(2).mT], 1)),
    "NCL prefix": ("NCL", 1, lambda x: torch.cat([_prefix(x)[:, :1].mT, x.flatten(2)], 2)),
}


def _prefix(x: torch.Tensor) -> torch.Tensor:
    return torch.full((x.shape[0], 2, x.shape[1]), 1e3, dtype=x.dtype)  # would win every maximum


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest):
    """`(kwargs, build)`: keyword arguments of an operator and the map's builder."""
    fmt, prefix, build = LAYOUTS[request.param]
    return {"input_fmt": fmt, "num_prefix_tokens": prefix}, build


@pytest.fixture
def image_folder(tmp_path):
    """Two classes a colour can tell apart, 12 images each, of which one is corrupt."""
    generator = np.random.default_rng(0)
    root = tmp_path / "images"
    for name, channel in (("red", 0), ("green", 1)):
        (root / name).mkdir(parents=True)
        for i in range(12):
            pixels = generator.integers(0, 60, (40, 48, 3), dtype=np.uint8)
            pixels[10:20, 10 + i : 20 + i, channel] = 255
            Image.fromarray(pixels).save(root / name / f"{i:02d}.png")
    corrupt = root / "red" / "07.png"
    corrupt.write_bytes(corrupt.read_bytes()[:200])
    return root


@pytest.fixture
def tiny():
    """A small real backbone with an InfoDisent head for two classes; weights fixed by a seed."""
    from infodisent import attach

    torch.manual_seed(1)
    return attach("test_resnet", 2).eval()


@pytest.fixture
def store(tmp_path, image_folder, tiny):
    """The features of `image_folder`, in shards of 10."""
    from infodisent.data.extraction import extract
    from infodisent.data.images import scan_folder

    return extract(
        tiny, scan_folder(image_folder), tmp_path / "features", shard_size=10, progress=False
    )


def write_run(folder, model, store, classes, root, task="multiclass"):
    """A run as `fit` leaves it, of a random head; its features lie in ``folder/features``."""
    from infodisent.explanations.prototypes import find_prototypes
    from infodisent.files import write_json
    from infodisent.training import checkpoint
    from infodisent.training.run import METRICS, MODEL, PROTOTYPES

    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.eval()
    checkpoint.save(folder / MODEL, model, classes, task=task)
    find_prototypes(model.head, store, k=2, progress=False).save(folder / PROTOTYPES)
    images = {"root": root, "classes": list(classes), "skipped": []}
    images |= {split: store.splits.count(split) for split in ("train", "val")}
    metrics = {"backbone": "test_resnet", "rows": [], "images": images}
    write_json(folder / METRICS, metrics | {"features": store.meta["made_from"]})
    return folder


@pytest.fixture
def run_folder(tmp_path, image_folder, tiny):
    """A run over `image_folder`, in a folder with a space in its name."""
    from infodisent.data.extraction import extract
    from infodisent.data.images import scan_folder
    from infodisent.training.run import FEATURES

    folder, images = tmp_path / "a run", scan_folder(image_folder)
    store = extract(tiny, images, folder / FEATURES, progress=False)
    return write_run(folder, tiny, store, images.classes, images.root)


@pytest.fixture
def labels_run(tmp_path, image_folder):
    """A multi-label run: green pictures are also "small", and one has no label at all."""
    from infodisent import attach
    from infodisent.data.extraction import extract
    from infodisent.data.images import ImageItem, ImageSet
    from infodisent.training.run import FEATURES

    paths = [*sorted((image_folder / "green").iterdir()), *sorted((image_folder / "red").iterdir())]
    labels = [(0, 2)] * 12 + [(1,)] * 11 + [()]
    items = tuple(
        ImageItem(str(path), label, "val" if i % 3 == 0 else "train")
        for i, (path, label) in enumerate(zip(paths, labels, strict=True))
    )
    classes = ("green", "red", "small, or so")
    images = ImageSet(str(image_folder), classes, items, "multilabel")
    torch.manual_seed(2)
    model = attach("test_resnet", 3).eval()
    folder = tmp_path / "labels"
    store = extract(model, images, folder / FEATURES, progress=False)
    return write_run(folder, model, store, classes, str(image_folder), "multilabel")
