"""Maps whose classes show at one pixel each, for tests of training."""

from __future__ import annotations

import torch

from tests.training.stores import MemoryStore


def planted(labels, channels=8, pixels=6):
    """A store of ``labels [n]`` int64 or ``[n, K]``: a class is a pixel of its own channel."""
    classes = labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1
    present = labels if labels.ndim == 2 else torch.nn.functional.one_hot(labels, classes)
    maps = 0.3 * torch.rand(len(labels), pixels, channels)
    for image, row in zip(maps, present.bool(), strict=True):
        for k in row.nonzero().flatten().tolist():
            image[torch.randint(pixels, ()), k] += 2
    return MemoryStore(maps, labels, [f"class {k}" for k in range(classes)])


def one_class(images=24, classes=3):
    return planted(torch.arange(images) % classes)


def many_labels(images=24, classes=3):
    return planted((torch.rand(images, classes) > 0.5).float())
