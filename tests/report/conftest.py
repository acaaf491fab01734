"""Runs as `fit` leaves them, made without training."""

from __future__ import annotations

import pytest
import torch

from infodisent.explanations.prototypes import find_prototypes
from infodisent.files import write_json
from infodisent.training import checkpoint
from infodisent.training.run import FEATURES, METRICS, MODEL, PROTOTYPES


def write_run(folder, model, store, classes, root, task="multiclass"):
    """A run of a random head, whose features `extract` has written to ``folder/features``."""
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

    folder, images = tmp_path / "a run", scan_folder(image_folder)
    store = extract(tiny, images, folder / FEATURES, progress=False)
    return write_run(folder, tiny, store, images.classes, images.root)


@pytest.fixture
def labels_run(tmp_path, image_folder):
    """A multi-label run: green pictures are also "small", and one has no label at all."""
    from infodisent import attach
    from infodisent.data.extraction import extract
    from infodisent.data.images import ImageItem, ImageSet

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
